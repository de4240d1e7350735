"""An LSTM cell as one operation: [x, h] . W, then gates, cell state and output; int8 in and out.

The published single-chip program (docs/hardware.md, Single-chip results): the gates' columns share
the planes, weight loads are not overlapped with products, and the vector work follows. One scale
for all weights and activations (assumption: the published cell's quantisation is unknown), so the
VXM needs nothing from memory but the cell state. sigmoid(x) = tanh(x / 2) / 2 + 1 / 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from chip.floorplan import Role, hops, mem, mxm
from chip.isa.instructions import ABC, ACC, IW, TILES, AluOp
from chip.isa.issue import Issue
from chip.isa.operands import Stream
from chip.ops.opcodes import BOUND
from chip.spec import ChipSpec, vectors
from compiler.codegen.core.builder import C2C_TURN, LANES, Block, Load, Node, Ref
from compiler.codegen.core.template import Placed, Template, paced
from compiler.codegen.core.uses import check
from compiler.codegen.products.columns import WINDOW, ColumnGroup, Columns
from compiler.codegen.products.product import Product
from compiler.codegen.products.prologue import FEED
from compiler.codegen.vector import f32

GATES = 4  # input, forget, cell, output
ORDER = (1, 2, 0, 3)  # in which they are worked on


def columns_of(hidden: int, tiles: int) -> list[tuple[Columns, ...]]:
    """Return, for each 320 units of the hidden state, the blocks of the four gates.

    Widths are whole windows of 64: what is beyond `hidden` is padding.
    """
    out, vector = [], 0
    for first in range(0, hidden, LANES):
        width = min(LANES, -(-(hidden - first) // WINDOW) * WINDOW)
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


class Cell(Product):
    """The timeline of one cell: passes one after another, then the rows' vector work."""

    def __init__(self, op: Lstm, spec: ChipSpec) -> None:
        self.op = op
        n = GATES * op.hidden
        super().__init__(spec, rows=op.rows, k=2 * LANES * vectors(op.hidden), n=n, item=1)

    def _lay_out(self) -> None:
        self.half_rate = False
        row_block = paced(self._row_block)
        first = self.delay["READ"].d_func + self.to_mxm
        at = first + self.feed_delay
        for number, blocks in enumerate(columns_of(self.op.hidden, self.tiles)):
            load = sum(len(block.windows(0)) for block in blocks)
            fill = self.delay["READ"].d_func + hops(mem(0, 1), mxm(0, Role.LOAD), self.spec)
            done = self.delay["ABC"].d_func + self.delay["ACC"].d_func
            period = fill + load + 1 + self.rows - 1 + done
            self.groups.append(ColumnGroup(blocks, load, period, at, 0, number, C2C_TURN))
            at += self.tiles * period
        for number, g in enumerate(self.groups):
            drain = at + number * self.rows * C2C_TURN
            self.groups[number] = replace(g, drain=drain)
            start = drain + self._drain_delay(GATES) - self._arrival(GATES)
            lanes = number * LANES
            shift = {"c": lanes * 4 // LANES, "h": number}
            self.drains.append(
                Placed(block=row_block, start=start, n=self.rows, period=C2C_TURN, shift=shift)
            )

    def multiplied(self, g: ColumnGroup, tile: int) -> int:
        return self.fed(g, tile) + 1 + self.delay["ABC"].d_func

    def feeds(self) -> list[Placed]:
        """Activations go straight to the arrays, a row a cycle."""
        return [
            replace(p, start=p.start + 1, period=1) for p in super().feeds() if p.n == self.rows
        ]

    def _multiply(self, g: ColumnGroup, tile: int) -> Iterator[Issue]:
        fed, out = self.fed(g, tile), self.multiplied(g, tile)
        for plane in range(4):
            yield Issue(mxm(plane, Role.FEED), fed, IW(columns=self._columns(g, tile, plane)))
            for row in range(self.rows):
                activation = ABC(stream=Stream(plane >= 2, FEED))
                yield Issue(mxm(plane, Role.FEED), fed + 1 + row, activation)
                acc = ACC(slot=g.parity * self.rows + row, first=tile == 0)
                yield Issue(mxm(plane, Role.DRAIN), out + row, acc)

    def _widths(self, blocks: tuple[Columns, ...]) -> list[int]:
        return [LANES] * GATES

    def _row_block(self, apart: int) -> Block:
        """One row of one group: four gates' sums to cell state and output.

        `apart`: cycles from gate to gate.
        """
        b = Block(self.spec, period=C2C_TURN)
        arrival = self._arrival(GATES)
        b.reserve_inward(arrival)
        halves = [
            [b.alu(AluOp.ADD, self._part(GATES, q, j, LANES), self._part(GATES, 2 + q, j, LANES),
                   at=arrival) for q in (0, 1)]
            for j in range(GATES)
        ]  # fmt: skip
        sums = [b.alu(AluOp.ADD, *pair) for pair in halves]
        gate, forget, cell, output = (
            self._squash(b, total, j, apart) for j, total in enumerate(sums)
        )
        fresh = b.alu(AluOp.MUL, gate, cell)
        kept = b.alu(AluOp.MUL, forget, Load(Ref("c", 0, 4), "f32"))
        state = b.alu(AluOp.ADD, fresh, kept, out=Ref("c", 0, 4))
        h = b.alu(AluOp.MUL, b.alu(AluOp.TANH, state), output)
        h = b.alu(AluOp.MUL, h, f32(127.0))
        b.alu(AluOp.CVT_I8, h, out=Ref("h", 0, 1))
        return b

    def _squash(self, b: Block, total: Node, j: int, apart: int) -> Node:
        """Scale a gate's sums and apply tanh (the cell's own gate) or the sigmoid."""
        scale = self.op.scale
        x = b.alu(AluOp.CVT_F32, total, after=total.done + ORDER[j] * apart)
        if j == 2:
            return b.alu(AluOp.TANH, b.alu(AluOp.MUL, x, f32(scale)))
        y = b.alu(AluOp.TANH, b.alu(AluOp.MUL, x, f32(scale / 2)))
        return b.alu(AluOp.ADD, b.alu(AluOp.MUL, y, f32(0.5)), f32(0.5))


def lstm(op: Lstm, spec: ChipSpec) -> Template:
    """Return the cell's template."""
    cell = Cell(op, spec)
    tiles = vectors(op.hidden)
    end = max(p.start + (p.n - 1) * p.period + p.block.end for p in cell.drains)
    found = Template(
        placed=(*cell.feeds(), *cell.drains),
        cycles=end + TILES,  # the last of the 20 superlanes is so much later than the first
        row_vectors={"x": 2 * tiles, "c": 4 * tiles, "h": tiles},
        streams=(cell,),
    )
    check("lstm", found.asked())
    return found
