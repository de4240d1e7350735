"""The quads of attention of many rows in their order, and what happens beside them.

A round is up to two groups of heads, whose keys and values the planes and their buffers hold. Each
quad has a seat in the modulo schedule (compiler/codegen/attention/pattern.py). Placed in between,
where ports, planes and an ALU of their own are free: queries on their way to the activation buffers
of the planes of keys, what rows see, and results on their way to memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product

from chip.ops.cost import C2C_TURN
from chip.ops.scratch import QUAD
from chip.spec import vectors
from compiler.codegen.attention.modulo import EAST, LATEST, WEST
from compiler.codegen.attention.pattern import Pattern
from compiler.codegen.attention.quads import Part, Unit
from compiler.codegen.attention.resources import LOOP
from compiler.codegen.attention.shape import Attention, Piece, Tile
from compiler.codegen.attention.tiles import Load, Planes
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.parts import LANES
from compiler.codegen.core.template import aligned

KEYS, VALUES = 0, 1  # planes of a side
SLOTS = 80  # quads whose sums the accumulators hold: four rows each
BUFFERED = 16  # quads whose queries the activation buffers hold
AT_ONCE = 8  # heads that a read of queries is for, at most: each takes a queue of the SXMs
EARLIER = 24  # cycles by which the quads begin later, where queries come too late
TRIES = 40
QUEUES = LOOP.copy_queues + LOOP.query_queues[:3]  # for results


@dataclass(frozen=True, slots=True)
class Seat:
    """A quad at work: head `head` of four rows from `row` on. `number` counts all quads."""

    number: int
    group: int
    row: int
    head: int
    unit: Unit
    start: int  # of its interval

    @property
    def fed(self) -> int:
        """Number of the first row's slot in the activation buffers."""
        return self.number % BUFFERED * QUAD


@dataclass(frozen=True, slots=True)
class Fill:
    """Queries of a row on their way: a packed vector at the SXMs, then each head at the planes."""

    row: int
    vector: int
    port: int
    there: int
    heads: tuple[tuple[int, int, int, int], ...]  # (head, queue, slot, cycle at the planes)


@dataclass(frozen=True, slots=True)
class Join:
    """A head's results that come to their row's register: the first anew, others beside it."""

    seat: Seat
    part: Part
    row: int  # of the quad
    piece: Piece
    cycle: int
    first: bool


@dataclass(frozen=True, slots=True)
class Rounded:
    """A vector of 320 results of a row, which waits in an SXM until it may be rounded."""

    row: int
    number: int
    join: Join  # the last one, whose result goes to the SXM
    side: int
    there: int
    queue: int
    way: int
    late: int
    cycle: int


@dataclass(slots=True)
class Busy:
    """What the quads leave free: cycles from the operation's start."""

    pattern: Pattern
    first: int  # the first interval's start
    taken: set[tuple[object, int]] = field(default_factory=set)

    def free(self, what: object, cycle: int) -> bool:
        """Tell whether neither the quads nor others take something at a cycle."""
        turn = (cycle - self.first) % self.pattern.interval
        return (what, turn) not in self.pattern.taken and (what, cycle) not in self.taken

    def first_of(
        self, every: Sequence[tuple[str, int, int]], cycle: int
    ) -> tuple[str, int, int] | None:  # fmt: skip
        """Return the first of some resources that is free at a cycle."""
        return next((what for what in every if self.free(what, cycle)), None)

    def port(self, cycle: int) -> bool:
        """Tell whether work memory's ports are free."""
        return cycle >= 0 and cycle % C2C_TURN != C2C_TURN - 1 and self.free("port", cycle)


