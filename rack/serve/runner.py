"""The thread that owns the rack: opens it, runs requests in its slots, opens it again.

Rules: requests get a slot in the order they came; a cancelled one frees its slot before its next
step. After a fault from which the rack recovers, requests go on (rack/run/sequences.py); those that
come meanwhile wait. After any other fault, in a step or while nothing runs, all that run end, the
session is closed, and a fresh one is opened. What cannot be opened is tried again after pauses,
each longer than the one before, and given up after the last of them; at once if it never ran,
because then it is the configuration. Events reach whoever asked through `QueuedRequest.emit`, which
is called in this thread and must not block. Queue time is counted in emulated cycles: those that
passed on the rack between a request's arrival and its slot, none where a slot was free. (When a
request arrives is the client's doing; what the rack runs before it is not measured in wall time.)
With a pacer no step begins, and no token is given out, before its cycle has come by the wall clock;
and a request that finds a slot free begins at the cycle at which it came.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rack.errors import RequestError
from rack.run.completion import Completion, TokenEvent
from rack.run.engine import Engine
from rack.run.sequences import Emitted, Sequences
from rack.run.session import Session
from rack.run.steps import Recovery
from rack.serve.errors import (
    RETRY_QUEUE_SECONDS,
    RETRY_STARTING_SECONDS,
    BusyError,
    StoppedError,
    starting,
)
from rack.serve.pacing import Slip, Unpaced
from rack.system.progress import Progress
from rack.text.sampler import SamplingParams

RESTART_PAUSES = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
"""Seconds before the first, second, … start after a rack was lost; then it is given up."""
IDLE_CHECK_SECONDS = 1.0  # how often the chips of a rack without work are looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The totals of a request that ran to its end; cycles are emulated, `wall_*` are seconds."""

    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    queue_cycles: int
    prompt_cycles: int
    completion_cycles: int
    data_hash: str | None
    schedule_hash: str
    cached_tokens: int = 0  # of the prompt: found in a slot, and not run again
    waited_cycles: int = 0  # of the two above: while steps of others held the rack
    wall_queue_seconds: float
    wall_prompt_seconds: float
    wall_completion_seconds: float
    slip: Slip | None = None  # where paced
    recoveries: tuple[Recovery, ...] = ()  # of its rack, while it ran


