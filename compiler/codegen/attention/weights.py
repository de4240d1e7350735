"""Attention's third and fourth pass: weights, their maxima, and P.V.

Both passes make the same weights, a pair of columns at a time: exponential x sum reciprocal x value
scale, zero where the row may not see. The third pass keeps the maximum of each head. The fourth
quantises the weights and sends them through the SXMs, which give each head its vector, to the
planes that hold values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

from chip.floorplan import Role, mxm, sxm
from chip.isa.instructions import ABC, ACC, AluOp, Permute
from chip.isa.issue import Issue
from chip.isa.operands import Held, In, Stream, Tap, group
from chip.ops.scratch import COLUMN, QUAD
from chip.spec import RUN
from compiler.codegen.attention.quarters import (
    keep,
    mask,
    running_best,
    stored,
)
from compiler.codegen.attention.resources import MASKS, MAXIMUM, QUANTISED, WEIGHTS
from compiler.codegen.attention.shape import Attention, Map, Quad, Tile
from compiler.codegen.attention.tiles import Load, Planes
from compiler.codegen.attention.wires import Ports, Wires, items
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.control import Bulk
from compiler.codegen.core.parts import LANES, f32

WORD = 4  # bytes that the SXMs move as one
WORDS = LANES // WORD


@dataclass(slots=True)
class Job:
    """A quad's columns from `column` on. `times`: when a pair's first exponential comes."""

    number: int
    quad: Quad
    column: int
    columns: int
    known: dict[int, list[int]]  # ports by number of what is known of the heads
    scale_ports: list[list[int]]
    times: list[int]
    tile: Tile | None = None
    fed: list[int] | None = None  # the first head's cycle at the planes, by vector of tokens
    store: int = 0

    def time(self, column: int) -> int:
        return self.times[column // 2] + column % 2

    @property
    def last(self) -> int:
        return self.time(self.columns - 1)


class Weights:
    """What both passes do: exponential x sum reciprocal x value scale, zero for hidden tokens.

    `registers`: ALUs for what is known of the heads, by its number.
    """

    def __init__(
        self, shape: Attention, clock: Clock, ports: Ports, start: int,
        registers: dict[int, tuple[int, ...]],
    ) -> None:  # fmt: skip
        self.shape, self.clock, self.ports, self.registers = shape, clock, ports, registers
        of = clock.of
        self.shared = of["MUL"]
        self.weighed = self.shared + of["MUL"]
        self.masked = self.weighed + of["CHOOSE"]
        self.pace = max(2, of["MAX"])
        # from a scale's port to the exponential that it meets
        self.to_time = clock.fetch + of["COPY"] - self.shared
        # from a column's time to the last use of what is known of its heads
        self.uses = dict(zip(registers, (0, self.masked), strict=False))
        self.jobs: list[Job] = []
        self._start = self._port = start
        self._next: dict[int, list[int]] = {}

    def begin(self) -> Weights:
        """Take ports for what the first job must know."""
        self._next = self._known()
        return self

    def _known(self) -> dict[int, list[int]]:
        """Take ports for what the next job must know: behind the last job but one's last use."""
        before = self.jobs[-2] if len(self.jobs) > 1 else None
        out = {}
        for which, use in self.uses.items():
            free = self._start if before is None else before.last + use + 1 - self.clock.fetch
            out[which] = self.ports.take(max(free, self._start), 2)
        return out

    def place(self, quad: Quad, column: int, columns: int, earliest: int) -> Job:
        """Place a job whose first column comes at `earliest` or later."""
        known = self._next
        loaded = self.clock.fetch + self.clock.of["COPY"]
        at = max(earliest, *(known[which][-1] + loaded - use for which, use in self.uses.items()))
        port, times, scale_ports = self._port, list[int](), list[list[int]]()
        if self.jobs:
            at = max(at, self.jobs[-1].times[-1] + self.pace)
        for pair in range(0, columns, 2):
            many = len(self.shape.scales(quad, column + pair, value=True))
            port = max(port, at - self.to_time - many + 1)
            port += port % 2 if many == 1 else 0  # so that pairs do not meet the C2C's turns
            found = self.ports.seek(port, many)
            while found[-1] + self.to_time < at:
                port += 1
                found = self.ports.seek(port, many)
            self.ports.taken.update(found)
            times.append(found[-1] + self.to_time)
            scale_ports.append(found)
            at, port = times[-1] + self.pace, found[-1] + 1
        self._port = port
        job = Job(len(self.jobs), quad, column, columns, known, scale_ports, times)
        self.jobs.append(job)
        self._next = self._known()
        return job

    def each(
        self, wires: Wires, first_row: int, after: Callable[[Job, Wires], Iterator[Issue]]
    ) -> Iterator[Iterator[Issue | Bulk]]:
        """Yield each job's instructions, for a batch whose first row is given.

        `after`: what the pass does with a job's weights.
        """
        for job in self.jobs:
            row = first_row + job.quad.row
            if row < self.shape.rows:
                yield chain(self._issues(job, row, wires), after(job, wires))

    def _issues(self, job: Job, row: int, wires: Wires) -> Iterator[Issue | Bulk]:
        yield from self._numbers(job, wires)
        yield from self._scales(job, wires)
        for column in range(job.columns):
            yield from self._column(job, column, row, wires)

    def _numbers(self, job: Job, wires: Wires) -> Iterator[Issue]:
        """Bring what is known of the heads to registers."""
        for which, ports in job.known.items():
            first = job.quad.number * self.shape.scratch.known
            first += 4 * which
            vectors = range(first, first + 4)
            reads, taps = wires.fetched("stats", vectors, ports, vectors)
            yield from reads
            register = self.registers[which][job.number % 2]
            yield wires.alu(register, ports[0] + self.clock.fetch, AluOp.COPY, In(taps))

    def _scales(self, job: Job, wires: Wires) -> Iterator[Issue]:
        quad, fetch = job.quad, self.clock.fetch
        kvs = [self.shape.kv_of[head] for head in quad.quarters]
        for pair, ports in enumerate(job.scale_ports):
            scales = self.shape.scales(quad, job.column + 2 * pair, value=True)
            at = dict(zip(scales, ports, strict=True))
            for kv, known in scales.items():
                yield from wires.fetch("kvs", known, at[kv])
            for i in range(min(2, job.columns - 2 * pair)):
                taps = tuple(wires.tap("kvs", scales[kv][i], at[kv] - ports[0]) for kv in kvs)
                yield wires.alu(WEIGHTS.scales[i], ports[0] + fetch, AluOp.COPY, In(taps))

    def _column(self, job: Job, column: int, row: int, wires: Wires) -> Iterator[Issue | Bulk]:
        at, item, side = job.time(column), self.shape.scratch.item, self.shape.powers
        place = item(job.quad.number, job.column + column, side)
        yield from wires.item(place, at, write=False)
        reciprocal = Held(self.registers[0][job.number % 2])
        yield wires.alu(WEIGHTS.share, at, AluOp.MUL, In(items(side, inward=True)), reciprocal)
        scale = Held(WEIGHTS.scales[column % 2])
        yield wires.alu(WEIGHTS.weight, at + self.shared, AluOp.MUL, Held(WEIGHTS.share), scale)
        due = at + self.weighed
        yield mask(wires, self.shape.seen_by(row), job.column + column, due)
        chosen = MASKS.chosen[column % 2]
        yield wires.alu(chosen, due, AluOp.CHOOSE, Held(MASKS.mask), Held(WEIGHTS.weight), f32(0.0))


