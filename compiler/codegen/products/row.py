"""One row's product: weights stream through the planes at full rate.

The activations are put into the planes' slots once, tile by tile. From then on a tile takes as long
as its weights load; only the cycles in which activations arrive are lost to the weights. Two tiles
are in the planes (one in the array, one in the buffer) before the first activation comes. Tiles
beyond the slots share the last one; their activations are sent again for every group of columns.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from chip.floorplan import Role, mxm
from chip.isa.instructions import ABC, ACC, IW
from chip.isa.issue import Issue
from chip.isa.operands import Stream
from chip.ops.product import Activations, Matmul
from chip.spec import ChipSpec, vectors
from compiler.codegen.core.builder import Block
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.control import Bulk, Part
from compiler.codegen.core.template import Placed
from compiler.codegen.products import timeline
from compiler.codegen.products.activations import feed_block, never, row_scale
from compiler.codegen.products.columns import Columns
from compiler.codegen.products.drains import Drains
from compiler.codegen.products.gaps import Gaps
from compiler.codegen.products.prologue import Prologue, outward, prologue
from compiler.codegen.products.resources import FEED
from compiler.codegen.products.row_tiles import TileCursor, TileTimes
from compiler.codegen.products.shares import ALONE, Registers, Share
from compiler.codegen.products.timeline import PLANES, ColumnGroup, columns_of_plane

SUMS = 8  # accumulator rows that groups take in turn
FEED_PACE = 2  # cycles between activations: every other cycle of the ports is left to others


@dataclass(frozen=True, slots=True, kw_only=True)
class RowProduct:
    """The timeline of a product of one row (compiler/codegen/products/timeline.py)."""

    half_rate: ClassVar[bool] = False
    rows: ClassVar[int] = 1
    clock: Clock
    tiles: int
    groups: tuple[ColumnGroup, ...]
    times: Mapping[tuple[int, int], TileTimes]  # by number of the group, and tile
    filled: Sequence[int]  # when the activations of tiles with a slot of their own come
    prologue: Prologue | None
    scales: int  # of rows, among which the row's is
    registers: Registers
    drains: tuple[Placed, ...]

    def window_cycle(self, number: int, tile: int, window: int, plane: int) -> int:
        """Return when a tile's window arrives: all planes take their part at once."""
        return self.times[number, tile].windows[window]

    def multiplied(self, number: int, tile: int, row: int) -> int:
        """Return when the row's product of a tile is added up."""
        return self.times[number, tile].use + self.clock.of["ABC"]

    def load(self, number: int, tile: int) -> Iterator[Issue | Bulk]:
        """Load a tile window by window."""
        return timeline.load(self, number, tile)

    def multiply(self, number: int, tile: int) -> Iterator[Issue]:
        """Yield what fills a slot, installs a tile, and adds up the product."""
        g, times = self.groups[number], self.times[number, tile]
        out = self.multiplied(number, tile, 0)
        slot = min(tile, self.clock.spec.mxm_activation_slots - 1)
        filled = times.filled
        if filled is None and number == 0:
            filled = self.filled[tile]
        for plane in PLANES:
            feed, acc = mxm(plane, Role.FEED), mxm(plane, Role.DRAIN)
            if filled is not None:
                yield Issue(feed, filled, ABC(stream=Stream(plane >= 2, FEED.stream), slot=slot))
            yield Issue(feed, times.install, IW(columns=columns_of_plane(g, tile, plane)))
            yield Issue(feed, times.use, ABC(slot=slot))
            if out != g.drain:  # else the sum leaves as it is made
                yield Issue(acc, out, ACC(slot=g.slot, first=tile == 0))

    def alike(self, number: int, tile: int) -> tuple[int, Hashable]:
        """Return when a tile is installed; when it is used and its slot filled; slots and sums."""
        g, times = self.groups[number], self.times[number, tile]
        slot = min(tile, self.clock.spec.mxm_activation_slots - 1)
        filled = times.filled
        if filled is None and number == 0:
            filled = self.filled[tile]
        start = times.install
        fed = None if filled is None else filled - start
        leaves = self.multiplied(number, tile, 0) == g.drain
        return start, (fed, times.use - start, slot, g.slot, tile == 0, leaves)

    def parts(self, base: Callable[[str], int]) -> Iterator[Part]:
        """Yield the same as `issues`, each part once."""
        return timeline.parts(self)

    def issues(self, base: Callable[[str], int]) -> Iterator[Issue | Bulk]:
        """Yield the MXM's instructions, and the ways to it and from it."""
        return timeline.issues(self)

    def feeds(self) -> list[Placed]:
        """Return what brings the activations, or makes them, and those that are sent again."""
        before, spec = self.prologue, self.clock.spec
        block = feed_block(spec, "x" if before is None else "q")
        fed = [
            (tile, times.filled) for (_, tile), times in self.times.items()
            if times.filled is not None
        ]  # fmt: skip
        if before is None:
            fed += enumerate(self.filled)
            first = _scale(spec, _scale_cycle(self.filled), self.scales, self.registers.scale)
        else:
            first = Placed(block=before.block, start=0)
        return [
            first,
            *(Placed(block=block, start=at - self.clock.feed, shift={"x": tile, "q": tile})
              for tile, at in fed),
        ]  # fmt: skip


