"""The chip's own clocks: they compute from a program when each of its operations can start.

This is done once per step at load, because nothing in it depends on data (law 3). The chip trusts
only the cycles at which its Receives are issued. Everything else follows from its own spec, its
links' slots, its units and its operands, and must equal the schedule.
"""

from __future__ import annotations

from collections.abc import Mapping

from chip.errors import ProgramError, ScheduleViolation
from chip.ops.cost import CostModel, receive_cycles, send_lead_cycles
from chip.ops.moves import Receive, Send
from chip.ops.opcodes import Region
from chip.ops.program import Computation, Move, Program, Scheduled


def unit_spans(program: Program) -> dict[str, tuple[int, int]]:
    """Return the first and last cycle at which a program holds each unit and each link's end."""
    spans: dict[str, tuple[int, int]] = {}
    for operation in program.operations:
        op = operation.op
        for unit in (f"arrivals of {op.link}",) if isinstance(op, Receive) else op.units:
            first, last = spans.get(unit, (operation.start, operation.end))
            spans[unit] = min(first, operation.start), max(last, operation.end)
    return spans


class UnitClocks:
    """Replays one program against one chip's spec; `check` raises if the schedule differs."""

    def __init__(
        self, program: Program, costs: CostModel, slot_cycles: Mapping[int, int]
    ) -> None:  # fmt: skip
        self.program, self.costs, self.slot_cycles = program, costs, slot_cycles
        self.spec = costs.spec
        self.unit_free: dict[str, int] = {}
        # Every region ever written or read: when its last write gave its first and its last
        # vector, and when its last read ended.
        self.begun: dict[Region, int] = {}
        self.written: dict[Region, int] = {}
        self.read: dict[Region, int] = {}
        self.received: dict[int, Scheduled] = {}

    def check(self) -> None:
        """Raise ScheduleViolation for the first operation whose cycles differ from the chip's."""
        for operation in self.program.operations:
            start, end = self._clock(operation)
            for what, wanted, got in (
                ("start", operation.start, start),
                ("end", operation.end, end),
            ):
                if wanted != got:
                    link = getattr(operation.op, "link", None)
                    raise ScheduleViolation(
                        f"the schedule's {what} is not the chip's own",
                        chip=self.program.chip,
                        link=None if link is None else str(link),
                        cycle=operation.start,
                        operation=operation.name,
                        wanted=wanted,
                        got=got,
                        step=self.program.step,
                    )
            self._commit(operation, start, end)

    def _clock(self, operation: Scheduled) -> tuple[int, int]:
        op = operation.op
        if isinstance(op, Receive):
            ((_, region),) = op.writes()
            in_use = max(self._hazard(region, self.written), self._hazard(region, self.read))
            first = max(operation.start, in_use)
            return first, first + (op.vectors - 1) * self._slot(operation.name, op)
        ready = max((self.unit_free.get(unit, 0) for unit in op.units), default=0)
        if isinstance(op, Send):
            slot = self._slot(operation.name, op)
            start = max(ready, self._send_ready(op, slot)) + operation.nop
            return start, start + op.vectors * slot
        start = max(ready, self._operands_ready(op)) + operation.nop
        return start, start + self.costs.cycles(op)

    def _slot(self, name: str, move: Move) -> int:
        if move.link not in self.slot_cycles:
            raise ProgramError(
                f"chip {self.program.chip}, {name}: no link {move.link}; "
                f"this chip has {sorted(self.slot_cycles)}"
            )
        return self.slot_cycles[move.link]

    def _send_ready(self, send: Send, slot: int) -> int:
        """Return when a SEND may start: forwarded vectors as they come, others when written."""
        arrived = None if send.forward is None else self.received.get(send.forward)
        tail = (send.vectors - 1) * slot
        if arrived is None:
            ((_, region),) = send.reads()
            begun, ended = self._hazard(region, self.begun), self._hazard(region, self.written)
            return max(begun, ended - tail) + (send_lead_cycles(self.spec) if ended else 0)
        return max(arrived.start, arrived.end - tail) + self.spec.forward_cycles

    def _operands_ready(self, op: Computation) -> int:
        ready = 0
        for name, region in op.reads():
            first, last = self.costs.needed(op, name)
            begun, ended = self._hazard(region, self.begun), self._hazard(region, self.written)
            ready = max(ready, begun - first, ended - last)
        for _, region in op.writes():
            ready = max(ready, self._hazard(region, self.written), self._hazard(region, self.read))
        return ready

    @staticmethod
    def _hazard(region: Region, done: dict[Region, int]) -> int:
        """Return the end of the last access that shares a byte with the region."""
        first, last = region[0], region[0] + region[1]
        return max(
            (end for (at, size), end in done.items() if at < last and first < at + size), default=0
        )

    def _commit(self, operation: Scheduled, start: int, end: int) -> None:
        op, landed = operation.op, 0
        for unit in op.units:
            self.unit_free[unit] = end
        if isinstance(op, Receive):
            first, landed = start, receive_cycles(self.spec)
            self.received[op.transfer] = operation
        elif isinstance(op, Send):
            first = end
        else:
            first = end - self.costs.stream_cycles(op)
        first, last = first + landed, end + landed
        for table, uses, at in (
            (self.read, op.reads(), end),
            (self.written, op.writes(), last),
            (self.begun, op.writes(), first),
        ):
            for _, region in uses:  # accesses may end out of order: two sends of one segment
                table[region] = max(at, table.get(region, 0))