@dataclass(frozen=True, slots=True)
class Peaks:
    """The third pass: the largest weight of each head. Weights are not negative."""

    weights: Weights

    @classmethod
    def lay_out(cls, shape: Attention, clock: Clock, ports: Ports, start: int) -> Peaks:
        """Place quad after quad, each with all its columns."""
        weights = Weights(shape, clock, ports, start, {0: WEIGHTS.reciprocals}).begin()
        best, away = weights.masked + 2 * clock.of["MAX"], clock.of["COPY"] + clock.near
        for quad in shape.quads:
            earliest = weights.jobs[-1].store - best if weights.jobs else start
            job = weights.place(quad, 0, shape.columns, earliest)
            done = job.times[-1] + 1 + best
            job.store = ports.take_run(done + away, 2) - away
        return cls(weights)

    @property
    def stored(self) -> list[int]:
        """When each quad's maxima are in memory."""
        return [job.store + stored(self.weights.clock) for job in self.weights.jobs]

    @property
    def came(self) -> int:
        """When the last column arrives at the VXM."""
        return self.weights.jobs[-1].last

    def each(self, wires: Wires, first_row: int) -> Iterator[Iterator[Issue | Bulk]]:
        """Yield each job's instructions, for a batch whose first row is given."""
        return self.weights.each(wires, first_row, self._after)

    def _after(self, job: Job, wires: Wires) -> Iterator[Issue]:
        times = [time + self.weights.masked for time in job.times]
        yield from running_best(wires, times, job.columns)
        first = job.quad.number * self.weights.shape.scratch.known + 4
        yield from keep(wires, MAXIMUM.best, first, job.store)