def together(parts: Sequence[Finished]) -> Finished:
    """Return the totals of a request of several prompts: sums, and the wait for the first."""
    if len(parts) == 1:
        return parts[0]
    hashes = [part.data_hash for part in parts if part.data_hash is not None]
    return Finished(
        prompt_tokens=sum(part.prompt_tokens for part in parts),
        completion_tokens=sum(part.completion_tokens for part in parts),
        finish_reason=parts[-1].finish_reason,
        queue_cycles=min(part.queue_cycles for part in parts),
        prompt_cycles=sum(part.prompt_cycles for part in parts),
        completion_cycles=sum(part.completion_cycles for part in parts),
        data_hash=hashlib.sha256("".join(hashes).encode()).hexdigest() if hashes else None,
        schedule_hash=parts[-1].schedule_hash,
        cached_tokens=sum(part.cached_tokens for part in parts),
        waited_cycles=sum(part.waited_cycles for part in parts),
        wall_queue_seconds=min(part.wall_queue_seconds for part in parts),
        wall_prompt_seconds=sum(part.wall_prompt_seconds for part in parts),
        wall_completion_seconds=sum(part.wall_completion_seconds for part in parts),
        slip=Slip.of([part.slip for part in parts if part.slip is not None]),
        recoveries=tuple(dict.fromkeys(one for part in parts for one in part.recoveries)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The end of a request whose step failed, or that a stop cut off.

    With a RequestError, of one that cannot be done after all: the client's to change.
    """

    error: Exception


Event = TokenEvent | Finished | Failed


_STOPPING = BusyError(what="the server is stopping", retry_seconds=RETRY_STARTING_SECONDS)
_RESTARTING = "restarting after a failure"


class QueuedRequest:
    """One request: what to run, where its events go, when it arrived (default: now)."""

    def __init__(
        self, prompt: Sequence[int], params: SamplingParams, emit: Callable[[Event], None],
        arrived_seconds: float | None = None,
    ) -> None:  # fmt: skip
        self.prompt, self.params, self.emit = prompt, params, emit
        self.arrived_seconds = time.perf_counter() if arrived_seconds is None else arrived_seconds
        self.cancelled = False
        self.cycles_at_submit = self.cycles_at_slot = 0
        self.started: Started | None = None  # with its slot
        self.promised_seconds: float | None = None  # of the event that is emitted, where paced

    @property
    def cached_tokens(self) -> int:
        """How many tokens of the prompt were found in its slot; 0 until it has one."""
        return 0 if self.started is None else self.started.completion.reused_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A request in its slot, and how long it waited for that."""

    completion: Completion
    wall_queue_seconds: float
    moved_seconds: float  # by which the pacer's schedule had moved before


class Runner:
    """Owns the session and its thread.

    With `reuse`, prompts go on from what a slot's cache holds (rack/run/prefixes.py). `on_recovery`
    is told of a fault after which the rack went on, `on_failure` of a rack that was lost or did not
    start, and in how many seconds the next start follows; `on_given_up` is told when there is none
    any more. All are called in the thread.
    """

    def __init__(
        self, open_session: Callable[[Progress], Session], *, max_queue: int,
        pacer: Unpaced | None = None, reuse: bool = False,
        on_ready: Callable[[], None] = lambda: None,
        on_recovery: Callable[[Recovery], None] = lambda recovery: None,
        on_failure: Callable[[Exception, float], None] = lambda error, pause: None,
        on_given_up: Callable[[Exception], None] = lambda error: None,
        pauses: Sequence[float] = RESTART_PAUSES,
    ) -> None:  # fmt: skip
        self._open, self.max_queue = open_session, max_queue
        self.pacer, self._reuse = pacer or Unpaced(), reuse
        self._on_ready, self._on_recovery = on_ready, on_recovery
        self._on_failure, self._on_given_up = on_failure, on_given_up
        self._pauses, self._was_ready = pauses, False
        self._losses = 0  # in a row, without a request in between
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[QueuedRequest] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="rack", daemon=True)
        self.running: list[QueuedRequest] = []  # at most one a slot
        self.slots = 1
        self.stage: str | None = "starting"  # None once ready
        self.given_up = False
        self._sequences: Sequences | None = None  # of the rack that is there
        self._before = 0  # cycles on racks that were lost
        self._begun = self._paced = 0  # cycles of this rack: where the pacer began, and is
        self.cycles = 0  # emulated, since the start
        self.corrected = Counter[str]()  # vectors at the ends of links, by link, since the start
        self._corrected_before = Counter[str]()  # on racks that were lost
        self.kv_tokens = 0  # tokens of the running sequences in the cache

    def start(self) -> None:
        """Start opening the rack."""
        self._thread.start()

    def check_ready(self) -> None:
        """Raise BusyError while no rack can take a request, naming the stage."""
        if (stage := self.stage) is not None:
            raise starting(stage)

    def condition(self) -> str | None:
        """Say what keeps requests from going on now, None if nothing: a stage, or the rack's."""
        sequences, stage = self._sequences, self.stage
        return stage if stage is not None or sequences is None else sequences.condition()

    @property
    def spares(self) -> int:
        """How many chips of the rack can still be replaced; none while there is no rack."""
        sequences = self._sequences  # another thread may take it away
        return 0 if sequences is None else sequences.rack.spares

    @property
    def load(self) -> int:
        """Requests running and waiting."""
        return len(self._waiting) + len(self.running)

    def submit(self, job: QueuedRequest) -> None:
        """Queue a request. Raises BusyError when it cannot be taken now."""
        with self._changed:
            self.check_ready()
            if len(self.running) >= self.slots and len(self._waiting) >= self.max_queue:
                raise BusyError(
                    what=f"{len(self._waiting)} requests are waiting, --max-queue is "
                    f"{self.max_queue}",
                    retry_seconds=RETRY_QUEUE_SECONDS,
                )
            job.cycles_at_submit = self.cycles
            self._waiting.append(job)
            self._claim()  # here, so that a burst is counted before the thread has woken up
            self._changed.notify_all()

    def _claim(self) -> None:
        """Let requests that wait take the free slots."""
        while self._waiting and len(self.running) < self.slots:
            job = self._waiting.popleft()
            job.cycles_at_slot = self.cycles
            self.running.append(job)

    def cancel(self, job: QueuedRequest) -> None:
        """Forget a request: no further event, and its slot is free before its next step."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)

    def request_stop(self) -> None:
        """Fail what runs and waits, and let the thread end; does not wait for it."""
        with self._changed:
            self._stopping, self.stage = True, "stopping"
            self._fail_all(_STOPPING)
            self._changed.notify_all()

    def stop(self, timeout_seconds: float) -> bool:
        """Stop, wait for the thread to close the rack; False if it did not in time."""
        self.request_stop()
        if self._thread.ident is None:
            return True  # never started
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _fail_all(self, error: Exception) -> None:
        """Answer what runs and waits with an error."""
        for job in (*self.running, *self._waiting):
            if not job.cancelled:
                job.emit(Failed(error=error))
                job.cancelled = True
        self._waiting.clear()

    def _main(self) -> None:
        try:
            while (error := self._one_rack()) is not None:
                if self._losses > len(self._pauses if self._was_ready else ()):
                    self._give_up(error)
                    return
                pause = self._pauses[self._losses - 1] if self._losses else 0.0
                self._on_failure(error, pause)
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, pause)
        except StoppedError:
            pass

    def _one_rack(self) -> Exception | None:
        """Open a rack and serve until it is lost, then say why; None when asked to stop."""
        if self._stopping:
            return None
        try:
            with self._open(self._progress) as session:
                return self._serve(session)
        except StoppedError:
            raise
        except Exception as error:  # it did not start
            self._losses += 1
            self._out_of_service()
            with self._changed:
                if not self._stopping:
                    self._fail_all(starting(_RESTARTING))
                    self.running.clear()
            return error

    def _give_up(self, error: Exception) -> None:
        with self._changed:
            if self._stopping:
                return
            self.given_up, self.stage = True, f"given up: {error}"
            self._fail_all(starting(self.stage))
            self.running.clear()
        self._on_given_up(error)

    def _out_of_service(self) -> None:
        with self._changed:
            if not self._stopping:
                self.stage = _RESTARTING
            self._sequences = None

    def _progress(self, stage: str, done: int, total: int) -> None:
        with self._changed:
            if self._stopping:
                raise StoppedError("stopped while starting")
            self.stage = f"{stage} {done}/{total}"

    def _serve(self, session: Session) -> Exception | None:
        """Run requests until the rack is lost, which is returned, or a stop is asked for."""
        prepared = session.prepared
        engine = Engine(session.rack, prepared.tokenizer, prepared.answers)
        sequences = Sequences(session.rack, reuse=self._reuse, on_recovery=self._recovered)
        self._before, self._begun, self._paced = self.cycles, 0, 0
        self._corrected_before = self.corrected
        with self._changed:
            if self._stopping:
                return None
            self._sequences, self.stage, self._was_ready = sequences, None, True
            self.slots = prepared.compiled.sequences
        self._on_ready()
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopping or bool(self.running), IDLE_CHECK_SECONDS
                )
                if self._stopping:
                    return None
                works = bool(self.running)
            error = self._turn(engine, sequences) if works else self._check(sequences)
            if error is not None:
                self._lose(error)
                return error

    def _recovered(self, recovery: Recovery) -> None:
        """Take note that requests under way have stood still since a lost chip's last sign."""
        if any(job.started is not None for job in self.running):
            self.pacer.stand_still(recovery.detected_seconds + recovery.wall_seconds)
        self._on_recovery(recovery)

    def _turn(self, engine: Engine, sequences: Sequences) -> Exception | None:
        """Begin or end one step. Return why the rack can no longer be trusted, if so."""
        try:
            for job in self._comers_and_leavers():
                if job.cancelled:
                    self._leave(sequences, job)
                else:
                    self._start(engine, sequences, job)
            if not sequences.running:
                return None
            self._pace(sequences.upcoming())
            if self._comers_and_leavers():  # meanwhile: something else may be next
                return None
            emitted = sequences.advance()
            if any(one.completion.finish_reason is not None for one in emitted):
                self.corrected = self._corrected_before + Counter(engine.rack.corrected_vectors())
        except Exception as error:
            return error
        self.kv_tokens = sum(one.cached_tokens for one in sequences.running)
        self.cycles = self._before + sequences.clock
        for one in emitted:
            self._give_out(one)
        return None

    def _comers_and_leavers(self) -> list[QueuedRequest]:
        """Return who has a slot and has not begun, or has one and is gone."""
        with self._changed:
            return [job for job in self.running if job.started is None or job.cancelled]

    def _start(self, engine: Engine, sequences: Sequences, job: QueuedRequest) -> None:
        """Give a request its slot."""
        try:
            completion = engine.generate(job.prompt, job.params)
        except RequestError as error:  # found out only now; the rack is as good as before
            self._end(job, Failed(error=error))
            return
        if not sequences.running:
            self.pacer.begin(job.arrived_seconds)
            self._begun = self._paced = sequences.clock
        sequences.admit(completion, self._begun + self.pacer.cycles_at(job.arrived_seconds))
        job.started = Started(
            completion=completion,
            wall_queue_seconds=time.perf_counter() - job.arrived_seconds,
            moved_seconds=self.pacer.moved_seconds,
        )
        self._losses = 0

    def _leave(self, sequences: Sequences, job: QueuedRequest) -> None:
        """Free the slot of a request whose client is gone."""
        if job.started is not None:
            sequences.leave(job.started.completion)
        self._end(job, None)

    def _pace(self, cycle: int) -> None:
        """Wait until a cycle has come."""
        if cycle > self._paced:
            self.pacer.advance(cycle - self._paced)
            self._paced = cycle
        self.pacer.wait()

    def _give_out(self, emitted: Emitted) -> None:
        """Give a token to whoever asked for it, when its cycle has come; end what it ends."""
        self._pace(emitted.cycle)
        job = next(
            one for one in self.running
            if one.started is not None and one.started.completion is emitted.completion
        )  # fmt: skip
        started = job.started
        assert started is not None
        if (promised := self.pacer.promised_seconds) is not None:
            ahead = (self._paced - emitted.cycle) / started.completion.clock_hz
            job.promised_seconds = promised - ahead + started.moved_seconds
        if isinstance(emitted.token, RequestError):
            self._end(job, Failed(error=emitted.token))
            return
        self._emit(job, emitted.token)
        if emitted.token.finish_reason is not None:
            self._end(job, _finished(job, started))

    def _end(self, job: QueuedRequest, event: Event | None) -> None:
        """Free a request's slot, and give out its last event."""
        with self._changed:  # the slot is free before the client hears
            self.running.remove(job)
            if not self.running:
                self.kv_tokens = 0
            self._claim()
            if event is not None:
                self._emit(job, event)

    def _lose(self, error: Exception) -> None:
        """End what runs with the error of the rack; what has not begun is for the next one."""
        with self._changed:
            self._out_of_service()
            jobs, self.kv_tokens = list(self.running), 0
            self.running.clear()
            for job in reversed(jobs):
                if job.started is None and not job.cancelled:
                    self._waiting.appendleft(job)
            self._claim()
            for job in jobs:
                if job.started is not None:
                    self._emit(job, Failed(error=error))

    def _check(self, sequences: Sequences) -> Exception | None:
        """Look at the chips of a rack without work."""
        try:
            sequences.check()
        except Exception as error:
            self._losses += 1
            return error
        return None

    def _emit(self, job: QueuedRequest, event: Event) -> None:
        with self._changed:  # after cancel() has returned nothing is emitted any more
            if not job.cancelled:
                job.emit(event)


def _finished(job: QueuedRequest, started: Started) -> Finished:
    completion = started.completion
    return Finished(
        prompt_tokens=len(completion.prompt_token_ids),
        completion_tokens=len(completion.token_ids),
        finish_reason=completion.finish_reason or "",
        queue_cycles=job.cycles_at_slot - job.cycles_at_submit,
        prompt_cycles=completion.prompt_cycles,
        completion_cycles=sum(completion.decode_cycles),
        data_hash=completion.data_hash,
        schedule_hash=completion.schedule_hash,
        cached_tokens=completion.reused_tokens,
        waited_cycles=completion.waited_cycles,
        wall_queue_seconds=started.wall_queue_seconds,
        wall_prompt_seconds=completion.wall_prefill_seconds,
        wall_completion_seconds=sum(completion.wall_decode_seconds),
        recoveries=tuple(completion.recoveries),
    )
