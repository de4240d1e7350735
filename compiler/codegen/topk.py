"""TOPK: the k largest logits and their columns, the lower column first where logits are equal.

k scans of the logits. A scan finds in each lane the best that comes after the pick before: smaller,
or equal with a higher column. The best of all lanes is the next pick; it is collected in its lane,
and the last block writes columns and logits side by side. Logits are finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chip.isa.instructions import AluOp
from chip.isa.operands import Immediate, Lane
from chip.ops.vector import TopK
from chip.spec import ChipSpec, vectors
from compiler.codegen.core.builder import LANES, Block, Load, Node, Ref
from compiler.codegen.core.parts import Given, Row, RowMask, f32
from compiler.codegen.core.reductions import lane_max, lane_or
from compiler.codegen.core.template import Placed, Template, aligned, paced, row_block
from compiler.codegen.resources import PICKS

GROUPS = 9  # of 320 logits that a scan's block looks at
NEVER = Immediate(float("-inf"))
NO_GROUP = Immediate(-1, "i32")
BEYOND = f32(-(2.0**24))  # below any column's negative: columns are exact in fp32


@dataclass(frozen=True, slots=True)
class Candidate:
    """The logit of each lane, and its group."""

    logit: Node
    group: Node | Row


def _reset(b: Block, after: int = 0) -> None:
    """Forget the best of every lane."""
    b.alu(AluOp.COPY, NEVER, on=PICKS.best, after=after)
    b.alu(AluOp.COPY, NO_GROUP, on=PICKS.group, after=after)


def _start(spec: ChipSpec) -> Block:
    b = Block(spec, pinned=PICKS.pinned)
    b.alu(AluOp.COPY, Immediate(float("inf")), on=PICKS.last)
    b.alu(AluOp.COPY, Immediate(0, "i32"), on=PICKS.first)
    b.alu(AluOp.COPY, f32(0.0), on=PICKS.logits)
    b.alu(AluOp.COPY, Immediate(0, "i32"), on=PICKS.columns)
    _reset(b)
    return b.finish()


def _candidate(b: Block, j: int, lanes: int, after: int) -> Candidate:
    """Take group j of a block's logits: minus infinity where they were picked before."""
    group, load = Row(GROUPS, j), Load(Ref("x", 4 * j, vectors(4 * lanes)), "f32")
    x = b.alu(AluOp.COPY, load, lanes=lanes, after=after)
    equal = b.alu(AluOp.EQ, x, b.register(PICKS.last))
    below = b.alu(AluOp.LE, x, b.register(PICKS.last))
    behind = b.alu(AluOp.GE, group, b.register(PICKS.first), at=equal.cycle)
    logit = b.alu(AluOp.CHOOSE, b.alu(AluOp.CHOOSE, equal, behind, below), x, NEVER)
    if lanes < LANES:
        there = b.alu(AluOp.LE, Lane(), Immediate(lanes - 1, "i32"), at=equal.cycle)
        logit = b.alu(AluOp.CHOOSE, there, logit, NEVER)
    return Candidate(logit, group)


def _better(b: Block, one: Candidate, other: Candidate) -> Candidate:
    """Return the larger, the first where they are equal."""
    stays = b.alu(AluOp.GE, one.logit, other.logit)
    return Candidate(
        b.alu(AluOp.CHOOSE, stays, one.logit, other.logit),
        b.alu(AluOp.CHOOSE, stays, one.group, other.group),
    )


def _scan(b: Block, widths: list[int], pace: int) -> Block:
    """Bring the best of every lane up to date with some groups of logits."""
    new: Candidate | None = None
    for first in range(0, len(widths), 2):  # pairs: the best of all so far is compared less often
        pair = [
            _candidate(b, j, widths[j], j * pace) for j in range(first, min(first + 2, len(widths)))
        ]
        two = _better(b, *pair) if len(pair) == 2 else pair[0]
        new = two if new is None else _better(b, new, two)
    assert new is not None
    stays = b.alu(AluOp.GE, b.register(PICKS.best), new.logit)
    b.alu(AluOp.CHOOSE, stays, b.register(PICKS.best), new.logit, on=PICKS.best)
    b.alu(AluOp.CHOOSE, stays, b.register(PICKS.group), new.group, on=PICKS.group)
    return b


