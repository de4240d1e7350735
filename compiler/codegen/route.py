"""ROUTE: the largest of a row's logits, their softmax, and their columns in ascending order.

Each pick is the largest logit that is left, at the lowest column that has it; it goes to its place
among those before. Numerics: chip/kernels/twin.py, route.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from chip.isa.instructions import AluOp
from chip.isa.operands import Immediate, Lane
from chip.ops.experts import Route
from chip.ops.rows import row_bytes
from chip.spec import VECTOR_BYTES, ChipSpec, vectors
from compiler.codegen.core.builder import LANES, Block, Load, Node, Ref
from compiler.codegen.core.parts import f32
from compiler.codegen.core.reductions import lane_max, segment_sum
from compiler.codegen.core.template import MANY, Template, by_rows, row_block

SUPERLANE = 16
NEVER = Immediate(float("-inf"))
BEYOND = f32(-float(LANES))  # below any column's negative
FEW = 20  # picks that a sum over lanes takes in one go


@dataclass(slots=True)
class Picks:
    """The picks so far in lanes from 0 on, in order of columns: logits, and minus columns."""

    logits: Node
    below: Node


def fits(op: Route) -> bool:
    """Tell whether a row's logits are a vector's lanes, and its picks few."""
    return op.experts <= LANES and op.chosen <= FEW


def _shifted(b: Block, value: Node) -> Node:
    """Return a value a lane further on; lane 0 is zero."""
    lanes = (None, *range(LANES - 1))
    if b.turning:
        at, (copy,) = b.turned(value, [lanes], AluOp.COPY)
        return b.alu(AluOp.COPY, copy, at=at)
    ((at, moved),) = b.copies(value, [lanes])
    return b.alu(AluOp.COPY, moved, at=at)


def _insert(b: Block, picks: Picks, logit: Node, below: Node) -> None:
    """Put a pick, which is in every lane, before those of later columns."""
    stays = b.alu(AluOp.GE, picks.below, below)
    before = _shifted(b, picks.below)
    behind = b.alu(AluOp.GE, before, below)  # of lane 0, too: no column's negative is above zero
    first = _shifted(b, picks.logits)
    moved = b.alu(AluOp.CHOOSE, behind, below, before)
    picks.below = b.alu(AluOp.CHOOSE, stays, picks.below, moved)
    moved = b.alu(AluOp.CHOOSE, behind, logit, first)
    picks.logits = b.alu(AluOp.CHOOSE, stays, picks.logits, moved)


def _picked(b: Block, logits: Node, chosen: int, pitch: int) -> tuple[Picks, Node]:
    """Pick the largest, one after another, of a segment's lanes; return also the very largest."""
    columns = b.alu(AluOp.NEG, b.alu(AluOp.CVT_F32, Lane()))
    picks = Picks(b.alu(AluOp.COPY, NEVER), b.alu(AluOp.COPY, BEYOND))
    most: Node | None = None
    for n in range(chosen):
        largest = lane_max(b, logits, pitch)
        most = most or largest
        equal = b.alu(AluOp.EQ, logits, largest)
        below = lane_max(b, b.alu(AluOp.CHOOSE, equal, columns, BEYOND), pitch)
        _insert(b, picks, largest, below)
        if n + 1 < chosen:
            taken = b.alu(AluOp.EQ, columns, below)
            logits = b.alu(AluOp.CHOOSE, taken, NEVER, logits)
    assert most is not None
    return picks, most


def _recip(b: Block, x: Node) -> Node:
    root = b.alu(AluOp.RSQRT, x)
    return b.alu(AluOp.MUL, root, root)


@lru_cache(maxsize=64)
def _row(experts: int, chosen: int, after: bool, spec: ChipSpec, runs: int) -> Block:
    """One row of a ROUTE."""
    pitch = -(-max(experts, FEW) // SUPERLANE) * SUPERLANE

    def build(pace: int, interval: int) -> Block:
        b = Block(spec, interval=interval, turning=runs >= MANY)
        x = Load(Ref("x", 0, vectors(4 * experts)), "f32")
        logits = b.alu(AluOp.COPY, x, lanes=experts)
        there = b.alu(AluOp.LE, Lane(), Immediate(experts - 1, "i32"))
        logits = b.alu(AluOp.CHOOSE, there, logits, NEVER)
        picks, most = _picked(b, logits, chosen, pitch)
        done = picks.logits.done + pace
        power = b.alu(AluOp.EXP, b.alu(AluOp.SUB, picks.logits, most, after=done))
        every = power
        if not after:
            every = b.alu(AluOp.EXP, b.alu(AluOp.SUB, logits, most, after=done))
        total = segment_sum(b, every, LANES, chosen if after else experts)
        share = b.alu(AluOp.MUL, power, _recip(b, total))
        if not after:
            own = _recip(b, segment_sum(b, share, LANES, chosen))
            share = b.alu(AluOp.MUL, share, own)
        out = vectors(4 * chosen)
        b.alu(AluOp.COPY, share, lanes=chosen, out=Ref("g", 0, out))
        number = b.alu(AluOp.CVT_I32, b.alu(AluOp.NEG, picks.below))
        b.alu(AluOp.COPY, number, lanes=chosen, out=Ref("e", 0, out))
        return b

    return row_block(build, runs)


def route(op: Route, spec: ChipSpec) -> Template:
    """The chosen experts of each row, and their weights."""

    def row(runs: int) -> Block:  # for some it is as for many: others take long to try
        many = MANY if runs > 1 else 1
        return _row(op.experts, op.chosen, op.after, spec, many)

    picks = row_bytes(op.chosen, 4) // VECTOR_BYTES
    steps = {"x": row_bytes(op.experts, 4) // VECTOR_BYTES, "e": picks, "g": picks}
    return by_rows(row, op.rows, steps)
