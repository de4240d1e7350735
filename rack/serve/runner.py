"""The thread that owns the rack: opens it, runs one request after another, opens it again.

Rules: requests run in the order they came; a cancelled one stops before its next step; a step that
fails, or a chip that dies while nothing runs, closes the session and a fresh one is opened. What
cannot be opened is tried again after pauses, each longer than the one before, and given up after
the last of them; at once if it never ran, because then it is the configuration. Events reach
whoever asked through `QueuedRequest.emit`, which is called in this thread and must not block. Queue
time is counted in emulated cycles: those the rack ran between a request's arrival and its start.
(When a request arrives is the client's doing; what the rack runs before it is not measured in wall
time.)
With a pacer no step begins, and no token is given out, before the step ahead of it has ended in
emulated time.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rack.errors import RequestError
from rack.run.driver import StepResult
from rack.run.engine import Completion, Engine, Rack, TokenEvent
from rack.run.session import Session
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
    wall_queue_seconds: float
    wall_prompt_seconds: float
    wall_completion_seconds: float
    slip: Slip | None = None  # where paced


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
        wall_queue_seconds=min(part.wall_queue_seconds for part in parts),
        wall_prompt_seconds=sum(part.wall_prompt_seconds for part in parts),
        wall_completion_seconds=sum(part.wall_completion_seconds for part in parts),
        slip=Slip.of([part.slip for part in parts if part.slip is not None]),
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
        self.cycles_at_submit = 0
        self.promised_seconds: float | None = None  # of the event that is emitted, where paced


class _Cancelled(Exception):
    """The running request's client is gone."""


class _Meter:
    """The rack as the engine sees it: counts cycles, and stops between two steps when told."""

    def __init__(self, inner: Rack, runner: Runner) -> None:
        self.compiled, self.transport, self.executor = (
            inner.compiled, inner.transport, inner.executor,
        )  # fmt: skip
        self.reset, self.saturated, self.close = inner.reset, inner.saturated, inner.close
        self.times, self.check = inner.times, inner.check
        self._inner, self._runner, self._pacer = inner, runner, runner.pacer

    def run_step(
        self, name: str, positions: Sequence[int], tokens: Sequence[int],
        following: str | None = None,
    ) -> StepResult:  # fmt: skip
        job = self._runner.running
        if job is not None and job.cancelled:
            raise _Cancelled
        result = self._inner.run_step(name, positions, tokens, following)
        self._runner.kv_tokens = positions[-1] + 1
        self._runner.cycles += result.cycles
        self._pacer.advance(result.cycles)
        if not self.compiled.steps[name].kind.decode:
            self._pacer.wait()  # a decode step's wait comes after sampling, before its token
        return result


