"""How a group's sums come to the VXM, and what it does with them first.

Each plane's part of a vector of sums comes on streams of its own, in the lanes of its columns. The
VXM adds the four planes' parts and dequantises the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chip.isa.instructions import AluOp
from chip.isa.operands import STREAMS, In, Stream, group
from chip.ops.product import Capped, Matmul
from chip.spec import vectors
from compiler.codegen.core.builder import Block
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.parts import Node, NodeSource
from compiler.codegen.gates import capped
from compiler.codegen.products.columns import spread_of
from compiler.codegen.products.resources import SUMS

ARRIVAL = 64  # cycle of a drain block (or the next) at which the sums come to the VXM


@dataclass(frozen=True, slots=True)
class Outputs:
    """The vectors of sums that a group gives, by their lanes.

    `halves`: there are two, of one block: half of its columns each. `packed`: a plane has its
    columns of each block side by side, also of a block alone.
    """

    widths: tuple[int, ...]
    halves: bool = False
    packed: bool = False

    @property
    def turned(self) -> bool:
        """Whether the SXM puts the columns in their lanes; a vector alone comes as it is."""
        return len(self.widths) > 1 or self.packed

    def spread(self, run: int, j: int) -> tuple[int | None, ...]:
        """Return the lane map that puts a plane's part of vector j in place."""
        if not self.halves:
            return spread_of(run, j)[: self.widths[j]]
        width = self.widths[j]
        return tuple(range(j * width, (j + 1) * width))

    def part(self, plane: int, j: int) -> In:
        """Return where one plane's part of vector j comes from."""
        nth = plane % 2  # of its side
        first = SUMS.turned + STREAMS // 2 * nth + 4 * j if self.turned else SUMS.left + 4 * nth
        return In(group(Stream(plane < 2, first), vectors(self.widths[j] * 4)), "i32")

    def delay(self, clock: Clock) -> int:
        """Return the cycles from a drain's issue to its arrival at the VXM."""
        through = clock.of["PERMUTE"] if self.turned else 0
        return clock.of["ACC"] + through + clock.to_mxm

    def arrival(self, clock: Clock) -> int:
        """Return the sums' cycle in a drain block, for drains and blocks on even cycles."""
        return ARRIVAL + self.delay(clock) % 2


def added(b: Block, outputs: Outputs, arrival: int) -> list[Node]:
    """Add the planes' parts of each vector of sums, which come at `arrival`."""
    b.reserve_inward(arrival)
    sums = []
    for j, width in enumerate(outputs.widths):
        parts = [
            b.alu(AluOp.ADD, *(outputs.part(2 * h + q, j) for h in (0, 1)), at=arrival, lanes=width)
            for q in (0, 1)
        ]
        sums.append(b.alu(AluOp.ADD, *parts, lanes=width))
    return sums


def dequantised(
    b: Block, sums: list[Node], row_scale: NodeSource, column_scales: Callable[[int], NodeSource],
    late: Sequence[int] = (0, 0, 0, 0),
) -> list[Node]:  # fmt: skip
    """Multiply each vector of sums by its row's scale, then by its columns' scales.

    `late`: the cycles by which work on each is behind, so that not all need an ALU at once.
    """
    out = []
    for j, total in enumerate(sums):
        y = b.alu(AluOp.CVT_F32, total, lanes=total.lanes, after=total.done + late[j])
        y = b.alu(AluOp.MUL, y, row_scale, lanes=total.lanes)
        out.append(b.alu(AluOp.MUL, y, column_scales(j), lanes=total.lanes))
    return out


def biased(
    b: Block, op: Matmul, values: list[Node], column_biases: Callable[[int], NodeSource]
) -> list[Node]:  # fmt: skip
    """Add the columns' biases to each vector of results, where the product has any."""
    if op.b is None:
        return values
    return [b.alu(AluOp.ADD, column_biases(j), y, lanes=y.lanes) for j, y in enumerate(values)]


def limited(b: Block, op: Matmul, values: list[Node]) -> list[Node]:
    """Cap each vector of results, where the product's are capped."""
    if not isinstance(op.result, Capped):
        return values
    cap = op.result.cap
    return [capped(b, y, cap) for y in values]
