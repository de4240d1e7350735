"""Builds instruction templates: VXM chains, SXM passes and work-memory accesses, each on its cycle.

A block is one pass of work, most often one row, on relative cycles. Its memory operands are
(operand, vector); they get slice and stream when addresses are bound (bind.py).
That never changes a cycle: the work slices, and the feed slices behind them (chip/sram.py), lie one
hop from the VXM, and an access reserves all, so a block is free of conflicts wherever its operands
lie.

Rules: an access takes the ports of all work slices, reads and writes alike: a slice does one of
them in a cycle. One cycle in `C2C_TURN` of the ports is left to the links. Streams and SXM queues:
compiler/codegen/core/traffic.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from chip.floorplan import SXM_QUEUES, alu, hops, mem, sxm
from chip.isa.instructions import ARITY, LARGE_ALUS, LARGE_OPS, AluOp
from chip.isa.issue import Delay, delays
from chip.isa.operands import (
    STREAMS,
    Group,
    Held,
    Immediate,
    In,
    LaneMap,
    Source,
    Stream,
    group,
    streams_of,
)
from chip.ops.cost import C2C_TURN
from chip.spec import ChipSpec
from compiler.codegen.core.parts import (
    LANES,
    Access,
    Given,
    Load,
    Node,
    NodeSource,
    Pass,
    Ref,
    Row,
    RowMask,
)
from compiler.codegen.core.registers import assign
from compiler.codegen.core.reservations import (
    ACROSS,
    EXCLUSIVE,
    FEED_INWARD,
    FEED_PORTS,
    FROM_SXM,
    INWARD,
    PORTS,
    TO_SXM,
    TURNED,
    ReservationTable,
    Slot,
)
from compiler.codegen.core.traffic import BLOCKS

SXM_WIDE = 2  # vectors of a side that a read sends to an SXM in a cycle
TURNS = 6  # 32-bit values that one SXM puts on streams beside those of reads
SAME = tuple(range(LANES))
COPIES = STREAMS // 4  # 32-bit values that one SXM puts on its inward streams in a cycle
STARTS = 16  # cycles at which a chain may start that are tried
WAIT, LONG_WAIT = 4, 24  # cycles that a result may wait inside a chain, and at the worst
READ_AHEAD = 8  # cycles of a block before its first read for an SXM can pass the VXM: room for READ
EAST, WEST = 1, 0


class Occupied(Exception):
    """An instruction of a chain does not find its ports: the chain is tried a cycle later."""


T = TypeVar("T")


def _copy_slots(leave: int, arrive: int) -> tuple[Slot, ...]:
    """Return what copies take that leave the VXM for the SXMs at one cycle and come at another."""
    inward = [(resource, arrive) for resource in (INWARD, FEED_INWARD, FROM_SXM, *TURNED)]
    return *inward, *((resource, leave) for resource in TO_SXM)


def _c2c_turn(cycle: int) -> bool:
    return cycle % C2C_TURN == C2C_TURN - 1


@dataclass(slots=True)
class Block:
    """A block under construction; see the module's text for the rules."""

    spec: ChipSpec
    nodes: list[Node] = field(default_factory=list)
    accesses: list[Access] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)
    pinned: frozenset[int] = frozenset()
    busy: Callable[[int], bool] = _c2c_turn  # cycles at which the ports are another's
    stride: int = 1  # cycles between the beats of an operand in memory
    sxm_hops: int = field(init=False)  # between VXM and SXM
    interval: int = 0  # initiation interval: the block starts anew over itself; 0: it does not
    feed: frozenset[str] = frozenset()  # operands in feed slices, where the chip has such
    turning: bool = False  # reductions take few instructions, and long
    end: int = 0
    _table: ReservationTable = field(default_factory=ReservationTable)
    _leads: dict[tuple[int, int | None], int] = field(default_factory=dict)  # of reads, cycles
    _taken_by: dict[
        tuple[bool, int | None, range, bool], tuple[tuple[Slot, ...], tuple[Slot, ...]]
    ] = field(default_factory=dict)  # ports and streams, by kind of access
    _queues: dict[tuple[int, int], int] = field(default_factory=dict)
    _live: list[int] = field(default_factory=list)  # registers in use, by cycle of the interval
    _began: int = 0  # when the last chain did
    _wait: int = WAIT
    _kept: list[tuple[Node, int]] = field(default_factory=list)  # last uses that the chain moved
    _chain: int | None = None  # the first node of the chain that is being built

    def __post_init__(self) -> None:
        self._table.interval = self.interval
        self._live = [0] * self.interval
        self.sxm_hops = hops(alu(0), sxm(EAST, 0), self.spec)
        if not self.spec.feed_slices:
            self.feed = frozenset()

    @property
    def delay(self) -> dict[str, Delay]:
        return delays(self.spec)

    # -- times

    def _port_slots(self, access: Access) -> list[Slot]:
        """Return when an access takes the ports of its slices, of both sides."""
        at = access.cycle
        return [(resource, at + later) for resource, later in self._offsets(access)[0]]

    def _offsets(self, access: Access) -> tuple[tuple[Slot, ...], tuple[Slot, ...]]:
        """Return what an access takes, cycles after its own: ports, and places on streams.

        A read passes the VXM on streams of an SXM's first copy, or beyond it.
        """
        fed = access.ref.operand in self.feed
        key = (access.write, access.sxm, access.beats, fed)
        found = self._taken_by.get(key)
        if found is None:
            now, ports = replace(access, cycle=0), FEED_PORTS if fed else PORTS
            sides = (WEST, EAST)
            taken = (INWARD,) if access.sxm is None else (INWARD, ACROSS)
            late = 0 if access.sxm is None else -self.sxm_hops
            found = self._taken_by[key] = (
                tuple((ports[s], self.issue_cycle(now, s, b)) for b in now.beats for s in sides),
                tuple(
                    (resource, late + beat)
                    for resource in ((FEED_INWARD,) if fed else taken) for beat in now.beats
                    if not access.write
                ),
            )  # fmt: skip
        return found

    def access(self, write: bool, ref: Ref, cycle: int, to: int | None = None) -> Access:
        """Return an access at this block's distance between beats."""
        return Access(write, ref, cycle, to, self.stride, self.wide(ref, sxm=to is not None))

    def wide(self, ref: Ref, *, sxm: bool = False) -> int:
        """Return how many vectors go in a cycle: one of each work slice; else one of a side."""
        one = ref.operand in self.feed or (sxm and not self.turning)
        return 2 if one else 2 * min(self.spec.work_slices, SXM_WIDE if sxm else STREAMS)

    def issue_cycle(self, access: Access, side: int, beat: int) -> int:
        """Return the cycle at which the work slice of one side issues one beat of an access."""
        at = access.cycle + beat
        if access.write:
            return at + 1
        lead = self._leads.get((side, access.sxm))
        if lead is None:
            unit = alu(0) if access.sxm is None else sxm(access.sxm, 0)
            lead = self.delay["READ"].d_func + hops(mem(side, 0), unit, self.spec)
            self._leads[side, access.sxm] = lead
        return at - lead

    def free(self, access: Access) -> bool:
        """Tell whether an access finds its ports and streams free."""
        return self._free_at(self._offsets(access), access.cycle)

    def _free_at(self, offsets: tuple[tuple[Slot, ...], tuple[Slot, ...]], at: int) -> bool:
        """Tell whether an access that takes `offsets` finds them free at a cycle."""
        taken, interval = self._table.taken, self.interval
        ports, streams = offsets
        for resource, later in ports:
            cycle = at + later
            if cycle < 0 or self.busy(cycle):
                return False
            if (resource, cycle % interval if interval else cycle) in taken:
                return False
        for resource, later in streams:
            cycle = at + later
            if (resource, cycle % interval if interval else cycle) in taken:
                return False
        return True

    def all_free(self, accesses: Sequence[Access]) -> bool:
        """Tell whether accesses find their ports and streams free together."""
        ports = [port for access in accesses for port in self._port_slots(access)]
        return all(map(self.free, accesses)) and self._table.distinct(ports)

    def _crossings(self, access: Access) -> set[Slot]:
        """Return when a read passes the VXM."""
        return {(resource, access.cycle + later) for resource, later in self._offsets(access)[1]}

    def accessible(self, write: bool, ref: Ref, cycle: int) -> int:
        """Keep the ports for an access that is not the block's own; return its cycle, from here on.

        Its instructions are another's: their addresses come with the step.
        """
        first = cycle
        while not self.free(access := self.access(write, ref, cycle)):
            cycle = self._table.next_cycle(first, cycle, "an access of another")
        accesses = list(self.accesses)
        self._take(access)
        self.accesses = accesses
        return cycle

    def later(self, first: int, cycle: int, what: str) -> int:
        """Return the next cycle to try; raises OverflowError where all were tried."""
        return self._table.next_cycle(first, cycle, what)

    def between_reads(self, cycle: int) -> int:
        """Take the first cycle from here on in which no read passes the VXM on its way to an SXM.

        What leaves the VXM on such a read's stream would take its place.
        """
        first = cycle
        while self._table.conflicts((ACROSS, cycle)):
            cycle = self._table.next_cycle(first, cycle, "what leaves between reads")
        self._table.reserve((ACROSS, cycle))
        return cycle

    def may_arrive(self, cycle: int) -> bool:
        """Tell whether the inward streams are free at a cycle."""
        return not self._table.conflicts((INWARD, cycle), (FEED_INWARD, cycle), (FROM_SXM, cycle))

    def _take(self, access: Access) -> None:
        self._table.reserve(*self._port_slots(access), *self._crossings(access))
        self.accesses.append(access)
        if access.write:
            written = access.cycle + 1 + access.beats[-1] + self.delay["WRITE"].d_func
            self.end = max(self.end, written + 1)  # from then on it can be read

    # -- VXM

    def chain(self, first: int, build: Callable[[int], T]) -> T:
        """Build instructions that follow each other closely: from `first` on, or later.

        A result that waits for the next instruction's ports holds its ALU's register. In a block
        that overlaps itself registers are short, so there a chain starts where each of its
        instructions finds its ports soon after its operands are there: `WAIT` cycles, or else
        `LONG_WAIT`. Where there is no such place, each waits as long as it must.
        """
        if not self.interval:
            return build(first)
        begin = max(first, min(first + self.interval, 2 * self.sxm_hops + READ_AHEAD) - LONG_WAIT)
        for self._wait in (WAIT, LONG_WAIT):
            # where the chain before began: earlier cycles were full
            begin = max(begin, min(self._began, first + self.interval))
            for at in range(begin, begin + min(self.interval, STARTS)):
                try:
                    found = self._closely(build, at)
                except Occupied:
                    continue
                self._began = at
                return found
        return build(first)

    def _closely(self, build: Callable[[int], T], at: int) -> T:
        """Build a chain that starts at a cycle; where it cannot, leave all as it was."""
        sizes, end = (len(self.nodes), len(self.accesses), len(self.passes)), self.end
        queues, live = dict(self._queues), list(self._live)
        self._table.log, self._chain, self._kept = [], sizes[0], []
        try:
            return build(at)
        except Occupied:
            del self.nodes[sizes[0] :], self.accesses[sizes[1] :], self.passes[sizes[2] :]
            self._table.taken.difference_update(self._table.log)
            self._queues, self._live, self.end = queues, live, end
            for node, last_use in reversed(self._kept):
                node.last_use = last_use
            raise
        finally:
            self._table.log, self._chain = None, None

    def _full(self, cycle: int, more: int = 1) -> bool:
        """Tell whether a block that overlaps itself has no register left for results at a cycle.

        Registers of the block's runs that are under way together are counted.
        """
        if not self.interval:
            return False
        most = self.spec.vxm_alus - len(self.pinned)
        return self._live[cycle % self.interval] + more > most

    def _keep(self, node: Node, cycle: int) -> None:
        """Note that a result is used at a cycle."""
        if self.interval:
            for at in range(node.last_use + 1, cycle + 1):
                self._live[at % self.interval] += 1
        if self._chain is not None:
            self._kept.append((node, node.last_use))
        node.last_use = max(node.last_use, cycle)

    def _waits(self, sources: Iterable[NodeSource], cycle: int, *, within: bool = False) -> bool:
        """Tell whether results of the chain that is being built can wait until a cycle.

        `within`: there must be some; what begins a chain does not wait.
        """
        own = self.nodes[self._chain :]
        waits = [cycle - s.done for s in sources if isinstance(s, Node) and s in own]
        return max(waits, default=self._wait + within) <= self._wait

    def alu(
        self,
        op: AluOp,
        *sources: NodeSource,
        out: Ref | Group | None = None,
        lanes: int = LANES,
        after: int = 0,
        at: int | None = None,
        on: int | None = None,
    ) -> Node:
        """Place one ALU instruction as early as its operands, ports and `after` allow.

        At most one operand may come from memory. `at` fixes the cycle (operands off the SXM).
        """
        assert len(sources) == ARITY[op], (op, len(sources))
        cycle = max([after, *(s.done for s in sources if isinstance(s, Node))])
        earliest = cycle = cycle if at is None else at
        if self._chain is not None and not self._waits(sources, cycle):
            raise Occupied
        beats = [self.access(False, s.ref, 0).beats[-1] for s in sources if isinstance(s, Load)]
        late = max(beats, default=0)
        takes = late + self.delay[op.value].d_func
        loads = dict.fromkeys(
            s.read or s.ref for s in sources if isinstance(s, Load) and not s.shared
        )
        while True:
            done = cycle + takes
            wanted = [self.access(False, ref, cycle) for ref in loads]
            if isinstance(out, Ref):
                wanted.append(self.access(True, out, done))
            if not (at is None and self._full(done)) and self.all_free(wanted):
                break
            if self._chain is not None and not self._waits(sources, cycle + 1, within=True):
                raise Occupied
            assert at is None, f"{op}: its ports are taken at {at}"
            cycle = self._table.next_cycle(earliest, cycle, op)
        for access in wanted:
            self._take(access)
        for source in sources:
            if isinstance(source, Node):
                self._keep(source, cycle)
        if self.interval:
            self._live[done % self.interval] += 1
        node = Node(cycle, op, sources, lanes, done, out, on, done)
        self.nodes.append(node)
        self.end = max(self.end, done)
        return node

    def twin(self, node: Node, number: int, out: Group) -> None:
        """Issue the same instruction on another ALU too, so that its result leaves twice."""
        self.nodes.append(
            Node(node.cycle, node.op, node.sources, node.lanes, node.done, out, number, node.done)
        )

    def reserve_inward(self, cycle: int) -> None:
        """Keep all inward streams free of other traffic that would arrive at a cycle."""
        self._table.reserve(*((resource, cycle) for resource in
                              (INWARD, FEED_INWARD, FROM_SXM, *TURNED)))  # fmt: skip

    def initiation_interval(self, multiple: int = 1) -> int:
        """Return the fewest cycles, a multiple, after which the block may start anew over itself.

        The block is finished: what it takes stays where it is.
        """
        interval = multiple
        while not self._repeats(interval):
            interval += multiple
        return interval

    def resource_bound(self) -> int:
        """Return the fewest cycles after which the block might start anew, by what it takes.

        Of `C2C_TURN` cycles of the ports one is not the block's.
        """
        taken = Counter(resource for resource, _ in self._table.taken if resource in EXCLUSIVE)
        ports = max((taken.pop(port, 0) for port in (*PORTS, *FEED_PORTS)), default=0)
        large = sum(node.op in LARGE_OPS for node in self.nodes)
        return max(
            -(-ports * C2C_TURN // (C2C_TURN - 1)), *taken.values(),
            -(-len(self.nodes) // (self.spec.vxm_alus - len(self.pinned))),
            -(-large // len(LARGE_ALUS - self.pinned)),
        )  # fmt: skip

    def _repeats(self, interval: int) -> bool:
        if not self._table.repeats(interval):
            return False
        issued = {(node.alu, node.cycle % interval) for node in self.nodes}
        if len(issued) < len(self.nodes):
            return False
        live: set[tuple[int | None, int]] = set()  # (ALU, cycle) at which its register is in use
        for node in self.nodes:
            if node.last_use - node.done >= interval:
                return False
            for cycle in range(node.done, node.last_use + 1):
                key = (node.alu, cycle % interval)
                if key in live:
                    return False
                live.add(key)
        passes = {(p.hemisphere, p.queue, p.cycle % interval) for p in self.passes}
        return len(passes) == len(self.passes)

    def register(self, number: int) -> Held:
        """Return what a pinned ALU's register holds."""
        return Held(number)

    # -- SXM

    def through_sxm(
        self, ref: Ref, spread: tuple[int | None, ...] | None, item: int, lanes: int, after: int = 0
    ) -> tuple[int, In]:  # fmt: skip
        """Read `lanes` values from memory through the eastern SXM: (arrival cycle, operand).

        Result lane l is source lane spread[l], zero for None. One at a time may arrive.
        """
        arrive, (operand,) = self.pieces(ref, [(ref, spread, lanes)], item, after)
        return arrive, operand

    def pieces(
        self, ref: Ref, parts: Sequence[tuple[Ref, tuple[int | None, ...] | None, int]], item: int,
        after: int = 0,
    ) -> tuple[int, list[In]]:  # fmt: skip
        """Read vectors, as `through_sxm` does, of which each part is turned by itself.

        A part: its vectors, lane map and values. They arrive together.
        """
        back = self.delay["PERMUTE"].d_func + self.sxm_hops
        first = at = max(after - back, self.sxm_hops + READ_AHEAD)
        access = self.access(False, ref, at, EAST)
        late, offsets = access.beats[-1], self._offsets(access)
        assert late == 0 or len(parts) == 1
        while not self._free_at(offsets, at) or self._table.conflicts((FROM_SXM, at + late + back)):
            if self._chain is not None and at - first >= self._wait:
                raise Occupied
            at = self._table.next_cycle(first, at, "lanes from memory")
        self._take(self.access(False, ref, at, EAST))
        arrive = at + late + back
        self._table.reserve((FROM_SXM, arrive))
        out = []
        for number, (own, spread, lanes) in enumerate(parts):
            count = streams_of(LANES, item)
            dst = group(Stream(False, BLOCKS.joined + number * count), count)
            queue = self.queue(EAST, at)
            self.passes.append(Pass(at, EAST, queue, spread, item, lanes, own, dst))
            out.append(In(dst, {2: "f16", 4: "f32"}[item]))
        return arrive, out

    def queue(self, hemisphere: int, cycle: int) -> int:
        """Take an SXM queue of a hemisphere for one cycle.

        Raises OverflowError where all are busy.
        """
        turn = (hemisphere, cycle % self.interval if self.interval else cycle)
        used = self._queues.get(turn, 0)
        if used >= SXM_QUEUES:
            raise OverflowError(f"no SXM queue is free at cycle {cycle}")
        self._queues[turn] = used + 1
        return BLOCKS.passes + used

    def copies(
        self, value: Node, maps: Sequence[tuple[int | None, ...]], pairs: int = COPIES,
        gap: int = 1, op: AluOp | None = None,
    ) -> list[tuple[int, Source]]:  # fmt: skip
        """Send a value to both SXMs; return each map's copy back at the VXM: (cycle, operand).

        Half of the maps go west, half east, `pairs` of them every `gap` cycles: copy m and copy
        m + len(maps) // 2 come in the same cycle. `op`: what is done to each pair as it comes.
        """
        half = -(-len(maps) // 2)
        turns = range(0, -(-half // pairs) * gap, gap)
        start = value.done
        while not self._can_copy(start, turns, min(pairs, half), op):
            start = self._table.next_cycle(value.done, start, "copies")
        arrive = 0
        out: list[tuple[int, Source]] = [(0, Immediate(0.0))] * len(maps)
        for number_of_turn, turn in enumerate(turns):
            taps = {
                side: group(Stream(side == EAST, BLOCKS.vxm_to_sxm), 4) for side in (WEST, EAST)
            }
            sent = [self.alu(AluOp.COPY, value, out=taps[s], at=start + turn) for s in (WEST, EAST)]
            at_sxm = sent[0].done + self.sxm_hops
            arrive = at_sxm + self.delay["PERMUTE"].d_func + self.sxm_hops
            for place in range(number_of_turn * pairs, min(half, (number_of_turn + 1) * pairs)):
                for side, number in ((WEST, place), (EAST, place + half)):
                    if number >= len(maps):
                        continue
                    inward = group(Stream(side == WEST, BLOCKS.copies + 4 * (place % COPIES)), 4)
                    queue = self.queue(side, at_sxm)
                    self.passes.append(
                        Pass(at_sxm, side, queue, maps[number], 4, LANES, taps[side], inward)
                    )
                    out[number] = (arrive, In(inward, "f32"))
            self._table.reserve(*_copy_slots(start + turn, arrive))
        return out

    @property
    def trip_cycles(self) -> int:
        """Cycles from a value's leaving the VXM to its copies' return from an SXM."""
        return self.sxm_hops + self.delay["PERMUTE"].d_func + self.sxm_hops

    def turned(
        self, value: Node, maps: Sequence[LaneMap], op: AluOp
    ) -> tuple[int, list[In]]:  # fmt: skip
        """Send a value to one SXM; return when its copies are back at the VXM, and the operands.

        At most `TURNS` maps. They come on streams that reads of memory leave free. `op`: what is
        done to them as they come.
        """
        result = self.trip_cycles + self.delay[op].d_func
        first = leave = self._may_leave(value)
        while self._full(leave + result) or not (copies := self.turned_at(value, maps, leave)):
            leave = self._table.next_cycle(first, leave, "turned copies")
        return leave + self.trip_cycles, copies

    def _may_leave(self, value: Node) -> int:
        """Return the first cycle at which a value can leave for an SXM: itself, or a copy."""
        own = value.out is None and value.lanes == LANES
        return value.done + (0 if own else self.delay["COPY"].d_func)

    def turned_at(
        self, value: Node, maps: Sequence[LaneMap], leave: int, lanes: int = LANES
    ) -> list[In]:  # fmt: skip
        """Send a value to an SXM at a cycle, as `turned` does; nothing where it finds no way."""
        assert len(maps) <= TURNS
        assert self._chain is None
        at, arrive = leave + self.sxm_hops, leave + self.trip_cycles
        sides = [
            side for side in (WEST, EAST)
            if not self._table.conflicts((TO_SXM[side], leave), (TURNED[side], arrive))
        ]  # fmt: skip
        if not sides or leave < self._may_leave(value):
            return []
        side = min(sides, key=lambda side: sum(p.hemisphere == side for p in self.passes))
        out = group(Stream(side == EAST, BLOCKS.vxm_to_sxm), 4)
        if leave == value.done:
            value.out = out
        else:
            self.alu(AluOp.COPY, value, out=out, at=leave - self.delay["COPY"].d_func)
        self._table.reserve((TO_SXM[side], leave), (TURNED[side], arrive))
        copies = []
        for number, spread in enumerate(maps):
            back = group(Stream(side == WEST, BLOCKS.turned + 4 * number), streams_of(lanes, 4))
            queue = self.queue(side, at)
            self.passes.append(Pass(at, side, queue, spread, 4, LANES, out, back, lanes))
            copies.append(In(back, "f32"))
        return copies

    def kept(self, value: Node, until: int) -> Node:
        """Keep a value until about a cycle: not in a register, but on its way to an SXM and back.

        Where that is too soon for a trip, the value itself.
        """
        while until - value.done > self.trip_cycles + self.delay["COPY"].d_func:
            at, (back,) = self.turned(value, [SAME], AluOp.COPY)
            value = self.alu(AluOp.COPY, back, at=at)
        return value

    def meet(self, op: AluOp, value: Node, other: Node, on: int | None = None) -> Node:
        """Place op(value, other); a value that `other` comes long after waits in no register.

        It is back from an SXM just then or soon after, where there is time for the trip, and the
        block is one of many rows.
        """
        soonest = other.done - self.trip_cycles
        if self.turning and soonest >= value.done:
            for leave in range(soonest, soonest + WAIT):
                if copies := self.turned_at(value, [SAME], leave):
                    return self.alu(op, copies[0], other, at=leave + self.trip_cycles)
        return self.alu(op, value, other, on=on)

    def _can_copy(self, start: int, turns: range, pairs: int, op: AluOp | None) -> bool:
        delay = self.delay["COPY"].d_func + self.delay["PERMUTE"].d_func + 2 * self.sxm_hops
        for turn in turns:
            arrive = start + turn + delay
            if self._table.conflicts(*_copy_slots(start + turn, arrive)):
                return False
            if op is not None and self._full(arrive + self.delay[op].d_func, pairs):
                return False
        return True

    # -- the end

    def finish(self) -> Block:
        """Give every node its ALU. The issue order decides; a register keeps a value to its use.

        Raises OverflowError where the ALUs do not suffice.
        """
        assign(self.nodes, self.spec, self.pinned, self.interval)
        return self


__all__ = [
    "C2C_TURN", "LANES", "Access", "Block", "Given", "Load", "Node",
    "NodeSource", "Pass", "Ref", "Row", "RowMask",
]  # fmt: skip