class Feeds:
    """The fourth pass: quantised weights meet the values, tile by tile."""

    def __init__(self, shape: Attention, clock: Clock, ports: Ports, start: int) -> None:
        self.shape, self.clock, of = shape, clock, clock.of
        registers = {0: WEIGHTS.reciprocals, 1: QUANTISED.factors}
        self.weights = Weights(shape, clock, ports, start, registers)
        self.scaled = self.weights.masked + of["MUL"]
        # from a column at the VXM to the SXMs; from there to the planes
        self.to_sxm = self.scaled + of["CVT_I8"] + clock.to_sxm
        self.to_planes = of["PERMUTE"] + clock.to_mxm - clock.to_sxm
        self.summed: dict[int, int] = {}  # when a quad's products are added up, by number
        self.sums: set[tuple[int, int]] = set()  # (plane of a side, cycle) at which one is

    @classmethod
    def begin(cls, shape: Attention, clock: Clock, ports: Ports, start: int) -> Feeds:
        """Take ports for the first job; jobs come with their tiles (`tile`)."""
        feeds = cls(shape, clock, ports, start)
        feeds.weights.begin()
        return feeds

    @property
    def jobs(self) -> list[Job]:
        return self.weights.jobs

    def each(self, wires: Wires, first_row: int) -> Iterator[Iterator[Issue | Bulk]]:
        """Yield each job's instructions, for a batch whose first row is given."""
        return self.weights.each(wires, first_row, self._after)

    def tile(self, load: Load, planes: Planes, start: int) -> None:
        """Place the jobs of a tile; no column comes before `start`."""
        tile = load.tile
        installed = planes.install(load) + self.clock.of["IW"]
        for quad in self.shape.of(tile):
            heads = len(quad.heads)
            free = installed
            if self.jobs:
                before = self.jobs[-1]
                assert before.fed is not None
                free = max(free, before.fed[-1] + len(before.quad.heads))
            earliest = max(start, free - self.to_sxm - self.to_planes)
            job = self.weights.place(quad, tile.column, tile.columns, earliest)
            job.tile, job.fed = tile, []
            for vector in tile.vectors:
                last = job.time(tile.columns_of(vector)[-1])
                free = max(free, last + self.to_sxm + self.to_planes)
                job.fed.append(free)
                free += heads
            planes.used[tile.number % 2] = free - 1
            late = self.clock.of["ABC"]
            self.summed[quad.number] = free + late
            self.sums.update(
                (tile.number % 2, fed + i + late) for fed in job.fed for i in range(heads)
            )

    @property
    def end(self) -> int:
        """When the VXM has made the last weights."""
        return self.jobs[-1].last + self.scaled + 1

    def _after(self, job: Job, wires: Wires) -> Iterator[Issue]:
        of, tile = self.clock.of, job.tile
        assert tile is not None
        assert job.fed is not None
        factor = Held(QUANTISED.factors[job.number % 2])
        for column in range(job.columns):
            at = job.time(column) + self.weights.masked
            yield wires.alu(QUANTISED.scaled, at, AluOp.MUL, Held(MASKS.chosen[column % 2]), factor)
            for side in tile.sides():
                out = group(Stream(side == 1, QUANTISED.rounded_stream), 1)
                at = job.time(column) + self.scaled
                yield wires.alu(
                    QUANTISED.rounded[side], at, AluOp.CVT_I8, Held(QUANTISED.scaled), out=out
                )
        for vector, fed in zip(tile.vectors, job.fed, strict=True):
            for side in tile.sides(vector):
                yield self._turn(job, tile, vector, side, fed)
                plane = tile.plane(side)
                heads = len(job.quad.heads)
                yield Issue(
                    mxm(plane, Role.FEED), fed, ABC(stream=Stream(side == 1, QUANTISED.fed)), heads
                )
                first = vector == 0 and tile.number < self._first(tile) + 2
                acc = ACC(slot=QUAD * job.quad.number, first=first, step=1)
                yield Issue(mxm(plane, Role.DRAIN), fed + of["ABC"], acc, heads)

    def _first(self, tile: Tile) -> int:
        """Number of the first tile of a tile's group."""
        tiles = self.shape.scratch.tiles
        return tile.number // tiles * tiles

    def _turn(self, job: Job, tile: Tile, vector: int, side: int, fed: int) -> Issue:
        """Turn a vector's columns of four heads into vectors of a head each, for a side's plane."""
        columns = [job.time(c) for c in tile.columns_of(vector)]
        at, last = columns[0] + self.to_sxm, columns[-1] + self.to_sxm
        late = fed - last - self.to_planes
        src = tuple(
            Tap(Stream(side == 1, QUANTISED.rounded_stream), c - columns[0]) for c in columns
        )
        heads = len(job.quad.heads)
        dst = tuple(Tap(Stream(side == 1, QUANTISED.fed), late + i) for i in range(heads))
        turn = Permute(
            src=src, dst=dst, item=WORD, lanes=WORDS * len(columns), out_lanes=WORDS * heads,
            map=words(tile, vector, side, heads),
        )  # fmt: skip
        return Issue(sxm(side, QUANTISED.turn + vector), at, turn)


def words(tile: Tile, vector: int, side: int, heads: int) -> Map:
    """Words of four tokens: from columns of all heads to a vector of a side's tokens a head."""
    out: list[int | None] = [None] * (WORDS * heads)
    for token in range(0, LANES, WORD):
        column, within = divmod(token, COLUMN)
        if token // RUN % 2 != side or QUAD * vector + column >= tile.columns:
            continue
        place = LANES // 2 * vector + token // (2 * RUN) * RUN + token % RUN
        for i in range(heads):
            out[WORDS * i + place // WORD] = WORDS * column + (COLUMN * i + within) // WORD
    return tuple(out)
