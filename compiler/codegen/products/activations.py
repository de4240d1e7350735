"""How a product's activations come to the planes: work memory, VXM, both sides; and their scale."""

from __future__ import annotations

from chip.isa.instructions import AluOp
from chip.isa.operands import Stream, group
from chip.spec import ChipSpec, vectors
from compiler.codegen.core.builder import Block, Load, Node, Ref
from compiler.codegen.core.clock import Clock
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


def feed_beside(spec: ChipSpec, copies: int) -> Block:
    """Return the block that sends a vector of activations to all planes beside their loads.

    `copies` pass it on in the VXM before it leaves (`copies_before`).
    """
    block = Block(spec, busy=never, feed=frozenset({"x"}))
    at, x = block.delay["READ"].d_func + 1, Load(Ref("x", 0, 1), "i8")
    west, east = (group(Stream(side == 1, FEED_BESIDE.stream), 1) for side in (0, 1))
    value: Load | Node = x
    for number in FEED_BESIDE.before[:copies]:
        value = block.alu(AluOp.COPY, value, at=at, on=number)
        at = value.done
    node = block.alu(AluOp.COPY, value, at=at, on=FEED_BESIDE.alus[0], out=west)
    block.twin(node, FEED_BESIDE.alus[1], east)
    return block.finish()


def copies_before(clock: Clock, turn: int) -> int:
    """Return how many copies activations pass in the VXM before they leave it.

    Where activations leave a cycle of each turn free at the accumulators, sums leave these, and
    come to the VXM through an SXM. Activations then leave free the cycle in which the sums are
    there, for both are on streams of work memory. Raises OverflowError where no number does it.
    """
    of = clock.of
    way = of["COPY"] + 2 * clock.to_mxm + of["ABC"] + of["ACC"] + of["PERMUTE"]
    for copies in range(len(FEED_BESIDE.before) + 1):
        if (way + copies * of["COPY"]) % turn == 0:
            return copies
    raise OverflowError(f"copies of {of['COPY']} cycles do not fill {way} to a multiple of {turn}")


def row_scale(b: Block, rows: int, on: int | None = None) -> Node:
    """Bring the block's row's scale to every lane."""
    at, operand = b.through_sxm(Ref("s", 0, vectors(rows * 4)), None, 4, rows)
    return b.alu(AluOp.COPY, operand, at=at, on=on)
