"""One quad of attention of many rows, from sums of Q.K to results: instructions and their times.

A quad is a head of four neighbouring rows. Its columns have 80 tokens of each row, a quarter of the
lanes a row. Five stages, each behind the lanes' reduction of the one before:

1. scores, scaled and masked, and their maxima;
2. exponentials of scores less row maximum, and their sums;
3. weights, exponential x sum reciprocal x value scale, and the largest weight;
4. weights in int8, which multiply the values;
5. sums of P.V, scaled, each row's heads side by side.

Between stages columns wait in bulk memory. What leaves the VXM does so on even cycles; what comes
to it is read on odd ones. So the two never meet in a slice, wherever the memory lies. Quads follow
each other in a modulo schedule (compiler/codegen/attention/modulo.py). Numerics: attention_i8 of
chip/kernels/twin.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache, partial
from typing import Any, TypeVar

from chip.isa.instructions import AluOp
from chip.isa.operands import Held, Immediate, In, Lane, Stream, Tap, group
from chip.kernels.quant import MIN_ABSMAX
from chip.ops.scratch import COLUMN, QUAD
from compiler.codegen.attention.modulo import EAST, LATEST, WEST, Map, Modulo, Sent, Slot
from compiler.codegen.attention.resources import ITEMS, LOOP
from compiler.codegen.attention.shape import Tile
from compiler.codegen.attention.wires import items
from compiler.codegen.core.parts import LANES, Load, Node, NodeSource, Ref, f32

T = TypeVar("T")
WAIT = LATEST - 6  # cycles that a value waits in an SXM, to be late; a few more may be needed
LATE, STEP = 3 * WAIT, 4  # cycles by which a stage may be late that are tried
PACE = 2  # cycles from column to column
NEVER = f32(float("-inf"))


class Kept(StrEnum):
    """What waits in bulk memory."""

    SCORE = "score"
    POWER = "exponential"
    WEIGHT = "weight"
    SCALE = "scale of the weights"


@dataclass(frozen=True, slots=True)
class Fetched:
    """Vectors `first` on of an operand, read at a port's cycle: one, or two neighbours."""

    operand: str
    vectors: tuple[int, ...]
    port: int


@dataclass(frozen=True, slots=True)
class Access:
    """A column read or written: when it is at the VXM."""

    kept: Kept
    column: int
    side: int
    cycle: int
    write: bool


@dataclass(frozen=True, slots=True)
class Turned:
    """Columns of a vector of tokens on their way through the SXMs: when each leaves the VXM."""

    vector: int
    cycles: tuple[int, ...]
    fed: int  # the first row's cycle at the planes


@dataclass(frozen=True, slots=True)
class Joined:
    """A row's copy of a piece of results, on its way from an SXM to its row's register."""

    queue: int
    way: int
    cycle: int  # in which it joins the register


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a head's results, of up to 80 lanes of each row: a row a quarter."""

    number: int  # of the pieces of a head
    drained: int  # when the first row's sums leave the accumulators
    scaled: Node
    sent: Sent
    joined: tuple[Joined, ...]  # by row


@dataclass(slots=True)
class Unit:
    """A quad's times; cycles from the interval's start."""

    start: int
    drained: int = 0  # when the first row's scores leave the accumulators
    columns: list[int] = field(default_factory=list)  # when each column's sums come
    looks: list[int] = field(default_factory=list)  # at what rows see
    fetched: list[Fetched] = field(default_factory=list)
    accesses: list[Access] = field(default_factory=list)
    turned: list[Turned] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    first_node: int = 0
    first_turn: int = 0

    def when(self, kept: Kept, *, write: bool) -> list[int]:
        """Return when columns are read, or written."""
        return [a.cycle for a in self.accesses if a.kept is kept and a.write is write]