def _pick(spec: ChipSpec, pace: int) -> Block:
    """Choose among the lanes' best, collect the pick in its lane, and begin anew."""
    b = Block(spec, pinned=PICKS.pinned)
    best = b.register(PICKS.best)
    largest = lane_max(b, b.alu(AluOp.COPY, best))
    b.alu(AluOp.COPY, largest, on=PICKS.last)
    equal = b.alu(AluOp.EQ, best, largest)
    lane = b.alu(AluOp.CVT_F32, Lane(), after=equal.cycle - 12)
    first = b.alu(
        AluOp.MUL, b.alu(AluOp.CVT_F32, b.register(PICKS.group), after=lane.cycle), f32(LANES)
    )
    own = b.alu(AluOp.ADD, first, lane)  # every lane's column
    lowest = lane_max(b, b.alu(AluOp.CHOOSE, equal, b.alu(AluOp.NEG, own), BEYOND))
    column = b.alu(AluOp.NEG, lowest)
    bits = b.alu(AluOp.CHOOSE, b.alu(AluOp.EQ, own, column), best, f32(0.0))
    # the first group behind it is ceil((column + 1 - lane) / 320), worked out by rounding
    above = b.alu(AluOp.ADD, b.alu(AluOp.SUB, column, lane), f32(LANES / 2 + 0.5))
    group = b.alu(AluOp.CVT_I32, b.alu(AluOp.MUL, above, f32(1 / LANES)))
    b.alu(AluOp.COPY, group, on=PICKS.first)
    logit = lane_or(b, bits)  # its own bits: -0 equals +0
    place = b.alu(AluOp.EQ, *RowMask.operands(), after=logit.done - 4)
    b.alu(AluOp.CHOOSE, place, logit, b.register(PICKS.logits), on=PICKS.logits)
    column = b.alu(AluOp.CVT_I32, column)
    b.alu(AluOp.CHOOSE, place, column, b.register(PICKS.columns), on=PICKS.columns)
    _reset(b, bits.done)
    return b


def _write(spec: ChipSpec, k: int) -> Block:
    """Write k columns, as the model counts them, and the k logits behind them."""
    b = Block(spec, pinned=PICKS.pinned)
    first = b.alu(AluOp.ADD, b.register(PICKS.columns), Given("first_column"))
    columns: list[int | None] = [lane if lane < k else None for lane in range(LANES)]
    logits: list[int | None] = [lane - k if k <= lane < 2 * k else None for lane in range(LANES)]
    ((at, one),) = b.copies(first, [tuple(columns)])
    left = b.alu(AluOp.COPY, one, at=at)
    ((at, other),) = b.copies(b.alu(AluOp.COPY, b.register(PICKS.logits)), [tuple(logits)])
    right = b.alu(AluOp.COPY, other, at=at)
    b.alu(AluOp.OR, left, right, lanes=2 * k, out=Ref("y", 0, vectors(8 * k)))
    return b.finish()


def _round(n: int, k: int, spec: ChipSpec) -> Iterator[tuple[Block, int, int, int]]:
    """Yield (block, first row, times, interval) of one scan."""
    whole, rest = divmod(n, LANES * GROUPS)
    if whole:
        scan = row_block(
            lambda pace, interval: _scan(
                Block(spec, pinned=PICKS.pinned, interval=interval), [LANES] * GROUPS, pace
            ),
            whole,
        )
        yield scan, 0, whole, scan.interval or aligned(scan.end)
    if rest:
        widths = [min(LANES, rest - at) for at in range(0, rest, LANES)]
        yield paced(lambda pace: _scan(Block(spec, pinned=PICKS.pinned), widths, pace)), whole, 1, 0


def topk(op: TopK, spec: ChipSpec) -> Template:
    """The k largest of n logits: columns, then values."""
    n, k = op.n, op.k
    start, write = _start(spec), _write(spec, k)
    pick = paced(lambda pace: _pick(spec, pace))
    scans = list(_round(n, k, spec))
    placed, at = [Placed(block=start, start=0)], aligned(start.end)
    for number in range(k):
        for block, row, times, interval in scans:
            placed.append(Placed(block=block, start=at, n=times, interval=interval, row=row))
            at += aligned((times - 1) * interval + block.end)
        placed.append(Placed(block=pick, start=at, row=number))
        at += aligned(pick.end)
    placed.append(Placed(block=write, start=at))
    return Template(
        placed=tuple(placed), cycles=at + write.end, row_vectors={"x": 4 * GROUPS, "y": 0}
    )
