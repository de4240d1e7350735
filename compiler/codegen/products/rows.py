"""MATMUL of several rows: weights stream through the four planes in address order.

Columns come in blocks of 320 (`tile_weights`, chip/kernels/quant.py). Vector v of a weight lies in
the slices of plane `PLANE_OF_RUN[v // 16 % 4]` (chip/sram.py), so the four planes load a quarter of
every 64 columns each, and up to four blocks share the planes: a group. For each group all K tiles
follow one another; while a tile multiplies, the next one loads into the weight buffer. An
accumulator row leaves through the SXM, which puts each plane's columns in their lanes, and the VXM,
which adds the planes' parts, scales and rounds. assumption: a column of a block whose width is not
a multiple of 64 may be loaded on another plane in every tile; the VXM's sum makes up for it.

Weights load on 16 streams of a side while the activations flow beside. One row is laid out in
compiler/codegen/products/row.py.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from chip.floorplan import Role, mxm
from chip.isa.instructions import ABC, ACC, IW, AluOp
from chip.isa.issue import Issue
from chip.isa.operands import Stream
from chip.ops.product import Matmul
from chip.spec import VECTOR_BYTES, ChipSpec, vectors
from compiler.codegen.core.builder import Block, Load, Ref
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.control import Bulk, Part
from compiler.codegen.core.template import Placed, aligned
from compiler.codegen.products import timeline
from compiler.codegen.products.activations import feed_block, row_scale
from compiler.codegen.products.columns import blocks_of, groups_of
from compiler.codegen.products.resources import FEED
from compiler.codegen.products.sums import ARRIVAL, Outputs, added, biased, dequantised
from compiler.codegen.products.timeline import PLANES, ColumnGroup, columns_of_plane

BETWEEN = 2  # cycles between rows: even cycles of the ports are the activations'
SLOTS = 8  # activation slots that rows take in turn
BUFFERED = 3  # cycles that an activation waits in its slot
APART = 8  # cycles from the end of a group's last drain to where its accumulator rows are new


@dataclass(frozen=True, slots=True)
class EvenLoads:
    """Loads of a group's tiles: `cycles` each from `start`, a tile every initiation `interval`."""

    start: int
    cycles: int
    interval: int

    def fed(self, tile: int) -> int:
        """Return when row 0 of a tile arrives at the planes."""
        return self.start + tile * self.interval + self.cycles


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsProduct:
    """The timeline of a product of several rows (compiler/codegen/products/timeline.py)."""

    half_rate: ClassVar[bool] = True
    clock: Clock
    rows: int
    tiles: int
    groups: tuple[ColumnGroup, ...]
    loads: tuple[EvenLoads, ...]  # of each group
    drains: tuple[Placed, ...]

    def window_cycle(self, number: int, tile: int, window: int, plane: int) -> int:
        """Return when a plane's part of a tile's window arrives: planes of a side take turns."""
        loads = self.loads[number]
        return loads.start + tile * loads.interval + 2 * window + plane % 2

    def multiplied(self, number: int, tile: int, row: int) -> int:
        """Return when a row's product of a tile is added up."""
        return _multiplied(self.loads[number], tile, self.clock) + BETWEEN * row

    def multiply(self, number: int, tile: int) -> Iterator[Issue]:
        """Yield what installs a tile, feeds its activations and adds up the products."""
        g, fed = self.groups[number], self.loads[number].fed(tile)
        for plane in PLANES:
            feed, acc = mxm(plane, Role.FEED), mxm(plane, Role.DRAIN)
            yield Issue(feed, fed + 1, IW(columns=columns_of_plane(g, tile, plane)))
            stream = Stream(plane >= 2, FEED.stream)
            for row in range(0, self.rows, SLOTS):
                at, n = fed + BETWEEN * row, min(SLOTS, self.rows - row)
                yield Issue(feed, at, ABC(stream=stream, slot=0, step=1), n, BETWEEN)
                yield Issue(feed, at + BUFFERED, ABC(slot=0, step=1), n, BETWEEN)
            out = self.multiplied(number, tile, 0)
            yield Issue(acc, out, ACC(slot=g.slot, step=1, first=tile == 0), self.rows, BETWEEN)

    def alike(self, number: int, tile: int) -> tuple[int, Hashable]:
        """Return when a tile's first row is fed, its group's sums, and whether they begin."""
        return self.loads[number].fed(tile), (self.groups[number].slot, tile == 0)

    def parts(self, base: Callable[[str], int]) -> Iterator[Part]:
        """Yield the same as `issues`, each part once."""
        return timeline.parts(self)

    def issues(self, base: Callable[[str], int]) -> Iterator[Issue | Bulk]:
        """Yield the MXM's instructions, and the ways to it and from it."""
        return timeline.issues(self)

    def feeds(self) -> list[Placed]:
        """Return the activations' way: work memory, VXM, both sides' planes."""
        block = feed_block(self.clock.spec)
        fed = [(loads.fed(tile), tile) for loads in self.loads for tile in range(self.tiles)]
        return [
            Placed(block=block, start=at - self.clock.feed, n=self.rows, interval=BETWEEN,
                   shift={"x": tile}) for at, tile in fed
        ]  # fmt: skip


