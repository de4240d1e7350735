"""The thread that owns the rack: opens it, runs one request after another, opens it again.

Rules: requests run in the order they came; a cancelled one stops before its next step; a step that
fails closes the session and a fresh one is opened before the next request. Events reach whoever
asked through `Job.emit`, which is called in this thread and must not block. Queue time is counted
in emulated cycles: those the rack ran between a request's arrival and its start. (When a request
arrives is the client's doing; what the rack runs before it is not measured in wall time.) With a
pacer no step begins, and no token is given out, before the step ahead of it has ended in emulated
time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rack.driver import StepResult
from rack.engine import Completion, Engine, Rack, TokenEvent
from rack.errors import RequestError
from rack.sampler import SamplingParams
from rack.serve.errors import (
    RETRY_QUEUE_SECONDS,
    RETRY_STARTING_SECONDS,
    BusyError,
    StoppedError,
    starting,
)
from rack.serve.pacing import Slip, Unpaced
from rack.session import Progress, Session


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The end of a request whose step failed, or that a stop cut off.

    With a RequestError, of one that cannot be done after all: the client's to change.
    """

    error: Exception


Event = TokenEvent | Finished | Failed


_STOPPING = BusyError(what="the server is stopping", retry_seconds=RETRY_STARTING_SECONDS)


class Job:
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
        self.times = inner.times
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
    """Owns the session and its thread. `on_fatal` is told when no rack could be started."""

    def __init__(
        self, open_session: Callable[[Progress], Session], *, max_queue: int,
        pacer: Unpaced | None = None,
        on_ready: Callable[[], None] = lambda: None,
        on_fatal: Callable[[Exception], None] = lambda error: None,
    ) -> None:  # fmt: skip
        self._open, self.max_queue = open_session, max_queue
        self.pacer = pacer or Unpaced()
        self._on_ready, self._on_fatal = on_ready, on_fatal
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[Job] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="rack", daemon=True)
        self.running: Job | None = None
        self.stage: str | None = "starting"  # None once ready
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

    def submit(self, job: Job) -> None:
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

    def cancel(self, job: Job) -> None:
        """Forget a request: no further event, and the rack is free before the next step."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)

    def request_stop(self) -> None:
        """Fail what runs and waits, and let the thread end; does not wait for it."""
        with self._changed:
            self._stopping, self.stage = True, "stopping"
            for job in (self.running, *self._waiting):
                if job is not None and not job.cancelled:
                    job.emit(Failed(error=_STOPPING))
                    job.cancelled = True
            self._waiting.clear()
            self._changed.notify_all()

    def stop(self, timeout_seconds: float) -> bool:
        """Stop, wait for the thread to close the rack; False if it did not in time."""
        self.request_stop()
        if self._thread.ident is None:
            return True  # never started
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _main(self) -> None:
        try:
            while not self._stopping:
                with self._open(self._progress) as session:
                    self._serve(session)
        except StoppedError:
            pass
        except Exception as error:
            self.request_stop()
            self._on_fatal(error)

    def _progress(self, stage: str, done: int, total: int) -> None:
        with self._changed:
            if self._stopping:
                raise StoppedError("stopped while starting")
            self.stage = f"{stage} {done}/{total}"

    def _serve(self, session: Session) -> None:
        """Run requests until a step fails or a stop is asked for."""
        prepared = session.prepared
        engine = Engine(_Meter(session.rack, self), prepared.tokenizer, prepared.answers)
        with self._changed:
            if self._stopping:
                return
            self.stage = None
        self._on_ready()
        healthy = True
        while healthy:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self.running is not None)
                job = self.running
                if self._stopping or job is None:
                    return
            healthy = self._run(engine, job)
            with self._changed:
                self.running = self._waiting.popleft() if self._waiting else None
                self.kv_tokens = 0
                if not healthy and not self._stopping:
                    self.stage = "restarting after a failure"

    def _emit(self, job: Job, event: Event) -> None:
        with self._changed:  # after cancel() has returned nothing is emitted any more
            if not job.cancelled:
                job.emit(event)

    def _run(self, engine: Engine, job: Job) -> bool:
        """Run one request; False if the rack can no longer be trusted."""
        queue_cycles = self.cycles - job.cycles_at_submit
        queue_seconds = time.perf_counter() - job.arrived_seconds
        self.pacer.begin(job.arrived_seconds)
        try:
            completion = engine.generate(job.prompt, job.params)
            for event in completion:
                self.pacer.wait()
                job.promised_seconds = self.pacer.promised_seconds
                self._emit(job, event)
            self._emit(job, _finished(completion, queue_cycles, queue_seconds))
        except _Cancelled:
            return True
        except RequestError as error:  # found out only when it ran; the rack is as good as before
            self._emit(job, Failed(error=error))
        except Exception as error:
            with self._changed:  # the failed rack is out of service before the client hears of it
                if not self._stopping:
                    self.stage = "restarting after a failure"
                self._emit(job, Failed(error=error))
            return False
        return True


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
