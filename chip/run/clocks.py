"""The chip's own clocks: when each operation of a program can start, worked out from the program.

Done once per step at load, because nothing in it depends on data (law 3). The chip trusts only
the cycles at which its Receives are issued; everything else follows from its own spec, its links'
slots, its units and its operands, and must equal the schedule.
"""

from __future__ import annotations

from collections.abc import Mapping

from chip.errors import ProgramError, ScheduleViolation
from chip.ops.cost import (
    cycles,
    needed,
    receive_cycles,
    result_stream_cycles,
    send_lead_cycles,
)
from chip.ops.operations import Opcode, Region, operands
from chip.ops.program import Operation, Program
from chip.spec import ChipSpec


def unit_spans(program: Program) -> dict[str, tuple[int, int]]:
    """Return the first and last cycle at which a program holds each unit and each link's end."""
    spans: dict[str, tuple[int, int]] = {}
    for operation in program.operations:
        receives = operation.opcode is Opcode.RECEIVE
        for unit in (f"arrivals of {operation.args['link']}",) if receives else operation.units:
            first, last = spans.get(unit, (operation.start, operation.end))
            spans[unit] = min(first, operation.start), max(last, operation.end)
    return spans


class UnitClocks:
    """Replays one program against one chip's spec; `check` raises where the schedule differs."""

    def __init__(self, program: Program, spec: ChipSpec, slot_cycles: Mapping[int, int]) -> None:
        self.program, self.spec, self.slot_cycles = program, spec, slot_cycles
        self.unit_free: dict[str, int] = {}
        # Every region ever written or read: when its last write gave its first vector, when it
        # gave its last, and when its last read ended.
        self.begun: dict[Region, int] = {}
        self.written: dict[Region, int] = {}
        self.read: dict[Region, int] = {}
        self.received: dict[int, Operation] = {}

    def check(self) -> None:
        """Raise ScheduleViolation for the first operation whose cycles the chip would not keep."""
        for operation in self.program.operations:
            start, end = self._clock(operation)
            for what, wanted, got in (
                ("start", operation.start, start),
                ("end", operation.end, end),
            ):
                if wanted != got:
                    link = operation.args.get("link")
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

    def _clock(self, operation: Operation) -> tuple[int, int]:
        if operation.opcode is Opcode.RECEIVE:
            _, writes = operation.regions()
            in_use = max(self._hazard(writes[0], self.written), self._hazard(writes[0], self.read))
            first = max(operation.start, in_use)
            slot = self._slot(operation)
            return first, first + (operation.args["vectors"] - 1) * slot
        ready = max((self.unit_free.get(unit, 0) for unit in operation.units), default=0)
        if operation.opcode is Opcode.SEND:
            start = max(ready, self._send_ready(operation)) + operation.nop
            return start, start + operation.args["vectors"] * self._slot(operation)
        start = max(ready, self._operands_ready(operation)) + operation.nop
        return start, start + cycles(operation.opcode, operation.args, self.spec)

    def _slot(self, operation: Operation) -> int:
        link = operation.args["link"]
        if link not in self.slot_cycles:
            raise ProgramError(
                f"chip {self.program.chip}, {operation.name}: no link {link}; "
                f"this chip has {sorted(self.slot_cycles)}"
            )
        return self.slot_cycles[link]

    def _send_ready(self, operation: Operation) -> int:
        """Forwarded vectors leave as they come; everything else waits for its operand."""
        arrived = self.received.get(operation.args.get("forward", -1))
        tail = (int(operation.args["vectors"]) - 1) * self._slot(operation)
        if arrived is None:
            region = operation.regions()[0][0]
            begun, ended = self._hazard(region, self.begun), self._hazard(region, self.written)
            return max(begun, ended - tail) + (send_lead_cycles(self.spec) if ended else 0)
        return max(arrived.start, arrived.end - tail) + self.spec.forward_cycles

    def _operands_ready(self, operation: Operation) -> int:
        reads, writes = operands(operation.opcode, operation.args)
        ready = 0
        for name, region in reads:
            first, last = needed(operation.opcode, name, operation.args, self.spec)
            begun, ended = self._hazard(region, self.begun), self._hazard(region, self.written)
            ready = max(ready, begun - first, ended - last)
        for _, region in writes:
            ready = max(ready, self._hazard(region, self.written), self._hazard(region, self.read))
        return ready

    @staticmethod
    def _hazard(region: Region, done: dict[Region, int]) -> int:
        """Return the end of the last access that shares a byte with the region."""
        first, last = region[0], region[0] + region[1]
        return max(
            (end for (at, size), end in done.items() if at < last and first < at + size), default=0
        )

    def _commit(self, operation: Operation, start: int, end: int) -> None:
        reads, writes = operation.regions()
        for unit in operation.units:
            self.unit_free[unit] = end
        if operation.opcode is Opcode.RECEIVE:
            first = start
        elif operation.opcode is Opcode.SEND:
            first = end
        else:
            first = end - result_stream_cycles(operation.opcode, operation.args, self.spec)
        landed = receive_cycles(self.spec) if operation.opcode is Opcode.RECEIVE else 0
        first, last = first + landed, end + landed
        for table, regions, at in (
            (self.read, reads, end),
            (self.written, writes, last),
            (self.begun, writes, first),
        ):
            for region in regions:  # accesses may end out of order: two sends of one segment
                table[region] = max(at, table.get(region, 0))
        if operation.opcode is Opcode.RECEIVE:
            self.received[operation.args["transfer"]] = operation
