"""MATMUL of several rows: weights stream through the four planes in address order.

Columns come in blocks of 320 (`tile_weights`, chip/kernels/quant.py). Vector v of a weight lies in
the slices of plane `PLANE_OF_RUN[v // 16 % 4]` (chip/sram.py), so the four planes load a quarter of
every 64 columns each, and up to four blocks share the planes: a group. For each group all K tiles
follow one another; while a tile multiplies, the next one loads into the weight buffer. An
accumulator row leaves through the SXM, which puts each plane's columns in their lanes, and the VXM,
which adds the planes' parts, scales and rounds. assumption: a column of a block whose width is not
a multiple of 64 may be loaded on another plane in every tile; the VXM's sum makes up for it.

The activations flow beside the weights, which load on up to 15 streams a plane. A plane then takes
its columns in pieces that do not end where runs of 16 do. The two planes of a side are at different
places of their runs, so that what loads in a cycle lies in different slices: an even plane's last
piece is short, an odd one's first. Blocks that planes share unevenly load in whole runs, planes of
a side in turns. One row is laid out in compiler/codegen/products/row.py.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from chip.floorplan import Role, mxm
from chip.isa.instructions import ABC, ACC, IW, LW, AluOp
from chip.isa.issue import Issue
from chip.isa.operands import Held, Stream
from chip.ops.kv import WINDOW_VECTORS
from chip.ops.product import Matmul
from chip.spec import VECTOR_BYTES, ChipSpec, vectors
from chip.sram import RUN
from compiler.codegen.core.builder import C2C_TURN, EAST, Block, Load, Node, Ref
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.control import Bulk, Part
from compiler.codegen.core.parts import LANES
from compiler.codegen.core.template import Placed
from compiler.codegen.products import timeline
from compiler.codegen.products.activations import feed_beside
from compiler.codegen.products.columns import PLANE_OF_RUN, Columns, blocks_of
from compiler.codegen.products.resources import COLUMN_SCALES, FEED_BESIDE, WEIGHTS_BESIDE
from compiler.codegen.products.sums import ARRIVAL, Outputs, added, biased, dequantised, limited
from compiler.codegen.products.timeline import PLANES, ColumnGroup, columns_of_plane

BETWEEN = 2  # cycles between rows: even cycles of the ports are the activations'
RATE = 15  # columns that a plane loads in a cycle
SPREAD = 37  # slices of a side that pieces of both its planes need, to lie in different ones
SHARED = 4  # blocks that the planes have at once
SUMS_QUEUES = range(2 * SHARED)  # SXM queues of a side that put sums in their lanes
LONGEST = 1 << 9  # initiation interval of a row's drain that is tried
LATER = 1  # cycles by which activations come behind what `Clock.feed` says (`feed_beside`)


@dataclass(frozen=True, slots=True)
class EvenLoads:
    """Loads of a group's tiles: `cycles` each from `start`, a tile every initiation `interval`."""

    start: int
    cycles: int
    interval: int

    def loaded(self, tile: int) -> int:
        """Return when a tile's weights are there."""
        return self.start + tile * self.interval + self.cycles

    def fed(self, tile: int) -> int:
        """Return when row 0 of a tile arrives at the planes, behind the tile's IW."""
        return self.loaded(tile) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsProduct:
    """The timeline of a product of several rows (compiler/codegen/products/timeline.py)."""

    half_rate: ClassVar[bool] = True  # of blocks that planes share unevenly
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
        return self.loads[number].fed(tile) + self.clock.of["ABC"] + BETWEEN * row

    def multiply(self, number: int, tile: int) -> Iterator[Issue]:
        """Yield what installs a tile, feeds its activations and adds up the products."""
        g, fed = self.groups[number], self.loads[number].fed(tile)
        for plane in PLANES:
            feed, acc = mxm(plane, Role.FEED), mxm(plane, Role.DRAIN)
            loaded = self.loads[number].loaded(tile)
            yield Issue(feed, loaded, IW(columns=columns_of_plane(g, tile, plane)))
            rows = ABC(stream=Stream(plane >= 2, FEED_BESIDE.stream))
            yield Issue(feed, fed, rows, self.rows, BETWEEN)
            add = ACC(slot=g.slot, step=1, first=tile == 0)
            yield Issue(acc, self.multiplied(number, tile, 0), add, self.rows, BETWEEN)

    def alike(self, number: int, tile: int) -> tuple[int, Hashable]:
        """Return when a tile's first row is fed, its group's sums, and whether they begin."""
        return self.loads[number].fed(tile), (self.groups[number].slot, tile == 0)

    def parts(self, base: Callable[[str], int]) -> Iterator[Part]:
        """Yield the same as `issues`, each part once."""
        return timeline.parts(self)

    def issues(self, base: Callable[[str], int]) -> Iterator[Issue | Bulk]:
        """Yield the MXM's instructions, and the ways to it and from it."""
        return timeline.issues(self)

    def load(self, number: int, tile: int) -> Iterator[Issue | Bulk]:
        """Load a tile: in pieces, block by block, or window by window."""
        if not self.groups[number].outputs.packed:
            yield from timeline.load(self, number, tile)
            return
        loads = self.loads[number]
        at = loads.start + tile * loads.interval
        for j, block in enumerate(self.groups[number].blocks):
            first = block.vector + tile * block.width
            for run, plane in enumerate(PLANE_OF_RUN):
                stream = Stream(plane >= 2, WEIGHTS_BESIDE.stream + RATE * (plane % 2))
                unit = mxm(plane, Role.LOAD)
                for late, piece in enumerate(pieces(block.width, plane)):
                    for part in _in_runs(piece):
                        place = first + part.start // RUN * WINDOW_VECTORS + part.start % RUN
                        lane = Stream(stream.eastward, stream.number + part.start - piece.start)
                        yield Bulk(unit, at + late, "w", place + RUN * run, lane, len(part))
                    lw = LW(stream=stream, count=len(piece), column=LANES // 4 * j + piece.start)
                    yield Issue(unit, at + late, lw)
            at += load_cycles(block)

    def feeds(self) -> list[Placed]:
        """Return the activations' way: work memory, VXM, both sides' planes."""
        block, lead = feed_beside(self.clock.spec), self.clock.feed + LATER
        fed = [(loads.fed(tile), tile) for loads in self.loads for tile in range(self.tiles)]
        return [
            Placed(block=block, start=at - lead, n=self.rows, interval=BETWEEN, shift={"x": tile})
            for at, tile in fed
        ]


def pieces(width: int, plane: int) -> list[range]:
    """Cut a plane's quarter of an even block into what it loads in a cycle each."""
    own = width // 4
    count = load_cycles_of(width)
    ends = [own - RATE * (count - 1 - n) if plane % 2 else min(own, RATE * (n + 1))
            for n in range(count)]  # fmt: skip
    return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _in_runs(piece: range) -> Iterator[range]:
    """Cut columns of a plane where its vectors are no neighbours: at windows' ends."""
    at = piece.start
    while at < piece.stop:
        end = min(piece.stop, at // RUN * RUN + RUN)
        yield range(at, end)
        at = end


def load_cycles_of(width: int) -> int:
    """Return the cycles in which an even block's tile is loaded, in pieces."""
    return -(-width // (4 * RATE))


def load_cycles(block: Columns) -> int:
    return load_cycles_of(block.width)


def groups_of(blocks: Sequence[Columns], spec: ChipSpec) -> list[tuple[Columns, ...]]:
    """Deal even blocks out to groups of about the same size; an uneven one is alone."""
    packs = spec.slices // spec.hemispheres - spec.near_slices >= SPREAD
    even = [block for block in blocks if block.even and packs]
    count = -(-len(even) // SHARED)
    ends = [len(even) * (n + 1) // count for n in range(count)]
    out = [tuple(even[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
    return out + [(block,) for block in blocks if not (block.even and packs)]


def lay_out(op: Matmul, spec: ChipSpec) -> RowsProduct:
    """Place the groups one after another, each as early as the ones before leave room."""
    clock, rows, tiles = Clock(spec), op.rows, vectors(op.k)
    groups, times, placed = list[ColumnGroup](), list[EvenLoads](), list[Placed]()
    drains, left, ended = _Drains(op, clock), [0, 0], 0
    at, blocks_in = clock.of["READ"] + clock.to_mxm, groups_of(blocks_of(op.n, tiles), spec)
    for number, blocks in enumerate(blocks_in):
        outputs = Outputs(tuple(b.width for b in blocks), packed=drains.packs(blocks))
        load = sum(map(load_cycles, blocks)) if outputs.packed else _in_turns(blocks[0], tiles)
        interval = max(load, BETWEEN * rows)
        if times:  # sums leave beside it
            interval += interval % 2
        # its accumulator rows are those of the group before last
        at = max(at, left[-2] - load, clock.feed + LATER - load - 1)
        if times:  # activations of the group before come first
            at = max(at, times[-1].fed(tiles - 1) + BETWEEN * rows - load - 1)
        # read in even cycles, but for the first group's, which meet no sums before the last
        at += (at + (tiles - 1) * interval + load + 1 + clock.feed + LATER) % 2
        loads = EvenLoads(at, load, interval)
        last = number == len(blocks_in) - 1
        summed = loads.fed(tiles - 1) + clock.of["ABC"] + 1  # between rows' products
        # the ports' cycle of the last activation, and those in which a scale may meet it
        read = loads.fed(tiles - 1) + BETWEEN * (rows - 1) - clock.feed - LATER
        read += 2 * (clock.of["COPY"] + clock.near)
        drain = max(summed, ended + (ended + summed) % 2)
        scales = drains.scales(outputs)
        while True:
            start, block = drains.block(outputs, drain, read if last else None)
            scaled = start - behind(scales, block)
            if scaled >= ended:
                break
            drain += 2
        g = ColumnGroup(
            blocks=blocks, outputs=outputs, slot=number % 2 * rows, drain=drain,
            pace=max(BETWEEN, block.interval),
        )  # fmt: skip
        wide = blocks[0].first * 4 // VECTOR_BYTES
        shift = {"sw": wide, "b": wide,
                 "y": blocks[0].first * op.out_bytes // VECTOR_BYTES}  # fmt: skip
        placed.append(Placed(block=scales, start=scaled, shift=shift))
        placed.append(Placed(block=block, start=start, n=rows, interval=g.pace, shift=shift))
        groups.append(g)
        times.append(loads)
        at += tiles * loads.interval
        left.append(drain + g.pace * (rows - 1) + 1)
        ended = start + g.pace * (rows - 1) + block.end
    return RowsProduct(
        clock=clock, rows=rows, tiles=tiles, groups=tuple(groups), loads=tuple(times),
        drains=tuple(placed),
    )  # fmt: skip


def behind(first: Block, second: Block) -> int:
    """Return the cycles by which a block must start before another, to be done with the ports.

    Both start in even cycles.
    """
    late = max(_port_cycles(first)) + 1 - min(_port_cycles(second))
    return max(0, late + late % 2)


def _port_cycles(block: Block) -> Iterator[int]:
    for access in block.accesses:
        for beat in access.beats:
            yield from (block.issue_cycle(access, side, beat) for side in (0, 1))


def _in_turns(block: Columns, tiles: int) -> int:
    """Return the cycles in which a tile is loaded window by window, planes in turns."""
    return 2 * max(len(block.windows(tile)) for tile in range(tiles))


@dataclass(slots=True)
class _Drains:
    """Builds the blocks that take a row of a group's sums; keeps each for groups that are alike."""

    op: Matmul
    clock: Clock
    _blocks: dict[object, Block] = field(default_factory=dict)
    _scales: dict[Outputs, Block] = field(default_factory=dict)

    def packs(self, blocks: tuple[Columns, ...]) -> bool:
        """Tell whether a group's blocks load in pieces."""
        spec = self.clock.spec
        slices = spec.slices // spec.hemispheres - spec.near_slices
        return slices >= SPREAD and all(block.even for block in blocks)

    def block(self, outputs: Outputs, drain: int, read: int | None) -> tuple[int, Block]:
        """Return when the block that takes a drain's sums starts, and the block.

        `read`: until then activations, of all groups, have the even cycles of the ports; None: some
        come yet.
        Blocks start in even cycles.
        """
        arrives = drain + outputs.delay(self.clock)
        arrival = ARRIVAL + arrives % 2
        start = arrives - arrival
        until = None if read is None else max(-1, read - start)
        turn = 0 if until is None else start % C2C_TURN
        key = outputs, arrival, until, turn
        if key not in self._blocks:

            def busy(cycle: int) -> bool:
                if until is None or cycle <= until:
                    return cycle % 2 == 0
                return (turn + cycle) % C2C_TURN == C2C_TURN - 1

            step = BETWEEN if until is None else C2C_TURN
            self._blocks[key] = self._soonest(outputs, arrival, busy, step)
        return start, self._blocks[key]

    def scales(self, outputs: Outputs) -> Block:
        """Return the block that brings columns' scales to their registers, before any sums come.

        It starts with the first row's, or before.
        """
        if outputs not in self._scales:
            b = Block(self.clock.spec, busy=lambda cycle: cycle % 2 == 0, stride=2)
            for j, width in enumerate(outputs.widths):
                scale = Load(Ref("sw", 4 * j, vectors(width * 4)), "f32")
                b.alu(AluOp.COPY, scale, lanes=width, on=COLUMN_SCALES.registers[j])
            self._scales[outputs] = b.finish()
        return self._scales[outputs]

    def _soonest(
        self, outputs: Outputs, arrival: int, busy: Callable[[int], bool], step: int
    ) -> Block:  # fmt: skip
        """Build the block with the shortest initiation interval, a multiple of `step`.

        Raises OverflowError where there is none.
        """
        stride = 2 if step == BETWEEN else 1
        interval = -(-self._port_beats(outputs) * stride // step) * step
        while True:
            try:
                return self._build(outputs, arrival, busy, stride, interval).finish()
            except OverflowError:
                if interval > LONGEST:
                    raise
                interval += step

    def _port_beats(self, outputs: Outputs) -> int:
        """Return the cycles in which a row takes the ports."""
        wide, op = 2 * self.clock.spec.work_slices, self.op
        sizes = (op.out_bytes,) if op.b is None else (op.out_bytes, 4)
        return 1 + sum(-(-vectors(n * size) // wide) for n in outputs.widths for size in sizes)

    def _build(
        self, outputs: Outputs, arrival: int, busy: Callable[[int], bool], stride: int,
        interval: int,
    ) -> Block:  # fmt: skip
        op, widths, item = self.op, outputs.widths, self.op.out_bytes
        columns = COLUMN_SCALES.registers[: len(widths)]
        b = Block(self.clock.spec, pinned=FEED_BESIDE.pinned | set(columns), busy=busy,
                  stride=stride, interval=interval)  # fmt: skip
        if outputs.turned:
            at_sxm = arrival - self.clock.of["PERMUTE"] - self.clock.to_sxm
            for _ in SUMS_QUEUES:
                b.queue(EAST, at_sxm)
        sums = added(b, outputs, arrival)
        scale = self._row_scale(b, arrival)

        def of_columns(operand: str, j: int) -> Load:
            return Load(Ref(operand, 4 * j, vectors(widths[j] * 4)), "f32")

        scaled = dequantised(b, sums, scale, lambda j: Held(columns[j]))
        summed = biased(b, op, scaled, partial(of_columns, "b"))
        for j, y in enumerate(limited(b, op, summed)):
            out = Ref("y", item * j, vectors(widths[j] * item))
            b.alu(AluOp.COPY if item == 4 else AluOp.CVT_F16, y, lanes=widths[j], out=out)
        return b

    def _row_scale(self, b: Block, arrival: int) -> Node:
        """Bring the row's scale to every lane, about when the sums come."""
        rows = self.op.rows
        ref = Ref("s", 0, vectors(rows * 4))
        at, operand = b.through_sxm(ref, None, 4, rows, after=arrival)
        return b.alu(AluOp.COPY, operand, at=at)
