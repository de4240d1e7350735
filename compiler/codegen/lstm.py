"""An LSTM cell as one operation: [x, h] . W, then gates, cell state and output; int8 in and out.

The published single-chip program (docs/hardware.md, Single-chip results): the gates' columns share
the planes, weight loads are not overlapped with products, and the vector work follows. One scale
for all weights and activations (assumption: the published cell's quantisation is unknown), so the
VXM needs nothing from memory but the cell state. sigmoid(x) = tanh(x / 2) / 2 + 1 / 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from chip.floorplan import Role, hops, mem, mxm
from chip.isa.instructions import ABC, ACC, IW, TILES, AluOp
from chip.isa.issue import Issue
from chip.isa.operands import Stream
from chip.ops.kv import WINDOW_VECTORS
from chip.ops.opcodes import BOUND
from chip.spec import ChipSpec, vectors
from compiler.codegen.core.builder import C2C_TURN, LANES, Block, Load, Node, Ref
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.template import Placed, Template, paced
from compiler.codegen.core.uses import check
from compiler.codegen.products import timeline
from compiler.codegen.products.activations import feed_block
from compiler.codegen.products.columns import Columns
from compiler.codegen.products.resources import FEED
from compiler.codegen.products.rows import EvenLoads
from compiler.codegen.products.sums import Outputs
from compiler.codegen.products.timeline import PLANES, ColumnGroup, columns_of_plane
from compiler.codegen.vector import f32

GATES = 4  # input, forget, cell, output
ORDER = (1, 2, 0, 3)  # in which they are worked on
SUMS = Outputs((LANES,) * GATES)


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
    groups: tuple[ColumnGroup, ...]
    loads: tuple[EvenLoads, ...]  # of each group
    drains: tuple[Placed, ...]

    def window_cycle(self, number: int, tile: int, window: int, plane: int) -> int:
        """Return when a tile's window arrives: all planes take their part at once."""
        loads = self.loads[number]
        return loads.start + tile * loads.interval + window

    def multiplied(self, number: int, tile: int, row: int) -> int:
        """Return when a row's product of a tile is added up: rows come a cycle apart."""
        return self.loads[number].fed(tile) + 1 + self.clock.of["ABC"] + row

    def multiply(self, number: int, tile: int) -> Iterator[Issue]:
        """Yield what installs a tile, feeds its activations and adds up the products."""
        g, fed = self.groups[number], self.loads[number].fed(tile)
        for plane in PLANES:
            yield Issue(mxm(plane, Role.FEED), fed, IW(columns=columns_of_plane(g, tile, plane)))
            for row in range(self.rows):
                activation = ABC(stream=Stream(plane >= 2, FEED.stream))
                yield Issue(mxm(plane, Role.FEED), fed + 1 + row, activation)
                acc = ACC(slot=g.slot + row, first=tile == 0)
                yield Issue(mxm(plane, Role.DRAIN), self.multiplied(number, tile, row), acc)

    def issues(self, base: Callable[[str], int]) -> Iterator[Issue]:
        """Yield the MXM's instructions, and the ways to it and from it."""
        return timeline.issues(self, base)

    def feeds(self) -> list[Placed]:
        """Return the activations' way, straight to the arrays: a row a cycle."""
        block = feed_block(self.clock.spec)
        fed = [(loads.fed(tile) + 1, tile) for loads in self.loads for tile in range(self.tiles)]
        return [
            Placed(block=block, start=at - self.clock.feed, n=self.rows, interval=1,
                   shift={"x": tile}) for at, tile in fed
        ]  # fmt: skip


def lay_out(op: Lstm, spec: ChipSpec) -> Cell:
    """Place the passes one behind another, then each group's rows."""
    clock, rows, tiles = Clock(spec), op.rows, 2 * vectors(op.hidden)
    block = paced(lambda apart: _row_block(op, clock, apart))
    at, loads = clock.of["READ"] + clock.to_mxm + clock.feed, []
    columns = columns_of(op.hidden, tiles)
    for blocks in columns:
        load = sum(len(one.windows(0)) for one in blocks)
        fill = clock.of["READ"] + hops(mem(0, 1), mxm(0, Role.LOAD), spec)
        done = clock.of["ABC"] + clock.of["ACC"]
        loads.append(EvenLoads(at, load, fill + load + 1 + rows - 1 + done))
        at += tiles * loads[-1].interval
    groups, drains = [], []
    for number, blocks in enumerate(columns):
        drain = at + number * rows * C2C_TURN
        groups.append(
            ColumnGroup(blocks=blocks, outputs=SUMS, slot=number * rows, drain=drain, pace=C2C_TURN)
        )
        start, shift = (
            drain + SUMS.delay(clock) - SUMS.arrival(clock),
            {"c": number * 4, "h": number},
        )
        drains.append(Placed(block=block, start=start, n=rows, interval=C2C_TURN, shift=shift))
    return Cell(
        clock=clock, rows=rows, tiles=tiles, groups=tuple(groups), loads=tuple(loads),
        drains=tuple(drains),
    )  # fmt: skip


def _row_block(op: Lstm, clock: Clock, apart: int) -> Block:
    """One row of one group: four gates' sums to cell state and output.

    `apart`: cycles from gate to gate.
    """
    b = Block(clock.spec, interval=C2C_TURN)
    arrival = SUMS.arrival(clock)
    b.reserve_inward(arrival)
    halves = [
        [b.alu(AluOp.ADD, SUMS.part(q, j), SUMS.part(2 + q, j), at=arrival) for q in (0, 1)]
        for j in range(GATES)
    ]
    sums = [b.alu(AluOp.ADD, *pair) for pair in halves]
    gate, forget, cell, output = (
        _squash(b, op.scale, total, j, apart) for j, total in enumerate(sums)
    )
    fresh = b.alu(AluOp.MUL, gate, cell)
    kept = b.alu(AluOp.MUL, forget, Load(Ref("c", 0, 4), "f32"))
    state = b.alu(AluOp.ADD, fresh, kept, out=Ref("c", 0, 4))
    h = b.alu(AluOp.MUL, b.alu(AluOp.TANH, state), output)
    h = b.alu(AluOp.MUL, h, f32(127.0))
    b.alu(AluOp.CVT_I8, h, out=Ref("h", 0, 1))
    return b


def _squash(b: Block, scale: float, total: Node, j: int, apart: int) -> Node:
    """Scale a gate's sums and apply tanh (the cell's own gate) or the sigmoid."""
    x = b.alu(AluOp.CVT_F32, total, after=total.done + ORDER[j] * apart)
    if j == 2:
        return b.alu(AluOp.TANH, b.alu(AluOp.MUL, x, f32(scale)))
    y = b.alu(AluOp.TANH, b.alu(AluOp.MUL, x, f32(scale / 2)))
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
