"""A rack whose chips are other processes, reached over ZeroMQ: start, run, watch, stop.

A `Launcher` starts the processes, by Ray or as plain processes; from the first hello on both are
alike. Every wait has a deadline, and its error names what was missing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from chip.kernels import load as load_kernels
from compiler.model.weights import WeightsRef
from compiler.pipeline import CompiledModel
from interconnect.faults import Fault
from interconnect.frame import Control, Frame
from interconnect.private_folder import PrivateFolder
from interconnect.transport import Message
from interconnect.zmq_transport import RunKey, ZmqTransport
from rack.errors import ChipFailedError, ControlError, OtherCodeError, RackClosedError
from rack.machines.hardware import Hardware
from rack.run.control import ControlKind, Conversation, Sender
from rack.run.driver import Driver
from rack.run.job import ChipJob, chip_job
from rack.run.shared import SharedImages, shares
from rack.run.steps import StepOrder, StepResult, Turns
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


class Launcher(Protocol):
    """Starts, watches and ends the processes of the chips."""

    name: str

    def bind(self, node: int, folder: str) -> str:
        """Return the address that a node binds; the host is the first to ask."""

    def start(self, jobs: Sequence[tuple[ChipJob, Seat]]) -> None:
        """Start a process per chip; return at once."""

    def dead(self) -> dict[int, str]:
        """Return the chips whose process has ended, with the reason.

        Raises RackError if the system that runs them is gone as a whole.
        """

    def stop(self) -> None:
        """End every process, by force if necessary."""


class RemoteRack:
    """Chips in other processes."""

    def __init__(
        self, compiled: CompiledModel, weights: WeightsRef, launcher: Launcher, *,
        step_timeout_s: float, start_timeout_s: float | None = None,
        progress: Progress | None = None, slots: Mapping[int, int] | None = None,
        faults: Sequence[Fault] = (),
        images: Images | None = None, executor: str = "fast", rings: bool = True,
    ) -> None:  # fmt: skip
        self.executor = executor
        self.compiled, self.launcher, self.transport = compiled, launcher, launcher.name
        self.step_timeout_s = step_timeout_s
        self._lowered: set[str] = set()  # steps whose first run has had its time
        self._progress = progress or (lambda stage, done, total: None)
        self._failed: str | None = None
        self._chips = compiled.layout.chips
        if start_timeout_s is None:
            start_timeout_s = max(START_TIMEOUT_S, START_CHIP_S * self._chips)
        self._deadline = time.monotonic() + start_timeout_s
        self._looked = time.monotonic()
        self._step = "start"
        self._reports: dict[int, Mapping[str, Any]] = {}
        self._talks = {chip: Conversation(chip) for chip in range(self._chips)}
        kernels = load_kernels()
        self._code = running_code(kernels)
        self._ends = contextlib.ExitStack()
        try:
            folder = PrivateFolder()
            self._ends.callback(folder.close)
            self._folder = str(folder.path)
            key = RunKey.generate()
            host_bind = launcher.bind(self._chips, self._folder)
            self._socket = ZmqTransport(self._chips, host_bind, key)
            self._ends.callback(self._socket.close)
            self.driver = Driver(compiled, weights.open(), self._socket, slots)
            self.turns = Turns(compiled)
            links = compiled.network.links
            jobs = [
                chip_job(compiled, chip, weights, images, executor) for chip in range(self._chips)
            ]
            if shares(weights, self.transport, stored=images is not None):
                jobs = self._with_images(jobs, weights)
            launcher.start(
                [
                    (
                        job,
                        Seat(
                            bind=launcher.bind(job.index, self._folder),
                            host_endpoint=self._socket.endpoint,
                            key=key,
                            slots=dict(slots or {}),
                            rings=rings,
                            faults=[f for f in faults if links[f.link].src == job.index],
                            kernels=kernels.name,
                        ),
                    )
                    for job in jobs
                ]
            )
            self._meet()
            self._step = "between steps"
        except BaseException:
            self.close()
            raise

    def _with_images(self, jobs: Sequence[ChipJob], weights: WeightsRef) -> list[ChipJob]:
        """Make the images that chips have in common; they last as long as the rack."""
        shared = SharedImages(weights)
        self._ends.callback(shared.close)
        out = []
        for job in jobs:
            out.append(shared.of(job))
            self._progress("images made", len(out), self._chips)
        return out

    def _meet(self) -> None:
        """Wait for every chip's hello and ready, and send all the addresses of the others."""
        endpoints = {self._chips: self._socket.endpoint}
        rings: list[list[Any]] = []
        ready: set[int] = set()
        self._progress("chips started", 0, self._chips)
        while len(ready) < self._chips:
            missing = [chip for chip in range(self._chips) if chip not in ready]
            message = self._receive(missing, "to load")
            if message is None or isinstance(message, Frame):
                continue
            chip = message.values["chip"]
            if message.kind == ControlKind.HELLO:
                self._check_code(message.values)
                endpoints[chip] = message.values["endpoint"]
                if message.values["rings"] is not None:
                    rings.append([chip, message.values["rings"]])
                self._progress("chips started", len(endpoints) - 1, self._chips)
            elif message.kind == ControlKind.READY:
                ready.add(chip)
                self._progress("chips loaded", len(ready), self._chips)
        self._socket.connect(endpoints)
        where = {"endpoints": [list(item) for item in endpoints.items()], "rings": rings}
        peers = Control(ControlKind.PEERS, where)
        for chip, talk in self._talks.items():
            talk.take(Sender.HOST, peers)
            self._socket.send(chip, peers)

    def _check_code(self, hello: Mapping[str, Any]) -> None:
        """Refuse a chip that runs other code than this process."""
        for what, wanted in self._code.items():
            if (got := hello["code"][what]) != wanted:
                raise OtherCodeError(
                    chip=hello["chip"], where=hello["where"], what=what, wanted=wanted, got=got
                )

    # -- run

    def reset(self) -> None:
        """Begin anew: no step is under way. Raises RackClosedError on a rack that failed."""
        self._check_usable()
        self.driver.reset()
        self.turns.reset()

    def start(self, order: StepOrder) -> None:
        """Start a step. Raises RackClosedError on a rack that failed or was closed."""
        with self._running(order.name):
            self.driver.start(order)
            self.turns.began(order)

    def finish(self) -> list[StepResult]:
        """End the oldest step under way, within a step's deadline.

        Raises ScheduleViolation, or ChipFailedError for a chip that died or stalled; the rack
        cannot be used after either.
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
        self._step = f"step {name}"
        self._deadline = time.monotonic() + self.step_timeout_s
        if self.executor == "reference" and name not in self._lowered:
            self._deadline += LOWERING_TIMEOUT_S
        try:
            yield
        except BaseException as error:
            self._failed = str(error) or type(error).__name__
            raise
        self._step = "between steps"

    def _check_usable(self) -> None:
        if self._failed is not None:
            raise RackClosedError(f"this rack cannot be used any more: {self._failed}")

    def _wait(self) -> None:
        message = self._receive([], "for the result")
        if message is not None and isinstance(message, Frame):
            self.driver.node.handle(message)

    def _receive(self, missing: list[int], purpose: str) -> Message | None:
        """Take one message. Raises for an error that a chip reports, a dead chip or a deadline."""
        now = time.monotonic()
        message = self._socket.receive(max(0.0, min(POLL_SECONDS, self._deadline - now)))
        if isinstance(message, Control):
            self._hear(message)
        if message is None or now - self._looked >= LOOK_SECONDS:
            self._looked = now
            if dead := self.launcher.dead():
                raise self._died(dead)
        if message is None and time.monotonic() >= self._deadline:
            raise self._late(missing, purpose)
        return message

    def _hear(self, message: Control) -> None:
        """Take a chip's message. Raises the error that it reports, or ControlError out of turn."""
        chip = message.values["chip"]
        if chip not in self._talks:
            raise ControlError(
                chip=chip, state=f"none of the {self._chips} chips of this rack",
                sender="it", wanted="nothing", got=message.kind,
            )  # fmt: skip
        kind = self._talks[chip].take(Sender.CHIP, message)
        if kind is ControlKind.ERROR:
            raise self._reported(message.values)
        if kind is ControlKind.REPORT:
            self._reports[chip] = message.values

    def _reported(self, values: Mapping[str, Any]) -> Exception:
        if "violation" in values:
            return rebuild_violation(values["violation"])
        return ChipFailedError(
            chip=values["chip"], step=values["step"], what=values["what"], waiting_for="nothing"
        )

    def _died(self, dead: dict[int, str]) -> Exception:
        chip, reason = min(dead.items())
        # Its error may still be in the socket: it says more than the exit code does.
        while (message := self._socket.receive(0)) is not None:
            if isinstance(message, Control) and message.kind == ControlKind.ERROR:
                return self._reported(message.values)
        running = self._step.startswith("step ")
        waits = self._first_wait(set(dead))[1] if running else "nothing"
        return ChipFailedError(
            chip=chip, step=self._step, what=f"its process ended ({reason})", waiting_for=waits
        )

    def _late(self, missing: list[int], purpose: str) -> Exception:
        """Return the error for a deadline: a chip that does not answer, or missing vectors."""
        if self._step == "start":
            return ChipFailedError(
                chip=missing[0], step="start",
                what=f"{len(missing)} of {self._chips} chips did not load in time: {missing}",
                waiting_for=purpose,
            )  # fmt: skip
        silent, waits = self._first_wait(set())
        if silent:
            return ChipFailedError(
                chip=silent[0], step=self._step,
                what=f"no answer within {self.step_timeout_s} s; silent chips {silent}",
                waiting_for=waits,
            )  # fmt: skip
        waiting = [values for values in self._reports.values() if "order" in values]
        if waiting:
            return rebuild_violation(min(waiting, key=lambda v: v["order"])["violation"])
        own = self.driver.node.chip.missing()
        return own or ChipFailedError(
            chip="host", step=self._step, what="deadline passed", waiting_for=purpose
        )

    def _first_wait(self, skip: set[int]) -> tuple[list[int], str]:
        """Ask every chip what it waits for; return the silent chips and the earliest wait."""
        self.collect_reports(skip)
        silent = [c for c in range(self._chips) if c not in self._reports and c not in skip]
        waits = [values for values in self._reports.values() if "order" in values]
        if not waits:
            return silent, "nothing that another chip knows of"
        return silent, str(min(waits, key=lambda values: values["order"])["what"])

    def collect_reports(self, skip: set[int]) -> dict[int, Mapping[str, Any]]:
        """Ask all chips but `skip` for a report, and wait a little for the answers."""
        self._reports = {}
        chips = [chip for chip in range(self._chips) if chip not in skip]
        for chip in chips:
            self._socket.send(chip, Control(ControlKind.REPORT))
        until = time.monotonic() + REPORT_TIMEOUT_S
        while len(self._reports) < len(chips) and (left := until - time.monotonic()) > 0:
            message = self._socket.receive(left)
            if isinstance(message, Control) and message.kind == ControlKind.REPORT:
                self._reports[message.values["chip"]] = message.values
        return self._reports

    def saturated(self) -> int:
        """Count the values that saturated when rounded to fp16, over all chips that answer."""
        self._check_usable()
        return sum(int(values["saturated"]) for values in self.collect_reports(set()).values())

    def times(self) -> dict[str, float]:
        """Return the seconds of all chips together, by part, since they were loaded."""
        self._check_usable()
        total: dict[str, float] = {}
        for values in self.collect_reports(set()).values():
            for part, seconds in values["times"].items():
                total[part] = total.get(part, 0.0) + seconds
        return total

    def check(self) -> None:
        """Raise the error of a chip that died or a cluster that was lost since the last step."""
        self._check_usable()
        try:
            if dead := self.launcher.dead():
                raise self._died(dead)
        except Exception as error:
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


def start_process_rack(
    compiled: CompiledModel, weights: WeightsRef, hardware: Hardware, *,
    step_timeout_s: float, progress: Progress | None = None, **extra: Any,
) -> RemoteRack:  # fmt: skip
    """Start a plain process per chip on this host."""
    from rack.run.processes import ProcessLauncher

    return RemoteRack(
        compiled, weights, ProcessLauncher(), step_timeout_s=step_timeout_s, progress=progress,
        **extra,
    )  # fmt: skip


def start_ray_rack(
    compiled: CompiledModel, weights: WeightsRef, hardware: Hardware, *,
    step_timeout_s: float, progress: Progress | None = None, **extra: Any,
) -> RemoteRack:  # fmt: skip
    """Start a Ray actor per chip, placed by card and rack."""
    from rack.run.cluster import RayLauncher  # imports ray: only where it is used

    launcher = RayLauncher(hardware, compiled.layout.chips, progress)
    return RemoteRack(
        compiled, weights, launcher, step_timeout_s=step_timeout_s, progress=progress, **extra
    )