class Runner:
    """Owns the session and its thread.

    `on_failure` is told of a rack that was lost or did not start, and in how many seconds the next
    start follows; `on_given_up` is told when there is none any more. Both are called in the thread.
    """

    def __init__(
        self, open_session: Callable[[Progress], Session], *, max_queue: int,
        pacer: Unpaced | None = None,
        on_ready: Callable[[], None] = lambda: None,
        on_failure: Callable[[Exception, float], None] = lambda error, pause: None,
        on_given_up: Callable[[Exception], None] = lambda error: None,
        pauses: Sequence[float] = RESTART_PAUSES,
    ) -> None:  # fmt: skip
        self._open, self.max_queue = open_session, max_queue
        self.pacer = pacer or Unpaced()
        self._on_ready, self._on_failure, self._on_given_up = on_ready, on_failure, on_given_up
        self._pauses, self._was_ready = pauses, False
        self._losses = 0  # in a row, without a request in between
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[QueuedRequest] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="rack", daemon=True)
        self.running: QueuedRequest | None = None
        self.stage: str | None = "starting"  # None once ready
        self.given_up = False
        self.cycles = 0  # emulated, by all requests since the start
        self.kv_tokens = 0  # tokens in the running sequence's cache

    def start(self) -> None:
        """Start opening the rack."""
        self._thread.start()

    def check_ready(self) -> None:
        """Raise BusyError while no rack can take a request, naming the stage."""
        if (stage := self.stage) is not None:
            raise starting(stage)

    @property
    def load(self) -> int:
        """Requests running and waiting."""
        return len(self._waiting) + (self.running is not None)

    def submit(self, job: QueuedRequest) -> None:
        """Queue a request. Raises BusyError when it cannot be taken now."""
        with self._changed:
            self.check_ready()
            if self.running is not None and len(self._waiting) >= self.max_queue:
                raise BusyError(
                    what=f"{len(self._waiting)} requests are waiting, --max-queue is "
                    f"{self.max_queue}",
                    retry_seconds=RETRY_QUEUE_SECONDS,
                )
            job.cycles_at_submit = self.cycles
            self._waiting.append(job)
            if self.running is None:
                # Claimed here, so that a burst is counted before the thread has woken up.
                self.running = self._waiting.popleft()
            self._changed.notify_all()

    def cancel(self, job: QueuedRequest) -> None:
        """Forget a request: no further event, and the rack is free before the next step."""
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
        for job in (self.running, *self._waiting):
            if job is not None and not job.cancelled:
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
                    self.running = None
            return error

    def _give_up(self, error: Exception) -> None:
        with self._changed:
            if self._stopping:
                return
            self.given_up, self.stage = True, f"given up: {error}"
            self._fail_all(starting(self.stage))
            self.running = None
        self._on_given_up(error)

    def _out_of_service(self) -> None:
        with self._changed:
            if not self._stopping:
                self.stage = _RESTARTING

    def _progress(self, stage: str, done: int, total: int) -> None:
        with self._changed:
            if self._stopping:
                raise StoppedError("stopped while starting")
            self.stage = f"{stage} {done}/{total}"

    def _serve(self, session: Session) -> Exception | None:
        """Run requests until the rack is lost, which is returned, or a stop is asked for."""
        prepared = session.prepared
        engine = Engine(_Meter(session.rack, self), prepared.tokenizer, prepared.answers)
        with self._changed:
            if self._stopping:
                return None
            self.stage, self._was_ready = None, True
        self._on_ready()
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopping or self.running is not None, IDLE_CHECK_SECONDS
                )
                job = self.running
                if self._stopping:
                    return None
            if job is None:
                error = self._check(session.rack)
            else:
                error, last = self._run(engine, job)
                self._losses = 0
                with self._changed:  # the rack is free, or out of service, before the client hears
                    self.running = self._waiting.popleft() if self._waiting else None
                    self.kv_tokens = 0
                    if error is not None:
                        self._out_of_service()
                    if last is not None:
                        self._emit(job, last)
            if error is not None:
                self._out_of_service()
                return error

    def _check(self, rack: Rack) -> Exception | None:
        """Look at the chips of a rack without work."""
        try:
            rack.check()
        except Exception as error:
            self._losses += 1
            return error
        return None

    def _emit(self, job: QueuedRequest, event: Event) -> None:
        with self._changed:  # after cancel() has returned nothing is emitted any more
            if not job.cancelled:
                job.emit(event)

    def _run(self, engine: Engine, job: QueuedRequest) -> tuple[Exception | None, Event | None]:
        """Run one request: why the rack can no longer be trusted, and what is yet to be emitted."""
        queue_cycles = self.cycles - job.cycles_at_submit
        queue_seconds = time.perf_counter() - job.arrived_seconds
        self.pacer.begin(job.arrived_seconds)
        try:
            completion = engine.generate(job.prompt, job.params)
            for event in completion:
                self.pacer.wait()
                job.promised_seconds = self.pacer.promised_seconds
                self._emit(job, event)
            return None, _finished(completion, queue_cycles, queue_seconds)
        except _Cancelled:
            return None, None
        except RequestError as error:  # found out only when it ran; the rack is as good as before
            return None, Failed(error=error)
        except Exception as error:
            return error, Failed(error=error)


def _finished(completion: Completion, queue_cycles: int, queue_seconds: float) -> Finished:
    return Finished(
        prompt_tokens=len(completion.prompt_token_ids),
        completion_tokens=len(completion.token_ids),
        finish_reason=completion.finish_reason or "",
        queue_cycles=queue_cycles,
        prompt_cycles=completion.prompt_cycles,
        completion_cycles=sum(completion.decode_cycles),
        data_hash=completion.data_hash,
        wall_queue_seconds=queue_seconds,
        wall_prompt_seconds=completion.wall_prefill_seconds,
        wall_completion_seconds=sum(completion.wall_decode_seconds),
    )