class Round:
    """All that happens for some groups; cycles from the operation's start."""

    def __init__(
        self, shape: Attention, pattern: Pattern, clock: Clock, groups: Sequence[int],
        number: int,
    ) -> None:  # fmt: skip
        self.shape, self.pattern, self.clock, self.groups = shape, pattern, clock, groups
        self.number = number  # of the first quad
        tokens = shape.scratch.bucket
        self.tiles = [Tile(plane, g, 0, tokens) for g in groups for plane in (KEYS, VALUES)]
        self.idle = dict.fromkeys(groups, 0)  # seats that are left empty behind a row's heads
        self.loads: list[Load] = []
        self.seats: list[Seat] = []
        self.fills: list[Fill] = []
        self.seen: list[tuple[int, int]] = []  # (first row, when what it sees begins to be made)
        self.joins: list[Join] = []
        self.results: list[Rounded] = []

    @classmethod
    def lay_out(
        cls, shape: Attention, pattern: Pattern, clock: Clock, groups: Sequence[int],
        number: int, start: int,
    ) -> Round:  # fmt: skip
        """Place everything. Raises OverflowError where it does not fit between the quads."""
        found = cls(shape, pattern, clock, groups, number)
        ready = found._load(start)
        first = aligned(found._after(start, ready))
        for _ in range(TRIES):
            late = found._try(first, start)
            if late is None:
                found._install()
                return found
            if late.row < QUAD and late.group == groups[0]:
                first += EARLIER
            else:
                found.idle[late.group] += 1
        raise OverflowError("queries come too late, wherever the quads begin")

    # -- keys and values

    def _load(self, start: int) -> int:
        """Load the groups' keys and values; return the slot behind the last read."""
        planes, slots, at = Planes(self.clock), set[int](), start
        for tile in self.tiles:
            if tile.number == KEYS:
                load = planes.keys(tile, slots, at)
                at = max(at, load.cycles[-1] + 1 - self.clock.of["READ"] - self.clock.to_mxm)
            else:
                load, at = planes.values(self.shape, tile, at)
            self.loads.append(load)
        for load in self.loads[:2]:
            planes.install(load)
        return at

    def _after(self, start: int, ready: int) -> int:
        """Return the earliest cycle at which the quads' first interval may begin."""
        unit, of = self.pattern.units[0], self.clock.of
        keys, values = (load.installed or 0 for load in self.loads[:2])
        first = min(access.cycle for one in self.pattern.units for access in one.accesses)
        return max(
            start,
            keys + of["IW"] - (unit.drained - of["ABC"]),
            values + of["IW"] - min(turned.fed for turned in unit.turned),
            ready + self.clock.after_outward - first,
        )

    def _install(self) -> None:
        """Install the second group's tiles between the quads of both."""
        for load in self.loads[2:]:
            mine = load.tile.group
            last = max(s.start + self.last_fed(s, load) for s in self.seats if s.group != mine)
            load.installed = last + 1
            assert load.installed > load.ready

    def last_fed(self, seat: Seat, load: Load) -> int:
        """Return the last cycle at which a quad feeds keys, or values."""
        if load.value:
            return seat.unit.turned[-1].fed + QUAD - 1
        return seat.unit.drained - self.clock.of["ABC"] + QUAD - 1

    # -- quads

    def _try(self, first: int, start: int) -> Seat | None:
        """Seat the quads from a cycle on; return the first whose queries would come too late."""
        self.seats, self.fills, self.joins, self.results = self._seated(first), [], [], []
        busy = Busy(self.pattern, first)
        for seat in self.seats:
            fed = seat.start + seat.unit.drained - self.clock.of["ABC"]
            busy.taken.update(("feed keys", fed + i) for i in range(QUAD))
        for one, two in zip(self.seats, self.seats[1:], strict=False):
            if one.group != two.group:
                fed = one.start + one.unit.drained - self.clock.of["ABC"]
                busy.taken.add(("feed keys", fed + QUAD))  # the next group's keys are installed
        self._see(busy)
        self._join()
        self._round(busy)
        return self._fill(busy, start)

    def _seated(self, first: int) -> list[Seat]:
        units, out, turn = len(self.pattern.units), list[Seat](), 0
        for group in self.groups:
            heads = self.shape.heads_of(group)
            for row in range(0, self.shape.rows, QUAD):
                for head in heads:
                    start = first + self.pattern.start(turn)
                    number = self.number + len(out)
                    out.append(Seat(number, group, row, head, self.pattern.unit(turn), start))
                    turn += 1
                turn += self.idle[group]
            turn = -(-turn // units) * units + units  # time to install the next group's tiles
        return out

    def _see(self, busy: Busy) -> None:
        """What rows see changes between two quads' looks."""
        self.seen = []
        if self.shape.horizon is not None:
            return
        back = 2 * self.clock.of["CHOOSE"] + self.clock.of["GE"] + 1
        before = None
        for seat in self.seats:
            if before is None or before.row != seat.row:
                at = seat.start + seat.unit.looks[0] - back
                assert before is None or before.start + before.unit.looks[-1] < at + back - 3
                self.seen.append((seat.row, at))
                busy.taken.update(("rounded", at + n) for n in range(-2, 3))
            before = seat

    def _join(self) -> None:
        """Say when results come to the registers of their rows."""
        every = []
        for seat in self.seats:
            pieces, rows = self.shape.pieces(seat.head), self.shape.rows - seat.row
            for part, piece in zip(seat.unit.parts, pieces, strict=False):
                for row, joined in enumerate(part.joined[:rows]):
                    at = seat.start + joined.cycle
                    every.append(Join(seat, part, row, piece, at, piece.lane == 0))
        self.joins = sorted(every, key=lambda join: join.cycle)

    def _round(self, busy: Busy) -> None:
        """Send each vector of results on its way. Raises OverflowError where it finds none."""
        n = len(self.shape.kv_of) * self.shape.dim
        for join in self.joins:
            number = join.piece.number
            if join.piece.lane + join.piece.n == min(LANES, n - number * LANES):
                self.results.append(self._rounded(join, busy))

    def _rounded(self, join: Join, busy: Busy) -> Rounded:
        of, clock = self.clock.of, self.clock
        away = of["CVT_F16"] + clock.near
        there = join.cycle + of["OR"] + clock.to_sxm
        back = there + of["PERMUTE"] + clock.to_sxm
        for side, late in product((EAST, WEST), range(LATEST)):
            at = back + late
            queue = busy.first_of([("sxm", side, n) for n in QUEUES], there)
            way = busy.first_of([("in", side, n) for n in LOOP.ways], at)
            if queue and way and busy.port(at + away) and busy.free("rounded", at):
                busy.taken.update({
                    (queue, there), (way, at), ("port", at + away), ("rounded", at)
                })  # fmt: skip
                row = join.seat.row + join.row
                return Rounded(
                    row, join.piece.number, join, side, there, queue[2], way[2], late, at
                )  # fmt: skip
        raise OverflowError("results find no port")

    def _fill(self, busy: Busy, start: int) -> Seat | None:
        """Bring queries to the activation buffers, as late as they may.

        Return the first quad for which they cannot.
        """
        of, clock, fed = self.clock.of, self.clock, self.clock.of["ABC"]
        cross = of["READ"] + clock.near + clock.to_sxm
        onward = of["PERMUTE"] + clock.to_mxm - clock.to_sxm
        when = {seat.number: seat.start + seat.unit.drained - fed for seat in self.seats}
        for seats in self._sharing():
            late = when[seats[0].number]
            slots_free = when.get(seats[-1].number - BUFFERED, start - QUAD) + QUAD
            for i in range(QUAD):
                for port in range(late - 1 - onward - cross, slots_free - onward - cross - 1, -1):
                    if port < start:
                        return seats[0]
                    fill = self._filled(seats, i, port, late, slots_free, busy)
                    if fill is not None:
                        self.fills.append(fill)
                        break
                else:
                    return seats[0]
        return None

    def _sharing(self) -> Iterable[list[Seat]]:
        """Yield neighbouring quads whose queries lie in the same packed vectors."""
        out: list[Seat] = []
        for seat in self.seats:
            if out and (
                seat.row != out[0].row or len(out) == AT_ONCE or seat.group != out[0].group
                or self.shape.queries[seat.head][0] != self.shape.queries[out[0].head][0]
            ):  # fmt: skip
                yield out
                out = []
            out.append(seat)
        yield out

    def _filled(
        self, seats: list[Seat], i: int, port: int, late: int, slots_free: int, busy: Busy
    ) -> Fill | None:  # fmt: skip
        """Take what a read of the queries of row `i` of some quads needs, if it is free."""
        of, clock = self.clock.of, self.clock
        there = port + of["READ"] + clock.near + clock.to_sxm
        queues = [
            queue
            for queue in LOOP.query_queues
            if all(busy.free(("sxm", side, queue), there) for side in (0, 1))
        ][: len(seats)]
        ports = (port, port + 2 * clock.near)
        if len(queues) < len(seats) or not all(busy.port(one) for one in ports):
            return None
        at, cycles = there + of["PERMUTE"] + clock.to_mxm - clock.to_sxm, list[int]()
        while len(cycles) < len(seats) and at < late:
            if busy.free("feed keys", at) and at >= slots_free:
                cycles.append(at)
            at += 1
        if len(cycles) < len(seats):
            return None
        busy.taken.update(("port", one) for one in ports)
        busy.taken.update(("feed keys", at) for at in cycles)
        busy.taken.update((("sxm", side, queue), there) for side in (0, 1) for queue in queues)
        heads = tuple(
            (seat.head, queue, seat.fed + i, at)
            for seat, queue, at in zip(seats, queues, cycles, strict=True)
        )
        row = min(seats[0].row + i, self.shape.rows - 1)
        return Fill(row, self.shape.queries[seats[0].head][0], port, there, heads)

    # -- ends

    @property
    def quiet(self) -> int:
        """When the quads' last access of memory has passed everything."""
        last = self.seats[-len(self.pattern.units) :]
        access = max(s.start + access.cycle for s in last for access in s.unit.accesses)
        left = max(result.cycle for result in self.results) + self.clock.of["CVT_F16"]
        return max(access + self.clock.after_outward, left + self.clock.near + 1)


def result_vectors(shape: Attention, number: int) -> int:
    """Return the vectors of memory that a vector of 320 results takes."""
    return vectors(2 * min(LANES, len(shape.kv_of) * shape.dim - number * LANES))


__all__ = ["Fill", "Join", "Round", "Rounded", "Seat", "Tile", "result_vectors"]
