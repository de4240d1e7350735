"""Turns issues into events: what each writes to and takes from streams, SRAM, ALUs and planes.

Every vector that an issue makes has a value number: `base + issue * per + vector`. Every vector
that an issue takes has an operand number; `chip.machine.resolve` finds the value number of each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from chip.errors import IssueError
from chip.floorplan import Queue, Unit, hops, mem, plane_of, position
from chip.isa.instructions import (
    ABC,
    ACC,
    BLOCK_STREAMS,
    IW,
    LW,
    TILES,
    Alu,
    AluOp,
    Gather,
    Ifetch,
    Lanes,
    Read,
    Receive,
    Scatter,
    Select,
    Send,
    Transpose,
    Write,
)  # fmt: skip
from chip.isa.issue import Delay, Issue, culprit, delays
from chip.isa.operands import ITEM_BYTES, At, Chain, Group, Held, In, Tap, group
from chip.machine.check import Checker
from chip.machine.events import (
    EventTable,
    HalfEvents,
    InstallEvents,
    IssueIndex,
    LoadEvents,
    PortEvents,
    ProductEvents,
    QueueEvents,
    RegisterEvents,
    ResultEvents,
    SlotEvents,
    StreamEvents,
    SumEvents,
    WordEvents,
)
from chip.spec import ChipSpec

FLOW_BITS = 6
EDGE = (1 << FLOW_BITS) - 1  # flow coordinates run from 0 to this in both directions


class Operand(NamedTuple):
    """The operand numbers of one operand of a burst: [n, width] of them from `first` on."""

    first: int
    n: int
    width: int


@dataclass(slots=True)
class Burst:
    """The issues of one `Issue`, with the values that they make and take."""

    issue: Issue
    number: int
    base: int = 0  # of its value numbers
    per: int = 0  # values an issue
    count: int = 0  # values in all
    dtype: str = "i8"  # of an ALU's or a plane's results
    operands: list[Operand] = field(default_factory=list)
    last_beat: int = 0  # cycles from the first beat of the operands to the last


def slice_of(issue: Issue, spec: ChipSpec) -> int:
    """Return the slice of a MEM queue: hemisphere * slices a hemisphere + its number there."""
    return issue.queue.hemisphere * (spec.slices // spec.hemispheres) + issue.queue.number


def landing(issue: Issue, spec: ChipSpec, table: dict[str, Delay]) -> int:
    """Return when the first vector of a Receive is written."""
    receive = issue.instruction
    assert isinstance(receive, Receive)
    way = hops(issue.queue, mem(receive.side, receive.slice), spec)
    return issue.cycle + table["RECEIVE"].d_func + way + table["WRITE"].d_func


def access_cycle(issue: Issue, table: dict[str, Delay]) -> int:
    """Return when the first issue of a MEM instruction takes its slice's port.

    A Write stores at its d_func. A Read takes the port when it is issued, and its d_func is the way
    to the stream. assumption: a Gather takes the port as long before its result as a Read does,
    READ's d_func; its addresses come first.
    """
    delay = table[issue.instruction.name]
    if isinstance(issue.instruction, (Read, Gather)):
        return issue.cycle + delay.d_func - table["READ"].d_func
    return issue.cycle + delay.d_func


class Collector:
    """The bursts of a program and their events, one table for each kind."""

    def __init__(self, spec: ChipSpec) -> None:
        self.spec, self.delays = spec, delays(spec)
        self.bursts: list[Burst] = []
        self.values = self.operands = 0  # how many there are
        self.issued = EventTable(QueueEvents)
        self.stream_writes = EventTable(StreamEvents)
        self.stream_reads = EventTable(StreamEvents)
        self.sram_reads = EventTable(WordEvents)
        self.sram_writes = EventTable(WordEvents)
        self.port_uses = EventTable(PortEvents)
        self.dynamic: list[Burst] = []  # bursts whose address comes with the step
        self.mapped: list[Burst] = []  # bursts whose addresses come from a stream
        self.received: list[Burst] = []  # bursts whose one operand is what they receive
        self.results = EventTable(ResultEvents)
        self.register_reads = EventTable(RegisterEvents)
        self.loads = EventTable(LoadEvents)
        self.installs = EventTable(InstallEvents)
        self.slot_fills = EventTable(SlotEvents)
        self.slot_reads = EventTable(SlotEvents)
        self.products = EventTable(ProductEvents)
        self.drains = EventTable(ProductEvents)
        self.halves = EventTable(HalfEvents)
        self.sums = EventTable(SumEvents)
        self._checker = Checker(spec)
        self._queues: dict[Queue, int] = {}
        self._positions: dict[Queue, int] = {}

    def add(self, issue: Issue) -> None:
        """Add one burst. Raises IssueError for an instruction that is wrong in itself."""
        self._checker.check(issue)
        burst = Burst(issue, len(self.bursts))
        self.bursts.append(burst)
        queue = self._queues.setdefault(issue.queue, len(self._queues))
        issued = QueueEvents.run(queue=queue, cycle=issue.cycle, period=issue.d)
        self.issued.add(burst.number, issue.n, issued)
        instruction = issue.instruction
        if isinstance(instruction, Alu):
            self._alu(burst, instruction)
        elif isinstance(instruction, (Read, Write, Gather, Scatter)):
            self._mem(burst, instruction)
        elif isinstance(instruction, (Lanes, Transpose)):
            self._sxm(burst, instruction)
        elif isinstance(instruction, (Send, Receive)):
            self._c2c(burst, instruction)
        elif isinstance(instruction, Ifetch):
            self._take(burst, (Tap(instruction.stream), Tap(instruction.stream, 1)))
        elif isinstance(instruction, (LW, IW, ABC, ACC)):
            self._mxm(burst, instruction)

    def refusal(self, what: str, issue: IssueIndex, *events: int) -> IssueError:
        """Return the error for events that cannot be; it names the issues that they come from."""
        return IssueError(what, *(self.culprit(issue, event) for event in events))

    def culprit(self, issue: IssueIndex, event: int) -> str:
        """Name the issue that an event comes from."""
        return culprit(self.bursts[issue.burst[event]].issue, int(issue.nth[event]))

    # -- streams

    def _flow(self, burst: Burst, *, eastward: bool) -> int:
        """Return a unit's place in hops along a direction."""
        queue = burst.issue.queue
        if (at := self._positions.get(queue)) is None:
            at = self._positions[queue] = position(queue, self.spec)
        return at if eastward else EDGE - at

    def _take(self, burst: Burst, taps: Group) -> Operand:
        """Add an operand that is sampled from streams, d_skew after the issue."""
        issue, width = burst.issue, len(taps)
        operand = self._operand(burst, width)
        sampled = issue.cycle + self.delays[issue.instruction.name].d_skew
        for vector, (stream, beat) in enumerate(taps):
            burst.last_beat = max(burst.last_beat, beat)
            flow = self._flow(burst, eastward=stream.eastward)
            run = StreamEvents.run(
                stream=stream.code, diagonal=sampled + beat - flow, period=issue.d, flow=flow,
                data=operand.first + vector, data_step=width,
            )  # fmt: skip
            self.stream_reads.add(burst.number, issue.n, run)
        return operand

    def _operand(self, burst: Burst, width: int) -> Operand:
        operand = Operand(self.operands, burst.issue.n, width)
        self.operands += operand.n * width
        burst.operands.append(operand)
        return operand

    def _make(self, burst: Burst, per: int, n: int | None = None) -> None:
        """Number the values that a burst makes: `per` an issue, or `per` in each of n cycles."""
        burst.base, burst.per = self.values, per
        burst.count = per * (burst.issue.n if n is None else n)
        self.values += burst.count

    def _put(self, burst: Burst, taps: Group, block: int | None = None) -> None:
        """Let the first values of each issue leave on streams, d_func after the last beat.

        A block's leave in `block` cycles, one after another.
        """
        issue = burst.issue
        n, period = (issue.n, issue.d) if block is None else (block, 1)
        leaves = issue.cycle + burst.last_beat + self.delays[issue.instruction.name].d_func
        for vector, (stream, beat) in enumerate(taps):
            flow = self._flow(burst, eastward=stream.eastward)
            run = StreamEvents.run(
                stream=stream.code, diagonal=leaves + beat - flow, period=period, flow=flow,
                data=burst.base + vector, data_step=burst.per,
            )  # fmt: skip
            self.stream_writes.add(burst.number, n, run)

    # -- units

    def _mem(self, burst: Burst, mem: Read | Write | Gather | Scatter) -> None:
        issue, slice_ = burst.issue, slice_of(burst.issue, self.spec)
        reads = isinstance(mem, (Read, Gather))
        if isinstance(mem, (Gather, Scatter)):
            self._take(burst, (Tap(mem.map),))
            self.mapped.append(burst)
        if reads:
            self._make(burst, 1)
            self._put(burst, (Tap(mem.stream),))
        else:
            self._take(burst, (Tap(mem.stream),))
        cycle = access_cycle(issue, self.delays)
        if isinstance(mem, (Gather, Scatter)) or isinstance(mem.address, At):
            use = PortEvents.run(slice_=slice_, writes=not reads, cycle=cycle, period=issue.d)
            self.port_uses.add(burst.number, issue.n, use)
            if isinstance(mem, (Read, Write)):
                self.dynamic.append(burst)
            return
        access = WordEvents.run(
            slice_=slice_, word=mem.address, word_step=mem.step, cycle=cycle, period=issue.d,
            data=burst.base if reads else burst.operands[0].first,
        )  # fmt: skip
        (self.sram_reads if reads else self.sram_writes).add(burst.number, issue.n, access)

    def _alu(self, burst: Burst, alu: Alu) -> None:
        issue, delay = burst.issue, self.delays[alu.name]
        for source in alu.sources:
            if isinstance(source, In):
                self._take(burst, source.taps)
            elif isinstance(source, (Chain, Held)):
                read = RegisterEvents.run(
                    alu=source.alu, cycle=issue.cycle + delay.d_skew, period=issue.d,
                    operand=self._operand(burst, 1).first, chained=isinstance(source, Chain),
                )  # fmt: skip
                self.register_reads.add(burst.number, issue.n, read)
        burst.dtype = _result_type(alu)
        self._make(burst, ITEM_BYTES[burst.dtype])
        result = ResultEvents.run(
            alu=issue.queue.number, cycle=issue.cycle + burst.last_beat + delay.d_func,
            period=issue.d, value=burst.base, value_step=burst.per,
        )  # fmt: skip
        self.results.add(burst.number, issue.n, result)
        self._put(burst, alu.out)

    def _sxm(self, burst: Burst, sxm: Lanes | Transpose) -> None:
        issue = burst.issue
        if isinstance(sxm, Lanes):
            self._take(burst, sxm.src)
            if isinstance(sxm, Select):
                self._take(burst, sxm.other)
            self._make(burst, len(sxm.dst))
            self._put(burst, sxm.dst)
            return
        most = TILES // sxm.item
        if issue.n > most or (issue.n > 1 and issue.d != 1):
            what = f"a block: wanted up to {most} issues, one a cycle, got {issue.n}, {issue.d}"
            raise IssueError(what, culprit(issue))
        self._take(burst, group(sxm.src, BLOCK_STREAMS))
        self._make(burst, BLOCK_STREAMS, sxm.groups)
        self._put(burst, group(sxm.dst, BLOCK_STREAMS), block=sxm.groups)

    def _c2c(self, burst: Burst, c2c: Send | Receive) -> None:
        if isinstance(c2c, Send):
            self._take(burst, (Tap(c2c.stream),))
        else:
            self._make(burst, 1)
            self.received.append(burst)
            access = WordEvents.run(
                slice_=c2c.side * (self.spec.slices // self.spec.hemispheres) + c2c.slice,
                word=c2c.address, word_step=0, cycle=landing(burst.issue, self.spec, self.delays),
                period=burst.issue.d, data=self._operand(burst, 1).first,
            )  # fmt: skip
            self.sram_writes.add(burst.number, burst.issue.n, access)

    def _mxm(self, burst: Burst, mxm: LW | IW | ABC | ACC) -> None:
        issue = burst.issue
        assert issue.queue.unit is Unit.MXM
        plane = plane_of(issue.queue)[0]
        if isinstance(mxm, LW):
            self._lw(burst, mxm, plane)
        elif isinstance(mxm, IW):
            install = InstallEvents.run(
                plane=plane, cycle=issue.cycle, period=issue.d, columns=mxm.columns
            )
            self.installs.add(burst.number, issue.n, install)
        elif isinstance(mxm, ABC):
            self._abc(burst, mxm, plane)
        else:
            self._acc(burst, mxm, plane)

    def _lw(self, burst: Burst, lw: LW, plane: int) -> None:
        issue, operand = burst.issue, self._take(burst, group(lw.stream, lw.count))
        for vector in range(lw.count):
            load = LoadEvents.run(
                plane=plane, cycle=issue.cycle + self.delays["LW"].d_func, period=issue.d,
                column=lw.column + vector, column_step=lw.step, operand=operand.first + vector,
                operand_step=lw.count,
            )  # fmt: skip
            self.loads.add(burst.number, issue.n, load)

    def _abc(self, burst: Burst, abc: ABC, plane: int) -> None:
        """Add the use of a slot, and the product unless the row only fills the slot."""
        issue = burst.issue
        if abc.stream is not None:
            operand = self._take(burst, (Tap(abc.stream),)).first
        else:
            operand = self._operand(burst, 1).first
        if abc.slot is not None:
            use = SlotEvents.run(
                plane=plane, slot=abc.slot, slot_step=abc.step, cycle=issue.cycle, period=issue.d,
                operand=operand,
            )  # fmt: skip
            table = self.slot_reads if abc.stream is None else self.slot_fills
            table.add(burst.number, issue.n, use)
        if abc.stream is None or abc.slot is None:
            product = ProductEvents.run(
                plane=plane, cycle=issue.cycle + self.delays["ABC"].d_func, period=issue.d,
                operand=operand, fp16=abc.fp16,
            )  # fmt: skip
            self.products.add(burst.number, issue.n, product)

    def _acc(self, burst: Burst, acc: ACC, plane: int) -> None:
        issue, fp16 = burst.issue, acc.half is not None
        burst.dtype = "f32" if fp16 else "i32"
        if acc.product:  # its operand is the activations of the product that it takes
            drain = ProductEvents.run(
                plane=plane, cycle=issue.cycle, period=issue.d,
                operand=self._operand(burst, 1).first, fp16=fp16,
            )  # fmt: skip
            self.drains.add(burst.number, issue.n, drain)
        if acc.product and acc.half is not None:
            half = HalfEvents.run(
                plane=plane, row=acc.slot, row_step=acc.step, cycle=issue.cycle, period=issue.d,
                half=acc.half,
            )  # fmt: skip
            self.halves.add(burst.number, issue.n, half)
        if acc.half != 0 or not acc.product:  # the first half leaves the row's sum alone
            used = SumEvents.run(
                plane=plane, row=acc.slot, row_step=acc.step, cycle=issue.cycle, period=issue.d,
                starts=acc.first and acc.product,
            )  # fmt: skip
            self.sums.add(burst.number, issue.n, used)
        self._make(burst, ITEM_BYTES[burst.dtype] if acc.out else 0)
        self._put(burst, acc.out)


def _result_type(alu: Alu) -> str:
    if alu.op is AluOp.COPY and isinstance(alu.a, In):
        return alu.a.dtype
    to = {AluOp.CVT_I32: "i32", AluOp.CVT_I8: "i8", AluOp.CVT_F16: "f16"}
    return to.get(alu.op, "f32")  # whether 32 bits are i32 is settled when operands are known
