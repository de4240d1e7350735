"""When each pass of a chain of blocks runs, and what it reads and writes then.

Passes are placed convolution after convolution, pair after pair, each at the first cycle at which
its weights are loaded, its pixels are written, and ports, ALUs and loads are free. So a pair's next
convolution begins beside the other pair's last, and the next block beside this one.

The VXM takes the sums of two pairs at once (four ALUs a plane), or of one with a residual (seven).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from chip.errors import TemplateError
from chip.floorplan import alu, hops, mem
from chip.isa.instructions import AluOp
from chip.ops.convolve import Convolve, cut, whole
from chip.spec import ChipSpec
from compiler.codegen.convolutions.places import (
    EAST,
    I64,
    KINDS,
    LOADED,
    QUARTERS,
    Kind,
    Places,
    Quarter,
    Spots,
    tile_words,
)
from compiler.codegen.convolutions.reservations import Reservations, Wish
from compiler.codegen.core.clock import Clock

LARGE, SMALL = (0, 2, 5, 7, 8, 10, 13, 15), (1, 3, 4, 6, 9, 11, 12, 14)


@dataclass(frozen=True, slots=True)
class Step:
    """One ALU's part in taking sums: when it is issued, after these arrive at the VXM."""

    alu: int
    op: AluOp
    at: int


def chain(clock: Clock, pair: int, side: int, *, residual: bool) -> tuple[Step, ...]:
    """Return a plane's ALUs: sums to fp32, times scales, plus biases, (plus a residual,) to int8.

    Of a residual: to fp32, times its scale; then the rest.
    """
    of = clock.of
    ops: tuple[AluOp, ...] = (AluOp.CVT_F32, AluOp.MUL, AluOp.ADD, AluOp.CVT_I8)
    n = 2 * (2 * side + pair)
    on: tuple[int, ...] = (LARGE[n], SMALL[n], SMALL[n + 1], LARGE[n + 1])
    if residual:
        large, small = LARGE[3 * side : 3 * side + 3], SMALL[4 * side : 4 * side + 4]
        ops = (*ops[:3], AluOp.ADD, AluOp.CVT_I8)
        on = (large[0], small[0], small[1], small[2], large[1])
    steps = tuple(Step(on[k], op, sum(of[o] for o in ops[:k])) for k, op in enumerate(ops))
    if not residual:
        return steps
    scaled = Step(small[3], AluOp.MUL, steps[3].at - of["MUL"])
    return (Step(large[2], AluOp.CVT_F32, scaled.at - of["CVT_F32"]), scaled, *steps)


@dataclass(frozen=True, slots=True)
class Tile:
    """Weights of a pass: taps (dy, dx), a copy of the pixels each, of one run of inputs."""

    taps: tuple[tuple[int, int], ...]
    inputs: tuple[int, int]  # (first, channels)
    number: int  # of the run


@dataclass(frozen=True, slots=True)
class Job:
    """A block of columns of a convolution, for part of the pixels of a pair's quarters."""

    number: int  # of the convolution in the chain
    op: Convolve
    pair: int
    block: int
    columns: int
    pixels: tuple[tuple[int, int], tuple[int, int]]  # of each side: first, stop

    @property
    def rows(self) -> int:
        return max(stop - first for first, stop in self.pixels)


@dataclass(frozen=True, slots=True)
class Pass:
    """A tile of a job: rows arrive from `start` on, weights from `load` on."""

    job: Job
    tile: Tile
    word: int  # of the weights
    start: int
    load: int
    first: bool  # of its job
    last: bool


