"""MATMUL in fp16: planes work in pairs, and a tile of 320 x 320 goes through in two halves.

A pair of planes is 160 lanes deep: one vector is 160 values, and a column of a tile is two vectors
(compiler/codegen/products/columns16.py). Half 0 takes the even ones of a tile, half 1 the odd ones;
slices that hold weights are an odd number, so 32 vectors two apart lie in 32 slices. Western
weights of the eastern pair cross the chip on streams that nothing else uses.

Otherwise as int8 products (compiler/codegen/products/rows.py): for each group of columns all
tiles follow one another, while one multiplies the next loads; the SXM puts each pair's columns in
their lanes, the VXM joins them. Numerics: chip/kernels/twin.py, matmul_f16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from chip.floorplan import Role, hops, mem, mxm, sxm
from chip.isa.instructions import ABC, ACC, IW, LW, Permute
from chip.isa.issue import Issue
from chip.isa.operands import Stream, group
from chip.ops.kv import WINDOW_VECTORS
from chip.ops.product import Matmul
from chip.ops.rows import row_bytes
from chip.spec import RUN, VECTOR_BYTES, ChipSpec, vectors
from compiler.codegen.core.builder import C2C_TURN
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.control import Alike, Bulk, Part
from compiler.codegen.core.template import Placed, Template
from compiler.codegen.products.activations import feed_block
from compiler.codegen.products.columns16 import ColumnGroup, Columns, groups_of, lanes_of
from compiler.codegen.products.drains16 import Drains16, turned
from compiler.codegen.products.resources import FEED, FEED_BESIDE, SUMS16, WEIGHTS16
from compiler.codegen.products.shares import ALONE, Registers, Share

BESIDE = 31  # columns that a pair loads in a cycle beside activations
FAR_COLUMNS = 8  # columns that a pair loads in a cycle where western weights cross the chip
APART = 8  # cycles from the end of a group's last drain to where its accumulator rows are new
SPAN = 256  # cycles that a drain block may last
LEAD = 24  # cycles by which a product may start before its activations are there


@dataclass(frozen=True, slots=True, kw_only=True)
class Product16:
    """The timeline of one product: when half tiles load, rows are fed, and sums leave."""

    clock: Clock
    rows: int
    halves: int  # half tiles
    groups: tuple[ColumnGroup, ...]
    drains: tuple[Placed, ...]

    def fed(self, g: ColumnGroup, half: int) -> int:
        """Return when row 0 of a half tile arrives at the planes; the others every 2 cycles."""
        return _fed(g, half, self.rows)

    def summed(self, g: ColumnGroup, half: int) -> int:
        """Return when row 0's product of a half tile is added up."""
        return _summed(g, half, self.rows, self.clock)

    def feeds(self) -> Iterator[Placed]:
        """Yield the activations' way: work memory, VXM, both pairs of planes."""
        # 160 values a vector, as they lie
        block = feed_block(self.clock.spec, stream=_stream(self.rows))
        for g in self.groups:
            for half in range(self.halves):
                start = self.fed(g, half) - self.clock.feed
                yield Placed(block=block, start=start, n=self.rows, interval=2, shift={"x": half})

    def issues(self, base: Callable[[str], int]) -> Iterator[Issue | Bulk]:
        """Yield weight reads, loads, installs, activations, sums and their way out."""
        for g in self.groups:
            for half in range(self.halves):
                yield from self._half(g, half)
            for pair in g.pairs:
                yield from self._leave(g, pair)

    def parts(self, base: Callable[[str], int]) -> Iterator[Part]:
        """Yield the same, half tiles that differ in their start alone once."""
        halves = Alike[tuple[ColumnGroup, int]]()
        for g in self.groups:
            blocks = tuple((b.vector - g.blocks[0].vector, b.width, b.at) for b in g.blocks)
            how = g.rate, g.load, g.interval, g.slot
            for half in range(self.halves):
                vector = g.blocks[0].vector + half // 2 * 2 * g.blocks[0].width
                key = blocks, how, half < 2, half % 2, vector % WINDOW_VECTORS
                halves.add(key, g.start + half * g.interval, (g, half))
        for starts, one in halves.every():
            yield Part(starts, self._half(*one))
        for g in self.groups:
            for pair in g.pairs:
                yield Part((0,), self._leave(g, pair))

    def _half(self, g: ColumnGroup, half: int) -> Iterator[Issue | Bulk]:
        for pair in g.pairs:
            yield from self._load(g, half, pair)
            yield from self._multiply(g, half, pair)

    def _load(self, g: ColumnGroup, half: int, pair: int) -> Iterator[Issue | Bulk]:
        at, load = g.start + half * g.interval, mxm(2 * pair, Role.LOAD)
        first = WEIGHTS16.stream if g.blocks[0].even else WEIGHTS16.far
        stream = Stream(pair == 1, first)
        for block in g.blocks:
            tile = block.vector + half // 2 * 2 * block.width + half % 2
            for lane in range(0, block.lanes, g.rate):
                count = min(g.rate, block.lanes - lane)
                vectors = [tile + 2 * block.column(pair, lane + n) for n in range(count)]
                for _, run in groupby(enumerate(vectors), key=lambda at: at[1] // RUN):
                    (n, vector), *rest = run
                    own = Stream(pair == 1, first + n)
                    yield Bulk(load, at, "w", vector, own, 1 + len(rest), apart=2)
                yield Issue(load, at, LW(stream=stream, count=count, column=block.at + lane))
                at += 1

    def _multiply(self, g: ColumnGroup, half: int, pair: int) -> Iterator[Issue]:
        feed, acc, fed = mxm(2 * pair, Role.FEED), mxm(2 * pair, Role.DRAIN), self.fed(g, half)
        stream = Stream(pair == 1, _stream(self.rows))
        if self.rows == 1:
            yield Issue(feed, fed, ABC(stream=stream, slot=0))
            yield Issue(feed, fed + 1, IW(columns=g.lanes))
            yield Issue(feed, fed + 2, ABC(slot=0, fp16=True))
        else:
            yield Issue(feed, fed - 1, IW(columns=g.lanes))
            yield Issue(feed, fed, ABC(stream=stream, fp16=True), self.rows, 2)
        add = ACC(slot=g.slot, step=1, first=half < 2, half=half % 2)
        yield Issue(acc, self.summed(g, half), add, self.rows, 2)

    def _leave(self, g: ColumnGroup, pair: int) -> Iterator[Issue]:
        """The rows' sums: out of the accumulators, into their lanes, to the VXM."""
        out = group(Stream(pair == 0, SUMS16.left), vectors(g.lanes * 4))
        pace = max(1, g.pace)
        acc = ACC(slot=g.slot, step=1, first=False, lanes=g.lanes, out=out, half=1, product=False)
        yield Issue(mxm(2 * pair, Role.DRAIN), g.drain, acc, self.rows, pace)
        at = g.drain + self.clock.of["ACC"] + 1
        for j, block in enumerate(g.blocks):
            turn = Permute(
                src=out, dst=turned(pair, j, block.width), item=4, lanes=g.lanes,
                out_lanes=block.width, map=lanes_of(block, pair),
            )  # fmt: skip
            yield Issue(sxm(pair, SUMS16.queues + j), at, turn, self.rows, pace)


def _stream(rows: int) -> int:
    """Return the stream of activations: several rows' is none of those on which weights load."""
    return FEED.stream if rows == 1 else FEED_BESIDE.stream


def _fed(g: ColumnGroup, half: int, rows: int) -> int:
    """Return when row 0 of a half tile arrives: one row waits in the activation buffer."""
    return g.loaded(half) + (0 if rows == 1 else 1)


def _summed(g: ColumnGroup, half: int, rows: int, clock: Clock) -> int:
    """Return when row 0's product of a half tile is added up."""
    return _fed(g, half, rows) + (2 if rows == 1 else 0) + clock.of["ABC"]


def lay_out(
    op: Matmul, spec: ChipSpec, share: Share | None = None, registers: Registers = ALONE
) -> Product16:  # fmt: skip
    """Place the groups one after another, each as early as the ones before leave room."""
    clock, rows, halves = Clock(spec), op.rows, 2 * vectors(op.k)
    drains, groups = Drains16(op, clock, share, registers), list[ColumnGroup]()
    at, drained = 0, (0, 0)  # of the last two groups: when their sums have left
    for number, blocks in enumerate(groups_of(op.n, vectors(op.k), alike=rows > 1)):
        rate, load, interval = _pace(rows, blocks)
        after = 0 if blocks[0].even else at  # its reads would meet those of the group before
        at = max(at, _earliest(clock, blocks, load, after), drained[0])
        if groups and rows > 1:  # activations of the group before come first
            at = max(at, _fed(groups[-1], halves - 1, rows) + 2 * rows - load - 1)
        if rows > 1:  # activations are read in even cycles
            at += (at + load + 1 + clock.feed) % 2
        g = ColumnGroup(blocks, rate, load, interval, at, number % 2 * rows, drain=0, pace=0)
        last = _summed(g, halves - 1, rows, clock) + 2 * (rows - 1)
        drain = max(last + clock.of["ACC"], drained[1])
        if rows > 1:  # between the products that the next group sums
            drain += (drain + last + 1) % 2
        block = drains.block(blocks, frozenset(), drain)
        pace = block.initiation_interval(C2C_TURN) if rows > 1 else 0
        groups.append(replace(g, drain=drain, pace=pace))
        at += halves * interval
        drained = drained[1], drain + pace * (rows - 1) + block.end + APART
    placed, last_groups = _placed(drains, groups, halves)
    return Product16(
        clock=clock, rows=rows, halves=halves, groups=tuple(last_groups), drains=tuple(placed)
    )


def _pace(rows: int, blocks: Sequence[Columns]) -> tuple[int, int, int]:
    """Return (columns a cycle, cycles of a load, initiation interval of half tiles).

    One row comes in a gap behind a load on all streams; more come beside a load on all but one.
    """
    rate = (2 * RUN if rows == 1 else BESIDE) if blocks[0].even else FAR_COLUMNS
    load = max(3, sum(-(-block.lanes // rate) for block in blocks))
    if rows == 1:
        return rate, load, load + 1
    interval = max(load, 2 * rows)
    return rate, load, interval + interval % 2


def _earliest(clock: Clock, blocks: Sequence[Columns], load: int, after: int) -> int:
    """Return when weights, and activations after them, can arrive: reads begin at `after`."""
    far = mem(0, clock.spec.slices // 2 - 1)  # western weights of the eastern pair
    way = clock.to_mxm if blocks[0].even else hops(far, mxm(2, Role.LOAD), clock.spec)
    return after + max(clock.of["READ"] + way, clock.feed - load)


def _placed(
    drains: Drains16, groups: Sequence[ColumnGroup], halves: int
) -> tuple[list[Placed], list[ColumnGroup]]:
    """Place the groups' drains; return also the groups, with drains that meet no product."""
    clock, rows = drains.clock, drains.op.rows
    every = [(g, half) for g in groups if rows == 1 for half in range(halves)]
    lead = clock.of["READ"] + 1  # transfers pass the loads in the same gaps
    ways = {hops(mem(side, 0), sxm(1, 0), clock.spec) + lead for side in (0, 1)}
    feeds = {_fed(g, half, rows) - cycles for g, half in every for cycles in {clock.feed, *ways}}
    sums = {_summed(g, half, rows, clock) for g, half in every}
    placed, out = list[Placed](), list[ColumnGroup]()
    for g in groups:
        drain = g.drain
        while drain in sums:
            drain += 1
        out.append(replace(g, drain=drain))
        start = drain + drains.delay - drains.arrival(drain)
        near = frozenset(cycle - start for cycle in feeds if 0 <= cycle - start < SPAN)
        column = g.blocks[0].first
        shift = {"y": column * drains.op.out_bytes // VECTOR_BYTES,
                 **dict.fromkeys("bt", column * 4 // VECTOR_BYTES)}  # fmt: skip
        block = drains.block(g.blocks, near, drain)
        placed.append(Placed(block=block, start=start, n=rows, interval=g.pace, shift=shift))
    return placed, out


def fits(spec: ChipSpec) -> bool:
    """Tell whether 32 vectors of a hemisphere, two apart, always lie in different slices."""
    slices = spec.slices // spec.hemispheres - spec.near_slices
    return slices % 2 == 1 and slices >= 2 * RUN


def matmul16(
    op: Matmul, spec: ChipSpec, share: Share | None = None, registers: Registers = ALONE
) -> Template:  # fmt: skip
    """x . w in fp16, fp32 or fp16 out."""
    product = lay_out(op, spec, share, registers)
    end = max(p.start + (p.n - 1) * p.interval + p.block.end for p in product.drains)
    first = product.groups[0]
    lead = min(LEAD, product.fed(first, 0) - product.clock.feed) if first.blocks[0].even else 0
    row = row_bytes(op.n, op.out_bytes) // VECTOR_BYTES
    return Template(
        placed=(*product.feeds(), *product.drains),
        cycles=end,
        row_vectors={"x": product.halves, "y": row, "b": 0},
        needed={"x": (lead, lead)},
        stream_cycles=_even_stream(product.drains, end, row) if op.rows == 1 else 0,
        streams=(product,),
    )


def _even_stream(drains: Sequence[Placed], end: int, vecs: int) -> int:
    """Return the longest time over which even delivery is never ahead of the groups'."""
    spans = [
        (end - p.start - p.block.end) * (vecs - 1) // (vecs - 1 - p.shift["y"])
        for p in drains if p.shift["y"] < vecs - 1
    ]  # fmt: skip
    return max(0, min(spans, default=0))
