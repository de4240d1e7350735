"""The server from start to end: it answers at once, prepares in a thread, then serves."""

from __future__ import annotations

import socket
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rack.run.config import RunConfig
from rack.run.host_memory import fit_to_memory
from rack.run.session import Prepared, Session, Task, prepare
from rack.run.steps import Recovery
from rack.serve.app import build_app
from rack.serve.dispatch import Dispatcher
from rack.serve.errors import StoppedError
from rack.serve.front import Front
from rack.serve.grammars import Grammars
from rack.serve.identity import Identity, identify
from rack.serve.keys import Keys
from rack.serve.limits import Limiter, load_limits
from rack.serve.logs import Notices, request_log
from rack.serve.metrics import Metrics
from rack.serve.pacing import Pacer
from rack.serve.reader import reader_of
from rack.serve.runner import Runner
from rack.serve.server import Server
from rack.serve.service import Service
from rack.system.garbage import collect_once
from rack.system.progress import Progress, StartProgress
from rack.system.shell import line_of
from rack.text.sampler import SamplingParams

STOP_SECONDS = 30.0  # what preparing may go on when it is to stop
CLOSE_SECONDS = 30.0  # what closing chips may take, beyond the step that is under way


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What a server is beside its model: the flags of `rack.serve`."""

    host: str
    names: Sequence[str]  # other names of the model
    limits: Path | None
    origins: Sequence[str]
    max_queue: int
    replicas: int
    drain_seconds: int
    prefix_cache: bool
    pace: str
    log: str
    log_probes: bool
    executor_asked_for: bool


class Serving:
    """The server from start to end: it answers at once, prepares in a thread, then serves."""

    def __init__(
        self, options: ServeOptions, config: RunConfig, sockets: list[socket.socket],
        keys: Keys, progress: StartProgress, notices: Notices,
    ) -> None:  # fmt: skip
        self._options, self._config, self._sockets, self._keys = options, config, sockets, keys
        self._progress, self._notices, self._errors = progress, notices, list[Exception]()
        self._log = request_log(options.log, probes=options.log_probes)
        self._front = Front(self._log)
        self._lock, self._settled, self._stopping = threading.Lock(), set[int](), False
        self._service: Service | None = None
        self._drained_by: float | None = None  # by `time.monotonic`, once it drains
        self._preparing = threading.Thread(target=self._prepare, name="prepare", daemon=True)
        self._server = Server(
            self._front, after_startup=self._preparing.start, before_shutdown=self._request_stop,
            drained=self._drained,
        )  # fmt: skip

    def run(self) -> int:
        """Serve until a signal, or until nothing can be served."""
        try:
            self._server.run(sockets=self._sockets)
        finally:
            self._log.flush()
            ended = self._stop()
        if self._errors:
            raise self._errors[0]
        if not ended:
            self._notices.say("error: a rack did not close in time; processes of it may be left")
        return 0 if ended else 1

    def _prepare(self) -> None:
        """Make what is served, hand requests to it, start its racks; in a thread of its own."""
        try:
            service = self._make_service()
            with self._lock:
                if self._stopping:
                    service.close()
                    return
                self._service = service
                app = build_app(
                    service, keys=self._keys, log=self._log, origins=self._options.origins
                )
                self._front.hand_on(app)
                service.racks.start()
        except StoppedError:
            pass
        except Exception as error:
            self._on_fatal(error)

    def _make_service(self) -> Service:
        """Compile, and put what answers around it. Raises KNOWN_ERRORS."""
        options = self._options
        prepared, notice = fit_to_memory(
            prepare(self._config, progress=self._tell, task=Task.GENERATE),
            asked_for=options.executor_asked_for, racks=options.replicas,
        )  # fmt: skip
        identity = identify(
            prepared, options.names, [notice] if notice else [],
            pace=options.pace, replicas=options.replicas, prefix_cache=options.prefix_cache,
        )  # fmt: skip
        limits = (
            load_limits(options.limits, self._keys.names, identity.names)
            if options.limits
            else lambda key, model: {}
        )
        for text in identity.notices:
            self._notices.say(f"NOTE: {text}")
        self._front.stage = "starting"
        reader = reader_of(prepared)
        try:
            reader.start()
            warm_up(prepared)
            collect_once()
            racks = Dispatcher(
                [self._runner(prepared, number) for number in range(options.replicas)]
            )
            metrics = Metrics(identity, racks, self._notices.say)
            return Service(
                identity=identity, racks=racks, limiter=Limiter(limits), metrics=metrics,
                grammars=Grammars(prepared.tokenizer), reader=reader,
            )  # fmt: skip
        except BaseException:
            reader.close()
            raise

    def _drained(self) -> bool:
        """Close the door, and say whether nobody is inside any more, or time is up."""
        if self._service is None:
            return True
        door, limit = self._service.door, self._options.drain_seconds
        door.closed, now = True, time.monotonic()
        if self._drained_by is None:
            self._drained_by = now + limit
            if door.inside and limit:
                self._notices.say(
                    f"draining: requests under way: {door.inside}; the server ends after them, "
                    f"within {limit} s; a second signal ends it at once"
                )
        if door.inside and now >= self._drained_by:
            self._notices.say(
                f"draining: not ended within {limit} s, and ended now: {door.inside} requests"
            )
            return True
        return not door.inside

    def _request_stop(self) -> None:
        with self._lock:
            self._stopping = True
            if self._service is not None:
                self._service.racks.request_stop()
                self._service.reader.close()

    def _stop(self) -> bool:
        """Close everything; False if a rack did not in time."""
        self._request_stop()
        self._preparing.join(STOP_SECONDS)
        if self._service is None:
            return True
        self._service.close()
        return self._service.racks.stop(self._config.step_timeout_s + CLOSE_SECONDS)

    def _tell(self, stage: str, done: int, total: int) -> None:
        """Take the state of preparing; often, so that a stop ends it soon."""
        if self._stopping:
            raise StoppedError("stopped while preparing")
        self._front.stage = f"{stage} {done}/{total}"
        self._progress.report(stage, done, total)

    def _runner(self, prepared: Prepared, number: int) -> Runner:
        clock_hz = prepared.compiled.chip.clock_hz
        return Runner(
            lambda report: self._open(prepared, number, report),
            max_queue=self._options.max_queue,
            pacer=Pacer(clock_hz) if self._options.pace == "emulated" else None,
            reuse=self._options.prefix_cache,
            on_ready=lambda: self._on_ready(number),
            on_recovery=lambda recovery: self._on_recovery(number, recovery),
            on_failure=lambda error, pause: self._on_failure(number, error, pause),
            on_given_up=lambda error: self._on_given_up(number, error),
        )

    def _open(self, prepared: Prepared, number: int, report: Progress) -> Session:
        name = f"rack {number}: " if self._options.replicas > 1 else ""

        def both(stage: str, done: int, total: int) -> None:
            report(stage, done, total)
            self._progress.report(name + stage, done, total)

        return Session(prepared, both)

    def _on_ready(self, number: int) -> None:
        with self._lock:
            if number in self._settled:
                self._notices.say(f"rack {number} is ready again")
            self._settle(number)

    def _settle(self, number: int) -> None:
        """Count a rack that has started, or never will; say that we are ready with the last one."""
        if number in self._settled:
            return
        self._settled.add(number)
        if len(self._settled) == self._options.replicas:
            assert self._service is not None
            self._progress.stop()
            port = self._sockets[0].getsockname()[1]
            text = usage(self._service.identity, self._options.host, port)
            self._notices.say(text, "ready", host=self._options.host, port=port)

    def _on_recovery(self, number: int, recovery: Recovery) -> None:
        """Count and tell a fault after which a rack went on."""
        assert self._service is not None
        self._service.metrics.recovered(recovery)
        say_recovery(self._notices, number, recovery, self._service.racks.runners[number].spares)

    def _on_failure(self, number: int, error: Exception, pause: float) -> None:
        when = f"in {pause:.0f} s" if pause else "now"
        self._notices.say(f"error: rack {number}: {failure(error)}; starting it again {when}")

    def _on_given_up(self, number: int, error: Exception) -> None:
        """Go on with the racks that are left; end where none is."""
        with self._lock:
            assert self._service is not None
            if self._service.racks.given_up:
                self._on_fatal(error)
                return
            told = f"{failure(error)}; given up, going on without it"
            self._notices.say(f"error: rack {number}: {told}")
            self._settle(number)

    def _on_fatal(self, error: Exception) -> None:
        self._errors.append(error)
        self._server.finish()


def say_recovery(notices: Notices, number: int, recovery: Recovery, spares: int) -> None:
    """Say after what fault a rack went on, and how many spares it has left."""
    what = one_line(recovery.what)
    notices.say(
        f"rack {number} goes on after a fault: {what}; detected after "
        f"{recovery.detected_seconds:.2f} s, replayed {recovery.replayed_cycles} cycles, recovered "
        f"in {recovery.wall_seconds:.2f} s; spares left: {spares}",
        "recovery", rack=number, what=what, **recovery.to_dict(), spares_left=spares,
    )  # fmt: skip


def failure(error: Exception) -> str:
    """Return the cause of a failure in a line; a fault of ours is printed with its trace too."""
    line = line_of(error)
    if line is None:
        traceback.print_exception(error)
        line = f"{type(error).__name__}: {error}"
    return one_line(line)


def one_line(text: str) -> str:
    """Return a text in a line."""
    return " ".join(text.split())


def warm_up(prepared: Prepared) -> None:
    """Do once what a first request would pay for, where that costs no chip anything."""
    prompt = [0] * min(2, prepared.compiled.max_model_len - 1)
    if prepared.config.executor == "timing" and prompt:
        with Session(prepared) as session:
            session.engine.generate(prompt, SamplingParams(max_tokens=2)).run()


def usage(identity: Identity, host: str, port: int) -> str:
    """Return what a newcomer needs to see once the rack is ready."""
    shown = f"[{host}]" if ":" in host else host
    url, compiled = f"http://{shown}:{port}", identity.prepared.compiled
    name = identity.names[-1]
    slots = f", {compiled.sequences} sequences" if compiled.sequences > 1 else ""
    return (
        f"ready: {', '.join(identity.names)} ({compiled.dtype}, {compiled.layout}, context "
        f"{compiled.max_model_len}{slots}, {identity.prepared.config.executor} executor) on {url}\n"
        f"  groq:    GROQ_BASE_URL={url}\n"
        f"  openai:  OPENAI_BASE_URL={url}/openai/v1\n"
        f"  curl {url}/openai/v1/chat/completions -d '"
        f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello"}}]}}\''
    )
