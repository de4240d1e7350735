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
a side in turns.

Sums of a group leave while the next is multiplied. Beside them rows leave room, at a pace of
compiler/codegen/products/paces.py: in the accumulators, on the inward streams as rows pass the VXM,
and, where no feed slices hold the rows, in the ports of the work slices. Tiles that meet no sums
take a row a cycle; where ports are shared, seven of eight. Sums of the last group leave between its
last tile's rows or behind them, whichever is over first. One row is laid out in
compiler/codegen/products/row.py.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from itertools import groupby
from typing import ClassVar

from chip.floorplan import Role, mxm
from chip.isa.instructions import ABC, ACC, IW, LW, AluOp
from chip.isa.issue import Issue
from chip.isa.operands import Held, Stream
from chip.ops.kv import WINDOW_VECTORS
from chip.ops.product import Matmul
from chip.spec import RUN, VECTOR_BYTES, ChipSpec, vectors
from compiler.codegen.core.builder import C2C_TURN, EAST, Block, Load, Node, Ref
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.control import Bulk, Part
from compiler.codegen.core.parts import LANES
from compiler.codegen.core.template import Placed
from compiler.codegen.products import timeline
from compiler.codegen.products.activations import copies_before, feed_beside
from compiler.codegen.products.columns import PLANE_OF_RUN, Columns, blocks_of
from compiler.codegen.products.paces import Pace, Paces, Tile, paces_of, soonest
from compiler.codegen.products.resources import COLUMN_SCALES, FEED_BESIDE, WEIGHTS_BESIDE
from compiler.codegen.products.sums import ARRIVAL, Outputs, added, biased, dequantised, limited
from compiler.codegen.products.timeline import PLANES, ColumnGroup, columns_of_plane

RATE = 15  # columns that a plane loads in a cycle
SPREAD = 37  # slices of a side that pieces of both its planes need, to lie in different ones
SHARED = 4  # blocks that the planes have at once
SUMS_QUEUES = range(2 * SHARED)  # SXM queues of a side that put sums in their lanes
STAGGERED = ((0, 0, 0, 0), (3, 1, 3, 2), (0, 3, 6, 9))  # `_Room.late` that are tried
FEW = 8  # rows for which more than one phase is tried
LONGEST = 1 << 9  # initiation interval of a row's drain that is tried


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