def _multiplied(loads: EvenLoads, tile: int, clock: Clock) -> int:
    """Return when row 0's product of a tile is added up."""
    return loads.fed(tile) + BUFFERED + clock.of["ABC"]


def lay_out(op: Matmul, spec: ChipSpec) -> RowsProduct:
    """Place the groups one after another, each as early as the ones before leave room."""
    clock, rows, tiles = Clock(spec), op.rows, vectors(op.k)
    groups, times = list[ColumnGroup](), list[EvenLoads]()
    placed, blocks_by = list[Placed](), dict[Outputs, tuple[Block, int]]()
    first = clock.of["READ"] + clock.to_mxm
    at, drained = first + first % 2, (0, 0)  # of the last two groups: when their sums have left
    for number, blocks in enumerate(groups_of(blocks_of(op.n, tiles))):
        load = 2 * sum(max(len(b.windows(t)) for t in range(tiles)) for b in blocks)
        outputs = Outputs(tuple(block.width for block in blocks))
        if outputs not in blocks_by:
            block = _drain_block(op, outputs, clock).finish()
            blocks_by[outputs] = block, block.initiation_interval(2)
        block, pace = blocks_by[outputs]
        at = max(at, drained[0])  # its accumulator rows are those of the group before last
        if times:  # activations of the group before come first
            at = max(at, times[-1].fed(tiles - 1) + BETWEEN * rows + 2 - load)
        loads = EvenLoads(at, load, max(load, BETWEEN * rows) + 2)
        summed = _multiplied(loads, tiles - 1, clock) + clock.of["ACC"]
        drain = max(summed + summed % 2, drained[1])
        g = ColumnGroup(
            blocks=blocks, outputs=outputs, slot=number % 2 * rows, drain=drain, pace=pace
        )
        start = drain + outputs.delay(clock) - outputs.arrival(clock)
        wide = blocks[0].first * 4 // VECTOR_BYTES
        shift = {"sw": wide, "b": wide,
                 "y": blocks[0].first * op.out_bytes // VECTOR_BYTES}  # fmt: skip
        placed.append(Placed(block=block, start=start, n=rows, interval=pace, shift=shift))
        groups.append(g)
        times.append(loads)
        at += tiles * loads.interval
        at += at % 2
        drained = drained[1], drain + pace * (rows - 1) + aligned(block.end) + APART
    return RowsProduct(
        clock=clock, rows=rows, tiles=tiles, groups=tuple(groups), loads=tuple(times),
        drains=tuple(placed),
    )  # fmt: skip


def _drain_block(op: Matmul, outputs: Outputs, clock: Clock) -> Block:
    """Take one row of a group's sums; even cycles of the ports are the activations'."""
    b = Block(clock.spec, pinned=FEED.pinned, busy=_even, stride=2)
    scale = row_scale(b, op.rows)
    assert scale.done < ARRIVAL
    sums = added(b, outputs, outputs.arrival(clock))
    widths, item = outputs.widths, op.out_bytes

    def of_columns(operand: str, j: int) -> Load:
        return Load(Ref(operand, 4 * j, vectors(widths[j] * 4)), "f32")

    scaled = dequantised(b, sums, scale, partial(of_columns, "sw"))
    for j, y in enumerate(biased(b, op, scaled, partial(of_columns, "b"))):
        out = Ref("y", item * j, vectors(widths[j] * item))
        b.alu(AluOp.COPY if item == 4 else AluOp.CVT_F16, y, lanes=widths[j], out=out)
    return b


def _even(cycle: int) -> bool:
    return cycle % 2 == 0
