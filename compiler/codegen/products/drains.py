"""The VXM's part in one row's product: dequantise the sums, and what follows it (its epilogue).

`add`: the fp16 result is added to the residual. `silu`: gate and up columns alternate
(chip.ops.rows.gated_widths), and the result is silu(gate) * up. A pair of blocks is worked on
at once, but for the last: what its gate gives waits in a register for the up columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from chip.floorplan import Role, hops, mem, mxm
from chip.isa.instructions import AluOp
from chip.isa.operands import Held
from chip.ops.product import AddTo, Gated, Matmul
from chip.spec import ChipSpec, vectors
from compiler.codegen.core.builder import C2C_TURN, LANES, Block, Load, Node, NodeSource, Ref
from compiler.codegen.core.template import Placed
from compiler.codegen.products.columns import (
    ColumnGroup,
    Columns,
    blocks_of,
    gated_groups,
    row_groups,
)
from compiler.codegen.products.product import ARRIVAL, PINNED, Product
from compiler.codegen.products.prologue import SCALE
from compiler.codegen.vector import ACTIVATIONS, ANY, Run, joined

LEAD = 8  # cycles that the work on two groups is apart
FAR = 40  # the same where columns' scales come by way of an SXM
SPAN = 400  # cycles that a drain block may last
DEQUANTISED = 20  # cycles from the sums' arrival at which they are dequantised
GATED = 14  # ALU whose register keeps the activation of the last block's gate
CHAIN = (6, 1, 0, 3, 2, 4, GATED)  # ALUs that make it, beside the work on the up columns
FOLLOWED = ("gate", "up")  # blocks apart, the last


class TileTimes(NamedTuple):
    """When a tile's windows arrive at the planes, it is installed, and multiplied.

    `filled`: when its activation comes, where it shares a slot; else it has come before.
    """

    windows: Sequence[int]
    filled: int | None
    install: int
    use: int


class RowDrains(Product):
    """Blocks that take a group's sums, placed where those arrive."""

    times: dict[tuple[int, int], TileTimes]  # by first column of the group, and tile

    def __init__(self, op: Matmul, spec: ChipSpec) -> None:
        self.op = op
        super().__init__(spec, rows=op.rows, k=op.k, n=op.n, item=op.out_bytes)

    @property
    def _gated(self) -> bool:
        return isinstance(self.op.result, Gated)

    @property
    def _pairs(self) -> int:
        """Pairs of whole blocks, a gate and an up block each."""
        return self.n // (2 * LANES)

    def _groups(self) -> list[tuple[Columns, ...]]:
        columns = blocks_of(self.n, self.tiles)
        return gated_groups(columns, self._pairs) if self._gated else row_groups(columns)

    def _kind(self, blocks: tuple[Columns, ...]) -> str:
        if not self._gated:
            return "add" if isinstance(self.op.result, AddTo) else self.op.out
        place = blocks[0].first // LANES
        if len(blocks) > 1 or place >= 2 * self._pairs:
            return "pair" if len(blocks) > 1 else "halves"
        return FOLLOWED[place % 2]

    def _hold(self, blocks: tuple[Columns, ...], block: Block) -> int:
        """Return the cycles from its sums' arrival to where the next group's work may begin.

        A gate's activation, be it short or long, has ALUs of its own from dequantisation on.
        """
        if self._kind(blocks) == "gate":
            return max(DEQUANTISED, block.end - ARRIVAL - DEQUANTISED - LEAD)
        return block.end - ARRIVAL

    def _lead(self, blocks: tuple[Columns, ...]) -> int:
        """Return the cycles before its sums' arrival at which a group's work begins."""
        return FAR if self._kind(blocks) == "halves" else LEAD

    @property
    def port_leads(self) -> tuple[int, int]:
        """Cycles from a work slice's read to the planes beyond an SXM: the far slice, the near."""
        far, near = (hops(mem(side, 0), mxm(2, Role.LOAD), self.spec) for side in (0, 1))
        return self.delay["READ"].d_func + far, self.delay["READ"].d_func + near

    @property
    def link_turns(self) -> frozenset[int]:
        """Cycles, modulo `C2C_TURN`, of the ports that are left to the links.

        One for each slice, so that a vector from either goes by in the same gap of the loads.
        """
        far, near = self.port_leads
        turn = C2C_TURN - 1
        return frozenset({turn, (turn + far - near) % C2C_TURN})

    # -- where sums come from

    def _arrival(self, outputs: int) -> int:
        return ARRIVAL

    def _widths(self, blocks: tuple[Columns, ...]) -> list[int]:
        widths = super()._widths(blocks)
        return [widths[0] // 2] * 2 if self._kind(blocks) == "halves" else widths

    def _spread(self, blocks: tuple[Columns, ...], run: int, j: int) -> tuple[int | None, ...]:
        if self._kind(blocks) != "halves":
            return super()._spread(blocks, run, j)
        width = blocks[0].width // 2
        return tuple(range(j * width, (j + 1) * width))

    def _weight_scales(self, b: Block, widths: list[int], j: int) -> NodeSource:
        run = Run("sw", sum(widths[:j]), widths[j])
        return joined(b, [run], 4, ARRIVAL + LEAD)

    # -- blocks

    def _place_drains(self) -> None:
        again = {
            times.filled - self.feed_delay
            for times in self.times.values() if times.filled is not None
        }  # fmt: skip
        for g in self.groups:
            start = g.drain + self._drain_delay(self._outputs(g)) - ARRIVAL
            busy = frozenset(c - start for c in again if 0 <= c - start < SPAN)
            block = self.drain(g.blocks, start, busy)
            self.drains.append(Placed(block=block, start=start, shift=self._shift(g)))

    def _shift(self, g: ColumnGroup) -> dict[str, int]:
        shift = super()._shift(g)
        if self._gated:
            shift["y"] = (g.blocks[0].first - LANES * (self._kind(g.blocks) == "up")) // LANES
        return {**shift, "r": shift["sw"]}

    def drain(
        self, blocks: tuple[Columns, ...], start: int, busy: frozenset[int] = frozenset()
    ) -> Block:
        """Return the block that takes a group's sums. `busy`: the port is the activations'."""
        kind, widths, turns = self._kind(blocks), self._widths(blocks), self.link_turns
        key = (kind, tuple(widths), start % C2C_TURN, busy)
        if key not in self._blocks:
            block = Block(
                self.spec, pinned=PINNED | {SCALE} | (set(CHAIN) if kind in FOLLOWED else set()),
                busy=lambda cycle: cycle in busy or (start + cycle) % C2C_TURN in turns,
            )  # fmt: skip
            self._follow(block, kind, self._scaled(block, widths, Held(SCALE)), widths)
            self._blocks[key] = block.finish(), 0
        return self._blocks[key][0]

    def _follow(self, b: Block, kind: str, scaled: list[Node], widths: list[int]) -> None:
        """Do with a group's dequantised sums what follows the product."""
        if kind == "gate" and isinstance(self.op.result, Gated):
            ACTIVATIONS[self.op.result.activation](b, scaled[0], CHAIN)
        elif kind == "up":
            _store_f16(b, b.alu(AluOp.MUL, Held(GATED), scaled[0]), 0)
        elif isinstance(self.op.result, Gated):
            for pair in range(len(scaled) // 2):
                gate, up = scaled[2 * pair : 2 * pair + 2]
                gated = ACTIVATIONS[self.op.result.activation](b, gate, ANY)
                y = b.alu(AluOp.MUL, gated, up, lanes=widths[2 * pair])
                _store_f16(b, y, 2 * pair)
        else:
            for j, y in enumerate(scaled):
                self._store(b, kind, y, j)

    @staticmethod
    def _store(b: Block, kind: str, y: Node, j: int) -> None:
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
