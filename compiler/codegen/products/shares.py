"""A product that is one of a weighted sum: what follows it instead of its own result."""

from __future__ import annotations

from dataclasses import dataclass

from chip.isa.instructions import AluOp
from chip.isa.operands import Held
from chip.spec import vectors
from compiler.codegen.core.builder import Block, Load, Node, Ref
from compiler.codegen.core.parts import f32
from compiler.codegen.products.resources import SHARE


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

    def follow(self, b: Block, y: Node, column: int) -> None:
        """Add a vector of products, times the share's weight, to the sum from a column on."""
        part = b.alu(AluOp.MUL, Held(SHARE.weight), y, lanes=y.lanes)
        before = Ref("t", 4 * column, vectors(4 * y.lanes))
        so_far = f32(0.0) if self.first else Load(before, "f32")
        total = b.alu(AluOp.ADD, so_far, part, lanes=y.lanes)
        if self.last:
            out = Ref("y", 2 * column, vectors(2 * y.lanes))
            b.alu(AluOp.CVT_F16, total, lanes=y.lanes, out=out)
        else:
            b.alu(AluOp.COPY, total, lanes=y.lanes, out=before)
