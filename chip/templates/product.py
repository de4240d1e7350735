"""MATMUL: weights stream through the four planes in address order, 64 vectors a cycle.

Columns come in blocks of 320 (chip.quant.tile_weights). Vector v of a weight lies in the slices
of plane `PLANE_OF_RUN[v // 16 % 4]` (chip/sram.py), so the four planes load a quarter of every
64 columns each, and up to four blocks share the planes: a group. For each group all K tiles
follow one another; while a tile multiplies, the next one loads into the weight buffer. An
accumulator row leaves through the SXM, which puts each plane's columns in their lanes, and the
VXM, which adds the planes' parts, scales and rounds. assumption: a column of a block whose width
is not a multiple of 64 may be loaded on another plane in every tile; the VXM's sum makes up for it.

One row loads on all 32 outward streams, with a cycle's gap between tiles for its activation; more
rows load on 16 while their activations flow beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from chip.floorplan import Role, alu, hops, mem, mxm, sxm
from chip.isa import ABC, ACC, IW, LW, AluOp, Permute, Read
from chip.issue import Issue, delays
from chip.operand import Held, In, Stream, group
from chip.operations import Args
from chip.spec import VECTOR_BYTES, ChipSpec, vectors
from chip.sram import bulk_place
from chip.templates.builder import LANES, Block, Load, Node, NodeSource, Ref
from chip.templates.columns import (
    PLANE_OF_RUN,
    RUN,
    WINDOW,
    ColumnGroup,
    Columns,
    blocks_of,
    groups_of,
    spread_of,
)
from chip.templates.template import Placed, aligned

FEED = 28  # outward stream of activations
FEEDERS = (12, 11)  # ALUs that pass activations on, west and east
SCALE = 9  # ALU whose register keeps a single row's scale
PINNED = frozenset({*FEEDERS, SCALE})
ARRIVAL = 64  # cycle of a drain block (or the next) at which the sums come to the VXM
DRAIN = 4  # first inward stream of results: four for each plane of a hemisphere


class Product:
    """The timeline of one product: when tiles load, rows are fed, and sums leave."""

    def __init__(self, a: Args, spec: ChipSpec) -> None:
        self.a, self.spec, self.delay = a, spec, delays(spec)
        self.rows, self.tiles = int(a["rows"]), vectors(a["k"])
        self.to_mxm = hops(alu(0), mxm(0, Role.LOAD), spec)
        self.acc_rows = min(2 * self.rows, spec.mxm_accumulator_rows)
        # from the Read of an activation to its arrival at the planes
        self.feed_delay = self.delay["READ"].d_func + 1 + self.delay["COPY"].d_func + self.to_mxm
        self.half_rate = self.rows > 1  # loads on 16 streams, activations beside them
        self.groups: list[ColumnGroup] = []
        self.drains: list[Placed] = []
        self._blocks: dict[object, tuple[Block, int]] = {}
        self._lay_out()

    # -- when things happen

    def _pace(self, load: int) -> tuple[int, int]:
        """Return (cycles of a load, period of a tile)."""
        if self.rows == 1:
            load = max(load, 3)  # room for install, use and scale before the next activation
            return load, load + 1
        return 2 * load, max(2 * load, 2 * self.rows) + 2

    def fed(self, g: ColumnGroup, tile: int) -> int:
        """Return when row 0 of a tile arrives at the planes; the other rows every 2 cycles."""
        return g.start + tile * g.period + g.load

    def multiplied(self, g: ColumnGroup, tile: int) -> int:
        """Return when row 0's product of a tile is added up."""
        return self.fed(g, tile) + (2 if self.rows == 1 else 3) + self.delay["ABC"].d_func

    def _lay_out(self) -> None:
        """Place the groups one after another, each as early as the ones before leave room."""
        first = self.delay["READ"].d_func + self.to_mxm
        at, drained = first + first % 2, [0, 0]
        for number, blocks in enumerate(groups_of(blocks_of(self.a["n"], self.tiles))):
            load = sum(max(len(b.windows(t)) for t in range(self.tiles)) for b in blocks)
            load, period = self._pace(load)
            block, pace = self._drain(blocks, None)
            at = max(at, drained[0])  # its accumulator rows are those of the group before last
            if self.groups and self.rows > 1:  # activations of the group before come first
                last = self.groups[-1]
                at = max(at, self.fed(last, self.tiles - 1) + 2 * self.rows + 2 - load)
            g = ColumnGroup(blocks, load, period, at, 0, number % 2, pace)
            summed = self.multiplied(g, self.tiles - 1) + self.delay["ACC"].d_func
            drain = max(summed + summed % 2, drained[1])
            g = replace(g, drain=drain)
            self.groups.append(g)
            at += self.tiles * period
            at += at % 2 if self.rows > 1 else 0
            drained = [drained[1], drain + pace * (self.rows - 1) + aligned(block.end) + 8]
        self._place_drains()

    def _place_drains(self) -> None:
        feeds = {
            self.fed(g, t) - self.feed_delay
            for g in (self.groups if self.rows == 1 else ()) for t in range(self.tiles)
        }  # fmt: skip
        sums = {
            self.multiplied(g, t)
            for g in (self.groups if self.rows == 1 else ()) for t in range(self.tiles)
        }  # fmt: skip
        for number, g in enumerate(self.groups):
            to_vxm = self._drain_delay(len(g.blocks)) - self.delay["READ"].d_func - 1
            while g.drain in sums or g.drain + to_vxm in feeds:  # one row: feeds take stream 0
                g = replace(g, drain=g.drain + 1)
            self.groups[number] = g
            start = g.drain + self._drain_delay(len(g.blocks)) - self._arrival(len(g.blocks))
            near = None
            if self.rows == 1:
                near = frozenset(c - start for c in feeds if -64 <= c - start < 400)
            block, _ = self._drain(g.blocks, near)
            column = g.blocks[0].first
            item = 4 if self.a["out"] == "f32" else 2
            shift = {"sw": column * 4 // VECTOR_BYTES, "y": column * item // VECTOR_BYTES}
            self.drains.append(
                Placed(block=block, start=start, n=self.rows, period=g.pace, shift=shift)
            )

    def _arrival(self, blocks: int) -> int:
        """Return the sums' cycle in a drain block: blocks start on even cycles."""
        return ARRIVAL + self._drain_delay(blocks) % 2

    def _drain_delay(self, blocks: int) -> int:
        """Cycles from a drain's issue to its arrival at the VXM."""
        through = self.delay["PERMUTE"].d_func if blocks > 1 else 0
        return self.delay["ACC"].d_func + through + self.to_mxm

    # -- the VXM's part

    def _drain(self, blocks: tuple[Columns, ...], near: frozenset[int] | None) -> tuple[Block, int]:
        """Return the block that takes one row of a group's sums, and the pace of its rows.

        `near`: cycles of the block at which the port is wanted by activations (one row); with
        more rows those have the even cycles.
        """
        key = (tuple(block.width for block in blocks), near)
        if key not in self._blocks:
            busy = _even if self.rows > 1 else (near or frozenset()).__contains__
            block = self._drain_block([b.width for b in blocks], busy).finish()
            self._blocks[key] = block, block.initiation(2)
        return self._blocks[key]

    def _drain_block(self, widths: list[int], busy: Callable[[int], bool]) -> Block:
        b = Block(self.spec, pinned=PINNED, busy=busy, stride=1 if self.rows == 1 else 2)
        scale: NodeSource = Held(SCALE)
        if self.rows > 1:
            scale = _row_scale(b, self.rows)
            assert scale.done < ARRIVAL
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
        for j, (total, width) in enumerate(zip(sums, widths, strict=True)):
            y = b.alu(AluOp.CVT_F32, total, lanes=width)
            y = b.alu(AluOp.MUL, y, scale, lanes=width)
            sw = Load(Ref("sw", 4 * j, vectors(width * 4)), "f32")
            item = 4 if self.a["out"] == "f32" else 2
            out = Ref("y", item * j, vectors(width * item))
            y = b.alu(AluOp.MUL, y, sw, lanes=width)
            b.alu(AluOp.COPY if item == 4 else AluOp.CVT_F16, y, lanes=width, out=out)
        return b

    @staticmethod
    def _part(blocks: int, plane: int, j: int, width: int) -> In:
        """Return where one plane's part of block j comes from."""
        first = 16 * (plane % 2) + 4 * j if blocks > 1 else DRAIN + 4 * (plane % 2)
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
        at = g.start + tile * g.period
        half = self.half_rate
        for j, block in enumerate(g.blocks):
            start = block.vector + tile * block.width
            for number, window in enumerate(block.windows(tile)):
                for run in range(WINDOW // RUN):
                    plane = PLANE_OF_RUN[run]
                    first = max(start, window * WINDOW + run * RUN)
                    stop = min(start + block.width, window * WINDOW + (run + 1) * RUN)
                    if first >= stop:
                        continue
                    cycle = at + (2 * number + plane % 2 if half else number)
                    lane = (0 if half else RUN * (plane % 2)) + first % RUN
                    column = first - start
                    if len(g.blocks) > 1:
                        column = LANES // 4 * j + RUN * number
                    yield from self._run(base + first, stop - first, plane, cycle, lane, column)
            at += (2 if half else 1) * len(block.windows(tile))

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
        fed, late = self.fed(g, tile), 2 if self.rows == 1 else 3
        out = self.multiplied(g, tile)
        half = g.parity * self.rows
        for plane in range(4):
            feed, acc = mxm(plane, Role.FEED), mxm(plane, Role.DRAIN)
            columns = self._columns(g, tile, plane)
            yield Issue(feed, fed + 1, IW(columns=columns))
            for row in range(self.rows):
                at, slot = fed + 2 * row, row % 8
                yield Issue(feed, at, ABC(stream=Stream(plane >= 2, FEED), slot=slot))
                yield Issue(feed, at + late, ABC(slot=slot))
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
            acc = ACC(
                slot=g.parity * self.rows + row, first=False, lanes=g.lanes, out=out, product=False
            )
            yield Issue(mxm(plane, Role.DRAIN), at, acc)
            for j, block in enumerate(g.blocks if len(g.blocks) > 1 else ()):
                width = self._width(block)
                part = self._part(len(g.blocks), plane, j, width)
                turn = Permute(
                    src=out, dst=part.taps, item=4, lanes=g.lanes, out_lanes=width,
                    map=spread_of(PLANE_OF_RUN.index(plane), j),
                )  # fmt: skip
                queue = sxm(plane // 2, 4 * (plane % 2) + j)
                yield Issue(queue, at + self.delay["ACC"].d_func + 1, turn)

    def _width(self, block: Columns) -> int:
        """Lanes in which a block's sums reach the VXM."""
        return block.width

    def feeds(self) -> list[Placed]:
        """Return the activations' way: work memory, VXM, both sides' planes."""
        block = Block(self.spec, busy=_never)
        x = Load(Ref("x", 0, 1), "i8")
        at = self.delay["READ"].d_func + 1
        for side, number in enumerate(FEEDERS):
            b_out = group(Stream(side == 1, FEED), 1)
            node = block.alu(AluOp.COPY, x, at=at, on=number, out=b_out) if not side else None
            if node is None:
                block.twin(block.nodes[0], number, b_out)
        block.finish()
        fed = [(self.fed(g, t), t) for g in self.groups for t in range(self.tiles)]
        return [
            *self._scale(),
            *(Placed(block=block, start=at - self.feed_delay, n=self.rows, period=2,
                     shift={"x": tile}) for at, tile in fed),
        ]  # fmt: skip

    def _scale(self) -> Iterator[Placed]:
        """Fetch a single row's scale once: in a gap behind a load, not before the activation."""
        if self.rows > 1:
            return
        block = Block(self.spec, pinned=PINNED, busy=_never)
        _row_scale(block, 1, SCALE)
        (step,) = block.finish().passes
        fed = [self.fed(g, t) for g in self.groups for t in range(self.tiles)]
        lead = self.feed_delay + 2
        at = next((gap for gap in fed if gap - fed[0] >= lead), fed[-1] + lead) - 1
        yield Placed(block=block, start=at - step.cycle)


def _row_scale(b: Block, rows: int, on: int | None = None) -> Node:
    """Bring the block's row's scale to every lane."""
    at, operand = b.through_sxm(Ref("s", 0, vectors(rows * 4)), None, 4, rows)
    return b.alu(AluOp.COPY, operand, at=at, on=on)


def _even(cycle: int) -> bool:
    return cycle % 2 == 0


_never = frozenset[int]().__contains__