@dataclass(frozen=True, slots=True)
class Loads:
    """A group's tiles: each is loaded in `cycles`, just before it is installed."""

    cycles: int
    tiles: tuple[Tile, ...]

    def start(self, tile: int) -> int:
        """Return when a tile's vectors begin to arrive."""
        return self.loaded(tile) - self.cycles

    def loaded(self, tile: int) -> int:
        """Return when a tile's weights are there, and installed."""
        return self.fed(tile) - 1

    def fed(self, tile: int) -> int:
        """Return when row 0 of a tile arrives at the planes."""
        return self.tiles[tile].fed


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsProduct:
    """The timeline of a product of several rows (compiler/codegen/products/timeline.py)."""

    half_rate: ClassVar[bool] = True  # of blocks that planes share unevenly
    clock: Clock
    rows: int
    tiles: int
    groups: tuple[ColumnGroup, ...]
    loads: tuple[Loads, ...]  # of each group
    drains: tuple[Placed, ...]
    copies: int  # that rows pass in the VXM
    lead: int  # cycles from a row's read to the planes

    @property
    def end(self) -> int:
        """Return the cycle from which all results can be read."""
        return max(p.start + (p.n - 1) * p.interval + p.block.end for p in self.drains)

    def window_cycle(self, number: int, tile: int, window: int, plane: int) -> int:
        """Return when a plane's part of a tile's window arrives: planes of a side take turns."""
        return self.loads[number].start(tile) + 2 * window + plane % 2

    def multiplied(self, number: int, tile: int, row: int) -> int:
        """Return when a row's product of a tile is added up."""
        fed, pace = self.loads[number].tiles[tile]
        return fed + self.clock.of["ABC"] + pace.offset(row)

    def multiply(self, number: int, tile: int) -> Iterator[Issue]:
        """Yield what installs a tile, feeds its activations and adds up the products."""
        g, (fed, pace) = self.groups[number], self.loads[number].tiles[tile]
        for plane in PLANES:
            feed, acc = mxm(plane, Role.FEED), mxm(plane, Role.DRAIN)
            loaded = self.loads[number].loaded(tile)
            yield Issue(feed, loaded, IW(columns=columns_of_plane(g, tile, plane)))
            for row, late, n, apart in pace.lanes(self.rows):
                rows = ABC(stream=Stream(plane >= 2, FEED_BESIDE.stream))
                yield Issue(feed, fed + late, rows, n, apart)
                add = ACC(slot=g.slot + row, step=pace.burst, first=tile == 0)
                yield Issue(acc, self.multiplied(number, tile, row), add, n, apart)

    def alike(self, number: int, tile: int) -> tuple[int, Hashable]:
        """Return when a tile's first row is fed, its pace, its group's sums, whether they begin."""
        fed, pace = self.loads[number].tiles[tile]
        return fed, (pace, self.groups[number].slot, tile == 0)

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
        at = self.loads[number].start(tile)
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
        block, lead = feed_beside(self.clock.spec, self.copies), self.lead
        fed = [one for loads in self.loads for one in enumerate(loads.tiles)]
        return [
            Placed(block=block, start=at - lead + late, n=n, interval=apart, row=row,
                   shift={"x": tile})
            for tile, (at, pace) in fed for row, late, n, apart in pace.bursts(self.rows)
        ]  # fmt: skip


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
    """Place the groups one after another; for few rows, a cycle or two are worth a second try."""
    drains = _Drains(op, Clock(spec))
    phases = drains.phases if op.rows <= FEW else drains.phases[:1]
    return min((_lay_out(drains, phase) for phase in phases), key=lambda product: product.end)


