"""An LSTM cell as one operation: [x, h] . W, then gates, cell state and output; int8 in and out.

The published single-chip program (docs/hardware.md, Single-chip results) took 646 + 24 B cycles for
B sequences of 512 units. assumption, made with these in sight: which steps it has, and that they do
not overlap; each begins when the one before it is over in all 20 superlanes, with reads issued
ahead of it and sums added up behind it. What follows has no constant of its own:

- A pass through the planes loads one K tile of the four gates of 320 units, a quarter of each gate
  a plane: 2 t passes for each of t column groups. Its weights leave memory when the last product of
  the pass before leaves the array: it takes the way from memory, the load, B rows and the depth
  of the array, in which superlanes take turns. 12 + 16 + B + 24 for 512 units, eight times.
- The tail is two steps, each over all rows of all groups. The first takes three gates' sums and the
  state to the new state, and writes it; the second reads that back, and takes it and the output
  gate's sums to the output. A row takes as long as its block's initiation interval, for the ALUs
  and the work slices' ports (a 32-bit vector in two beats): 5 and 3 cycles, 16 B for 512 units.
- A program begins with the chip's barrier (`cell_cycles`).

One scale for all weights and activations (assumption: the published cell's quantisation is
unknown), so the VXM needs nothing from memory but the cell state. sigmoid(x) = tanh(x / 2) / 2 +
1 / 2.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

from chip.errors import TemplateError
from chip.floorplan import Role, hops, mem, mxm
from chip.isa.instructions import ABC, ACC, IW, TILES, AluOp
from chip.isa.issue import Issue
from chip.isa.operands import Stream
from chip.ops.kv import WINDOW_VECTORS
from chip.ops.opcodes import BOUND
from chip.spec import ChipSpec, vectors
from compiler.codegen.core.builder import LANES, Block, Load, Node, Ref
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.control import Bulk, Part
from compiler.codegen.core.parts import f32
from compiler.codegen.core.template import Placed, Template
from compiler.codegen.core.uses import check
from compiler.codegen.products import timeline
from compiler.codegen.products.activations import feed_block, never
from compiler.codegen.products.columns import Columns
from compiler.codegen.products.resources import FEED
from compiler.codegen.products.rows import EvenLoads
from compiler.codegen.products.sums import Outputs
from compiler.codegen.products.timeline import PLANES, ColumnGroup, columns_of_plane

GATES = 4  # input, forget, cell, output
CELL, OUTPUT = 2, 3
STATE = Outputs((LANES,) * OUTPUT)  # the sums that a new state is made of
SUMS = Outputs((LANES,) * GATES)
LONGEST, LATER = 16, 16  # initiation intervals and delays that are tried


def columns_of(hidden: int, tiles: int) -> list[tuple[Columns, ...]]:
    """Return, for each 320 units of the hidden state, the blocks of the four gates.

    Widths are whole windows of `WINDOW_VECTORS`: what is beyond `hidden` is padding.
    """
    out, vector = [], 0
    for first in range(0, hidden, LANES):
        width = min(LANES, -(-(hidden - first) // WINDOW_VECTORS) * WINDOW_VECTORS)
        blocks = []
        for _ in range(GATES):
            blocks.append(Columns(first, width, vector))
            vector += width * tiles
        out.append(tuple(blocks))
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Lstm:
    """One step of the cell for `rows` sequences: [x, h] rows at x, weights w, state c, output h.

    `scale`: of all weights and activations.
    """

    rows: int
    hidden: int
    scale: float
    w: int = field(metadata=BOUND)
    x: int = field(metadata=BOUND)
    c: int = field(metadata=BOUND)
    h: int = field(metadata=BOUND)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The timeline of one cell: passes one after another, then the rows' vector work."""

    half_rate: ClassVar[bool] = False
    clock: Clock
    rows: int
    tiles: int
    groups: tuple[ColumnGroup, ...]  # whose sums leave for the state
    again: tuple[ColumnGroup, ...]  # the same, whose sums leave for the output
    loads: tuple[EvenLoads, ...]  # of each group
    drains: tuple[Placed, ...]

    def window_cycle(self, number: int, tile: int, window: int, plane: int) -> int:
        """Return when a tile's window arrives: all planes take their part at once."""
        loads = self.loads[number]
        return loads.start + tile * loads.interval + window

    def multiplied(self, number: int, tile: int, row: int) -> int:
        """Return when a row's product of a tile is added up: rows come a cycle apart."""
        return self.installed(self.loads[number], tile) + self.clock.of["ABC"] + row

    def installed(self, loads: EvenLoads, tile: int) -> int:
        """Return when a tile is in the arrays, and row 0 may come."""
        return loads.loaded(tile) - 1 + _into_array(self.clock)

    def load(self, number: int, tile: int) -> Iterator[Issue | Bulk]:
        """Load a tile window by window."""
        return timeline.load(self, number, tile)

    def multiply(self, number: int, tile: int) -> Iterator[Issue]:
        """Yield what installs a tile, feeds its activations and adds up the products."""
        g, first = self.groups[number], self.installed(self.loads[number], tile)
        for plane in PLANES:
            install = IW(columns=columns_of_plane(g, tile, plane))
            yield Issue(mxm(plane, Role.FEED), first - self.clock.of["IW"], install)
            for row in range(self.rows):
                activation = ABC(stream=Stream(plane >= 2, FEED.stream))
                yield Issue(mxm(plane, Role.FEED), first + row, activation)
                acc = ACC(slot=g.slot + row, first=tile == 0)
                yield Issue(mxm(plane, Role.DRAIN), self.multiplied(number, tile, row), acc)

    def alike(self, number: int, tile: int) -> tuple[int, Hashable]:
        """Return when a tile's first row is fed, its group's sums, and whether they begin."""
        return self.loads[number].fed(tile), (self.groups[number].slot, tile == 0)

    def parts(self, base: Callable[[str], int]) -> Iterator[Part]:
        """Yield the same as `issues`, each part once."""
        yield from timeline.parts(self)
        yield Part((0,), self._leave_again())

    def issues(self, base: Callable[[str], int]) -> Iterator[Issue | Bulk]:
        """Yield the MXM's instructions, and the ways to it and from it: sums leave twice."""
        yield from timeline.issues(self)
        yield from self._leave_again()

    def _leave_again(self) -> Iterator[Issue]:
        again = replace(self, groups=self.again)
        for number in range(len(self.groups)):
            yield from timeline.leave(again, number)

    def feeds(self) -> list[Placed]:
        """Return the activations' way, straight to the arrays: a row a cycle."""
        block = feed_block(self.clock.spec)
        return [
            Placed(block=block, start=self.installed(loads, tile) - self.clock.feed, n=self.rows,
                   interval=1, shift={"x": tile})
            for loads in self.loads for tile in range(self.tiles)
        ]  # fmt: skip