def lay_out(
    op: Matmul, spec: ChipSpec, share: Share | None = None, scales: int = 1,
    registers: Registers = ALONE,
) -> RowProduct:  # fmt: skip
    """Time tile by tile, group by group; each group's sums leave when the VXM is free for them.

    `share`: of a weighted sum; `scales`: rows that share a vector of scales.
    """
    clock, tiles = Clock(spec), vectors(op.k)
    drains, source = Drains(op, clock, share, registers), op.source
    columns = drains.groups()
    before = None if isinstance(source, Activations) else prologue(source, op.k, spec)
    cursor = _first_cursor(op, clock, columns, before)
    groups, times = list[ColumnGroup](), dict[tuple[int, int], TileTimes]()
    free = 0  # from when on the work on a group's sums may begin
    for number, blocks in enumerate(columns):
        if number >= SUMS:  # its accumulator row is that of an earlier group
            cursor.wait_for(groups[number - SUMS].drain - clock.of["ABC"])
        for tile in range(tiles):
            times[number, tile] = cursor.tile(blocks, tile)
        outputs = drains.outputs(blocks)
        drain = cursor.drain(free + drains.lead(blocks) - outputs.delay(clock))
        g = ColumnGroup(blocks=blocks, outputs=outputs, slot=number % SUMS, drain=drain)
        groups.append(g)
        start = drains.start(g)
        block = drains.block(blocks, start)
        free = drain + outputs.delay(clock) + drains.hold(blocks, block)
        cursor.take(start + cycle for cycle in outward(block))
    again = {one.filled - clock.feed for one in times.values() if one.filled is not None}
    return RowProduct(
        clock=clock, tiles=tiles, groups=tuple(groups), times=times, filled=cursor.filled,
        prologue=before, scales=scales, registers=registers,
        drains=tuple(drains.place(g, again) for g in groups),
    )  # fmt: skip


def _first_cursor(
    op: Matmul, clock: Clock, columns: list[tuple[Columns, ...]], before: Prologue | None
) -> TileCursor:  # fmt: skip
    """Return the cursor at the first tile: two tiles are in the planes before an activation."""
    tiles, slots = vectors(op.k), clock.spec.mxm_activation_slots
    resident = tiles if tiles <= slots else slots - 1  # tiles that have a slot of their own
    load = sum(len(block.windows(0)) for block in columns[0])
    at = clock.of["READ"] + clock.to_mxm
    if before is None:
        first = max(at + 2 * load, clock.feed)
        filled: Sequence[int] = [first + FEED_PACE * tile for tile in range(resident)]
        taken = {*filled, _scale_cycle(filled)}
    else:
        filled = before.filled[:resident]
        at = max(at, filled[0] - 2 * load)
        taken = {*filled, *before.busy}
    gaps = Gaps(op.links.gaps, _passed_from(op, columns, at), clock)
    return TileCursor(clock=clock, at=at, filled=filled, gaps=gaps, taken=taken)


def _passed_from(op: Matmul, columns: list[tuple[Columns, ...]], at: int) -> int:
    """Return from when on vectors may pass the loads, which begin at a cycle.

    `gaps`: at least one finds an outward stream in so many cycles; `gaps_last`: it need not but
    in the last so many cycles.
    """
    tiles, last = range(vectors(op.k)), op.links.gaps_last
    loads = sum(len(block.windows(t)) for g in columns for block in g for t in tiles)
    return 0 if last is None else max(0, at + loads - last)


def _scale_cycle(filled: Sequence[int]) -> int:
    """Return when, seen from the planes, the row's scale is on its way to an SXM."""
    return filled[-1] + 1


def _scale(spec: ChipSpec, cycle: int, scales: int, on: int) -> Placed:
    """Fetch the row's scale, once: it passes the planes' streams at a cycle."""
    block = Block(spec, pinned=FEED.pinned | {on}, busy=never)
    row_scale(block, scales, on)
    (step,) = block.finish().passes
    return Placed(block=block, start=cycle - 1 - step.cycle)