def _lay_out(drains: _Drains, phase: int) -> RowsProduct:
    """Place the groups one after another, each as early as the ones before leave room."""
    drains.phase, op, clock = phase, drains.op, drains.clock
    spec, tiles = clock.spec, vectors(op.k)
    columns = groups_of(blocks_of(op.n, tiles), spec)
    groups, times, placed = list[ColumnGroup](), list[Loads](), list[Placed]()
    left = [0, 0]
    every = [Outputs(tuple(b.width for b in one), packed=drains.packs(one)) for one in columns]
    cycles = [
        sum(map(load_cycles, one)) if outputs.packed else _in_turns(one[0], tiles)
        for one, outputs in zip(columns, every, strict=True)
    ]
    before: Drain | None = None
    for number, (blocks, outputs, load) in enumerate(zip(columns, every, cycles, strict=True)):
        at = max(clock.of["READ"] + clock.to_mxm + load + 1, drains.lead)
        if times:  # behind the last tile, in its array and in its weight buffer
            at = max(at, times[-1].tiles[-1].next(op.rows, load))
        # its accumulator rows are those of the group before last
        group = _Group(drains, outputs, load, max(at, left[-2] + 1), before)
        loads, before = group.placed(last=number == len(columns) - 1)
        g = ColumnGroup(
            blocks=blocks, outputs=outputs, slot=number % 2 * op.rows, drain=before.at,
            pace=before.pace,
        )  # fmt: skip
        wide = blocks[0].first * 4 // VECTOR_BYTES
        shift = {"sw": wide, "b": wide,
                 "y": blocks[0].first * op.out_bytes // VECTOR_BYTES}  # fmt: skip
        placed.append(Placed(block=drains.scales(outputs), start=before.scaled, shift=shift))
        placed.append(
            Placed(block=before.block, start=before.start, n=op.rows, interval=g.pace, shift=shift)
        )
        groups.append(g)
        times.append(loads)
        left.append(before.at + g.pace * (op.rows - 1) + 1)
    return RowsProduct(
        clock=clock, rows=op.rows, tiles=tiles, groups=tuple(groups), loads=tuple(times),
        drains=tuple(placed), copies=drains.copies, lead=drains.lead,
    )  # fmt: skip


class Way(Enum):
    """How a group's sums leave."""

    BESIDE = "while rows of the next group are read and multiplied"
    BETWEEN = "from the last group: between the rows of its last tile, then by themselves"
    BEHIND = "from the last group: by themselves"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """When a group's sums leave: row 0's ACC, its block, and the block of columns' scales."""

    at: int
    start: int
    scaled: int
    block: Block
    pace: int  # cycles between rows
    clear: int  # from here on rows are read that meet nothing of it
    end: int


@dataclass(frozen=True, slots=True)
class _Group:
    """A group that is to be placed: row 0 of its first tile arrives at `at` or later."""

    drains: _Drains
    outputs: Outputs
    load: int
    at: int
    before: Drain | None  # the group before's

    def placed(self, *, last: bool) -> tuple[Loads, Drain]:
        """Return the group's tiles, and its drain: the last group's as soon as it can be over."""
        found = [one for way in (Way if last else (Way.BESIDE,)) for one in self._found(way)]
        return min(found, key=lambda one: one[1].end)

    def _found(self, way: Way) -> Iterator[tuple[Loads, Drain]]:
        """Yield tiles and drain where sums leave in one way, if they can.

        Columns' scales are read beside rows of the last tiles, which leave them room in the ports.
        """
        drains, tiles = self.drains, vectors(self.drains.op.k)
        ended = 0 if self.before is None else self.before.end
        least = int(way is Way.BETWEEN if drains.fed_apart else True)
        for tail in range(least, tiles + 1):
            loads, quiet = self._tiles(tail)
            drain = drains.drain(self.outputs, loads, ended, way)
            if drain is None:
                return
            if tail == tiles or drain.scaled >= quiet or drains.fed_apart:
                yield loads, drain
                return

    def _tiles(self, tail: int) -> tuple[Loads, int]:
        """Return the tiles, and a cycle of the ports behind all rows that leave no room in them.

        The last `tail` tiles do, and those that the drain of the group before needs.
        """
        drains, rows, at, quiet = self.drains, self.drains.op.rows, self.at, 0
        clear, tiles, lead = self.before.clear if self.before else 0, [], drains.lead
        for left in reversed(range(vectors(drains.op.k))):
            tile = soonest(drains.paces.alone, at, drains.phase, rows, self.load)
            if tile.fed - lead < clear:
                tile = soonest(drains.paces.shared, at, drains.phase, rows, self.load)
            elif left < tail:
                tile = soonest(drains.last_paces, at, drains.phase, rows, self.load)
            else:
                quiet = tile.fed - lead + tile.pace.cycles(rows)
            tiles.append(tile)
            at = tile.next(rows, self.load)
        return Loads(self.load, tuple(tiles)), quiet


def behind(first: Block, second: Block) -> int:
    """Return the cycles by which a block must start before another, to be done with the ports."""
    return max(0, max(_port_cycles(first)) + 1 - min(_port_cycles(second)))


def _port_cycles(block: Block) -> Iterator[int]:
    for access in block.accesses:
        for beat in access.beats:
            yield from (block.issue_cycle(access, side, beat) for side in (0, 1))


def _in_turns(block: Columns, tiles: int) -> int:
    """Return the cycles in which a tile is loaded window by window, planes in turns."""
    return 2 * max(len(block.windows(tile)) for tile in range(tiles))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    """What rows leave to a drain's block."""

    arrival: int  # of sums at the VXM
    busy: Callable[[int], bool]  # cycles of the ports
    stride: int  # between cycles of the ports that are not busy
    interval: int  # initiation interval
    gap: tuple[int, int] | None = None  # a cycle at which no row leaves the VXM, and every how many
    late: tuple[int, ...] = (0,) * SHARED  # cycles by which the work on each vector of sums waits


@dataclass(slots=True)
class _Drains:
    """Builds the blocks that take a row of a group's sums; keeps each for groups that are alike."""

    op: Matmul
    clock: Clock
    paces: Paces = field(init=False)
    copies: int = field(init=False)  # that rows pass in the VXM
    lead: int = field(init=False)  # cycles from a row's read to the planes
    phase: int = 0  # one of `phases`
    _blocks: dict[object, Block] = field(default_factory=dict)
    _scales: dict[Outputs, Block] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.paces = paces_of(self.clock.spec)
        self.copies = copies_before(self.clock, self.paces.turn)
        self.lead = self.clock.feed + self.copies * self.clock.of["COPY"]

    @property
    def phases(self) -> list[int]:
        """Cycles, of a turn, at which row 0 of a tile may arrive at the planes.

        Rows in feed slices leave room where rows' scales pass, with the sums, that are not read in
        the links' turns of the ports.
        """
        if not self.fed_apart:
            return [self.lead]
        turn, clock = self.paces.turn, self.clock
        ways = [clock.of["READ"] + near for near in (-clock.near, clock.near)]
        gaps = range(turn)
        return [
            gap + 1 + clock.to_mxm for gap in gaps
            if all((gap - way) % turn != turn - 1 for way in ways)
        ] or [self.lead]  # fmt: skip

    @property
    def _gap(self) -> int:
        """A cycle, of each turn, in which no row leaves the VXM: rows' scales may pass."""
        return self.phase - 1 - self.clock.to_mxm

    @property
    def fed_apart(self) -> bool:
        """Whether rows lie in feed slices, beside the ports of the others."""
        return self.clock.spec.feed_slices > 0

    @property
    def last_paces(self) -> tuple[Pace, ...]:
        """Paces of a last tile between whose products sums leave.

        Few rows have left the VXM before a row's scale passes it, and the first sums are there.
        """
        clock, pace = self.clock, self.paces.between
        leaves = pace.offset(self.op.rows - 1) - clock.to_mxm
        passes = 1 + clock.of["ABC"] + clock.of["ACC"] + clock.to_mxm - 2 * clock.to_sxm
        few = leaves < passes - clock.of["PERMUTE"]
        return (pace,) if few else self.paces.shared

    def packs(self, blocks: tuple[Columns, ...]) -> bool:
        """Tell whether a group's blocks load in pieces."""
        spec = self.clock.spec
        slices = spec.slices // spec.hemispheres - spec.near_slices
        return slices >= SPREAD and all(block.even for block in blocks)

    def drain(self, outputs: Outputs, loads: Loads, ended: int, way: Way) -> Drain | None:
        """Return the drain of a group, or None where sums cannot leave so.

        `ended`: of the drain before, which has left ports and registers by then.
        """
        clock, rows, (fed, pace) = self.clock, self.op.rows, loads.tiles[-1]
        added, shared = fed + clock.of["ABC"], pace in self.paces.shared
        # the ports' cycle of the last row's read, and those in which a scale may meet it
        read = fed - self.lead + pace.offset(rows - 1) + 2 * (clock.of["COPY"] + clock.near)
        if way is Way.BEHIND or not (shared or pace == self.paces.between):
            first = added + pace.cycles(rows)
        else:
            # a lane's first row is added up before: the machine does a lane's rows at once
            first = added + pace.offset(min(pace.burst, rows) - 1) + 1
        if way is Way.BEHIND and not self.fed_apart:
            first = max(first, read + 1 + ARRIVAL + 1 - outputs.delay(clock))
        at, beside = max(first, ended), way is Way.BESIDE or (way is Way.BETWEEN and shared)
        # between rows' products, of this group or of the next
        step = self.paces.turn
        if beside:
            at += (self.phase - 1 + clock.of["ABC"] - at) % step
        elif way is Way.BETWEEN:
            at += (first - at) % pace.turn
        while True:
            try:
                start, block = self.block(outputs, at, read, way, beside=beside)
            except OverflowError:
                if way is Way.BESIDE:
                    raise
                return None
            unit = C2C_TURN if self.fed_apart else 2
            scaled = (start - behind(self.scales(outputs), block)) // unit * unit
            if scaled >= ended:
                break
            at += -((scaled - ended) // step) * step
        every = max(self.paces.turn, block.interval)
        end = start + every * (rows - 1) + block.end
        summed = start + every * (rows - 1) + ARRIVAL + 1 - clock.fetch
        return Drain(
            at=at, start=start, scaled=scaled, block=block, pace=every, end=end,
            clear=summed if self.fed_apart else end,
        )  # fmt: skip

    def block(
        self, outputs: Outputs, drain: int, read: int, way: Way, *, beside: bool
    ) -> tuple[int, Block]:
        """Return when the block that takes a drain's sums starts, and the block.

        `read`: until then this group's rows have the even cycles of the ports. Blocks beside rows
        start in even cycles then. Rows in feed slices leave the ports alone, and, if they are
        `beside` it, the streams in one cycle of a turn.
        """
        arrives = drain + outputs.delay(self.clock)
        if self.fed_apart:
            return self._beside_feed(outputs, arrives - ARRIVAL, beside=beside)
        arrival = ARRIVAL + arrives % 2
        start = arrives - arrival
        until = None if way is Way.BESIDE else max(-1, read - start)
        turn = 0 if until is None else start % C2C_TURN
        key = outputs, arrival, until, turn
        if key not in self._blocks:

            def busy(cycle: int) -> bool:
                if until is None or cycle <= until:
                    return cycle % 2 == 0
                return _is_turn(turn, C2C_TURN, cycle)

            stride, step = (2, 2) if until is None else (1, C2C_TURN)
            least = -(-self._port_beats(outputs) * stride // step) * step
            most = LONGEST if way is Way.BESIDE else least + C2C_TURN
            rooms = (
                _Room(arrival=arrival, busy=busy, stride=stride, interval=interval, late=late)
                for interval in range(least, most + 1, step)
                for late in STAGGERED
            )
            self._blocks[key] = self._soonest(outputs, rooms)
        return start, self._blocks[key]

    def _beside_feed(self, outputs: Outputs, start: int, *, beside: bool) -> tuple[int, Block]:
        """Return the block that starts at a cycle, where rows come from feed slices.

        All cycles of the ports are its own but for the links' turns.
        """
        turn, every = start % C2C_TURN, self.paces.turn
        gap = ((self._gap - start) % every, every) if beside else None
        key = outputs, turn, gap
        if key not in self._blocks:
            intervals = [C2C_TURN // 2, *range(C2C_TURN, LONGEST + 1, C2C_TURN)]
            beats = self._port_beats(outputs)
            rooms = (
                _Room(
                    arrival=ARRIVAL, busy=partial(_is_turn, turn, min(interval, C2C_TURN)),
                    stride=1, interval=interval, late=late, gap=gap,
                )
                for interval in intervals if interval - interval // min(interval, C2C_TURN) >= beats
                for late in STAGGERED
            )  # fmt: skip
            self._blocks[key] = self._soonest(outputs, rooms)
        return start, self._blocks[key]

    def scales(self, outputs: Outputs) -> Block:
        """Return the block that brings columns' scales to their registers, before any sums come.

        It starts with the first row's, or before.
        """
        if outputs not in self._scales:
            b = (
                Block(self.clock.spec) if self.fed_apart
                else Block(self.clock.spec, busy=partial(_is_turn, 1, 2), stride=2)
            )  # fmt: skip
            for j, width in enumerate(outputs.widths):
                scale = Load(Ref("sw", 4 * j, vectors(width * 4)), "f32")
                b.alu(AluOp.COPY, scale, lanes=width, on=COLUMN_SCALES.registers[j])
            self._scales[outputs] = b.finish()
        return self._scales[outputs]

    def _soonest(self, outputs: Outputs, rooms: Iterable[_Room]) -> Block:
        """Build the shortest block with the first initiation interval that suffices.

        Raises OverflowError where none does.
        """
        for _, every in groupby(rooms, key=lambda room: room.interval):
            blocks, failed = list[Block](), list[OverflowError]()
            for room in every:
                try:
                    blocks.append(self._build(outputs, room).finish())
                except OverflowError as error:
                    failed.append(error)
            if blocks:
                return min(blocks, key=lambda block: block.end)
        raise failed[0]

    def _port_beats(self, outputs: Outputs) -> int:
        """Return the cycles in which a row takes the ports."""
        wide, op = 2 * self.clock.spec.work_slices, self.op
        sizes = (op.out_bytes,) if op.b is None else (op.out_bytes, 4)
        return 1 + sum(-(-vectors(n * size) // wide) for n in outputs.widths for size in sizes)

    def _build(self, outputs: Outputs, room: _Room) -> Block:
        op, widths, item = self.op, outputs.widths, self.op.out_bytes
        columns = COLUMN_SCALES.registers[: len(widths)]
        pinned = FEED_BESIDE.pinned(self.copies) | set(columns)
        b = Block(self.clock.spec, pinned=pinned, busy=room.busy, stride=room.stride,
                  interval=room.interval)  # fmt: skip
        if outputs.turned:
            at_sxm = room.arrival - self.clock.of["PERMUTE"] - self.clock.to_sxm
            for _ in SUMS_QUEUES:
                b.queue(EAST, at_sxm)
        # up to three vectors of sums leave the streams alone on which a row's scale comes
        first = self._row_scale(b, room) if len(widths) < SHARED and room.gap else None
        sums = added(b, outputs, room.arrival)
        scale = first or self._row_scale(b, room)

        def of_columns(operand: str, j: int) -> Load:
            return Load(Ref(operand, 4 * j, vectors(widths[j] * 4)), "f32")

        scaled = dequantised(b, sums, scale, lambda j: Held(columns[j]), room.late)
        summed = biased(b, op, scaled, partial(of_columns, "b"))
        for j, y in enumerate(limited(b, op, summed)):
            out = Ref("y", item * j, vectors(widths[j] * item))
            b.alu(AluOp.COPY if item == 4 else AluOp.CVT_F16, y, lanes=widths[j], out=out)
        return b

    def _row_scale(self, b: Block, room: _Room) -> Node:
        """Bring the row's scale to every lane, as its sums come, or have become fp32."""
        rows, of = self.op.rows, self.clock.of
        after = room.arrival
        if any(room.late):  # registers are short
            after += 2 * of["ADD"] + of["CVT_F32"] - of["COPY"]
        first, ref = after, Ref("s", 0, vectors(rows * 4))
        if room.gap is not None:
            place, turn = room.gap
            back = self.clock.of["PERMUTE"] + 2 * self.clock.to_sxm
            after += (place + back - after) % turn
            while not (
                b.free(b.access(False, ref, after - back + self.clock.to_sxm, EAST))
                and b.may_arrive(after)
            ):
                after = b.later(first, after + turn - 1, "a row's scale")
        at, operand = b.through_sxm(ref, None, 4, rows, after=after)
        return b.alu(AluOp.COPY, operand, at=at)


def _is_turn(start: int, every: int, cycle: int) -> bool:
    """Tell whether a cycle of a block is the last of a turn; it starts at `start`."""
    return (start + cycle) % every == every - 1
