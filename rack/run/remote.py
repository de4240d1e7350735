"""A rack whose chips are other processes, reached over ZeroMQ: start, run, watch, recover, stop.

A `Launcher` starts the processes, by Ray or as plain processes; from the first hello on both are
alike. Every wait has a deadline, and its error names what was missing. Spares are processes without
a job: one takes the place of a chip that died, stalled, or whose machine is gone. It loads that
chip's columns, the others connect to it, and the rack is as it was, but for the caches of the chip
that was lost (rack/run/sequences.py fills them again).
"""

from __future__ import annotations

import contextlib
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from chip.kernels import load as load_kernels
from compiler.model.weights import WeightsRef
from compiler.pipeline import CompiledModel
from interconnect.faults import Fault
from interconnect.frame import Control, Frame
from interconnect.private_folder import PrivateFolder
from interconnect.transport import Message
from interconnect.zmq_transport import RunKey, ZmqTransport
from rack.errors import (
    KNOWN_ERRORS,
    ChipFailedError,
    FaultError,
    LinkFlaggedError,
    MachineError,
    NoSpareError,
    RackClosedError,
    RackError,
)
from rack.machines.hardware import Hardware
from rack.run.control import ControlKind
from rack.run.driver import Driver
from rack.run.flagged import Corrected, Flags, LinkErrors, corrected, link_errors
from rack.run.job import PROCESS_BYTES, ChipJob, chip_job
from rack.run.launcher import Launcher, Post
from rack.run.members import Members
from rack.run.node import NO_ERRORS
from rack.run.pulse import SILENT_SECONDS, Pulse
from rack.run.rebinding import Binding, Rebinder, spare_slots
from rack.run.shared import SharedImages, shares
from rack.run.steps import Recovery, StepOrder, StepResult, Turns
from rack.run.stored import Images
from rack.run.worker import Seat, rebuild_violation
from rack.system.progress import Progress
from rack.system.provenance import running_code

START_TIMEOUT_S = 600.0
START_CHIP_S = 4.0  # of hundreds of chips, each may take this: cores start a few at a time
LOWERING_TIMEOUT_S = 1800.0  # the reference executor lowers a step when it first runs
REPORT_TIMEOUT_S = 2.0  # how long chips have to say what they wait for
POLL_SECONDS = 0.5
LOOK_SECONDS = 5.0  # how often the processes are looked at while messages come


CompileAgain = Callable[[tuple[int, ...]], CompiledModel]
"""Returns the model compiled for a binding: logical chip -> physical slot."""


