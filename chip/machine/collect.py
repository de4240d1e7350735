"""Turns issues into event runs: what each writes to and takes from streams, SRAM, ALUs and planes.

Every vector that an issue makes has a value number: `base + index * per + vector`. Every vector
that it takes has a place in one flat array of operands, filled by `resolve`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from chip.errors import MachineError
from chip.floorplan import Unit, plane_of, position
from chip.isa.instructions import (
    ABC,
    ACC,
    IW,
    LW,
    TILES,
    Alu,
    AluOp,
    Gather,
    Lanes,
    Read,
    Receive,
    Scatter,
    Select,
    Send,
    Transpose,
    Write,
)  # fmt: skip
from chip.isa.issue import Delay, Issue, delays
from chip.isa.operands import ITEM_BYTES, At, Chain, Group, Held, In, Stream, Tap, group
from chip.machine.check import Checker, culprit
from chip.machine.tables import Runs
from chip.spec import ChipSpec

EDGE = 63  # flow coordinates run from 0 to this in both directions


class Slot(NamedTuple):
    """Where an operand's vectors stand in the flat array: [n, width]."""

    offset: int
    n: int
    width: int


@dataclass(slots=True)
class Burst:
    """One issue row with its values and operands."""

    issue: Issue
    number: int
    base: int = 0  # of its value numbers
    per: int = 0  # values an issue
    count: int = 0  # values in all
    dtype: str = "i8"  # of an ALU's or a plane's results
    operands: list[Slot] = field(default_factory=list)
    late: int = 0  # cycles by which the last operand's last vector comes after the first


