"""A product's timeline, and the instructions that follow from it.

A timeline is a finished value: it says when each tile's windows arrive at the planes, when its
products are added up, and when a group's sums leave the accumulators. Laying one out is another
module's work (rows, row, compiler/codegen/lstm.py); what all of them issue alike is here.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from chip.floorplan import Role, mxm, sxm
from chip.isa.instructions import ACC, LW, Permute
from chip.isa.issue import Issue
from chip.isa.operands import Stream, group
from chip.ops.kv import WINDOW_VECTORS
from chip.spec import RUN, vectors
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.control import Alike, Bulk, Part
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
        alone = len(self.blocks) == 1 and not self.outputs.packed
        return self.blocks[0].width if alone else LANES


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

    def load(self, number: int, tile: int) -> Iterator[Issue | Bulk]:
        """Yield what reads a tile's vectors to the planes, and loads them as columns."""

    def multiply(self, number: int, tile: int) -> Iterator[Issue]:
        """Yield what installs a tile, feeds its activations and adds up the products."""

    def alike(self, number: int, tile: int) -> tuple[int, Hashable]:
        """Return when `multiply` begins for a tile, and all else that its instructions depend on.

        Besides what is true of all tiles, and the columns in each plane.
        """


def parts(line: Timeline) -> Iterator[Part]:
    """Yield the same as `issues`, what is alike for many tiles once."""
    loads, products = Alike[tuple[int, int]](), Alike[tuple[int, int]]()
    for number, g in enumerate(line.groups):
        for tile in range(line.tiles):
            columns = tuple(
                (b.vector - g.blocks[0].vector, b.width, tile * b.width % WINDOW_VECTORS)
                for b in g.blocks
            )
            start = line.window_cycle(number, tile, 0, 0)
            windows = sum(len(block.windows(tile)) for block in g.blocks)
            arrive = tuple(
                line.window_cycle(number, tile, window, plane) - start
                for window in range(windows) for plane in PLANES
            )  # fmt: skip
            place = g.blocks[0].vector % WINDOW_VECTORS
            loads.add((columns, place, arrive), start, (number, tile))
            start, rest = line.alike(number, tile)
            products.add((columns, place, rest), start, (number, tile))
    for starts, one in loads.every():
        yield Part(starts, line.load(*one))
    for starts, one in products.every():
        yield Part(starts, line.multiply(*one))
    for number in range(len(line.groups)):
        yield Part((0,), leave(line, number))


def issues(line: Timeline) -> Iterator[Issue | Bulk]:
    """Yield weight reads, loads, installs, activations, sums and their way out."""
    for number in range(len(line.groups)):
        for tile in range(line.tiles):
            yield from line.load(number, tile)
            yield from line.multiply(number, tile)
        yield from leave(line, number)


def columns_of_plane(g: ColumnGroup, tile: int, plane: int) -> int:
    """Count the columns that one plane gets of a tile."""
    run = PLANE_OF_RUN.index(plane)
    return sum(
        len(block.in_run(tile, window, run))
        for block in g.blocks for window in block.windows(tile)
    )  # fmt: skip


class _Run(NamedTuple):
    """Neighbouring vectors that a plane loads in a cycle, as columns from `column` on."""

    cycle: int
    column: int
    vectors: range


def load(line: Timeline, number: int, tile: int) -> Iterator[Issue | Bulk]:
    """Read a tile's vectors to the planes window by window, and load them as columns."""
    g, before = line.groups[number], 0
    for j, block in enumerate(g.blocks):
        windows, start = block.windows(tile), block.vector + tile * block.width
        for run, plane in enumerate(PLANE_OF_RUN):
            runs = []
            for nth, window in enumerate(windows):
                if own := block.in_run(tile, window, run):
                    apart = len(g.blocks) > 1
                    column = LANES // 4 * j + RUN * nth if apart else own.start - start
                    cycle = line.window_cycle(number, tile, before + nth, plane)
                    runs.append(_Run(cycle, column, own))
            for n, d, step, one in _repeated(runs):
                lanes = WEIGHTS.stream + (0 if line.half_rate else RUN * (plane % 2))
                first, count = one.vectors.start, len(one.vectors)
                stream, load = Stream(plane >= 2, lanes + first % RUN), mxm(plane, Role.LOAD)
                yield Bulk(load, one.cycle, "w", first, stream, count, n, d, WINDOW_VECTORS)
                lw = LW(stream=stream, count=count, column=one.column, step=step)
                yield Issue(load, one.cycle, lw, n, d)
        before += len(windows)


def _repeated(runs: Sequence[_Run]) -> Iterator[tuple[int, int, int, _Run]]:
    """Yield (times, cycles apart, columns apart, the first) of runs that follow one another.

    A run that follows is a window further.
    """
    at = 0
    while at < len(runs):
        first, n, d, step = runs[at], 1, 1, 0
        if at + 1 < len(runs) and len(runs[at + 1].vectors) == len(first.vectors):
            d, step = (b - a for a, b in zip(first[:2], runs[at + 1][:2], strict=True))
            while at + n < len(runs) and runs[at + n] == _Run(
                first.cycle + n * d, first.column + n * step,
                range(first.vectors.start + n * WINDOW_VECTORS,
                      first.vectors.stop + n * WINDOW_VECTORS),
            ):  # fmt: skip
                n += 1
        yield (n, d, step, first) if n > 1 else (1, 1, 0, first)
        at += n


def leave(line: Timeline, number: int) -> Iterator[Issue]:
    """The rows' sums: out of the accumulators, into their lanes, to the VXM."""
    g, clock, n, pace = line.groups[number], line.clock, line.rows, max(1, line.groups[number].pace)
    summed = g.drain == line.multiplied(number, line.tiles - 1, 0)  # they leave as they are made
    assert n == 1 or not summed, "several rows leave behind their products"
    for plane in PLANES:
        out = group(Stream(plane < 2, SUMS.left + 4 * (plane % 2)), vectors(g.lanes * 4))
        acc = ACC(
            slot=g.slot, step=1, first=summed and line.tiles == 1, lanes=g.lanes, out=out,
            product=summed,
        )  # fmt: skip
        yield Issue(mxm(plane, Role.DRAIN), g.drain, acc, n, pace)
        outputs, run = g.outputs, PLANE_OF_RUN.index(plane)
        for j, width in enumerate(outputs.widths if outputs.turned else ()):
            turn = Permute(
                src=out, dst=outputs.part(plane, j).taps, item=4, lanes=g.lanes, out_lanes=width,
                map=outputs.spread(run, j),
            )  # fmt: skip
            queue = sxm(plane // 2, SUMS.queues + 4 * (plane % 2) + j)
            yield Issue(queue, g.drain + clock.of["ACC"] + 1, turn, n, pace)
