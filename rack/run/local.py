"""A rack in one process: the same programs, links and frames, moved by queues in one thread.

Nothing can be late here. If no chip can go on while the host still waits, vectors are missing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from chip.errors import ScheduleViolation
from compiler.model.weights import WeightsRef
from compiler.pipeline import CompiledModel
from interconnect.faults import Fault, FaultyTransport
from interconnect.transport import LocalHub, Transport
from rack.errors import ChipFailedError, FaultError
from rack.run.driver import Driver
from rack.run.flagged import Corrected, Flags, LinkErrors, corrected
from rack.run.job import build_chip, chip_job
from rack.run.node import NO_ERRORS, ChipNode, LinkSlots
from rack.run.shared import SharedImages, shares
from rack.run.steps import Recovery, StepOrder, StepResult, Turns
from rack.run.stopwatch import Stopwatch
from rack.run.stored import Images


class LocalRack:
    """All chips of a compiled model, in this process.

    `slots` gives links other slot cycles than those of the schedule. `faults` are injected at the
    senders' transports. `errors` are those of links that make some.
    """

    transport = "local"
    spares = 0

    def __init__(
        self, compiled: CompiledModel, weights: WeightsRef, *,
        slots: LinkSlots | None = None, faults: Sequence[Fault] = (), kernels: str | None = None,
        images: Images | None = None, executor: str = "fast", errors: LinkErrors = NO_ERRORS,
    ) -> None:  # fmt: skip
        self.executor = executor
        self.compiled = compiled
        self._watch = Stopwatch()
        hub = LocalHub()
        self.nodes: list[ChipNode] = []
        self.flags = Flags(compiled.network.links)

        def join(node: int) -> Transport:
            own = {link.id for link in compiled.network.links if link.src == node}
            mine = [fault for fault in faults if fault.link in own]
            inner = hub.transport(node)
            return FaultyTransport(inner, mine) if mine else inner

        watch = self._watch.watch
        share = shares(weights, self.transport, stored=images is not None)
        with contextlib.closing(SharedImages(weights)) as common:
            for index in range(compiled.layout.chips):
                job = chip_job(compiled, index, weights, images, executor)
                if share:
                    job = common.of(job)
                flagged = self.flags.take
                node = ChipNode(job.links, index, join(index), slots or {}, errors, flagged)
                node.attach(lambda node, job=job: build_chip(job, node.send, kernels, watch))  # type: ignore[misc]
                self.nodes.append(node)
        self.driver = Driver(compiled, weights.open(), join(compiled.layout.chips), slots)
        self.turns = Turns(compiled)

    def reset(self) -> None:
        """Begin anew: no step is under way."""
        self.driver.reset()
        self.turns.reset()
        self.flags.clear()

    def start(self, order: StepOrder) -> None:
        """Start a step. Raises ScheduleViolation if the run differs from the schedule."""
        self.driver.start(order)
        self.turns.began(order)

    def finish(self) -> list[StepResult]:
        """Run the oldest step under way to its end. Raises ScheduleViolation as `start`.

        Raises LinkFlaggedError if errors on a link keep it from ending; `reset` is next then.
        """
        return self.driver.finish(self._pump)

    def run_step(
        self, name: str, positions: Sequence[int], tokens: Sequence[int],
        following: str | None = None,
    ) -> StepResult:  # fmt: skip
        """Run one step in turn (`Turns`)."""
        self.start(self.turns.order(name, positions, tokens))
        return self.turns.ended(name, self.finish()[0], following)

    def _pump(self) -> None:
        progress = False
        for node in (*self.nodes, self.driver.node):
            progress |= node.pump(0)
        if not progress:
            self.driver.check_flags(self.flags)
            raise self._missing()

    def _missing(self) -> ScheduleViolation:
        """Return the missing vectors of the chip that saw the fault first."""
        chips = [node.chip for node in (*self.nodes, self.driver.node)]
        waits = [(order, chip) for chip in chips if (order := chip.wait_order()) is not None]
        violation = min(waits, key=lambda item: item[0])[1].missing()
        assert violation is not None
        return violation

    def saturated(self) -> int:
        """Values that saturated when rounded to fp16, over all chips."""
        return sum(node.chip.state.saturated for node in self.nodes)

    def corrected_vectors(self) -> Corrected:
        """Return the vectors that were corrected at the links' ends, by link."""
        ends = [end for node in self.nodes for end in node.noisy.values()]
        counts = [(end.link, end.corrected_vectors) for end in ends]
        return corrected(self.compiled.network.links, counts)

    def times(self) -> dict[str, float]:
        """Seconds spent by part, since the chips were loaded."""
        return self._watch.parts()

    def check(self) -> None:
        """Do nothing: chips in this process cannot die alone."""

    def recover(self, error: FaultError) -> Recovery:
        """See `Rack.recover`: vectors may be lost here, but no chip could be replaced."""
        if isinstance(error, ChipFailedError):
            raise error
        return Recovery(
            chips=(), step=error.step, what=str(error), detected_seconds=0.0, wall_seconds=0.0
        )

    def condition(self) -> str | None:
        """Return None: it always runs."""
        return None

    def close(self) -> None:
        """Free the memory."""
        for node in self.nodes:
            node.transport.close()
            node.chip.sram.close()
        self.driver.close()