class RemoteRack:
    """Chips in other processes.

    `hardware` is needed where there are spares. `compile_again` makes the schedule of a binding
    that has not the cables of this one.
    """

    def __init__(
        self, compiled: CompiledModel, weights: WeightsRef, launcher: Launcher, *,
        step_timeout_s: float, start_timeout_s: float | None = None,
        progress: Progress | None = None, slots: Mapping[int, int] | None = None,
        faults: Sequence[Fault] = (),
        images: Images | None = None, executor: str = "fast", rings: bool = True,
        errors: LinkErrors = NO_ERRORS,
        spares: int = 0, hardware: Hardware | None = None,
        compile_again: CompileAgain | None = None,
    ) -> None:  # fmt: skip
        self.executor = executor
        self.compiled, self.launcher, self.transport = compiled, launcher, launcher.name
        self.step_timeout_s = step_timeout_s
        self._lowered: set[str] = set()  # steps whose first run has had its time
        self._progress = progress or (lambda stage, done, total: None)
        self._failed: str | None = None
        self._errors = errors
        self._stuck: LinkFlaggedError | None = None
        self._flags = Flags(compiled.network.links)
        self._recovering: str | None = None
        self._chips = compiled.layout.chips
        if start_timeout_s is None:
            start_timeout_s = max(START_TIMEOUT_S, START_CHIP_S * self._chips)
        self._start_timeout_s = start_timeout_s
        self._looked = time.monotonic()
        self._step, self._stage = "start", ("chips started", 0, self._chips)
        self._reports: dict[int, Mapping[str, Any]] = {}
        self._compile_again = compile_again
        self._bound = dict(enumerate(compiled.network.binding))  # chip -> physical slot
        self._free: Sequence[int] = ()  # physical slots of spares
        if spares:
            assert hardware is not None
            self._rebinder = Rebinder(compiled, hardware)
            self._free = spare_slots(compiled, hardware, spares)
        self._ends = contextlib.ExitStack()
        try:
            folder = PrivateFolder()
            self._ends.callback(folder.close)
            self._folder = str(folder.path)
            key = RunKey.generate()
            host_bind = launcher.bind(self._chips, self._folder)
            self._socket = ZmqTransport(self._chips, host_bind, key)
            self._ends.callback(self._socket.close)
            pulse_bind = launcher.bind(self._chips + 1, self._folder)
            self._pulse = Pulse(self._chips + 1, pulse_bind, key)
            self._ends.callback(self._pulse.close)
            self._deadline = self._pulse.now() + start_timeout_s
            self.driver = Driver(compiled, weights.open(), self._socket, slots)
            self.turns = Turns(compiled)
            self._weights, self._images = weights, images
            self._jobs = self._jobs_of(compiled)
            kernels = load_kernels()
            self.members = Members(
                self._chips, spares, launcher=launcher, socket=self._socket, pulse=self._pulse,
                code=running_code(kernels),
            )  # fmt: skip
            seat = Seat(
                process=self._chips, bind="", host=self._chips,
                host_endpoint=self._socket.endpoint, pulse_endpoint=self._pulse.endpoint, key=key,
                slots=dict(slots or {}), rings=rings, kernels=kernels.name,
            )  # fmt: skip
            launcher.start(self._posts(seat, faults))
            self._wait_for(self.members.everybody, "to load")
            self._progress(*self._stage)
            self.members.meet()
            self._step = "between steps"
        except BaseException:
            self.close()
            raise

    def _posts(self, seat: Seat, faults: Sequence[Fault]) -> list[Post]:
        """Return the processes to start, each with a seat like this one at its own address."""
        links, posts = self.compiled.network.links, list[Post]()
        most = max(job.used_bytes for job in self._jobs)
        for process in self.members.everybody:
            job = self._jobs[process] if process < self._chips else None
            own = replace(
                seat, process=process, bind=self.launcher.bind(process, self._folder),
                faults=[fault for fault in faults if links[fault.link].src == process],
            )  # fmt: skip
            size = most if job is None else job.used_bytes
            posts.append(Post(job=job, seat=own, memory_bytes=size + PROCESS_BYTES))
        return posts

    def _jobs_of(self, compiled: CompiledModel) -> list[ChipJob]:
        """Return the jobs of all chips."""
        weights, images = self._weights, self._images
        made = (
            chip_job(compiled, chip, weights, images, self.executor) for chip in range(self._chips)
        )
        jobs = [replace(job, errors=dict(self._errors)) for job in made]
        if shares(weights, self.transport, stored=images is not None):
            jobs = self._with_images(jobs, weights)
        return jobs

    def _with_images(self, jobs: Sequence[ChipJob], weights: WeightsRef) -> list[ChipJob]:
        """Make the images that chips have in common; they last as long as the rack."""
        shared = SharedImages(weights)
        self._ends.callback(shared.close)
        out = []
        for job in jobs:
            out.append(shared.of(job))
            self._progress("images made", len(out), self._chips)
        return out

    # -- waiting

    def _wait_for(self, processes: Sequence[int], purpose: str) -> None:
        """Wait until processes are ready, as chips or as spares. Raises as `_receive`."""
        while names := self.members.named(self.members.missing(processes)):
            if self._step == "start":
                self._progress(*self._stage)  # again and again: it may raise, to end the start
            else:
                self._hear_all(names.values(), purpose)
            self._receive(list(names.values()), purpose)

    @property
    def _silence_limit(self) -> float:
        """Seconds after which who is silent is lost: a step's, and those of some heartbeats."""
        return max(self.step_timeout_s, SILENT_SECONDS)

    def _hear_all(self, chips: Iterable[int], purpose: str) -> None:
        """Raise ChipFailedError for chips that are silent for longer than a step may take."""
        mute = self.members.mute(self._silence_limit)
        silent = [chip for chip in sorted(chips) if chip in mute]
        if silent:
            raise ChipFailedError(
                chip=silent[0], step=self._step, what=f"not heard for {mute[silent[0]]:.1f} s",
                waiting_for=purpose, lost=tuple(silent),
            )  # fmt: skip

    # -- recovery

    @property
    def spares(self) -> int:
        """How many chips can still be replaced: by spares that are heard. From any thread."""
        return self.members.spares_heard

    def condition(self) -> str | None:
        """Say what keeps the rack from running a step now, None if nothing. From any thread."""
        if self._failed is not None or self._recovering is not None:
            return self._failed or self._recovering
        for chip, silent in self.members.mute().items():
            return f"chip {chip} has not been heard for {silent:.1f} s"
        return None

    def recover(self, error: FaultError) -> Recovery:
        """See `Rack.recover`. Raises NoSpareError where no spare has a lost chip's cables."""
        if not self._can_recover(error):
            raise error
        started, lost = time.monotonic(), set(_lost_by(error))
        silent = [self.members.silence(chip) for chip in lost]
        self._recovering, self._step = f"recovering: {error}", "recovery"
        before = self.compiled.schedule_hash
        try:
            replaced = self._replace(lost, error)
        except BaseException as failure:
            self._failed = str(failure) or type(failure).__name__
            raise
        finally:
            self._recovering = None
        self._step = "between steps"
        new = self.compiled.schedule_hash
        return Recovery(
            chips=tuple(sorted(replaced)), step=error.step, what=str(error),
            schedule_hash=None if new == before else new,
            detected_seconds=max(silent, default=0.0), wall_seconds=time.monotonic() - started,
        )  # fmt: skip

    def _can_recover(self, error: BaseException) -> bool:
        """Say whether an error leaves a rack that can be made to run again."""
        if isinstance(error, ChipFailedError):
            self.members.drop_spares(self._silence_limit)
            return 0 < len(error.lost) <= len(self.members.spares)
        return isinstance(error, FaultError)

    def _replace(self, lost: set[int], error: FaultError) -> set[int]:
        """Replace lost chips, and those that are lost meanwhile; return all. Raises as `_seat`."""
        replaced, given, met = set[int](), set[int](), not lost
        while not met:
            self._deadline = self._pulse.now() + self._start_timeout_s
            try:
                if lost:
                    given |= self._seat(sorted(lost), error)
                    replaced, lost = replaced | lost, set()
                self._reconnect(sorted(given))
                met = True
            except ChipFailedError as more:
                lost = lost | set(more.lost)
                if not self._can_recover(more) or len(lost) > len(self.members.spares):
                    raise
        return replaced

    def _seat(self, lost: Sequence[int], error: FaultError) -> set[int]:
        """Give lost chips' jobs to spares, and those of a new schedule to all, if one is needed.

        Return the chips that were given one. Raises NoSpareError, or as `_receive`.
        """
        try:
            bound = self._rebinder.rebind(self._bound, lost, self._free)
        except MachineError as none:
            bound = self._rebinder.move(self._bound, lost, self._free)
            others = [at for chip, at in self.members.processes.items() if chip not in lost]
            self._wait_for(others, "to load")  # what it was given before: then it takes another job
            self._adopt(self._compiled_again(bound, lost, f"{error}; {none}"))
            given = set(range(self._chips))
        else:
            given = set(lost)
        good = {*self._free, *self._bound.values()} - {self._bound[chip] for chip in lost}
        self._free, self._bound = sorted(good - set(bound.values())), bound
        for chip in lost:
            self.members.replace(chip)
        for chip in sorted(given):
            self.members.take(chip, pickle.dumps(self._jobs[chip]))
        return given

    def _compiled_again(self, bound: Binding, lost: Sequence[int], why: str) -> CompiledModel:
        """Return the model compiled for another binding. Raises NoSpareError."""
        try:
            if self._compile_again is None or self._images is not None:
                raise RackError("the schedule of these chips is fixed")
            return self._compile_again(tuple(bound[chip] for chip in range(self._chips)))
        except KNOWN_ERRORS as none:
            none_fits = f"no spare can take the place of chips {list(lost)}: {none}"
            raise NoSpareError(chip=lost[0], why=none_fits, cause=why) from None

    def _adopt(self, compiled: CompiledModel) -> None:
        """Go over to another schedule."""
        epoch, source = self.driver.node.epoch, self.driver.source
        self.driver.free()
        self.compiled, self.turns = compiled, Turns(compiled)
        self._flags = Flags(compiled.network.links)
        self._errors = link_errors(compiled, self._rebinder.hardware)
        self.driver = Driver(compiled, source, self._socket)
        self.driver.node.epoch = epoch  # what was sent before is older than what is to come
        self._jobs, self._rebinder = self._jobs_of(compiled), self._rebinder.of(compiled)

    def _reconnect(self, given: Sequence[int]) -> None:
        """Wait until chips have loaded what they were given, and let all know them."""
        self._wait_for([self.members.processes[chip] for chip in given], "to load")
        self.members.meet_again(given)
        self._wait_for(list(self.members.processes.values()), "to reach the new chips")

    # -- run

    def reset(self) -> None:
        """Begin anew: no step is under way. Raises RackClosedError on a rack that failed."""
        self._check_usable()
        self.driver.reset()
        self.turns.reset()
        self._flags.clear()
        self._stuck = None

    def start(self, order: StepOrder) -> None:
        """Start a step. Raises RackClosedError on a rack that failed or was closed."""
        with self._running(order.name):
            self.driver.start(order)
            self.turns.began(order)

    def finish(self) -> list[StepResult]:
        """End the oldest step under way, within a step's deadline.

        Raises ScheduleViolation, or ChipFailedError for a chip that died or stalled; the rack
        cannot be used after either. Raises LinkFlaggedError if errors on a link keep the step from
        ending; `reset` is next then.
        """
        name = self.driver.oldest
        with self._running(name):
            results = self.driver.finish(self._wait)
        self._lowered.add(name)
        return results

    def run_step(
        self, name: str, positions: Sequence[int], tokens: Sequence[int],
        following: str | None = None,
    ) -> StepResult:  # fmt: skip
        """Run one step in turn (`Turns`)."""
        self.start(self.turns.order(name, positions, tokens))
        return self.turns.ended(name, self.finish()[0], following)

    @contextlib.contextmanager
    def _running(self, name: str) -> Iterator[None]:
        """Give a step its deadline; after what it raises the rack cannot be used."""
        self._check_usable()
        if self._stuck is not None:
            raise RackClosedError(f"this rack has to be reset first: {self._stuck}")
        self._step = f"step {name}"
        self._deadline = self._pulse.now() + self.step_timeout_s
        if self.executor == "reference" and name not in self._lowered:
            self._deadline += LOWERING_TIMEOUT_S
        try:
            yield
        except LinkFlaggedError as error:
            self._stuck = error
            raise
        except BaseException as error:
            if not self._can_recover(error):
                self._failed = str(error) or type(error).__name__
            raise
        self._step = "between steps"

    def _check_usable(self) -> None:
        if self._failed is not None:
            raise RackClosedError(f"this rack cannot be used any more: {self._failed}")

    def _wait(self) -> None:
        self.driver.check_flags(self._flags)
        message = self._receive([], "for the result")
        if message is not None and isinstance(message, Frame):
            self.driver.node.handle(message)

    def _receive(self, missing: list[int], purpose: str) -> Message | None:
        """Take one message. Raises for an error that a chip reports, a dead chip or a deadline."""
        now, left = time.monotonic(), self._deadline - self._pulse.now()
        message = self._socket.receive(max(0.0, min(POLL_SECONDS, left)))
        if isinstance(message, Control):
            self._hear(message)
        if message is None or now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._look()
        if message is None and self._pulse.now() >= self._deadline and not self._has_more_time():
            raise self._late(missing, purpose)
        return message

    def _has_more_time(self) -> bool:
        """Say whether a step has more: as if it had begun when a silent chip came back.

        Not where another chip is silent still.
        """
        until = self._pulse.returned + self.step_timeout_s
        if until <= self._deadline or self.members.mute():
            return False
        self._deadline = until
        return True

    def _hear(self, message: Control) -> None:
        """Take a process's message. Raises the error that it reports, or ControlError."""
        values, kind = message.values, self.members.hear(message)
        if kind is ControlKind.ERROR:
            if values["process"] not in self.members.spares or self._step == "start":
                raise self._reported(values)
        elif kind is ControlKind.FLAG:
            self._flags.take(values)
        elif kind is ControlKind.REPORT:
            self._reports[values["chip"]] = values
        elif kind is not None and self._step == "start":
            chips = [self.members.at(chip) for chip in range(self._chips)]
            met, ready = sum(bool(one.endpoint) for one in chips), sum(one.ready for one in chips)
            what, count = ("loaded", ready) if kind is ControlKind.READY else ("started", met)
            self._stage = (f"chips {what}", count, self._chips)

    def _reported(self, values: Mapping[str, Any]) -> Exception:
        if "violation" in values:
            return rebuild_violation(values["violation"])
        chip, step = values["chip"], values["step"]
        lost = () if self._step == "start" else (chip,)
        return ChipFailedError(
            chip=chip, step=step, what=values["what"], waiting_for="nothing", lost=lost
        )

    def _look(self) -> None:
        """Look at the processes. Raises for a chip whose process has ended, and drops spares.

        Raises as `_hear`, if a chip has said before what ended it.
        """
        dead = self.launcher.dead()
        if not dead:
            return
        chips = {chip: dead[at] for chip, at in self.members.processes.items() if at in dead}
        if self._step == "start":
            chips = dead
        if chips:
            raise self._died(chips)
        for process in dead:
            self.members.drop(process)

    def _died(self, dead: dict[int, str]) -> Exception:
        chip, reason = min(dead.items())
        # Its error may still be in the socket: it says more than the exit code does.
        while (message := self._socket.receive(0)) is not None:
            if isinstance(message, Control):
                self._hear(message)
        running = self._step.startswith("step ")
        waits = self._first_wait(set(dead))[1] if running else "nothing"
        return ChipFailedError(
            chip=chip, step=self._step, what=f"its process ended ({reason})", waiting_for=waits,
            lost=() if self._step == "start" else tuple(sorted(dead)),
        )  # fmt: skip

    def _late(self, missing: list[int], purpose: str) -> Exception:
        """Return the error for a deadline: a chip that does not answer, or missing vectors."""
        if missing:
            return ChipFailedError(
                chip=missing[0], step=self._step,
                what=f"{len(missing)} of {self._chips} chips did not load in time: {missing}",
                waiting_for=purpose, lost=() if self._step == "start" else tuple(missing),
            )  # fmt: skip
        silent, waits = self._first_wait(set())
        if silent:
            return ChipFailedError(
                chip=silent[0], step=self._step,
                what=f"no answer within {self.step_timeout_s} s; silent chips {silent}",
                waiting_for=waits, lost=tuple(silent),
            )  # fmt: skip
        waiting = [values for values in self._reports.values() if "order" in values]
        if waiting:
            return rebuild_violation(min(waiting, key=lambda v: v["order"])["violation"])
        own = self.driver.node.chip.missing()
        return own or ChipFailedError(
            chip="host", step=self._step, what="deadline passed", waiting_for=purpose
        )

    def _first_wait(self, skip: set[int]) -> tuple[list[int], str]:
        """Ask every chip what it waits for; return the silent chips and the earliest wait.

        Those whose heartbeat is silent are not waited for.
        """
        self.collect_reports(skip | set(self.members.mute()))
        silent = [c for c in range(self._chips) if c not in self._reports and c not in skip]
        waits = [values for values in self._reports.values() if "order" in values]
        if not waits:
            return silent, "nothing that another chip knows of"
        return silent, str(min(waits, key=lambda values: values["order"])["what"])

    def collect_reports(self, skip: set[int]) -> dict[int, Mapping[str, Any]]:
        """Ask all chips but `skip` for a report, and wait a little for the answers.

        Raises as `_hear`, if a chip says something else instead.
        """
        self._reports = {}
        chips = [chip for chip in range(self._chips) if chip not in skip]
        for chip in chips:
            self._socket.send(chip, Control(ControlKind.REPORT))
        until = time.monotonic() + REPORT_TIMEOUT_S
        while len(self._reports) < len(chips) and (left := until - time.monotonic()) > 0:
            message = self._socket.receive(left)
            if isinstance(message, Frame):  # of a step under way
                self.driver.node.handle(message)
            elif message is not None:
                self._hear(message)
        return self._reports

    def saturated(self) -> int:
        """Count the values that saturated when rounded to fp16, over all chips that answer."""
        self._check_usable()
        return sum(int(values["saturated"]) for values in self.collect_reports(set()).values())

    def corrected_vectors(self) -> Corrected:
        """Return the vectors that were corrected at the links' ends, of chips that answer."""
        self._check_usable()
        reports = self.collect_reports(set()).values() if self._errors else ()
        counts = [(link, count) for values in reports for link, count in values["corrected"]]
        return corrected(self.compiled.network.links, counts)

    def times(self) -> dict[str, float]:
        """Return the seconds of all chips together, by part, since they were loaded."""
        self._check_usable()
        total: dict[str, float] = {}
        for values in self.collect_reports(set()).values():
            for part, seconds in values["times"].items():
                total[part] = total.get(part, 0.0) + seconds
        return total

    def check(self) -> None:
        """Raise the error of a chip that died or a cluster that was lost since the last step.

        Or of chips that have been silent for longer than a step may take.
        """
        self._check_usable()
        try:
            self._look()
            self._hear_all(range(self._chips), "nothing")
        except Exception as error:
            if not self._can_recover(error):
                self._failed = str(error)
            raise

    def close(self) -> None:
        """Stop every chip and remove every socket; a second call does nothing."""
        if self._failed == "closed":
            return
        self._failed = "closed"
        try:
            self.launcher.stop()
        finally:
            self._ends.close()


def _lost_by(error: FaultError) -> tuple[int, ...]:
    return error.lost if isinstance(error, ChipFailedError) else ()


def start_process_rack(
    compiled: CompiledModel, weights: WeightsRef, hardware: Hardware, *,
    step_timeout_s: float, progress: Progress | None = None, **extra: Any,
) -> RemoteRack:  # fmt: skip
    """Start a plain process per chip on this host."""
    from rack.run.processes import ProcessLauncher

    return RemoteRack(
        compiled, weights, ProcessLauncher(), step_timeout_s=step_timeout_s, progress=progress,
        hardware=hardware, **extra,
    )  # fmt: skip


def start_ray_rack(
    compiled: CompiledModel, weights: WeightsRef, hardware: Hardware, *,
    step_timeout_s: float, progress: Progress | None = None, **extra: Any,
) -> RemoteRack:  # fmt: skip
    """Start a Ray actor per chip, placed by card and rack."""
    from rack.run.cluster import RayLauncher  # imports ray: only where it is used

    launcher = RayLauncher(hardware, compiled.layout.chips, progress)
    return RemoteRack(
        compiled, weights, launcher, step_timeout_s=step_timeout_s, progress=progress,
        hardware=hardware, **extra,
    )  # fmt: skip
