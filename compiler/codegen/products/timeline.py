"""A product's timeline, and the instructions that follow from it.

A timeline is a finished value: it says when each tile's windows arrive at the planes, when its
products are added up, and when a group's sums leave the accumulators. Laying one out is another
module's work (rows, row, compiler/codegen/lstm.py); what all of them issue alike is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

from chip.floorplan import Role, hops, mem, mxm, sxm
from chip.isa.instructions import ACC, LW, Permute, Read
from chip.isa.issue import Issue
from chip.isa.operands import Stream, group
from chip.spec import vectors
from chip.sram import RUN, bulk_place
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.parts import LANES
from compiler.codegen.products.columns import PLANE_OF_RUN, Columns
from compiler.codegen.products.resources import SUMS, WEIGHTS
from compiler.codegen.products.sums import Outputs

PLANES = range(len(PLANE_OF_RUN))


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnGroup:
    """Blocks of columns that are in the planes together."""

    blocks: tuple[Columns, ...]
    outputs: Outputs
    slot: int  # accumulator row of the first row's sums
    drain: int  # when the first row's sums leave the accumulators
    pace: int = 0  # cycles between rows that leave

    @property
    def lanes(self) -> int:
        """Lanes of a plane in use."""
        return self.blocks[0].width if len(self.blocks) == 1 else LANES


class Timeline(Protocol):
    """When everything of one product happens. Groups are meant by their number."""

    half_rate: ClassVar[bool]  # loads have 16 streams of a side, activations flow beside them

    @property
    def clock(self) -> Clock: ...

    @property
    def rows(self) -> int: ...

    @property
    def tiles(self) -> int: ...

    @property
    def groups(self) -> tuple[ColumnGroup, ...]: ...

    def window_cycle(self, number: int, tile: int, window: int, plane: int) -> int:
        """Return when a plane's part of a tile's window (counted over the group) arrives."""

    def multiplied(self, number: int, tile: int, row: int) -> int:
        """Return when a row's product of a tile is added up."""

    def multiply(self, number: int, tile: int) -> Iterator[Issue]:
        """Yield what installs a tile, feeds its activations and adds up the products."""


def issues(line: Timeline, base: Callable[[str], int]) -> Iterator[Issue]:
    """Yield weight reads, loads, installs, activations, sums and their way out."""
    for number in range(len(line.groups)):
        for tile in range(line.tiles):
            yield from _load(line, number, tile, base("w"))
            yield from line.multiply(number, tile)
        for row in range(line.rows):
            yield from leave(line, number, row)


def columns_of_plane(g: ColumnGroup, tile: int, plane: int) -> int:
    """Count the columns that one plane gets of a tile."""
    run = PLANE_OF_RUN.index(plane)
    return sum(
        len(block.in_run(tile, window, run))
        for block in g.blocks for window in block.windows(tile)
    )  # fmt: skip


def _load(line: Timeline, number: int, tile: int, base: int) -> Iterator[Issue]:
    g, windows = line.groups[number], 0
    for j, block in enumerate(g.blocks):
        for nth, window in enumerate(block.windows(tile)):
            for run, plane in enumerate(PLANE_OF_RUN):
                if not (own := block.in_run(tile, window, run)):
                    continue
                cycle = line.window_cycle(number, tile, windows + nth, plane)
                stream = WEIGHTS.stream + (0 if line.half_rate else RUN * (plane % 2))
                column = own.start - block.vector - tile * block.width
                if len(g.blocks) > 1:
                    column = LANES // 4 * j + RUN * nth
                lane = stream + own.start % RUN
                yield from _run(line.clock, base, own, plane, cycle, lane, column)
        windows += len(block.windows(tile))


def _run(
    clock: Clock, base: int, own: range, plane: int, cycle: int, stream: int, column: int
) -> Iterator[Issue]:
    """Read vectors of one plane and load them as columns; weights begin at vector `base`."""
    away = plane >= 2
    load = mxm(plane, Role.LOAD)
    for n, vector in enumerate(own):
        side, index, word = bulk_place(clock.spec, base + vector)
        assert side == plane // 2
        queue = mem(side, index)
        issue = cycle - clock.of["READ"] - hops(queue, load, clock.spec)
        yield Issue(queue, issue, Read(address=word, stream=Stream(away, stream + n)))
    yield Issue(load, cycle, LW(stream=Stream(away, stream), count=len(own), column=column))


def leave(line: Timeline, number: int, row: int) -> Iterator[Issue]:
    """One row's sums: out of the accumulators, into their lanes, to the VXM."""
    g, clock = line.groups[number], line.clock
    at, last = g.drain + row * g.pace, line.multiplied(number, line.tiles - 1, row)
    for plane in PLANES:
        out = group(Stream(plane < 2, SUMS.left + 4 * (plane % 2)), vectors(g.lanes * 4))
        acc = ACC(
            slot=g.slot + row, first=at == last and line.tiles == 1, lanes=g.lanes, out=out,
            product=at == last,
        )  # fmt: skip
        yield Issue(mxm(plane, Role.DRAIN), at, acc)
        outputs, run = g.outputs, PLANE_OF_RUN.index(plane)
        for j, width in enumerate(outputs.widths if outputs.turned else ()):
            turn = Permute(
                src=out, dst=outputs.part(plane, j).taps, item=4, lanes=g.lanes, out_lanes=width,
                map=outputs.spread(run, j),
            )  # fmt: skip
            queue = sxm(plane // 2, SUMS.queues + 4 * (plane % 2) + j)
            yield Issue(queue, at + clock.of["ACC"] + 1, turn)