def _into_array(clock: Clock) -> int:
    """Cycles from a window's arrival at the planes to where it is in the arrays."""
    return clock.of["LW"] + clock.of["IW"]


def lay_out(op: Lstm, spec: ChipSpec) -> Cell:
    """Place the passes one behind another, then the rows' two steps."""
    clock, rows, tiles = Clock(spec), op.rows, 2 * vectors(op.hidden)
    columns, loads = columns_of(op.hidden, tiles), list[EvenLoads]()
    way = hops(mem(0, 1), mxm(0, Role.LOAD), spec)
    widths = [sum(len(one.windows(0)) for one in blocks) for blocks in columns]
    through = _into_array(clock) + clock.of["ABC"]
    at = max(clock.of["READ"] + way, clock.feed + 1 - widths[0] - _into_array(clock))
    for load in widths:  # from the first window on the way to the last row out of the array
        loads.append(EvenLoads(at, load, way + (load - 1) + through + (rows - 1)))
        at += tiles * loads[-1].interval
    added_up = at - way + clock.of["ACC"]
    groups, drains, written = _step(op, clock, columns, STATE, added_up, _state_block)
    again, outputs, _ = _step(op, clock, columns, SUMS, written + TILES, _output_block)
    return Cell(
        clock=clock, rows=rows, tiles=tiles, groups=groups, again=again, loads=tuple(loads),
        drains=(*drains, *outputs),
    )  # fmt: skip


