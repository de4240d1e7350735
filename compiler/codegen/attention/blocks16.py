"""VXM blocks of fp16 attention: activations on their way, scores, softmax and results.

Scores, exponentials and weights of 320 tokens of a head (a chunk) are four vectors of scratch.
"""

from __future__ import annotations

from chip.isa.instructions import AluOp
from chip.isa.operands import Immediate, In, Lane, Position, Stream, group
from chip.spec import VECTOR_BYTES, ChipSpec, vectors
from compiler.codegen.core.builder import LANES, Block, Load, Node, Ref
from compiler.codegen.core.parts import Fixed, f32
from compiler.codegen.core.reductions import lane_max, lane_sum
from compiler.codegen.products.resources import FEED, SUMS16

HALF = LANES // 2  # values of a vector
HIDDEN = Immediate(float("-inf"))


def _both_ways(b: Block, value: In | Immediate, lanes: int, at: int | None = None) -> Block:
    """Send an activation to both pairs of planes."""
    west, east = (group(Stream(side == 1, FEED.stream), 1) for side in (0, 1))
    first = b.alu(AluOp.COPY, value, lanes=lanes, at=at, on=FEED.alus[0], out=west)
    b.twin(first, FEED.alus[1], east)
    return b.finish()


def zeros_block(spec: ChipSpec) -> Block:
    """Send zeros to both pairs of planes."""
    return _both_ways(Block(spec), f32(0.0), VECTOR_BYTES // 4)


def query_block(spec: ChipSpec, ref: Ref, spread: tuple[int | None, ...]) -> Block:
    """Send a query to both pairs of planes: lane l is value spread[l] of a vector of queries."""
    b = Block(spec)
    at, operand = b.through_sxm(ref, spread, 2, HALF)
    return _both_ways(b, In(operand.taps[:1], "f16"), HALF, at)


def score_block(spec: ChipSpec, dim: int, chunk: int, horizon: int | None) -> Block:
    """Scale one query's scores; tokens that its row does not see become minus infinity."""
    last = Position(0) if horizon is None else Fixed(Position(horizon))
    b = Block(spec)
    parts = [In(group(Stream(pair == 0, SUMS16.turned), 4)) for pair in (0, 1)]
    score = b.alu(AluOp.MUL, b.alu(AluOp.OR, *parts, at=0), f32(dim**-0.5))
    seen = b.alu(AluOp.LE, Lane(LANES * chunk), last, after=score.done - 2)
    b.alu(AluOp.CHOOSE, seen, score, HIDDEN, out=Ref("scratch", 0, 4))
    return b.finish()


def weight_block(spec: ChipSpec) -> Block:
    """Send one vector of weights to the eastern pair."""
    b = Block(spec)
    out = group(Stream(True, FEED.stream), 1)
    b.alu(AluOp.COPY, Load(Ref("scratch", 0, 1), "i8"), on=FEED.alus[1], out=out)
    return b.finish()


def result_block(spec: ChipSpec, heads: int, lanes: int) -> Block:
    """Join heads that come one a cycle, each in its lanes, and round them."""
    b = Block(spec)
    inward = In(group(Stream(False, SUMS16.turned), 4))
    total = b.alu(AluOp.COPY, inward, at=0)
    for i in range(1, heads):
        total = b.alu(AluOp.OR, total, inward, at=i)
    b.alu(AluOp.CVT_F16, total, lanes=lanes, out=Ref("y", 0, vectors(2 * lanes)))
    return b.finish()


def softmax_block(spec: ChipSpec, chunks: int, pace: int, interval: int) -> Block:
    """Turn one head's fp32 scores into fp16 weights: a chunk's in the first two of its vectors.

    `pace`: cycles between chunks; `interval`: the initiation interval, or 0.
    """
    b = Block(spec, interval=interval)
    scores = [Load(Ref("scratch", 4 * c, 4), "f32") for c in range(chunks)]
    best: Node | None = None
    at = 0  # ports of earlier cycles are taken
    for score in scores:
        x = b.alu(AluOp.COPY, score, after=at)
        at = x.cycle + pace
        best = x if best is None else b.alu(AluOp.MAX, best, x)
    assert best is not None
    peak = lane_max(b, best)
    total: Node | None = None
    at = peak.done
    for c, score in enumerate(scores):
        below = b.alu(AluOp.SUB, score, peak, after=at)
        at = below.cycle + pace
        e = b.alu(AluOp.EXP, below, out=Ref("scratch", 4 * c, 4))
        total = e if total is None else b.alu(AluOp.ADD, total, e)
    assert total is not None
    root = b.alu(AluOp.RSQRT, lane_sum(b, total))
    share = b.alu(AluOp.MUL, root, root)
    at = share.done
    for c, e_ in enumerate(scores):
        p = b.alu(AluOp.MUL, e_, share, after=at)
        at = p.cycle + pace
        b.alu(AluOp.CVT_F16, p, out=Ref("scratch", 4 * c, 2))
    return b
