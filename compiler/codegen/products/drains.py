"""The VXM's part in one row's product: dequantise the sums, and what follows it (its epilogue).

`add`: the fp16 result is added to the residual. `silu`: gate and up columns alternate
(chip.ops.rows.gated_widths), and the result is silu(gate) * up. A pair of blocks is worked on
at once, but for the last: what its gate gives waits in a register for the up columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

from chip.isa.instructions import AluOp
from chip.isa.operands import Held
from chip.ops.product import AddTo, Gated, Matmul
from chip.spec import VECTOR_BYTES, vectors
from compiler.codegen.core.builder import C2C_TURN, LANES, Block, Load, Node, NodeSource, Ref
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.template import Placed
from compiler.codegen.gates import ACTIVATIONS, ANY, risen
from compiler.codegen.products.columns import Columns, blocks_of, gated_groups, row_groups
from compiler.codegen.products.gaps import link_turns
from compiler.codegen.products.resources import FEED, GATE
from compiler.codegen.products.shares import ALONE, Registers, Share
from compiler.codegen.products.sums import ARRIVAL, Outputs, added, biased, dequantised, limited
from compiler.codegen.products.timeline import ColumnGroup
from compiler.codegen.vector import Run, joined

LEAD = 8  # cycles that the work on two groups is apart
FAR = 40  # the same where columns' scales come by way of an SXM
SPAN = 400  # cycles that a drain block may last
DEQUANTISED = 20  # cycles from the sums' arrival at which they are dequantised
FOLLOWED = ("gate", "up")  # blocks apart, the last


@dataclass(slots=True)
class Drains:
    """Builds the blocks that take a group's sums; keeps each for groups that are alike."""

    op: Matmul
    clock: Clock
    share: Share | None = None  # of a weighted sum
    registers: Registers = ALONE
    _blocks: dict[object, Block] = field(default_factory=dict)

    @property
    def _gated(self) -> bool:
        return isinstance(self.op.result, Gated)

    @property
    def _pairs(self) -> int:
        """Pairs of whole blocks, a gate and an up block each."""
        return self.op.n // (2 * LANES)

    def groups(self) -> list[tuple[Columns, ...]]:
        """Return the blocks of columns that are in the planes together."""
        columns = blocks_of(self.op.n, vectors(self.op.k))
        return gated_groups(columns, self._pairs) if self._gated else row_groups(columns)

    def _kind(self, blocks: tuple[Columns, ...]) -> str:
        if self.share is not None:
            return "share"
        if not self._gated:
            return "add" if isinstance(self.op.result, AddTo) else self.op.out
        place = blocks[0].first // LANES
        if len(blocks) > 1 or place >= 2 * self._pairs:
            return "pair" if len(blocks) > 1 else "halves"
        return FOLLOWED[place % 2]

    def outputs(self, blocks: tuple[Columns, ...]) -> Outputs:
        """Return the vectors of sums that a group gives: of a half gate, half up block two."""
        if self._kind(blocks) == "halves":
            return Outputs((blocks[0].width // 2,) * 2, halves=True)
        return Outputs(tuple(block.width for block in blocks))

    def hold(self, blocks: tuple[Columns, ...], block: Block) -> int:
        """Return the cycles from its sums' arrival to where the next group's work may begin.

        A gate's activation, be it short or long, has ALUs of its own from dequantisation on.
        """
        if self._kind(blocks) == "gate":
            return max(DEQUANTISED, block.end - ARRIVAL - DEQUANTISED - LEAD)
        return block.end - ARRIVAL

    def lead(self, blocks: tuple[Columns, ...]) -> int:
        """Return the cycles before its sums' arrival at which a group's work begins."""
        return FAR if self._kind(blocks) == "halves" else LEAD

    def start(self, g: ColumnGroup) -> int:
        """Return when the block of a group starts: its sums arrive at cycle `ARRIVAL` of it."""
        return g.drain + g.outputs.delay(self.clock) - ARRIVAL

    def place(self, g: ColumnGroup, port_cycles: Iterable[int]) -> Placed:
        """Place a group's block. `port_cycles`: at which the port is the activations'."""
        start = self.start(g)
        busy = frozenset(c - start for c in port_cycles if 0 <= c - start < SPAN)
        block = self.block(g.blocks, start, busy)
        return Placed(block=block, start=start, shift=self._shift(g.blocks))

    def _shift(self, blocks: tuple[Columns, ...]) -> dict[str, int]:
        """Return how far a group's columns are from the operands' first, in vectors."""
        column = blocks[0].first
        scales, result = column * 4 // VECTOR_BYTES, column * self.op.out_bytes // VECTOR_BYTES
        if self._gated:
            result = (column - LANES * (self._kind(blocks) == "up")) // LANES
        return {"sw": scales, "b": scales, "y": result, "r": scales, "t": scales}

    def block(
        self, blocks: tuple[Columns, ...], start: int, busy: frozenset[int] = frozenset()
    ) -> Block:
        """Return the block that takes a group's sums. `busy`: the port is the activations'."""
        kind, outputs, turns = self._kind(blocks), self.outputs(blocks), link_turns(self.clock)
        key = (kind, outputs, start % C2C_TURN, busy)
        if key not in self._blocks:
            b = Block(
                self.clock.spec,
                pinned=FEED.pinned
                | self.registers.pinned
                | (GATE.pinned if kind in FOLLOWED else set()),
                busy=lambda cycle: cycle in busy or (start + cycle) % C2C_TURN in turns,
            )

            def of_columns(operand: str, j: int) -> NodeSource:
                run = Run(operand, sum(outputs.widths[:j]), outputs.widths[j])
                return joined(b, [run], 4, ARRIVAL + LEAD)

            sums, scale = added(b, outputs, ARRIVAL), Held(self.registers.scale)
            scaled = dequantised(b, sums, scale, partial(of_columns, "sw"))
            summed = biased(b, self.op, scaled, partial(of_columns, "b"))
            self._follow(b, kind, limited(b, self.op, summed))
            self._blocks[key] = b.finish()
        return self._blocks[key]

    def _follow(self, b: Block, kind: str, scaled: list[Node]) -> None:
        """Do with a group's dequantised sums what follows the product."""
        if self.share is not None:
            for j, y in enumerate(scaled):
                self.share.follow(b, y, j, self.registers.weight)
        elif kind == "gate" and isinstance(self.op.result, Gated):
            ACTIVATIONS[self.op.result.activation](b, scaled[0], GATE.chain)
        elif isinstance(self.op.result, Gated):
            activation = self.op.result.activation
            if kind == "up":
                up = risen(b, activation, scaled[0], LANES)
                _store_f16(b, b.alu(AluOp.MUL, Held(GATE.gated), up), 0)
                return
            for pair in range(len(scaled) // 2):
                gate, other = scaled[2 * pair : 2 * pair + 2]
                gated = ACTIVATIONS[activation](b, gate, ANY)
                up = risen(b, activation, other, gate.lanes)
                _store_f16(b, b.alu(AluOp.MUL, gated, up, lanes=gate.lanes), 2 * pair)
        else:
            for j, y in enumerate(scaled):
                _store(b, kind, y, j)


def _store(b: Block, kind: str, y: Node, j: int) -> None:
    """Write a vector of results as they are, added to the residual, or rounded to fp16."""
    wide = Ref("r" if kind == "add" else "y", 4 * j, vectors(4 * y.lanes))
    if kind == "f32":
        b.alu(AluOp.COPY, y, lanes=y.lanes, out=wide)
    elif kind == "add":
        half = b.alu(AluOp.CVT_F16, y, lanes=y.lanes)
        delta = b.alu(AluOp.CVT_F32, half, lanes=y.lanes)
        total = b.alu(AluOp.ADD, Load(wide, "f32"), delta, lanes=y.lanes)
        b.alu(AluOp.COPY, total, lanes=y.lanes, out=wide)  # when the port allows
    else:
        _store_f16(b, y, 2 * j)


def _store_f16(b: Block, y: Node, vector: int) -> None:
    b.alu(AluOp.CVT_F16, y, lanes=y.lanes, out=Ref("y", vector, vectors(2 * y.lanes)))
