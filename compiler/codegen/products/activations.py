"""How a product's activations come to the planes: work memory, VXM, both sides; and their scale."""

from __future__ import annotations

from chip.isa.instructions import AluOp
from chip.isa.operands import Stream, group
from chip.spec import ChipSpec, vectors
from compiler.codegen.core.builder import Block, Load, Node, Ref
from compiler.codegen.products.resources import FEED, FEED_BESIDE


def never(cycle: int) -> bool:
    """Tell that no cycle of the ports is another's."""
    return False


def feed_block(spec: ChipSpec, operand: str = "x", stream: int = FEED.stream) -> Block:
    """Return the block that sends a vector of activations from work memory to all planes."""
    block = Block(spec, busy=never)
    at, x = block.delay["READ"].d_func + 1, Load(Ref(operand, 0, 1), "i8")
    west, east = (group(Stream(side == 1, stream), 1) for side in (0, 1))
    node = block.alu(AluOp.COPY, x, at=at, on=FEED.alus[0], out=west)
    block.twin(node, FEED.alus[1], east)
    return block.finish()


def feed_beside(spec: ChipSpec) -> Block:
    """Return the block that sends a vector of activations to all planes beside their loads.

    It passes on a stream that rows' scales take on their way to an SXM, a cycle later than it must:
    so it is never where a scale is that was read in an odd cycle of the port, itself in an even.
    """
    block = Block(spec, busy=never)
    at, x = block.delay["READ"].d_func + 1, Load(Ref("x", 0, 1), "i8")
    first = block.alu(AluOp.COPY, x, at=at, on=FEED_BESIDE.first)
    west, east = (group(Stream(side == 1, FEED_BESIDE.stream), 1) for side in (0, 1))
    node = block.alu(AluOp.COPY, first, at=first.done, on=FEED_BESIDE.alus[0], out=west)
    block.twin(node, FEED_BESIDE.alus[1], east)
    return block.finish()


def row_scale(b: Block, rows: int, on: int | None = None) -> Node:
    """Bring the block's row's scale to every lane."""
    at, operand = b.through_sxm(Ref("s", 0, vectors(rows * 4)), None, 4, rows)
    return b.alu(AluOp.COPY, operand, at=at, on=on)
