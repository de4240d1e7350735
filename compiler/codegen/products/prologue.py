"""The prologue of one row's product: RMSNorm or joined segments, then quantisation to int8.

It does the same as NORM and GATHER (compiler/codegen/vector.py). But each quantised vector goes
from the VXM straight to the planes, beside its copy in memory, and an ALU's register keeps the
scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from chip.floorplan import Role, alu, hops, mem, mxm, sxm
from chip.isa.instructions import AluOp
from chip.isa.operands import Stream, group
from chip.ops.product import GatherFirst, NormFirst
from chip.spec import ChipSpec, vectors
from compiler.codegen.core.builder import LANES, Block, Load, Node, NodeSource, Ref
from compiler.codegen.core.parts import f32
from compiler.codegen.core.reductions import lane_max, lane_sum
from compiler.codegen.core.template import paced
from compiler.codegen.products.resources import FEED, QUANTISER, ROW_SCALE
from compiler.codegen.vector import (
    groups,
    joined,
    load,
    runs_of,
    scale_factor,
    store,
)

AHEAD = 8  # cycles that a value starts before its factor: at most two MULs to make it


@dataclass(frozen=True, slots=True)
class Prologue:
    """A block, when each tile's activation is at the planes, and when weights may not be.

    Both as seen from the planes: what goes out to the SXMs has the streams of weights.
    """

    block: Block
    filled: tuple[int, ...]
    busy: frozenset[int]


def prologue(source: NormFirst | GatherFirst, k: int, spec: ChipSpec) -> Prologue:
    """Return what comes before one row's product of k columns in."""
    fed: list[Node] = []

    def attempt(pace: int) -> Block:
        b = Block(spec, pinned=frozenset({ROW_SCALE.scale, *QUANTISER.outlets}))
        if isinstance(source, NormFirst):
            fed[:] = _norm(b, source, k, pace)
        else:
            fed[:] = _gather(b, source.shares, pace)
        return b

    block = paced(attempt)
    way = hops(alu(0), mxm(0, Role.FEED), spec)
    return Prologue(block, tuple(node.done + way for node in fed), outward(block))


def outward(block: Block) -> frozenset[int]:
    """Return when, seen from the planes, a block sends operands of SXM passes out."""
    at_planes = hops(sxm(0, 0), mxm(0, Role.LOAD), block.spec)
    out: set[int] = set()
    for step in block.passes:
        beats = -(-step.src.count // 2) if isinstance(step.src, Ref) else 1
        out.update(step.cycle + at_planes + beat for beat in range(beats))
    return frozenset(out)


def _norm(b: Block, source: NormFirst, k: int, pace: int) -> list[Node]:
    lanes = groups(k)
    total: Node | None = None
    for g, n in enumerate(lanes):
        x = load("src", g, n, "f32")
        square = b.alu(AluOp.MUL, x, x, lanes=n, after=_read_from(b, source.arrives, x) + g * pace)
        total = square if total is None else b.alu(AluOp.ADD, total, square)
    assert total is not None
    mean = b.alu(AluOp.MUL, lane_sum(b, total), f32(1.0 / k))
    root = b.alu(AluOp.RSQRT, b.alu(AluOp.ADD, mean, f32(source.eps)))
    root = b.alu(AluOp.COPY, root)  # large ALUs are needed for the maximum

    def value(g: int, after: int) -> Node:
        x = b.alu(AluOp.MUL, load("src", g, lanes[g], "f32"), root, lanes=lanes[g], after=after)
        return b.alu(AluOp.MUL, x, load("gamma", g, lanes[g], "f32"), lanes=lanes[g])

    return _quantise(b, value, len(lanes), root.done, pace, 1)


def arrivals(arrives: int, k: int) -> tuple[int, int]:
    """Return when the first and last vector of a row of k fp32 that comes off a link come.

    `arrives`: cycles between its vectors.
    """
    return 0, arrives * (vectors(4 * k) - 1)


def _read_from(b: Block, arrives: int | None, x: Load) -> int:
    """Return when the VXM may have a group of values, if they come as the block runs."""
    if arrives is None:
        return 0
    lead = b.delay["READ"].d_func + hops(mem(0, 0), alu(0), b.spec)
    return arrives * (x.ref.vector + x.ref.count - 1) + lead


def _gather(b: Block, shares: tuple[int, ...], pace: int) -> list[Node]:
    lanes = groups(sum(shares))

    def value(g: int, after: int) -> NodeSource:
        return joined(b, runs_of(shares, g * LANES, lanes[g]), 2, after)

    return _quantise(b, value, len(lanes), 0, pace, 2)


def _quantise(
    b: Block,
    value: Callable[[int, int], NodeSource],
    count: int,
    after: int,
    pace: int,
    turns: int,
) -> list[Node]:
    """Quantise groups of values to int8 by their largest; keep the scale. Two passes."""
    peaks: list[Node] = []  # taken in turns: a maximum takes longer than the next value
    for g in range(count):
        size = b.alu(AluOp.ABS, value(g, after + g * pace))
        if g < turns:
            peaks.append(size)
        else:
            peaks[g % turns] = b.alu(AluOp.MAX, peaks[g % turns], size)
    peak = peaks[0] if len(peaks) == 1 else b.alu(AluOp.MAX, *peaks)
    factor, scale = scale_factor(b, lane_max(b, peak))
    b.alu(AluOp.COPY, scale, on=ROW_SCALE.scale)
    b.alu(AluOp.COPY, scale, lanes=1, out=Ref("qs", 0, 1))
    fed, slots = list[Node](), b.spec.mxm_activation_slots
    kept = count if count <= slots else slots - 1  # the others are sent again when they are due
    for g in range(count):
        y = b.alu(AluOp.MUL, value(g, factor.done + g * pace - AHEAD), factor)
        fed.append(b.alu(AluOp.CVT_I8, y, out=store("q", g, LANES, 1)))
        for side, number in enumerate(QUANTISER.outlets if g < kept else ()):
            b.twin(fed[-1], number, group(Stream(side == 1, FEED.stream), 1))
    return fed
