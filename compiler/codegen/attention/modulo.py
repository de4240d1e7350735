"""A modulo schedule of instructions that differ in nothing but their start, one set after another.

What a set of instructions (a unit) takes at a cycle it takes at that cycle of every interval:
ALUs' issues and registers, streams, SXM queues, ports of memory. Instructions are placed one at a
time, each where all it takes is free. Registers are counted here; which ALU an instruction gets is
decided at the end. Values of 32 bits take four neighbouring streams, a lane group.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from chip.isa.instructions import LARGE_ALUS, LARGE_OPS, AluOp, Permute
from chip.isa.operands import Group, In, Stream, Tap, group
from chip.ops.cost import C2C_TURN
from chip.spec import ChipSpec
from compiler.codegen.attention.resources import LOOP
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.parts import LANES, Node, NodeSource
from compiler.codegen.core.registers import assign

Slot = tuple[Hashable, int]
"""A resource at a cycle."""
Wanted = Callable[[int], Sequence[Slot] | None]
"""What is taken with a cycle; None where that cannot be."""
Map = tuple[int | None, ...]
SPARE = 2  # registers that new results leave to those that are kept
ORDERS = 400  # in which ALUs are given
LATEST = 24  # cycles that a copy may wait in an SXM
WEST, EAST = 0, 1


@dataclass(frozen=True, slots=True)
class Turn:
    """A pass of an SXM at a cycle."""

    cycle: int
    side: int
    queue: int
    permute: Permute


@dataclass(frozen=True, slots=True)
class Sent:
    """A value on its way to an SXM, for whose copies queues are taken: `arrival` at the VXM."""

    side: int
    cycle: int  # at the SXM
    queues: tuple[int, ...]
    arrival: int


@dataclass(slots=True)
class Modulo:
    """What is taken, by cycle of the interval; and all that was placed."""

    clock: Clock
    interval: int
    pinned: frozenset[int]  # ALUs that units may not take
    nodes: list[Node] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    taken: set[Slot] = field(default_factory=set)
    _issued: list[int] = field(default_factory=list)
    _large: list[int] = field(default_factory=list)
    _live: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        zeros = [0] * self.interval
        self._issued, self._large, self._live = list(zeros), list(zeros), list(zeros)

    @property
    def load(self) -> int:
        """How uneven the registers' use is."""
        return sum(live**3 for live in self._live)

    def save(self) -> Callable[[], None]:
        """Return what brings back the state of now."""
        sizes, taken = (len(self.nodes), len(self.turns)), set(self.taken)
        counts = [list(count) for count in (self._issued, self._large, self._live)]
        uses = [node.last_use for node in self.nodes]

        def restore() -> None:
            del self.nodes[sizes[0] :], self.turns[sizes[1] :]
            self.taken = set(taken)
            self._issued, self._large, self._live = (list(count) for count in counts)
            for node, last_use in zip(self.nodes, uses, strict=True):
                node.last_use = last_use

        return restore

    @property
    def spec(self) -> ChipSpec:
        return self.clock.spec

    # -- slots

    def free(self, slots: Iterable[Slot] | None) -> bool:
        """Tell whether there are slots, all of them are free, and no two the same."""
        if slots is None:
            return False
        wanted = [(what, cycle % self.interval) for what, cycle in slots]
        return self.taken.isdisjoint(wanted) and len(set(wanted)) == len(wanted)

    def take(self, slots: Iterable[Slot]) -> None:
        """Take slots."""
        self.taken.update((what, cycle % self.interval) for what, cycle in slots)

    def first(self, earliest: int, slots: Wanted, what: str) -> int:
        """Take the first cycle at which slots are free. Raises OverflowError for none."""
        for cycle in range(earliest, earliest + self.interval):
            wanted = slots(cycle)
            if wanted is not None and self.free(wanted):
                self.take(wanted)
                return cycle
        raise OverflowError(f"no cycle of {self.interval} is left for {what}")

    def port(self, cycle: int) -> list[Slot] | None:
        """Return what an access to work memory takes; None at the links' turn."""
        return None if cycle % C2C_TURN == C2C_TURN - 1 else [("port", cycle)]

    # -- ALUs

    def alu(
        self, op: AluOp, *sources: NodeSource, after: int = 0, late: int = 0, out: Group = (),
        slots: Wanted = lambda cycle: (), at: int | None = None,
        twice: bool = False,
    ) -> Node:  # fmt: skip
        """Place an instruction at the first cycle from `after` on, or `at` one.

        `late`: cycles from its issue to its last operand's arrival; `slots`: what else it takes
        when issued at a cycle; `twice`: another ALU does the same. Raises OverflowError where
        there is no place.
        """
        nodes = [source for source in sources if isinstance(source, Node)]
        earliest = max([after, *(node.done for node in nodes)]) if at is None else at
        for cycle in range(earliest, earliest + (self.interval if at is None else 1)):
            done = cycle + late + self.clock.of[op]
            if self._fits(op, cycle, done, nodes, 1 + twice):
                wanted = slots(cycle)
                if wanted is not None and self.free(wanted):
                    self.take(wanted)
                    return self._place(op, cycle, done, sources, nodes, out, 1 + twice)
        raise OverflowError(f"no cycle of {self.interval} is left for {op}")

    def room(self, op: AluOp, cycles: Sequence[int], late: int) -> bool:
        """Tell whether an instruction without operands in registers may be issued at each cycle."""
        return all(self._fits(op, at, at + late + self.clock.of[op], [], 1) for at in cycles)

    def bunch(
        self, op: AluOp, offsets: Sequence[int], slots: Wanted, held: Node, after: int
    ) -> int:  # fmt: skip
        """Return a cycle from which instructions on a kept value may follow at the offsets.

        `slots`: what each takes, issued at a cycle. Nothing is taken. Raises OverflowError where
        there is no place.
        """
        for cycle in range(after, after + self.interval):
            times = [cycle + offset for offset in offsets]
            wanted = [slots(at) for at in times]
            if (
                None not in wanted
                and self.free(slot for one in wanted for slot in one or ())
                and self.room(op, times, 0)
                and self._fits(op, times[-1], times[-1] + self.clock.of[op], [held], 1)
            ):
                return cycle
        raise OverflowError(f"no cycle of {self.interval} is left for {len(offsets)} {op}")

    def port_before(self, latest: int, op: AluOp, fetch: int, count: int) -> int:
        """Take the last cycle of the ports, to `latest`, at whose arrivals so many may be issued.

        Raises OverflowError where there is none.
        """
        for cycle in range(latest, latest - self.interval, -1):
            at = cycle + fetch
            slots = self.port(cycle)
            if self.free(slots) and self._fits(op, at, at + self.clock.of[op], [], count):
                assert slots is not None
                self.take(slots)
                return cycle
        raise OverflowError(f"no cycle of {self.interval} is left for a port")

    def twin(self, node: Node, out: Group) -> None:
        """Let another ALU, for which there is room, do the same, with a way out of its own."""
        self.nodes.append(
            Node(node.cycle, node.op, node.sources, node.lanes, node.done, out, None, node.done)
        )

    def _fits(self, op: AluOp, cycle: int, done: int, nodes: list[Node], count: int) -> bool:
        turn, most = cycle % self.interval, self.spec.vxm_alus - len(self.pinned)
        if self._issued[turn] + count > most:
            return False
        if op in LARGE_OPS and self._large[turn] + count > len(LARGE_ALUS - self.pinned):
            return False
        if self._live[done % self.interval] + count > most - SPARE:
            return False
        more: dict[int, int] = {done % self.interval: count}
        for node in nodes:
            for kept in range(node.last_use + 1, cycle + 1):
                more[kept % self.interval] = more.get(kept % self.interval, 0) + 1
        return all(self._live[kept] + n <= most for kept, n in more.items())

    def _place(
        self, op: AluOp, cycle: int, done: int, sources: tuple[NodeSource, ...],
        nodes: list[Node], out: Group, count: int,
    ) -> Node:  # fmt: skip
        self._issued[cycle % self.interval] += count
        if op in LARGE_OPS:
            self._large[cycle % self.interval] += count
        self._live[done % self.interval] += count
        for node in nodes:
            for kept in range(node.last_use + 1, cycle + 1):
                self._live[kept % self.interval] += 1
            node.last_use = max(node.last_use, cycle)
        placed = Node(cycle, op, sources, LANES, done, out or None, None, done)
        self.nodes.append(placed)
        return placed

    # -- copies through the SXMs

    def send(
        self, op: AluOp, *sources: NodeSource, copies: int, after: int = 0,
        others: Wanted = lambda cycle: (),
    ) -> tuple[Node, Sent]:  # fmt: skip
        """Place an instruction whose result goes to an SXM, for so many copies."""
        chosen: list[Sent] = []

        def slots(cycle: int) -> list[Slot] | None:
            done = cycle + self.clock.of[op]
            there, more = done + self.clock.to_sxm, others(cycle)
            chosen.clear()
            if more is None:
                return None
            for side in (WEST, EAST):
                queues = [
                    queue
                    for queue in LOOP.copy_queues
                    if self.free([(("sxm", side, queue), there)])
                ][:copies]
                wanted: list[Slot] = [(("sent", side), done)]
                if len(queues) == copies and self.free(wanted):
                    back = there + self.clock.of["PERMUTE"] + self.clock.to_sxm
                    chosen.append(Sent(side, there, tuple(queues), back))
                    turns = [(("sxm", side, queue), there) for queue in queues]
                    return [*wanted, *turns, *more]
            return None

        node = self.alu(op, *sources, after=after, slots=slots)
        (sent,) = chosen
        node.out = group(Stream(sent.side == EAST, LOOP.sent), 4)
        return node, sent

    def copied(
        self, sent: Sent, numbers: Sequence[int], maps: Sequence[Map], op: AluOp,
        *others: NodeSource, after: int = 0, at: int | None = None,
    ) -> Node:  # fmt: skip
        """Place an instruction on copies `numbers` of a sent value, which arrive at its cycle."""
        inward = sent.side == WEST
        chosen: list[int] = []

        def slots(cycle: int) -> list[Slot] | None:
            ways = [g for g in LOOP.ways if self.free([(("in", sent.side, g), cycle)])]
            chosen[:] = ways[: len(numbers)]
            if len(chosen) < len(numbers) or cycle - sent.arrival > LATEST:
                return None
            return [(("in", sent.side, g), cycle) for g in chosen]

        operands = tuple(In(group(Stream(inward, g), 4)) for g in LOOP.ways[: len(numbers)])
        node = self.alu(op, *others, *operands, after=max(after, sent.arrival), at=at, slots=slots)
        operands = tuple(In(group(Stream(inward, g), 4)) for g in chosen)
        node.sources = (*others, *operands)
        src = group(Stream(not inward, LOOP.sent), 4)
        for number, way in zip(numbers, chosen, strict=True):
            dst = tuple(Tap(Stream(inward, way + n), node.cycle - sent.arrival) for n in range(4))
            turn = Permute(src=src, dst=dst, item=4, lanes=LANES, map=maps[number])
            self.turns.append(Turn(sent.cycle, sent.side, sent.queues[number], turn))
        return node

    def finish(self) -> None:
        """Give every instruction its ALU. Raises OverflowError where they do not suffice."""
        try:
            assign(self.nodes, self.spec, self.pinned, self.interval)
        except OverflowError:
            self._assign_again()

    def _assign_again(self) -> None:
        """Give every instruction its ALU, those first that found none before."""
        order = sorted(self.nodes, key=lambda n: (n.done - n.last_use, n.op not in LARGE_OPS))
        for _ in range(ORDERS):
            left = self._assigned(order)
            if left is None:
                return
            order.remove(left)
            order.insert(0, left)
        raise OverflowError(f"no order of {ORDERS} gives every instruction an ALU")

    def _assigned(self, order: list[Node]) -> Node | None:
        """Give each instruction the first ALU that is free; return the first that finds none."""
        small = [n for n in range(self.spec.vxm_alus) if n not in self.pinned | LARGE_ALUS]
        large = sorted(LARGE_ALUS - self.pinned)
        issued, kept = [0] * self.spec.vxm_alus, [0] * self.spec.vxm_alus
        whole = (1 << self.interval) - 1
        for node in order:
            at, first = 1 << node.cycle % self.interval, node.done % self.interval
            span = (1 << min(node.last_use - node.done + 1, self.interval)) - 1 << first
            live = (span | span >> self.interval) & whole
            for number in large if node.op in LARGE_OPS else small + large:
                if not issued[number] & at and not kept[number] & live:
                    node.alu = number
                    issued[number] |= at
                    kept[number] |= live
                    break
            else:
                return node
        return None
