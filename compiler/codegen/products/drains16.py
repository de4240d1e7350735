"""The VXM's part in an fp16 product: both pairs' sums of each block, side by side and rounded."""

from __future__ import annotations

from dataclasses import dataclass, field

from chip.isa.instructions import AluOp
from chip.isa.operands import Group, In, Stream, group
from chip.ops.product import Matmul
from chip.spec import vectors
from compiler.codegen.core.builder import C2C_TURN, Block, Load, Node, Ref
from compiler.codegen.core.clock import Clock
from compiler.codegen.products.columns16 import Columns
from compiler.codegen.products.resources import FEED, SUMS16
from compiler.codegen.products.shares import ALONE, Registers, Share
from compiler.codegen.products.sums import biased, limited


@dataclass(slots=True)
class Drains16:
    """Builds the blocks that take a row of a group's sums; keeps each for groups that are alike."""

    op: Matmul
    clock: Clock
    share: Share | None = None  # of a weighted sum
    registers: Registers = ALONE
    _blocks: dict[object, Block] = field(default_factory=dict)

    @property
    def delay(self) -> int:
        """Cycles from a drain's issue to its arrival at the VXM."""
        return self.clock.of["ACC"] + self.clock.of["PERMUTE"] + self.clock.to_mxm

    def arrival(self, drain: int) -> int:
        """Return the sums' cycle in a drain block: blocks start on whole turns of the ports."""
        return (drain + self.delay) % C2C_TURN

    def block(self, blocks: tuple[Columns, ...], near: frozenset[int], drain: int) -> Block:
        """Return the block that takes one row of a group's sums.

        `near`: cycles at which an only row's activations, or transfers in the gaps between loads,
        take the ports; several rows' activations have the even ones.
        """
        arrival, item = self.arrival(drain), self.op.out_bytes
        key = (tuple(block.width for block in blocks), near, arrival)
        if key not in self._blocks:
            alone = self.op.rows == 1

            def busy(cycle: int) -> bool:
                fed = cycle in near if alone else cycle % 2 == 0
                return fed or cycle % C2C_TURN == C2C_TURN - 1

            stride = 1 if alone else 2
            pinned = FEED.pinned | (set() if self.registers is ALONE else self.registers.pinned)
            b = Block(self.clock.spec, pinned=pinned, busy=busy, stride=stride)
            joined = [_join(b, block, j, arrival) for j, block in enumerate(blocks)]

            def of_columns(j: int) -> Load:
                return Load(Ref("b", 4 * j, vectors(blocks[j].width * 4)), "f32")

            joined = limited(b, self.op, biased(b, self.op, joined, of_columns))
            for j, (total, block) in enumerate(zip(joined, blocks, strict=True)):
                if self.share is not None:
                    self.share.follow(b, total, j, self.registers.weight)
                    continue
                out = Ref("y", item * j, vectors(block.width * item))
                op = AluOp.COPY if item == 4 else AluOp.CVT_F16
                b.alu(op, total, lanes=block.width, out=out)
            self._blocks[key] = b.finish()
        return self._blocks[key]


def _join(b: Block, block: Columns, j: int, at: int) -> Node:
    """Put a block's columns together: a sum is never -0, so a bitwise OR with zeros is it."""
    parts = [In(turned(pair, j, block.width), "f32") for pair in (0, 1)]
    if block.even:
        return b.alu(AluOp.OR, *parts, at=at, lanes=block.width)
    return b.alu(AluOp.COPY, parts[1], at=at, lanes=block.width)


def turned(pair: int, j: int, width: int) -> Group:
    """Streams on which block j of a pair comes to the VXM."""
    return group(Stream(pair == 0, SUMS16.turned + 4 * j), vectors(width * 4))