@cache
def _turn(amount: int) -> Map:
    return tuple(lane // COLUMN * COLUMN + (lane + amount) % COLUMN for lane in range(LANES))


@cache
def _place(place: int) -> Map:
    return tuple(lane // COLUMN * COLUMN + place for lane in range(LANES))


FIRST, SECOND = (tuple(_turn(step * n) for n in range(4)) for step in (20, 5))
LAST = tuple(_place(n) for n in range(5))


class Builder:
    """Builds the quads of an interval."""

    def __init__(self, modulo: Modulo, tile: Tile, parts: int, *, looks: bool) -> None:
        self.m, self.tile, self.parts, self.looks = modulo, tile, parts, looks
        self.clock, self.of = modulo.clock, modulo.clock.of
        self.columns = tile.columns
        self.apart = 3 * self.of["CHOOSE"] + 1  # between quads' looks: what is seen changes
        self.back = self.of["ACC"] + self.of["PERMUTE"] + self.clock.to_mxm
        self.units: list[Unit] = []

    def quad(self, start: int) -> None:
        """Place a quad. Raises OverflowError where it finds no place."""
        unit = Unit(start, first_node=len(self.m.nodes), first_turn=len(self.m.turns))
        self.units.append(unit)
        sent = self._tried(unit, lambda late: self._scores(unit, late))
        sent = self._tried(unit, partial(self._staged, unit, AluOp.MAX, sent, self._exponentials))
        sent = self._tried(unit, partial(self._staged, unit, AluOp.ADD, sent, self._weights))
        self._tried(unit, partial(self._staged, unit, AluOp.MAX, sent, self._quantised))
        self._tried(unit, lambda late: self._results(unit, late))

    def _staged(
        self, unit: Unit, op: AluOp, sent: Sent, stage: Callable[[Unit, Node], T], late: int
    ) -> T:  # fmt: skip
        """Place a reduction, so many cycles late, and the stage that it is for."""
        return stage(unit, self._reduced(op, sent, late))

    def _tried(self, unit: Unit, stage: Callable[[int], T]) -> T:
        """Place a stage, so many cycles late that the load on registers is the most even.

        Raises OverflowError where it finds no place.
        """
        restore = self.m.save()
        lists: tuple[list[Any], ...] = (
            unit.looks, unit.fetched, unit.accesses, unit.turned, unit.parts,
        )  # fmt: skip
        sizes = [len(one) for one in lists]
        found: list[tuple[int, int]] = []
        for late in range(0, min(self.m.interval, LATE), STEP):
            try:
                stage(late)
                found.append((self.m.load, late))
            except OverflowError:
                pass
            restore()
            for one, size in zip(lists, sizes, strict=True):
                del one[size:]
        if not found:
            raise OverflowError(f"no cycle of {self.m.interval} is left for a stage")
        return stage(min(found)[1])

    def repeats(self, interval: int) -> bool:
        """Tell whether the first quad keeps its distance to the last of the interval before."""
        first, last = self.units[0], self.units[-1]
        near = self.looks and first.looks[0] + interval < last.looks[-1] + self.apart
        joined = all(
            min(part.joined[row].cycle for part in first.parts) + interval
            > max(part.joined[row].cycle for part in last.parts)
            for row in range(QUAD)
        )
        return joined and not near

    # -- memory

    def _written(
        self, op: AluOp, *sources: NodeSource, unit: Unit, kept: Kept, column: int, side: int,
        others: Callable[[int], Sequence[Slot] | None] = lambda cycle: (), after: int = 0,
    ) -> Node:  # fmt: skip
        """Place an instruction whose result goes to bulk memory."""

        def slots(cycle: int) -> list[Slot] | None:
            done, more = cycle + self.of[op], others(cycle)
            if (done + side) % 2 == 0 or more is None:
                return None
            return [(("items out", side), done), *more]

        out = items(side, inward=False)
        node = self.m.alu(op, *sources, out=out, slots=slots, after=after)
        unit.accesses.append(Access(kept, column, side, node.done, write=True))
        return node

    def _read(
        self, op: AluOp, known: Node, unit: Unit, kept: Kept, order: Sequence[int]
    ) -> list[Node]:  # fmt: skip
        """Place instructions on columns that come from bulk memory, and a number of each row."""
        written = {a.column: a for a in unit.accesses if a.kept is kept and a.write}
        earliest = max(
            a.cycle + self.clock.after_outward - PACE * order.index(c) for c, a in written.items()
        )
        sides = {written[c].side for c in order}
        nodes = list[Node]()
        if len(sides) == 1:
            (side,) = sides
            offsets = [PACE * n for n in range(len(order))]
            earliest = self.m.bunch(
                op, offsets, self._reading(side), known, max(earliest, known.done)
            )  # fmt: skip
        for c in order:
            side = written[c].side
            earliest = max(earliest, written[c].cycle + self.clock.after_outward)
            operand, slots = In(items(side, inward=True)), self._reading(side)
            node = self.m.alu(op, operand, known, after=earliest, slots=slots)
            unit.accesses.append(Access(kept, c, side, node.cycle, write=False))
            nodes.append(node)
            earliest = node.cycle + 1
        return nodes

    def _reading(self, side: int) -> Callable[[int], list[Slot] | None]:
        odd, way = (self.of["READ"] + side) % 2, ITEMS.read

        def slots(cycle: int) -> list[Slot] | None:
            if cycle % 2 != odd:
                return None
            return [(("items in", side), cycle), (("in", side, way), cycle)]

        return slots

    # -- stages

    def _scores(self, unit: Unit, late: int) -> Sent:
        m, of = self.m, self.of

        def slots(cycle: int) -> list[Slot] | None:
            times = [cycle + self.back + PACE * c for c in range(self.columns)]
            if not m.room(AluOp.ADD, times, QUAD - 1):
                return None
            return [
                *(("drain keys", cycle + row) for row in range(QUAD)),
                *(("sums", time) for time in times),
            ]

        unit.drained = m.first(unit.start + late, slots, "sums of Q.K")
        unit.columns = [unit.drained + self.back + PACE * c for c in range(self.columns)]
        sums = [
            m.alu(AluOp.ADD, *self._sides(c), at=at, late=QUAD - 1)
            for c, at in enumerate(unit.columns)
        ]
        converted = [m.alu(AluOp.CVT_F32, total) for total in sums]
        factors = self._factors(unit, [node.done for node in converted])
        best: Node | None = None
        looked = self.units[-2].looks[-1] + self.apart if self.looks and len(self.units) > 1 else 0
        for c, node in enumerate(converted):
            score = m.alu(AluOp.MUL, node, factors[c])
            mask = m.alu(
                AluOp.LE, Lane(COLUMN * c), Held(LOOP.visible),
                after=max(looked, score.done - of["LE"]),
            )  # fmt: skip
            unit.looks.append(mask.cycle)
            chosen = self._written(
                AluOp.CHOOSE, mask, score, NEVER, unit=unit, kept=Kept.SCORE, column=c, side=EAST
            )
            if c == self.columns - 1:
                break
            best = chosen if best is None else m.alu(AluOp.MAX, chosen, best)
        return self._sent(AluOp.MAX, chosen, best)

    def _sent(self, op: AluOp, last: Node, before: Node | None) -> Sent:
        """Send the last column, with what is known of those before, on its way to be reduced."""
        if before is None:
            return self.m.send(AluOp.COPY, last, copies=4)[1]
        return self.m.send(op, last, before, copies=4)[1]

    def _sides(self, column: int) -> tuple[NodeSource, NodeSource]:
        """Return both sides' sums of a column: a stream a row, a cycle after one another."""
        sides = [
            In(tuple(Tap(Stream(side == WEST, LOOP.sums + i), i) for i in range(QUAD)), "i32")
            for side in self.tile.sides(column // QUAD)
        ]
        return sides[0], sides[1] if len(sides) > 1 else Immediate(0, "i32")

    def _factors(self, unit: Unit, due: list[int]) -> list[Node]:
        """Scales of the rows' queries times those of keys, a pair of columns at a time."""
        m, fetch, late = self.m, self.clock.fetch, self.of["MUL"]
        pairs = [range(c, min(c + 2, self.columns)) for c in range(0, self.columns, 2)]
        ports, limit = list[int](), due[-1]
        for pair in reversed(pairs):
            limit = min(limit, due[pair[0]] - late - fetch)
            limit = m.port_before(limit, AluOp.MUL, fetch, len(pair))
            ports.insert(0, limit)
            limit -= 1
        taken = list[int]()
        limit = ports[0] - self.of["COPY"]
        while len(taken) < QUAD:
            limit = m.port_before(limit, AluOp.COPY, fetch, len(taken) == QUAD - 1)
            taken.insert(0, limit)
            limit -= 1
        unit.fetched += [Fetched("sq", (n,), port) for n, port in enumerate(taken)]
        taps = Load(Ref("sq", 0, QUAD), "f32")
        scale = m.alu(AluOp.COPY, taps, at=taken[0] + fetch, late=taken[-1] - taken[0])
        factors = []
        for pair, port in zip(pairs, ports, strict=True):
            unit.fetched.append(Fetched("ks", tuple(pair), port))
            factors += [
                m.alu(AluOp.MUL, scale, Load(Ref("ks", c, 1), "f32"), at=port + fetch) for c in pair
            ]
        return factors

    def _exponentials(self, unit: Unit, top: Node) -> Sent:
        m, order = self.m, sorted(range(self.columns), key=lambda c: (c % 2, c % QUAD, c))
        quarters: dict[int, Node] = {}  # sums by column modulo 4: lanes of 320 tokens' vectors
        every = self._read(AluOp.SUB, top, unit, Kept.SCORE, order)
        for c, below in zip(order, every, strict=True):
            power = self._written(AluOp.EXP, below, unit=unit, kept=Kept.POWER, column=c, side=WEST)
            before = quarters.get(c % QUAD)
            quarters[c % QUAD] = power if before is None else m.alu(AluOp.ADD, power, before)
        halves = [[quarters[n] for n in numbers if n in quarters] for numbers in ((0, 2), (1, 3))]
        sums = [m.alu(AluOp.ADD, *half) if len(half) > 1 else half[0] for half in halves if half]
        return self._sent(AluOp.ADD, sums[0], sums[1] if len(sums) > 1 else None)

    def _weights(self, unit: Unit, total: Node) -> Sent:
        m, fetch = self.m, self.clock.fetch
        root = m.alu(AluOp.RSQRT, total)
        reciprocal = m.alu(AluOp.MUL, root, root)
        best: Node | None = None
        shares = self._read(AluOp.MUL, reciprocal, unit, Kept.POWER, range(self.columns))
        for c, share in enumerate(shares):
            scaled = m.alu(
                AluOp.MUL, share, Load(Ref("vs", c, 1), "f32"),
                slots=lambda cycle: m.port(cycle - fetch),
            )  # fmt: skip
            unit.fetched.append(Fetched("vs", (c,), scaled.cycle - fetch))
            none = m.alu(AluOp.EQ, share, f32(0.0), after=scaled.done - self.of["EQ"])
            weight = self._written(
                AluOp.CHOOSE, none, f32(0.0), scaled, unit=unit, kept=Kept.WEIGHT, column=c,
                side=(c + 1) % 2,
            )  # fmt: skip
            if c == self.columns - 1:
                break
            best = weight if best is None else m.alu(AluOp.MAX, weight, best)
        return self._sent(AluOp.MAX, weight, best)

    def _factor(self, unit: Unit, peak: Node) -> Node:
        """The factor that makes int8 of weights; the scale that undoes it goes to memory."""
        m = self.m
        alive = m.alu(AluOp.GE, peak, f32(float(MIN_ABSMAX)))
        scale = m.alu(AluOp.MUL, peak, f32(1.0 / 127.0))
        root = m.alu(AluOp.RSQRT, m.alu(AluOp.CHOOSE, alive, peak, f32(1.0)))
        self._written(
            AluOp.CHOOSE, alive, scale, f32(0.0), unit=unit, kept=Kept.SCALE, column=0, side=WEST
        )
        return m.alu(AluOp.MUL, f32(127.0), m.alu(AluOp.MUL, root, root))

    def _quantised(self, unit: Unit, peak: Node) -> None:
        """Weights in int8, which the SXMs give each row its vector of, meet the values."""
        m, of, clock, done = self.m, self.of, self.clock, list[int]()
        factor = self._factor(unit, peak)
        sides = self.tile.sides()
        for scaled in self._read(AluOp.MUL, factor, unit, Kept.WEIGHT, range(self.columns)):
            node = m.alu(
                AluOp.CVT_I8, scaled, twice=len(sides) > 1,
                slots=lambda cycle: [("rounded", cycle + of["CVT_I8"])],
            )  # fmt: skip
            node.out = group(Stream(False, LOOP.rounded_weights), 1)
            if len(sides) > 1:
                m.twin(node, group(Stream(True, LOOP.rounded_weights), 1))
            done.append(node.done)
        for vector in self.tile.vectors:
            cycles = tuple(done[c] for c in self.tile.columns_of(vector))
            ready = max(cycles) + of["PERMUTE"] + clock.to_mxm
            before = unit.turned[-1].fed + 1 if unit.turned else 0
            m.take([(("turn weights", vector), cycles[0])])
            fed = m.first(
                max(ready, before),
                lambda cycle: [
                    slot for row in range(QUAD)
                    for slot in (("feed values", cycle + row),
                                 ("drain values", cycle + of["ABC"] + row))
                ],
                "weights at the planes",
            )  # fmt: skip
            unit.turned.append(Turned(vector, cycles, fed))

    def _results(self, unit: Unit, late: int) -> None:
        """Sums of P.V leave the accumulators, are scaled, and join their row's other heads."""
        m, of = self.m, self.of
        summed = unit.turned[-1].fed + of["ABC"] + 1
        terms: list[NodeSource] = [
            In(tuple(Tap(Stream(side == WEST, LOOP.products + i), i) for i in range(QUAD)), "i32")
            for side in self.tile.sides()
        ]
        terms += [Immediate(0, "i32")] * (2 - len(terms))
        (written,) = unit.when(Kept.SCALE, write=True)
        for number in range(self.parts):
            total = m.alu(
                AluOp.ADD, *terms, after=late + summed + self.back, late=QUAD - 1,
                slots=lambda cycle: [
                    *(("drain values", cycle - self.back + i) for i in range(QUAD)),
                    ("products", cycle),
                ],
            )  # fmt: skip
            scaled, sent = m.send(
                AluOp.MUL, m.alu(AluOp.CVT_F32, total), In(items(WEST, inward=True)), copies=QUAD,
                after=written + self.clock.after_outward, others=self._reading(WEST),
            )  # fmt: skip
            unit.accesses.append(Access(Kept.SCALE, 0, WEST, scaled.cycle, write=False))
            joined = tuple(self._join(row, queue, sent) for row, queue in enumerate(sent.queues))
            part = Part(number, total.cycle - self.back, scaled, sent, joined)
            unit.parts.append(part)

    def _join(self, row: int, queue: int, sent: Sent) -> Joined:
        """Find when a row's copy may come to its register."""
        times = [
            part.joined[row].cycle for unit in self.units[-2:] for part in unit.parts
        ]  # fmt: skip
        earliest = max(sent.arrival, max(times, default=-1) + 1)
        for cycle in range(earliest, sent.arrival + LATEST):
            for way in LOOP.ways:
                slots = [(("in", sent.side, way), cycle), (("join", row), cycle)]
                if self.m.free(slots):
                    self.m.take(slots)
                    return Joined(queue, way, cycle)
        raise OverflowError(f"no cycle of {self.m.interval} is left for results")

    # -- lanes

    def _reduced(self, op: AluOp, sent: Sent, late: int) -> Node:
        """Reduce each quarter of a value's lanes, in the fixed order of vmath.lane_sum.

        80 lanes to 40 and 20, to 10 and 5, then the last five: three ways through an SXM, on which
        the value may be so many cycles late.
        """
        m = self.m
        for trip, (maps, copies) in enumerate(((FIRST, QUAD), (SECOND, len(LAST)))):
            after = sent.arrival + min(WAIT, max(0, late - trip * WAIT))
            one, two = (m.copied(sent, pair, maps, op, after=after) for pair in ((0, 2), (1, 3)))
            _, sent = m.send(op, one, two, copies=copies)
        after = sent.arrival + min(WAIT, max(0, late - 2 * WAIT))
        one, two = (m.copied(sent, pair, LAST, op, after=after) for pair in ((0, 1), (2, 3)))
        return m.copied(sent, (4,), LAST, op, m.alu(op, one, two))