def slice_of(issue: Issue, spec: ChipSpec) -> int:
    """Return the slice of a MEM queue: hemisphere * slices a hemisphere + its number there."""
    return issue.queue.hemisphere * (spec.slices // spec.hemispheres) + issue.queue.number


def access_cycle(issue: Issue, table: dict[str, Delay]) -> int:
    """Return when the first issue of a MEM instruction takes its slice's port.

    assumption: a Gather reads as long before its result as a Read does: the addresses come first.
    """
    delay = table[issue.instruction.name]
    if isinstance(issue.instruction, (Read, Gather)):
        return issue.cycle + delay.d_func - table["READ"].d_func
    return issue.cycle + delay.d_func


class Collector:
    """Runs of events, one table per kind of place."""

    def __init__(self, spec: ChipSpec) -> None:
        self.spec, self.delays = spec, delays(spec)
        self.bursts: list[Burst] = []
        self.values = self.places = 0
        self.stream_writes = Runs(7)  # code, diagonal, step, flow, value, value step, burst
        self.stream_reads = Runs(7)  # code, diagonal, step, flow, place, place step, burst
        self.queue_slots = Runs(4)  # queue, cycle, step, burst
        self.sram_reads = Runs(7)  # slice, word, word step, cycle, step, value, burst
        self.sram_writes = Runs(7)  # slice, word, word step, cycle, step, place, burst
        self.port_uses = Runs(
            5
        )  # of run-time addresses: slice, whether it writes, cycle, step, burst
        self.dynamic: list[Burst] = []  # bursts whose address is known at run time
        self.mapped: list[Burst] = []  # bursts whose addresses come from a stream
        self.completions = Runs(6)  # alu, cycle, step, value, value step, burst
        self.register_reads = Runs(6)  # alu, cycle, step, place, exact, burst
        self.loads = Runs(8)  # plane, cycle, step, column, column step, place, place step, burst
        self.installs = Runs(5)  # plane, cycle, step, columns, burst
        self.fills = Runs(7)  # plane, slot, slot step, cycle, step, place, burst
        self.uses = Runs(7)  # plane, slot, slot step, cycle, step, place, burst
        self.products = Runs(6)  # plane, cycle, step, place, whether fp16, burst
        self.drains = Runs(6)  # plane, cycle, step, place, whether fp16, burst
        self.halves = Runs(7)  # plane, slot, slot step, cycle, step, half, burst
        self.sums = Runs(7)  # plane, slot, slot step, cycle, step, whether it starts, burst
        self._checker = Checker(spec)
        self._queues: dict[object, int] = {}

    def add(self, issue: Issue) -> None:
        """Take one row of issues. Raises MachineError for an instruction wrong in itself."""
        self._checker.check(issue)
        burst = Burst(issue, len(self.bursts))
        self.bursts.append(burst)
        queue = self._queues.setdefault(issue.queue, len(self._queues))
        self.queue_slots.add(issue.n, queue, issue.cycle, issue.d, burst.number)
        instruction = issue.instruction
        if isinstance(instruction, Alu):
            self._alu(burst, instruction)
        elif isinstance(instruction, (Read, Write, Gather, Scatter)):
            self._mem(burst, instruction)
        elif isinstance(instruction, (Lanes, Transpose)):
            self._sxm(burst, instruction)
        elif isinstance(instruction, (Send, Receive)):
            self._c2c(burst, instruction)
        elif isinstance(instruction, (LW, IW, ABC, ACC)):
            self._mxm(burst, instruction)

    # -- streams

    def _flow(self, burst: Burst, stream: Stream) -> int:
        at = position(burst.issue.queue, self.spec)
        return at if stream.eastward else EDGE - at

    def _code(self, stream: Stream) -> int:
        return stream.number + (0 if stream.eastward else 32)

    def _take(self, burst: Burst, taps: Group) -> Slot:
        """Note an operand that is sampled from streams."""
        issue, width = burst.issue, len(taps)
        slot = self._slot(burst, width)
        skew = self.delays[issue.instruction.name].d_skew
        for place, (stream, beat) in enumerate(taps):
            burst.late = max(burst.late, beat)
            flow = self._flow(burst, stream)
            diagonal = issue.cycle + skew + beat - flow
            self.stream_reads.add(
                issue.n, self._code(stream), diagonal, issue.d, flow, slot.offset + place, width,
                burst.number,
            )  # fmt: skip
        return slot

    def _slot(self, burst: Burst, width: int) -> Slot:
        slot = Slot(self.places, burst.issue.n, width)
        self.places += slot.n * width
        burst.operands.append(slot)
        return slot

    def _values(self, burst: Burst, per: int, n: int | None = None) -> None:
        burst.base, burst.per = self.values, per
        burst.count = per * (burst.issue.n if n is None else n)
        self.values += burst.count

    def _put(self, burst: Burst, taps: Group, n: int | None = None) -> None:
        """Note that the first values of each issue leave on streams, d_func later."""
        issue = burst.issue
        func = self.delays[issue.instruction.name].d_func + burst.late
        for vector, (stream, beat) in enumerate(taps):
            flow = self._flow(burst, stream)
            diagonal = issue.cycle + func + beat - flow
            self.stream_writes.add(
                issue.n if n is None else n, self._code(stream), diagonal,
                issue.d if n is None else 1, flow, burst.base + vector, burst.per, burst.number,
            )  # fmt: skip

    # -- units

    def _mem(self, burst: Burst, mem: Read | Write | Gather | Scatter) -> None:
        issue = burst.issue
        place = slice_of(issue, self.spec)
        reads = isinstance(mem, (Read, Gather))
        if isinstance(mem, (Gather, Scatter)):
            self._take(burst, (Tap(mem.map),))
            self.mapped.append(burst)
        if reads:
            self._values(burst, 1)
            self._put(burst, (Tap(mem.stream),))
        else:
            self._take(burst, (Tap(mem.stream),))
        cycle = access_cycle(issue, self.delays)
        if isinstance(mem, (Gather, Scatter)) or isinstance(mem.address, At):
            self.port_uses.add(issue.n, place, int(not reads), cycle, issue.d, burst.number)
            if isinstance(mem, (Read, Write)):
                self.dynamic.append(burst)
            return
        data = burst.base if reads else burst.operands[0].offset
        (self.sram_reads if reads else self.sram_writes).add(
            issue.n, place, mem.address, mem.step, cycle, issue.d, data, burst.number
        )

    def _alu(self, burst: Burst, alu: Alu) -> None:
        issue = burst.issue
        delay = self.delays[alu.name]
        for source in alu.sources:
            if isinstance(source, In):
                self._take(burst, source.taps)
            elif isinstance(source, (Chain, Held)):
                slot = self._slot(burst, 1)
                self.register_reads.add(
                    issue.n, source.alu, issue.cycle + delay.d_skew, issue.d, slot.offset,
                    int(isinstance(source, Chain)), burst.number,
                )  # fmt: skip
        burst.dtype = _result_type(alu)
        self._values(burst, ITEM_BYTES[burst.dtype])
        done = issue.cycle + burst.late + delay.d_func
        self.completions.add(
            issue.n, issue.queue.number, done, issue.d, burst.base, burst.per, burst.number
        )
        self._put(burst, alu.out)

    def _sxm(self, burst: Burst, sxm: Lanes | Transpose) -> None:
        issue = burst.issue
        if isinstance(sxm, Lanes):
            self._take(burst, sxm.src)
            if isinstance(sxm, Select):
                self._take(burst, sxm.other)
            self._values(burst, len(sxm.dst))
            self._put(burst, sxm.dst)
            return
        most = TILES // sxm.item
        if issue.n > most or (issue.n > 1 and issue.d != 1):
            what = f"a block: wanted up to {most} issues, one a cycle, got {issue.n}, {issue.d}"
            raise MachineError(what, culprit(issue))
        self._take(burst, group(sxm.src, 16))
        self._values(burst, 16, sxm.groups)
        self._put(burst, group(sxm.dst, 16), n=sxm.groups)

    def _c2c(self, burst: Burst, c2c: Send | Receive) -> None:
        if isinstance(c2c, Send):
            self._take(burst, (Tap(c2c.stream),))
        else:
            self._values(burst, 1)
            self._put(burst, (Tap(c2c.stream),))

    def _mxm(self, burst: Burst, mxm: LW | IW | ABC | ACC) -> None:
        issue, number = burst.issue, burst.number
        assert issue.queue.unit is Unit.MXM
        plane, delay = plane_of(issue.queue)[0], self.delays[mxm.name]
        ready = issue.cycle + delay.d_func
        if isinstance(mxm, LW):
            slot = self._take(burst, group(mxm.stream, mxm.count))
            for j in range(mxm.count):
                self.loads.add(
                    issue.n, plane, ready, issue.d, mxm.column + j, mxm.step, slot.offset + j,
                    mxm.count, number,
                )  # fmt: skip
        elif isinstance(mxm, IW):
            self.installs.add(issue.n, plane, issue.cycle, issue.d, mxm.columns, number)
        elif isinstance(mxm, ABC):
            if mxm.stream is not None:
                slot = self._take(burst, (Tap(mxm.stream),))
            else:
                slot = self._slot(burst, 1)
            row = (plane, mxm.slot or 0, mxm.step, issue.cycle, issue.d, slot.offset, number)
            if mxm.slot is not None:
                (self.uses if mxm.stream is None else self.fills).add(issue.n, *row)
            if mxm.stream is None or mxm.slot is None:
                self.products.add(
                    issue.n, plane, ready, issue.d, slot.offset, int(mxm.fp16), number
                )
        else:
            self._acc(burst, mxm, plane)

    def _acc(self, burst: Burst, acc: ACC, plane: int) -> None:
        issue, number, fp16 = burst.issue, burst.number, acc.half is not None
        burst.dtype = "f32" if fp16 else "i32"
        row = (plane, acc.slot, acc.step, issue.cycle, issue.d)
        if acc.product:  # its operand is the activation of the product that it takes
            slot = self._slot(burst, 1)
            taken = (plane, issue.cycle, issue.d, slot.offset, int(fp16), number)
            self.drains.add(issue.n, *taken)
        if acc.product and acc.half is not None:
            self.halves.add(issue.n, *row, acc.half, number)
        if acc.half != 0 or not acc.product:  # the first half leaves the row's sum alone
            self.sums.add(issue.n, *row, int(acc.first and acc.product), number)
        self._values(burst, 4 if acc.out else 0)
        self._put(burst, acc.out)


def _result_type(alu: Alu) -> str:
    if alu.op is AluOp.COPY and isinstance(alu.a, In):
        return alu.a.dtype
    to = {AluOp.CVT_I32: "i32", AluOp.CVT_I8: "i8", AluOp.CVT_F16: "f16"}
    return to.get(alu.op, "f32")  # whether 32 bits are i32 is settled when operands are known
