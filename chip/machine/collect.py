"""Turns issues into events: what each writes to and takes from streams, SRAM, ALUs and planes.

Every vector that an issue makes has a value number: `base + issue * per + vector`. Every vector
that an issue takes has an operand number; `chip.machine.resolve` finds the value number of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

from chip.errors import IssueError
from chip.floorplan import Queue, Unit, bulk_slices, hops, mem, plane_of, position
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
    Index,
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
from chip.isa.operands import ITEM_BYTES, At, Chain, Chosen, Group, Held, In, Tap, group
from chip.machine.check import Checker
from chip.machine.events import (
    I64,
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
from chip.machine.turns import Counted, Turns
from chip.spec import ChipSpec

FLOW_BITS = 6
EDGE = (1 << FLOW_BITS) - 1  # flow coordinates run from 0 to this in both directions
Events = TypeVar("Events", bound=NamedTuple)


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


def leads(issue: Issue, spec: ChipSpec) -> bool:
    """Tell whether a read of a chosen block makes the values of all slices that it stands in."""
    read, bulk = issue.instruction, bulk_slices(spec)
    assert isinstance(read, Read)
    outward = read.stream.eastward == (issue.queue.hemisphere == 1)
    return issue.queue.number not in bulk or issue.queue.number == bulk[0 if outward else -1]


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
    """The bursts of a program and their events, one table for each kind.

    `checker`: refuses what is wrong in itself; without one each instruction was checked before.
    """

    def __init__(self, spec: ChipSpec, checker: Checker | None = None) -> None:
        self.spec, self.delays = spec, delays(spec)
        self.bursts: list[Burst] = []
        self._values = self._operands = 0  # how many there are, of parts that come again once
        self._turns = Turns()
        once, value, operand = self.repeat, Counted.VALUE, Counted.OPERAND
        self.issued = EventTable(QueueEvents, once())
        self.stream_writes = EventTable(StreamEvents, once("data", value))
        self.stream_reads = EventTable(StreamEvents, once("data", operand))
        self.sram_reads = EventTable(WordEvents, once("data", value))
        self.sram_writes = EventTable(WordEvents, once("data", operand))
        self.port_uses = EventTable(PortEvents, once())
        self.dynamic: list[Burst] = []  # bursts whose address comes with the step
        self.mapped: list[Burst] = []  # bursts whose addresses come from a stream
        self.chosen: list[Burst] = []  # reads of a block that the slice's index says
        self.indices = EventTable(ResultEvents, once("value", value))
        self.index_reads = EventTable(RegisterEvents, once("operand", operand))
        self.received: list[Burst] = []  # bursts whose one operand is what they receive
        self.results = EventTable(ResultEvents, once("value", value))
        self.register_reads = EventTable(RegisterEvents, once("operand", operand))
        self.loads = EventTable(LoadEvents, once("operand", operand))
        self.installs = EventTable(InstallEvents, once())
        self.slot_fills = EventTable(SlotEvents, once("operand", operand))
        self.slot_reads = EventTable(SlotEvents, once("operand", operand))
        self.products = EventTable(ProductEvents, once("operand", operand))
        self.drains = EventTable(ProductEvents, once("operand", operand))
        self.halves = EventTable(HalfEvents, once())
        self.sums = EventTable(SumEvents, once())
        self._checker = checker
        self._queues: dict[Queue, int] = {}
        self._edges: dict[tuple[int, bool, bool], int] = {}
        self._positions: dict[Queue, int] = {}

    def again(self, name: str, starts: Sequence[int]) -> None:
        """Let what is added from here on come again at each of these cycles, and count from it.

        `name`: what it is part of.
        """
        assert self.bursts == [] or not self._turns.plain, "all that is added is part of something"
        self._turns.again(name, self._added, starts)

    def added(self, bursts: I64) -> I64:
        """Return which of `bursts` each burst's number means."""
        return self._turns.added(bursts, self._added)

    @property
    def values(self) -> int:
        """Return how many values are made."""
        return self._turns.totals(self._added)[Counted.VALUE]

    @property
    def operands(self) -> int:
        """Return how many operands are taken."""
        return self._turns.totals(self._added)[Counted.OPERAND]

    @property
    def _added(self) -> tuple[int, int, int]:
        return len(self.bursts), self._values, self._operands

    def repeat(self, column: str = "", of: Counted = Counted.BURST) -> Callable[[Events], Events]:
        """Return what repeats events as often as their parts come.

        `column` has numbers of what is counted, and needs numbers of its own in each turn.
        """

        def repeat(events: Events) -> Events:
            return self._turns.repeat(events, self._added, column, of)

        return repeat

    def add(self, issue: Issue) -> None:
        """Add one burst. Raises IssueError for an instruction that is wrong in itself."""
        if self._checker is not None:
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
        elif isinstance(instruction, Index):
            self._index(burst, instruction)
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
        burst, later, part = self._turns.where(int(issue.burst[event]), self._added)
        own = self.bursts[burst].issue.moved(later)
        return culprit(own if own.name else replace(own, name=part), int(issue.nth[event]))

    def neighbours(self, issue: Issue, count: int, diagonal: int) -> int:
        """Add accesses of `count` vectors at once, which lie wherever in their hemisphere.

        `issue`: the first of them; the others are beside it on the next streams. `diagonal`: of the
        first turn's values on their streams. Return the burst's number.
        """
        burst, access = Burst(issue, len(self.bursts)), issue.instruction
        assert isinstance(access, (Read, Write))
        self.bursts.append(burst)
        reads = isinstance(access, Read)
        if reads:
            self._make(burst, count)
        first = burst.base if reads else self._operand(burst, count).first
        table = self.stream_writes if reads else self.stream_reads
        flow = self._outermost(issue.queue.hemisphere, access.stream.eastward, put=reads)
        for nth in range(issue.n):
            run = StreamEvents.neighbours(
                stream=access.stream.code, diagonal=diagonal + nth * issue.d, flow=flow,
                data=first + nth * count,
            )  # fmt: skip
            table.add(burst.number, count, run, nth)
        return burst.number

    def _outermost(self, hemisphere: int, eastward: bool, *, put: bool) -> int:
        """Return the flow of the hemisphere's slice that a stream passes first, or last."""
        key = hemisphere, eastward, put
        if (flow := self._edges.get(key)) is None:
            places = [position(mem(hemisphere, n), self.spec) for n in bulk_slices(self.spec)]
            flows = [at if eastward else EDGE - at for at in places]
            flow = self._edges[key] = min(flows) if put else max(flows)
        return flow

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
        operand = Operand(self._operands, burst.issue.n, width)
        self._operands += operand.n * width
        burst.operands.append(operand)
        return operand

    def _make(self, burst: Burst, per: int, n: int | None = None) -> None:
        """Number the values that a burst makes: `per` an issue, or `per` in each of n cycles."""
        burst.base, burst.per = self._values, per
        burst.count = per * (burst.issue.n if n is None else n)
        self._values += burst.count

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
        if isinstance(mem, Read) and isinstance(mem.address, Chosen):
            self._chosen(burst, mem, mem.address)
            return
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
        assert isinstance(mem.address, int)
        access = WordEvents.run(
            slice_=slice_, word=mem.address, word_step=mem.step, cycle=cycle, period=issue.d,
            data=burst.base if reads else burst.operands[0].first,
        )  # fmt: skip
        (self.sram_reads if reads else self.sram_writes).add(burst.number, issue.n, access)

    def _chosen(self, burst: Burst, read: Read, block: Chosen) -> None:
        """Add a read that stands in many slices' queues: the first that the stream passes leads.

        Vectors that the others read are its values. A slice near the VXM reads by itself.
        """
        issue, slice_ = burst.issue, slice_of(burst.issue, self.spec)
        self.chosen.append(burst)
        found = RegisterEvents.run(
            alu=slice_, cycle=issue.cycle, period=issue.d, operand=self._operand(burst, 1).first,
            chained=False,
        )  # fmt: skip
        self.index_reads.add(burst.number, issue.n, found)
        cycle = access_cycle(issue, self.delays)
        use = PortEvents.run(slice_=slice_, writes=False, cycle=cycle, period=issue.d)
        self.port_uses.add(burst.number, issue.n, use)
        if leads(issue, self.spec):
            self._make(burst, block.count)
            self._put(burst, group(read.stream, block.count))

    def _index(self, burst: Burst, index: Index) -> None:
        issue = burst.issue
        self._take(burst, (Tap(index.stream),))
        self._make(burst, 1)
        set_ = ResultEvents.run(
            alu=slice_of(issue, self.spec), cycle=issue.cycle + self.delays["INDEX"].d_func,
            period=issue.d, value=burst.base, value_step=1,
        )  # fmt: skip
        self.indices.add(burst.number, issue.n, set_)

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
        """Add columns that come on neighbouring streams, issue by issue."""
        issue, delay = burst.issue, self.delays["LW"]
        operand, eastward = self._operand(burst, lw.count), lw.stream.eastward
        flow = self._flow(burst, eastward=eastward)
        for nth in range(issue.n):
            at, first = issue.cycle + nth * issue.d, operand.first + nth * lw.count
            taken = StreamEvents.neighbours(
                stream=lw.stream.code, diagonal=at + delay.d_skew - flow, flow=flow, data=first
            )
            self.stream_reads.add(burst.number, lw.count, taken, nth)
            load = LoadEvents.neighbours(
                plane=plane, cycle=at + delay.d_func, column=lw.column + nth * lw.step,
                operand=first,
            )  # fmt: skip
            self.loads.add(burst.number, lw.count, load, nth)

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