def _step(
    op: Lstm, clock: Clock, columns: list[tuple[Columns, ...]], sums: Outputs, at: int,
    build: Callable[[Lstm, Clock, int, int], Block],
) -> tuple[tuple[ColumnGroup, ...], list[Placed], int]:  # fmt: skip
    """Take all rows' sums, from `at` on, through a block: the groups, the blocks, their end."""
    block, placed, groups = _overlapping(partial(build, op, clock)), [], []
    for number, blocks in enumerate(columns):
        drain = at + number * op.rows * block.interval
        groups.append(
            ColumnGroup(
                blocks=blocks, outputs=sums, slot=number * op.rows, drain=drain,
                pace=block.interval,
            )
        )  # fmt: skip
        start = drain + sums.delay(clock) - sums.arrival(clock)
        shift = {"c": number * 4, "h": number}
        placed.append(
            Placed(block=block, start=start, n=op.rows, interval=block.interval, shift=shift)
        )
    end = placed[-1].start + (op.rows - 1) * block.interval + block.end
    return tuple(groups), placed, end


def _overlapping(build: Callable[[int, int], Block]) -> Block:
    """Build a row's block at the shortest initiation interval that its ports and ALUs allow.

    `build` takes the cycles by which a value is made later than it could, and the interval. Raises
    TemplateError.
    """
    for interval in range(1, LONGEST + 1):
        for later in range(LATER):
            try:
                return build(later, interval).finish()
            except OverflowError:
                continue
    raise TemplateError(f"no interval of up to {LONGEST} cycles leaves enough ALUs")


def _state_block(op: Lstm, clock: Clock, later: int, interval: int) -> Block:
    """One row of one group: three gates' sums and the state to the new state."""
    b = Block(clock.spec, busy=never, interval=interval)
    b.reserve_inward(STATE.arrival(clock))
    gate, forget, cell = (_scaled(b, op, STATE, j, later * (j == CELL)) for j in range(3))
    new = b.alu(AluOp.TANH, cell)
    fresh = b.alu(AluOp.MUL, _sigmoid(b, gate), new)
    kept = b.alu(AluOp.MUL, _sigmoid(b, forget), Load(Ref("c", 0, 4), "f32"))
    b.alu(AluOp.ADD, fresh, kept, out=Ref("c", 0, 4))
    return b


def _output_block(op: Lstm, clock: Clock, later: int, interval: int) -> Block:
    """One row of one group: the output gate's sums and the new state to the output."""
    b = Block(clock.spec, busy=never, interval=interval)
    b.reserve_inward(SUMS.arrival(clock))
    output = _sigmoid(b, _scaled(b, op, SUMS, OUTPUT, 0))
    in_time = output.done - clock.of["TANH"] + later
    state = b.alu(AluOp.TANH, Load(Ref("c", 0, 4), "f32"), after=in_time)
    h = b.alu(AluOp.MUL, b.alu(AluOp.MUL, state, output), f32(127.0))
    b.alu(AluOp.CVT_I8, h, out=Ref("h", 0, 1))
    return b


def _scaled(b: Block, op: Lstm, sums: Outputs, j: int, later: int) -> Node:
    """Add the planes' parts of a gate's sums and scale them, for a sigmoid by half."""
    at = sums.arrival(Clock(b.spec))
    parts = [b.alu(AluOp.ADD, sums.part(q, j), sums.part(2 + q, j), at=at) for q in (0, 1)]
    total = b.alu(AluOp.ADD, *parts)
    x = b.alu(AluOp.CVT_F32, total, after=total.done + later)
    return b.alu(AluOp.MUL, x, f32(op.scale if j == CELL else op.scale / 2))


def _sigmoid(b: Block, half: Node) -> Node:
    """The sigmoid of twice a value."""
    y = b.alu(AluOp.TANH, half)
    return b.alu(AluOp.ADD, b.alu(AluOp.MUL, y, f32(0.5)), f32(0.5))


def lstm(op: Lstm, spec: ChipSpec) -> Template:
    """Return the cell's template."""
    cell = lay_out(op, spec)
    tiles = vectors(op.hidden)
    end = max(p.start + (p.n - 1) * p.interval + p.block.end for p in cell.drains)
    found = Template(
        placed=(*cell.feeds(), *cell.drains),
        cycles=end + TILES,  # the last of the 20 superlanes is so much later than the first
        row_vectors={"x": 2 * tiles, "c": 4 * tiles, "h": tiles},
        streams=(cell,),
    )
    check("lstm", found.asked())
    return found
