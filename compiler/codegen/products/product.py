"""MATMUL: weights stream through the four planes in address order, 64 vectors a cycle.

Columns come in blocks of 320 (`tile_weights`, chip/kernels/quant.py). Vector v of a weight lies in
the slices of plane `PLANE_OF_RUN[v // 16 % 4]` (chip/sram.py), so the four planes load a quarter of
every 64 columns each, and up to four blocks share the planes: a group. For each group all K tiles
follow one another; while a tile multiplies, the next one loads into the weight buffer. An
accumulator row leaves through the SXM, which puts each plane's columns in their lanes, and the VXM,
which adds the planes' parts, scales and rounds. assumption: a column of a block whose width is not
a multiple of 64 may be loaded on another plane in every tile; the VXM's sum makes up for it.

Here is what all products share, and several rows: weights load on 16 streams of a side while the
activations flow beside. One row is in compiler/codegen/products/row.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from chip.floorplan import Role, alu, hops, mem, mxm, sxm
from chip.isa.instructions import ABC, ACC, IW, LW, AluOp, Permute, Read
from chip.isa.issue import Issue, delays
from chip.isa.operands import In, Stream, group
from chip.spec import VECTOR_BYTES, ChipSpec, vectors
from chip.sram import bulk_place
from compiler.codegen.core.builder import LANES, Block, Load, Node, NodeSource, Ref
from compiler.codegen.core.template import Placed, aligned
from compiler.codegen.products.columns import (
    PLANE_OF_RUN,
    RUN,
    WINDOW,
    ColumnGroup,
    Columns,
    blocks_of,
    groups_of,
    spread_of,
)
from compiler.codegen.products.prologue import FEED

FEEDERS = (12, 11)  # ALUs that pass activations on, west and east
PINNED = frozenset(FEEDERS)
ARRIVAL = 64  # cycle of a drain block (or the next) at which the sums come to the VXM
DRAIN = 4  # first inward stream of results: four for each plane of a hemisphere


class Product:
    """The timeline of one product: when tiles load, rows are fed, and sums leave."""

    def __init__(self, spec: ChipSpec, *, rows: int, k: int, n: int, item: int) -> None:
        self.spec, self.delay = spec, delays(spec)
        self.rows, self.tiles, self.n = rows, vectors(k), n
        self.item = item  # bytes of a result
        self.to_mxm = hops(alu(0), mxm(0, Role.LOAD), spec)
        self.acc_rows = min(2 * self.rows, spec.mxm_accumulator_rows)
        # from the Read of an activation to its arrival at the planes
        self.feed_delay = self.delay["READ"].d_func + 1 + self.delay["COPY"].d_func + self.to_mxm
        self.half_rate = True  # loads on 16 streams, activations beside them
        self.groups: list[ColumnGroup] = []
        self.drains: list[Placed] = []
        self._blocks: dict[object, tuple[Block, int]] = {}
        self._lay_out()

    # -- when things happen

    def window_cycle(self, g: ColumnGroup, tile: int, number: int, plane: int) -> int:
        """Return when a plane's part of a tile's window (counted over the group) arrives."""
        at = g.start + tile * g.period
        return at + (2 * number + plane % 2 if self.half_rate else number)

    def fed(self, g: ColumnGroup, tile: int) -> int:
        """Return when row 0 of a tile arrives at the planes; the other rows every 2 cycles."""
        return g.start + tile * g.period + g.load

    def multiplied(self, g: ColumnGroup, tile: int) -> int:
        """Return when row 0's product of a tile is added up."""
        return self.fed(g, tile) + 3 + self.delay["ABC"].d_func

    def _lay_out(self) -> None:
        """Place the groups one after another, each as early as the ones before leave room."""
        first = self.delay["READ"].d_func + self.to_mxm
        at, drained = first + first % 2, [0, 0]
        for number, blocks in enumerate(groups_of(blocks_of(self.n, self.tiles))):
            load = 2 * sum(max(len(b.windows(t)) for t in range(self.tiles)) for b in blocks)
            period = max(load, 2 * self.rows) + 2
            block, pace = self._drain(blocks)
            at = max(at, drained[0])  # its accumulator rows are those of the group before last
            if self.groups:  # activations of the group before come first
                last = self.groups[-1]
                at = max(at, self.fed(last, self.tiles - 1) + 2 * self.rows + 2 - load)
            g = ColumnGroup(blocks, load, period, at, 0, number % 2, pace)
            summed = self.multiplied(g, self.tiles - 1) + self.delay["ACC"].d_func
            drain = max(summed + summed % 2, drained[1])
            g = replace(g, drain=drain)
            self.groups.append(g)
            at += self.tiles * period
            at += at % 2
            drained = [drained[1], drain + pace * (self.rows - 1) + aligned(block.end) + 8]
        self._place_drains()

    def _place_drains(self) -> None:
        for g in self.groups:
            start = g.drain + self._drain_delay(self._outputs(g)) - self._arrival(self._outputs(g))
            block, _ = self._drain(g.blocks)
            self.drains.append(
                Placed(block=block, start=start, n=self.rows, period=g.pace, shift=self._shift(g))
            )

    def _shift(self, g: ColumnGroup) -> dict[str, int]:
        """Return how far a group's columns are from the operands' first, in vectors."""
        column = g.blocks[0].first
        return {"sw": column * 4 // VECTOR_BYTES, "y": column * self.item // VECTOR_BYTES}

    def _widths(self, blocks: tuple[Columns, ...]) -> list[int]:
        """Return the lanes of each vector of sums that a group gives."""
        return [block.width for block in blocks]

    def _outputs(self, g: ColumnGroup) -> int:
        return len(self._widths(g.blocks))

    def _spread(self, blocks: tuple[Columns, ...], run: int, j: int) -> tuple[int | None, ...]:
        """Return the lane map that puts a plane's part of vector j of sums in place."""
        return spread_of(run, j)

    def _arrival(self, outputs: int) -> int:
        """Return the sums' cycle in a drain block: blocks start on even cycles."""
        return ARRIVAL + self._drain_delay(outputs) % 2

    def _drain_delay(self, outputs: int) -> int:
        """Cycles from a drain's issue to its arrival at the VXM."""
        through = self.delay["PERMUTE"].d_func if outputs > 1 else 0
        return self.delay["ACC"].d_func + through + self.to_mxm

    # -- the VXM's part

    def _drain(self, blocks: tuple[Columns, ...]) -> tuple[Block, int]:
        """Return the block that takes one row of a group's sums, and the pace of its rows."""
        key = tuple(self._widths(blocks))
        if key not in self._blocks:
            block = self._drain_block(list(key)).finish()
            self._blocks[key] = block, block.initiation(2)
        return self._blocks[key]

    def _drain_block(self, widths: list[int]) -> Block:
        # even cycles of the port are the activations'
        b = Block(self.spec, pinned=PINNED, busy=_even, stride=2)
        scale = row_scale(b, self.rows)
        assert scale.done < ARRIVAL
        for j, y in enumerate(self._scaled(b, widths, scale)):
            item, width = self.item, widths[j]
            out = Ref("y", item * j, vectors(width * item))
            b.alu(AluOp.COPY if item == 4 else AluOp.CVT_F16, y, lanes=width, out=out)
        return b

    def _scaled(self, b: Block, widths: list[int], scale: NodeSource) -> list[Node]:
        """Add the planes' parts of each block of columns, and dequantise the sums."""
        arrival = self._arrival(len(widths))
        b.reserve_inward(arrival)
        sums = []
        for j, width in enumerate(widths):
            parts = [
                b.alu(AluOp.ADD, *(self._part(len(widths), 2 * h + q, j, width) for h in (0, 1)),
                      at=arrival, lanes=width)
                for q in (0, 1)
            ]  # fmt: skip
            sums.append(b.alu(AluOp.ADD, *parts, lanes=width))
        out = []
        for j, (total, width) in enumerate(zip(sums, widths, strict=True)):
            y = b.alu(AluOp.CVT_F32, total, lanes=width)
            y = b.alu(AluOp.MUL, y, scale, lanes=width)
            out.append(b.alu(AluOp.MUL, y, self._weight_scales(b, widths, j), lanes=width))
        return out

    def _weight_scales(self, b: Block, widths: list[int], j: int) -> NodeSource:
        """Return the scales of the columns in vector j of sums."""
        return Load(Ref("sw", 4 * j, vectors(widths[j] * 4)), "f32")

    @staticmethod
    def _part(outputs: int, plane: int, j: int, width: int) -> In:
        """Return where one plane's part of vector j of sums comes from."""
        first = 16 * (plane % 2) + 4 * j if outputs > 1 else DRAIN + 4 * (plane % 2)
        return In(group(Stream(plane < 2, first), vectors(width * 4)), "i32")

    # -- the MXM's part

    def issues(self, base: Callable[[str], int]) -> Iterator[Issue]:
        """Yield weight reads, loads, installs, activations, sums and their way out."""
        for g in self.groups:
            for tile in range(self.tiles):
                yield from self._load(g, tile, base("w"))
                yield from self._multiply(g, tile)
            for row in range(self.rows):
                yield from self._leave(g, row)

    def _load(self, g: ColumnGroup, tile: int, base: int) -> Iterator[Issue]:
        half, windows = self.half_rate, 0
        for j, block in enumerate(g.blocks):
            start = block.vector + tile * block.width
            for number, window in enumerate(block.windows(tile)):
                for run in range(WINDOW // RUN):
                    plane = PLANE_OF_RUN[run]
                    first = max(start, window * WINDOW + run * RUN)
                    stop = min(start + block.width, window * WINDOW + (run + 1) * RUN)
                    if first >= stop:
                        continue
                    cycle = self.window_cycle(g, tile, windows + number, plane)
                    lane = (0 if half else RUN * (plane % 2)) + first % RUN
                    column = first - start
                    if len(g.blocks) > 1:
                        column = LANES // 4 * j + RUN * number
                    yield from self._run(base + first, stop - first, plane, cycle, lane, column)
            windows += len(block.windows(tile))

    def _run(
        self, vector: int, count: int, plane: int, cycle: int, lane: int, column: int
    ) -> Iterator[Issue]:
        """Read `count` vectors of one plane and load them as columns."""
        away = plane >= 2
        load = mxm(plane, Role.LOAD)
        for n in range(count):
            side, index, word = bulk_place(self.spec, vector + n)
            assert side == plane // 2
            queue = mem(side, index)
            issue = cycle - self.delay["READ"].d_func - hops(queue, load, self.spec)
            yield Issue(queue, issue, Read(address=word, stream=Stream(away, lane + n)))
        yield Issue(load, cycle, LW(stream=Stream(away, lane), count=count, column=column))

    def _multiply(self, g: ColumnGroup, tile: int) -> Iterator[Issue]:
        fed, out = self.fed(g, tile), self.multiplied(g, tile)
        half = g.parity * self.rows
        for plane in range(4):
            feed, acc = mxm(plane, Role.FEED), mxm(plane, Role.DRAIN)
            columns = self._columns(g, tile, plane)
            yield Issue(feed, fed + 1, IW(columns=columns))
            for row in range(self.rows):
                at, slot = fed + 2 * row, row % 8
                yield Issue(feed, at, ABC(stream=Stream(plane >= 2, FEED), slot=slot))
                yield Issue(feed, at + 3, ABC(slot=slot))
                yield Issue(acc, out + 2 * row, ACC(slot=half + row, first=tile == 0))

    @staticmethod
    def _columns(g: ColumnGroup, tile: int, plane: int) -> int:
        """Count the columns that one plane gets of a tile."""
        run, total = PLANE_OF_RUN.index(plane), 0
        for block in g.blocks:
            start = block.vector + tile * block.width
            for window in block.windows(tile):
                first = max(start, window * WINDOW + run * RUN)
                total += max(0, min(start + block.width, window * WINDOW + (run + 1) * RUN) - first)
        return total

    def _leave(self, g: ColumnGroup, row: int) -> Iterator[Issue]:
        """One row's sums: out of the accumulators, into their lanes, to the VXM."""
        at = g.drain + row * g.pace
        for plane in range(4):
            inward = Stream(plane < 2, DRAIN + 4 * (plane % 2))
            out = group(inward, vectors(g.lanes * 4))
            slot, last = g.parity * self.rows + row, self.multiplied(g, self.tiles - 1) + 2 * row
            acc = ACC(
                slot=slot, first=at == last and self.tiles == 1, lanes=g.lanes, out=out,
                product=at == last,
            )  # fmt: skip
            yield Issue(mxm(plane, Role.DRAIN), at, acc)
            widths, run = self._widths(g.blocks), PLANE_OF_RUN.index(plane)
            for j, width in enumerate(widths if len(widths) > 1 else ()):
                part = self._part(len(widths), plane, j, width)
                turn = Permute(
                    src=out, dst=part.taps, item=4, lanes=g.lanes, out_lanes=width,
                    map=self._spread(g.blocks, run, j),
                )  # fmt: skip
                queue = sxm(plane // 2, 4 * (plane % 2) + j)
                yield Issue(queue, at + self.delay["ACC"].d_func + 1, turn)

    def feeds(self) -> list[Placed]:
        """Return the activations' way: work memory, VXM, both sides' planes."""
        block = feed_block(self.spec)
        fed = [(self.fed(g, t), t) for g in self.groups for t in range(self.tiles)]
        return [
            Placed(block=block, start=at - self.feed_delay, n=self.rows, period=2,
                   shift={"x": tile}) for at, tile in fed
        ]  # fmt: skip


def feed_block(spec: ChipSpec, operand: str = "x") -> Block:
    """Return the block that sends a vector of activations from work memory to all planes."""
    block = Block(spec, busy=never)
    at, x = block.delay["READ"].d_func + 1, Load(Ref(operand, 0, 1), "i8")
    west, east = (group(Stream(side == 1, FEED), 1) for side in (0, 1))
    node = block.alu(AluOp.COPY, x, at=at, on=FEEDERS[0], out=west)
    block.twin(node, FEEDERS[1], east)
    return block.finish()


def row_scale(b: Block, rows: int, on: int | None = None, after: int = 0) -> Node:
    """Bring the block's row's scale to every lane."""
    at, operand = b.through_sxm(Ref("s", 0, vectors(rows * 4)), None, 4, rows, after)
    return b.alu(AluOp.COPY, operand, at=at, on=on)


def _even(cycle: int) -> bool:
    return cycle % 2 == 0


never = frozenset[int]().__contains__