@dataclass(slots=True, kw_only=True)
class Chain:
    """A chain of blocks of three convolutions, laid out on a chip by `lay_out`."""

    spec: ChipSpec
    ops: tuple[Convolve, ...]
    places: Places
    clock: Clock
    passes: list[Pass] = field(default_factory=list)
    weights: dict[tuple[int, int], list[tuple[Tile, int]]] = field(default_factory=dict)
    end: int = 0
    _table: Reservations = field(default_factory=Reservations)
    _made: dict[tuple[int, int], I64] = field(default_factory=dict)
    _ready: list[int] = field(default_factory=lambda: [0, 0])  # when a pair's next rows may come
    _installed: list[int] = field(default_factory=lambda: [0, 0])

    def reserve_weights(self) -> None:
        """Give every tile its words. Raises TemplateError where the slices have too few."""
        words, most = 0, self.spec.banks * self.spec.words_per_bank
        for number, one in enumerate(self.ops):
            for block, (_, columns) in enumerate(self.blocks(number)):
                here = self.weights[number, block] = []
                for tile in self.tiles(one):
                    here.append((tile, words))
                    words += tile_words(columns)
        if words > most:
            raise TemplateError(
                f"convolutions: wanted at most {most} words of a slice for the weights of "
                f"{len(self.ops)} convolutions, got {words}"
            )

    # -- what there is to do

    def copies(self, number: int) -> int:
        """Return how often a convolution's results stand in their vectors."""
        return self.places.copies if number % 3 == 0 else 1

    def blocks(self, number: int) -> list[tuple[int, int]]:
        """Return (first output, columns) of a convolution's column blocks."""
        runs, copies = cut(self.ops[number].outputs), self.copies(number)
        return [(first, n if copies == 1 else whole(n) * copies) for first, n in runs]

    def tiles(self, op: Convolve) -> list[Tile]:
        """Return the tiles of a convolution's weights."""
        runs = list(enumerate(cut(op.inputs)))
        if op.kernel == 1:
            return [Tile(((0, 0),), run, n) for n, run in runs]
        copies = self.places.copies
        groups = [(-1, 0, 1)[first : first + copies] for first in range(0, 3, copies)]
        return [
            Tile(tuple((dy, dx) for dx in group), run, n)
            for dy in (0, -1, 1) for group in reversed(groups) for n, run in runs
        ]  # fmt: skip

    def of(self, pair: int, side: int) -> Quarter:
        """Return the quarter of a plane."""
        return self.places.quarters[2 * side + pair]

    def jobs(self, number: int, pair: int) -> Iterator[Job]:
        """Yield a pair's jobs of a convolution: no more rows each than the accumulators hold."""
        quarters = [self.of(pair, side) for side in range(2)]
        parts = -(-max(q.pixels for q in quarters) // self.spec.mxm_accumulator_rows)
        for part in range(parts):
            west, east = (
                (q.first + q.pixels * part // parts, q.first + q.pixels * (part + 1) // parts)
                for q in quarters
            )
            for block, (_, columns) in enumerate(self.blocks(number)):
                yield Job(number, self.ops[number], pair, block, columns, (west, east))

    # -- where pixels are read and written

    def read(self, job: Job, tile: Tile, side: int, tap: tuple[int, int]) -> Spots:
        """Return the spots of a side's rows for one tap."""
        quarter, pixels = self.of(job.pair, side), np.arange(*job.pixels[side])
        turn, places = job.number // 3 % 2, self.places
        if job.op.kernel > 1:
            y, x = pixels // places.width + tap[0], pixels % places.width + tap[1]
            return places.bordered(quarter, places.number(y, x), tile.number, turn)
        kind = Kind.TRUNK if job.number % 3 == 0 else Kind.LAST
        return places.plain(quarter, kind, pixels, tile.number, turn)

    def residual(self, job: Job, side: int) -> Spots:
        """Return the spots of a side's residual, of the job's columns."""
        quarter, turn = self.of(job.pair, side), job.number // 3 % 2
        pixels = np.arange(*job.pixels[side])
        return self.places.plain(quarter, Kind.TRUNK, pixels, job.block, turn)

    def written(self, job: Job, side: int) -> Iterator[tuple[Quarter, I64, Spots]]:
        """Yield where a side's results go: quarter, which rows, their spots there."""
        own, pixels = self.of(job.pair, side), np.arange(*job.pixels[side])
        turn, stage, places = job.number // 3 % 2, job.number % 3, self.places
        rows = np.arange(len(pixels))
        if stage > 0:
            kind, into = (Kind.LAST, turn) if stage == 1 else (Kind.TRUNK, 1 - turn)
            yield own, rows, places.plain(own, kind, pixels, job.block, into)
            return
        for quarter in places.quarters:
            kept = places.reached(quarter, pixels)
            if kept.any():
                at = places.number(pixels // places.width, pixels % places.width)[kept]
                yield quarter, rows[kept], places.bordered(quarter, at, job.block, turn)

    # -- times

    def way(self, slice_: int, side: int) -> int:
        """Return the cycles from a Read of an eastern slice to a plane of a side."""
        away = self.hop(slice_) * (-1 if side == EAST else 1)
        return self.clock.of["READ"] + self.clock.to_mxm + away

    def to_vxm(self, slice_: int) -> int:
        """Return the cycles from a Read of an eastern slice to the VXM."""
        return self.clock.of["READ"] + self.hop(slice_)

    def hop(self, slice_: int) -> int:
        """Return the hops from the VXM to an eastern slice."""
        return hops(alu(0), mem(EAST, slice_), self.spec)

    @property
    def farthest(self) -> int:
        """Hops from the VXM to the last slice of pixels."""
        return self.hop(KINDS * QUARTERS - 1)

    @property
    def drained(self) -> int:
        """Cycles from a row's arrival at an array to its sums' at the VXM."""
        return self.clock.of["ABC"] + self.clock.of["ACC"] + self.clock.to_mxm

    def steps(self, job: Job, side: int) -> tuple[Step, ...]:
        return chain(self.clock, job.pair, side, residual=job.op.residual is not None)

    def out(self, job: Job) -> int:
        """Cycles from a row's arrival at an array to its result's leaving the VXM."""
        last = self.steps(job, EAST)[-1]
        return self.drained + last.at + self.clock.of[last.op]

    def place(self, job: Job) -> None:
        """Place a job's passes, always the one that can begin first."""
        left = list(self.weights[job.number, job.block])
        first = True
        while left:
            last = len(left) == 1
            best: Pass | None = None
            for tile, word in left:
                one, wish = self._placed(job, tile, word, first=first, last=last)
                if best is None or one.start < best.start:
                    best, wanted = one, wish
                if best.start == self._ready[job.pair]:
                    break
            assert best is not None
            self._take(best, wanted)
            left.remove((best.tile, best.word))
            first = False

    def _placed(
        self, job: Job, tile: Tile, word: int, *, first: bool, last: bool
    ) -> tuple[Pass, Wish]:
        """Return a pass at its first possible start, and what it wants."""
        of, pair = self.clock.of, job.pair
        longest = of["READ"] + self.clock.to_mxm
        cycles = -(-job.columns // LOADED)
        load = Wish()
        load.add("load", range(cycles))
        at = self._table.first(load.bits, max(self._installed[pair], longest))
        least = max(
            longest + self.farthest,
            self._ready[pair],
            at + cycles - 1 + of["LW"] + of["IW"],
            self._inputs(job, tile),
        )
        wish = Wish()
        for side in range(2):
            self._want(wish, job, tile, side, last=last)
        start = self._table.first(wish.bits, least)
        return Pass(job, tile, word, start, at, first, last), wish

    def _take(self, one: Pass, wish: Wish) -> None:
        pair, job = one.job.pair, one.job
        load = Wish()
        load.add("load", range(-(-job.columns // LOADED)))
        self._table.take(load.bits, one.load)
        self._table.take(wish.bits, one.start)
        self._installed[pair] = one.start - self.clock.of["IW"]
        self._ready[pair] = one.start + job.rows + self.clock.of["IW"]  # the queue installs too
        self.passes.append(one)
        if one.last:
            self._note(one)

    def _note(self, one: Pass) -> None:
        """Note when a job's results leave the VXM."""
        job, places = one.job, self.places
        key = job.number, job.block
        if key not in self._made:
            self._made[key] = np.zeros(places.height * places.width, np.int64)
        for pixels in job.pixels:
            at = one.start + self.out(job) + np.arange(pixels[1] - pixels[0])
            self._made[key][slice(*pixels)] = at
        for side in range(2):
            for target, rows, spots in self.written(job, side):
                away = self.hop(target.slice(int(spots.kind.max())))
                written = one.start + int(rows.max()) + self.out(job) + away
                self.end = max(self.end, written + self.clock.of["WRITE"] + 1)

    def _inputs(self, job: Job, tile: Tile) -> int:
        """Return when a pass can begin so that each pixel is written before it is read."""
        made, places = self._made.get((job.number - 1, tile.number)), self.places
        if made is None:
            return 0
        least, of = 0, self.clock.of
        ahead = of["GATHER"] if len(tile.taps) > 1 else of["READ"]
        for side in range(2):
            pixels = np.arange(*job.pixels[side])
            rows = np.arange(len(pixels))
            west = 0 if side == EAST else 2 * self.farthest  # through the VXM
            way = of["WRITE"] + 1 + ahead + self.clock.to_mxm + west
            for dy, dx in tile.taps:
                y, x = pixels // places.width + dy, pixels % places.width + dx
                inside = (y >= 0) & (y < places.height) & (x >= 0) & (x < places.width)
                when = made[(y * places.width + x)[inside]] - rows[inside]
                least = max(least, int(when.max(initial=0)) + way)
        return least

    def _want(self, wish: Wish, job: Job, tile: Tile, side: int, *, last: bool) -> None:
        """Add what one side of a pass takes of slices and ALUs."""
        quarter = self.of(job.pair, side)
        reads = self.read(job, tile, side, tile.taps[0])
        for kind, rows in _by_kind(reads.kind):
            slice_ = quarter.slice(kind)
            at = rows - self.way(slice_, side)
            if len(tile.taps) > 1:  # the instruction comes ahead of the port
                ahead = self.clock.of["GATHER"] - self.clock.of["READ"]
                both = range(min(0, ahead), max(0, ahead) + 1)
                at = np.unique(np.concatenate([at - n for n in both]))
            wish.add(("slice", slice_), at.tolist())
        if not last:
            return
        rows = np.arange(job.pixels[side][1] - job.pixels[side][0])
        for step in self.steps(job, side):
            wish.add(("ALU", step.alu), (rows + self.drained + step.at).tolist())
        if job.op.residual is not None:
            spots, met = self.residual(job, side), self.drained + self.steps(job, side)[0].at
            for kind, chosen in _by_kind(spots.kind):
                slice_ = quarter.slice(kind)
                wish.add(("slice", slice_), (chosen + met - self.to_vxm(slice_)).tolist())
        for target, some, spots in self.written(job, side):
            for kind, chosen in _by_kind(spots.kind):
                slice_ = target.slice(kind)
                at = some[chosen] + self.out(job) + self.hop(slice_)
                wish.add(("slice", slice_), at.tolist())


def _by_kind(kinds: I64) -> Iterator[tuple[int, I64]]:
    """Yield each kind with the rows that have it."""
    for kind in np.unique(kinds).tolist():
        yield kind, np.flatnonzero(kinds == kind)


def bottleneck(
    height: int, width: int, channels: int, middle: int, *, residual: float = 1.0
) -> tuple[Convolve, ...]:
    """Return the convolutions of a block of ResNet-50 to -152 that keeps its image's form.

    `residual`: the residual's scale over the result's. Raises TemplateError.
    """
    if min(height, width, channels, middle) < 1:
        raise TemplateError(
            f"convolutions: wanted sizes of 1 or more, got {height}, {width}, {channels}, {middle}"
        )
    return (
        Convolve(height=height, width=width, inputs=channels, outputs=middle, kernel=1),
        Convolve(height=height, width=width, inputs=middle, outputs=middle, kernel=3),
        Convolve(
            height=height, width=width, inputs=middle, outputs=channels, kernel=1,
            residual=residual,
        ),
    )  # fmt: skip


def lay_out(ops: Sequence[Convolve], spec: ChipSpec) -> Chain:
    """Lay out a chain of blocks, in the order of placing that ends first. Raises TemplateError."""
    if not ops or len(ops) % 3:
        raise TemplateError(f"convolutions: wanted blocks of three, got {len(ops)} convolutions")
    chains = [_laid(tuple(ops), spec, order) for order in (_in_order, _ahead)]
    return min(chains, key=lambda chain: chain.end)


def _laid(
    ops: tuple[Convolve, ...], spec: ChipSpec, order: Callable[[int], Iterator[tuple[int, int]]]
) -> Chain:  # fmt: skip
    places = Places(spec, ops[0].height, ops[0].width, ops[0].inputs, ops[0].outputs)
    chain = Chain(spec=spec, ops=ops, places=places, clock=Clock(spec))
    chain.reserve_weights()
    for number, pair in order(len(ops)):
        for job in chain.jobs(number, pair):
            chain.place(job)
    return chain


def _in_order(count: int) -> Iterator[tuple[int, int]]:
    """Yield (convolution, pair): one convolution after another."""
    for number in range(count):
        yield from ((number, pair) for pair in range(2))


def _ahead(count: int) -> Iterator[tuple[int, int]]:
    """Yield (convolution, pair): pair 0 begins a block before pair 1 ends the one before."""
    yield 0, 0
    for first in range(0, count, 3):
        yield from ((first, 1), (first + 1, 0), (first + 1, 1), (first + 2, 0))
        if first + 3 < count:
            yield first + 3, 0
        yield first + 2, 1
