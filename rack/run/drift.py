"""Run schedules on clocks that stray, and check that every vector comes in its window.

There are no data and no chips. Each chip's clock and counter are simulated exactly
(interconnect/clock.py). For every transfer of every step the real time of its arrival is compared
with the real times at which the receiver's program opens and closes its window. An arrival outside
is a ScheduleViolation. Thousands of steps run at once, each an element of arrays.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from chip.errors import ScheduleViolation
from chip.ops.moves import Receive
from chip.ops.program import Program
from compiler.ir import LinkUse, ScheduledTransfer, StepSchedule
from compiler.pipeline import CompiledModel
from interconnect.clock import I64, MAX_CYCLES, MICRO, ChipClock, Jitter, build_clocks
from rack.errors import RequestError

BLOCK = 4096  # steps played at a time


class DriftingClocks:
    """The clocks of a compiled model's chips, and the checks of a run on them.

    `drifts` sets the drift of physical slots in ppm, within the profile's bounds. The profile's
    seed draws the drift of the other slots.
    """

    def __init__(self, compiled: CompiledModel, drifts: Mapping[int, int] | None = None) -> None:
        network = compiled.network
        self.links, self.host = network.links, compiled.layout.chips
        self._transfers = 0  # numbers the flights, for their jitter
        self._jitter = [Jitter(network.clock, f"link {link.name}") for link in self.links]
        root = network.binding[0]
        clocks = build_clocks(network.clock, root, network.sync, dict(drifts or {}))
        keeper = clocks[0] if clocks else ChipClock(network.clock, root, 0)
        self._clocks = [*clocks, keeper]  # the host's port keeps the root's time

    def run(self, schedule: StepSchedule, first_base: int, count: int = 1) -> int:
        """Run a step `count` times in a row; return the cycle at which the last one ends.

        Raises ScheduleViolation for the first vector that comes outside its window, or the first
        chip that stops too late to realign; RequestError for a run that is too long to count.
        """
        end = first_base + count * schedule.cycles
        if end > MAX_CYCLES:
            wanted = f"a run of at most {MAX_CYCLES} emulated cycles where clocks drift"
            raise RequestError(param="steps", wanted=wanted, got=str(end))
        for start in range(0, count, BLOCK):
            numbers = np.arange(start, min(start + BLOCK, count), dtype=np.int64)
            self._play(schedule, first_base + numbers * schedule.cycles)
        return end

    def _play(self, schedule: StepSchedule, bases: I64) -> None:
        counters = [
            _Counter(clock, program, schedule, bases, node == self.host)
            for node, (clock, program) in enumerate(
                zip(self._clocks, schedule.programs, strict=True)
            )
        ]
        for transfer in schedule.transfers:
            link = self.links[transfer.link]
            numbers = self._transfers + np.arange(len(bases), dtype=np.int64)
            self._transfers += len(bases)
            jitter = self._jitter[link.id].of(numbers)
            last = transfer.vectors - 1
            for what, vector, receive in (
                ("first vector's arrival", 0, transfer.first_arrive),
                ("last vector's arrival", last, transfer.arrive),
            ):
                leaves = transfer.depart + vector * link.slot_cycles
                flight = (link.slot_cycles + link.latency_cycles) * MICRO
                arrives = counters[transfer.src].when(leaves) + flight + jitter
                late = arrives - counters[transfer.dst].when(receive)
                window = link.rx_window_cycles * self._clocks[transfer.dst].period
                self._check(what, schedule, transfer, link, receive, late + window, late)

    def _check(
        self, what: str, schedule: StepSchedule, transfer: ScheduledTransfer, link: LinkUse,
        receive: int, early: I64, late: I64,
    ) -> None:  # fmt: skip
        wrong = (early < 0) | (late > 0)
        if not wrong.any():
            return
        at = int(wrong.argmax())
        off = int(late[at]) if late[at] > 0 else int(early[at]) - link.rx_window_cycles * MICRO
        raise ScheduleViolation(
            what, chip=transfer.dst if transfer.dst < self.host else "host", link=link.name,
            cycle=receive, operation=transfer.name, step=schedule.name,
            wanted=(receive - link.rx_window_cycles, receive), got=f"{receive + off / MICRO:.3f}",
        )  # fmt: skip


class _Counter:
    """A program's cycles in real time, in one step, for many bases at once."""

    def __init__(
        self, clock: ChipClock, program: Program, schedule: StepSchedule, bases: I64, is_host: bool
    ) -> None:
        self._period = clock.period
        self._set = [(0, clock.reads(bases))]
        if is_host:
            return
        quiet = max((op.end + isinstance(op.op, Receive) for op in program.operations), default=0)
        for begin, until in (*program.realign, (quiet, schedule.cycles)):
            stops, counts = self.when(begin), clock.reads(bases + until)
            if (stops > counts).any():
                at = int((stops > counts).argmax())
                raise ScheduleViolation(
                    "the counter cannot be realigned", chip=program.chip, cycle=begin,
                    operation="RUNTIME_DESKEW", step=schedule.name,
                    wanted=f"a stop of {(until - begin) + (stops - counts)[at] / MICRO:.3f} cycles",
                    got=until - begin,
                )  # fmt: skip
            self._set.append((until, counts))

    def when(self, cycle: int) -> I64:
        """Real times of a cycle of the program, by the counter's last setting before it."""
        since, real = next(item for item in reversed(self._set) if item[0] <= max(cycle, 0))
        times: I64 = real + (cycle - since) * self._period
        return times
