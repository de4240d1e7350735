"""VXM blocks of fp16 attention: activations on their way, scores, softmax and results.

Scores, exponentials and weights of 320 tokens of a head (a chunk) are four vectors of scratch.
"""

from __future__ import annotations

from chip.isa.instructions import AluOp
from chip.isa.operands import Immediate, In, Lane, Position, Stream, group
from chip.ops.attention import Attend
from chip.spec import VECTOR_BYTES, ChipSpec, vectors
from compiler.codegen.core.builder import LANES, Block, Load, Node, NodeSource, Ref
from compiler.codegen.core.parts import Fixed, f32
from compiler.codegen.core.reductions import lane_max, lane_sum
from compiler.codegen.gates import capped
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


def score_block(spec: ChipSpec, op: Attend, chunk: int) -> Block:
    """Scale one query's scores; tokens that its row does not see become minus infinity."""
    b = Block(spec)
    parts = [In(group(Stream(pair == 0, SUMS16.turned), 4)) for pair in (0, 1)]
    scale = op.head_dim**-0.5 if op.scale is None else op.scale
    score = b.alu(AluOp.MUL, b.alu(AluOp.OR, *parts, at=0), f32(scale))
    if op.cap is not None:
        score = capped(b, score, op.cap)
    b.alu(AluOp.CHOOSE, _seen(b, op, chunk, score.done), score, HIDDEN, out=Ref("scratch", 0, 4))
    return b.finish()


def _seen(b: Block, op: Attend, chunk: int, due: int) -> Node:
    """Return the mask of a chunk's tokens that a row sees, about when it is due."""
    lane = Lane(LANES * chunk)
    if op.window is None:
        return b.alu(AluOp.LE, lane, _own(op), after=due - 2)
    before, edge = due - 2 - b.delay["CHOOSE"].d_func, _own(op, 1 - op.window)
    written = b.alu(AluOp.LE, lane, _own(op), after=before)
    if op.bucket == op.ring:  # slots up to the row's own are of the last lap, others of one before
        late = b.alu(AluOp.LE, lane, _own(op, 0, op.ring), after=before - 8)
        first = 1 - op.window
        laps = (_own(op, first, op.ring), _own(op, first + op.ring, op.ring))
        edge = b.alu(AluOp.CHOOSE, late, *laps)
    early = b.alu(AluOp.GE, lane, edge, after=before)
    return b.alu(AluOp.CHOOSE, written, early, Immediate(0, "i32"))


def _own(op: Attend, offset: int = 0, ring: int = 0) -> NodeSource:
    """Return the position of the row's own token, or of what all rows see up to, plus an offset.

    In a ring, of its slot.
    """
    if op.horizon is None:
        return Position(0, offset=offset, modulus=ring)
    return Fixed(Position(op.horizon, offset=offset, modulus=ring))


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


def softmax_block(spec: ChipSpec, chunks: int, sinks: int, pace: int, interval: int) -> Block:
    """Turn one head's fp32 scores into fp16 weights: a chunk's in the first two of its vectors.

    `sinks`: the heads, if they have any; the block's row is the head. `pace`: cycles between
    chunks; `interval`: the initiation interval, or 0.
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
    sink: Node | None = None
    if sinks:
        at, operand = b.through_sxm(Ref("sinks", 0, vectors(4 * sinks)), None, 4, sinks, peak.done)
        sink = b.alu(AluOp.COPY, operand, at=at)
        peak = b.alu(AluOp.MAX, peak, sink)
    total: Node | None = None
    at = peak.done
    for c, score in enumerate(scores):
        below = b.alu(AluOp.SUB, score, peak, after=at)
        at = below.cycle + pace
        e = b.alu(AluOp.EXP, below, out=Ref("scratch", 4 * c, 4))
        total = e if total is None else b.alu(AluOp.ADD, total, e)
    assert total is not None
    total = lane_sum(b, total)
    if sink is not None:
        total = b.alu(AluOp.ADD, total, b.alu(AluOp.EXP, b.alu(AluOp.SUB, sink, peak)))
    root = b.alu(AluOp.RSQRT, total)
    share = b.alu(AluOp.MUL, root, root)
    at = share.done
    for c, e_ in enumerate(scores):
        p = b.alu(AluOp.MUL, e_, share, after=at)
        at = p.cycle + pace
        b.alu(AluOp.CVT_F16, p, out=Ref("scratch", 4 * c, 2))
    return b
