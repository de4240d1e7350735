"""The softmax of one head in fp16 attention: 320 tokens a chunk, in scratch, in three passes."""

from __future__ import annotations

from chip.isa import AluOp
from chip.spec import ChipSpec
from chip.templates.builder import Block, Load, Node, Ref
from chip.templates.reductions import lane_max, lane_sum


def softmax16(spec: ChipSpec, chunks: int, pace: int, period: int) -> Block:
    """Turn one head's fp32 scores into fp16 weights: a chunk's in the first two of its vectors.

    `pace`: cycles between chunks; `period`: after which the block runs over itself, or 0.
    """
    b = Block(spec, period=period)
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
