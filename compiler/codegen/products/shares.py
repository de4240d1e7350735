"""A product that is one of several: its registers, and what follows it in a weighted sum."""

from __future__ import annotations

from dataclasses import dataclass

from chip.isa.instructions import AluOp
from chip.isa.operands import Held
from chip.spec import vectors
from compiler.codegen.core.builder import Block, Load, Node, Ref
from compiler.codegen.core.parts import f32
from compiler.codegen.products.resources import ROW_SCALE, SECOND, SHARE


@dataclass(frozen=True, slots=True)
class Registers:
    """ALUs that keep what a product has of its row, and those that its blocks may not take."""

    scale: int
    weight: int
    pinned: frozenset[int]


ALONE = Registers(ROW_SCALE.scale, SHARE.weight, frozenset({ROW_SCALE.scale}))
_BOTH = frozenset({ROW_SCALE.scale, SHARE.weight, SECOND.scale, SECOND.weight})
IN_TURN = (
    Registers(ROW_SCALE.scale, SHARE.weight, _BOTH), Registers(SECOND.scale, SECOND.weight, _BOTH),
)  # fmt: skip
"""Of the first, and of the second, of two products that overlap."""


@dataclass(frozen=True, slots=True)
class Share:
    """Which of the sum's products: with the `first` the sum begins, with the `last` it is done.

    The sum so far is t [n] fp32; the result y is rounded to fp16.
    """

    first: bool
    last: bool

    @property
    def out(self) -> str:
        """The operand that is written."""
        return "y" if self.last else "t"

    def follow(self, b: Block, y: Node, column: int, weight: int) -> None:
        """Add a vector of products, times what an ALU keeps, to the sum from a column on."""
        part = b.alu(AluOp.MUL, Held(weight), y, lanes=y.lanes)
        before = Ref("t", 4 * column, vectors(4 * y.lanes))
        so_far = f32(0.0) if self.first else Load(before, "f32")
        total = b.alu(AluOp.ADD, so_far, part, lanes=y.lanes)
        if self.last:
            out = Ref("y", 2 * column, vectors(2 * y.lanes))
            b.alu(AluOp.CVT_F16, total, lanes=y.lanes, out=out)
        else:
            b.alu(AluOp.COPY, total, lanes=y.lanes, out=before)
