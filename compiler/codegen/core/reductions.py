"""Reductions over the lanes of a vector: copies turned by the SXMs, combined by the VXM.

chip/kernels/vmath.py has the order of sums. Two forms with the same bits:

- Two trips: sixteen copies, then one for each lane that is left. The shortest for one row.
- By turns (`Block.turning`), for many rows: half of a node's copies are the others, turned.
  Lane l of x + turned(x, n/2) holds x[l] + x[l + n/2] for the lower half of n lanes, and the same
  sum with its operands exchanged for the upper half. Addition and maximum are commutative bit for
  bit, so every lane has what the tree has, and the next level is the same with n/2. Two levels a
  trip: a sum of 320 lanes takes 13 additions instead of 34, in four trips.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from chip.isa.instructions import AluOp
from compiler.codegen.core.builder import Block
from compiler.codegen.core.parts import LANES, Node

COPIES = 16  # of the first trip: what both SXMs put on their inward streams in a cycle


@cache
def _turn(pitch: int, amount: int) -> tuple[int | None, ...]:
    """Rotate inside segments of `pitch` lanes; lanes beyond the last whole segment are zero."""
    whole = LANES // pitch * pitch
    return tuple(lane // pitch * pitch + (lane + amount - lane // pitch * pitch) % pitch
                 for lane in range(whole))  # fmt: skip


@cache
def _broadcast(pitch: int, place: int) -> tuple[int, ...]:
    """Give every lane of a segment the segment's lane `place`."""
    return tuple(lane // pitch * pitch + place for lane in range(LANES))


def tree(b: Block, op: AluOp, value: Node, maps: Sequence[tuple[int | None, ...]]) -> list[Node]:
    """Return op(copy m, copy m + half) for every m below half of the maps."""
    half = len(maps) // 2
    copies = b.copies(value, maps, op=op)
    return [b.alu(op, copies[m][1], copies[m + half][1], at=copies[m][0]) for m in range(half)]


def halves(b: Block, op: AluOp, nodes: list[Node], down_to: int = 1) -> list[Node]:
    """Combine the upper half of the nodes with the lower until `down_to` are left."""
    while len(nodes) > down_to:
        half = len(nodes) // 2
        nodes = [b.alu(op, nodes[m], nodes[m + half]) for m in range(half)]
    return nodes


def by_turns(b: Block, op: AluOp, value: Node, pitch: int) -> tuple[Node, int]:
    """Halve the lanes of each segment while they are even in number: (node, lanes left).

    The node's lanes repeat with as many as are left.
    """
    while pitch % 2 == 0:
        order = (0, 2, 1, 3) if pitch % 4 == 0 else (0, 1)  # what is half a segment away first
        left = pitch // len(order)
        at, copies = b.turned(value, [_turn(pitch, left * m) for m in order], op)
        pairs = [b.alu(op, *copies[m : m + 2], at=at) for m in range(0, len(copies), 2)]
        (value,) = halves(b, op, pairs)
        pitch = left
    return value, pitch


def lane_sum(b: Block, value: Node, pitch: int = LANES) -> Node:
    """Sum the lanes of each segment of 320 or 80 in the fixed order of vmath.lane_sum.

    Every lane gets its segment's sum. 80 lanes: what is left of 320 after the first two levels.
    """
    if b.turning:
        left, width = by_turns(b, AluOp.ADD, value, pitch)
        return _last_five(b, left, [_broadcast(pitch, place) for place in range(width)])
    short = pitch // COPIES
    wide = tree(b, AluOp.ADD, value, [_turn(pitch, short * m) for m in range(COPIES)])
    (node,) = halves(b, AluOp.ADD, wide)
    maps = [_broadcast(pitch, place) for place in range(short)]
    if short == 5:
        back = b.copies(node, maps)
        parts = [back[m : m + 2] for m in (0, 2, 4)]
        first, second = (b.alu(AluOp.ADD, one[1], two[1], at=one[0]) for one, two in parts[:2])
        ((at, fifth),) = parts[2]
        rest = b.alu(AluOp.COPY, fifth, at=at)
    else:
        five = halves(b, AluOp.ADD, tree(b, AluOp.ADD, node, maps), down_to=5)
        first, second = (b.alu(AluOp.ADD, *five[m : m + 2]) for m in (0, 2))
        rest = five[4]
    return b.alu(AluOp.ADD, b.alu(AluOp.ADD, first, second), rest)


@cache
def _shift(pitch: int, amount: int, limit: int) -> tuple[int | None, ...]:
    """Give each lane of a segment the one `amount` further, zero from the segment's `limit` on."""
    whole = LANES // pitch * pitch
    return tuple(
        lane + amount if lane < whole and lane % pitch + amount < limit else None
        for lane in range(LANES)
    )


@cache
def _spread(pitch: int, place: int, limit: int) -> tuple[int | None, ...]:
    """Give every lane of a whole segment the segment's lane `place`, zero from `limit` on."""
    whole = LANES // pitch * pitch
    return tuple(
        lane // pitch * pitch + place if lane < whole and place < limit else None
        for lane in range(LANES)
    )


def segment_sum(b: Block, value: Node, pitch: int, size: int) -> Node:
    """Sum the first `size` lanes of each segment of `pitch` lanes, as vmath.lane_sum sums them.

    Every lane of a segment gets its sum. Values are no -0: what is beyond the last adds zero.
    """
    if b.turning:
        return _segment_sum_by_turns(b, value, pitch, size)
    short, count = LANES // COPIES, 1
    while short * count < size:
        count *= 2
    if count > 1:
        maps = [_shift(pitch, short * m, size) for m in range(count)]
        (value,) = halves(b, AluOp.ADD, tree(b, AluOp.ADD, value, maps))
    maps = [_spread(pitch, place, size) for place in range(short)]
    five = halves(b, AluOp.ADD, tree(b, AluOp.ADD, value, maps), down_to=5)
    first, second = (b.alu(AluOp.ADD, *five[m : m + 2]) for m in (0, 2))
    return b.alu(AluOp.ADD, b.alu(AluOp.ADD, first, second), five[4])


def _segment_sum_by_turns(b: Block, value: Node, pitch: int, size: int) -> Node:
    left, levels = size, [amount for amount in (160, 80, 40, 20, 10, 5) if amount < size]
    while levels:
        (first, *second), levels = levels[:2], levels[2:]
        shifts = [0, first, *(second[0] + m for m in (0, first) if second)]
        maps = [_shift(pitch, amount, left) for amount in shifts]
        at, copies = b.turned(value, maps, AluOp.ADD)
        sums = [b.alu(AluOp.ADD, *copies[m : m + 2], at=at) for m in range(0, len(copies), 2)]
        (value,) = halves(b, AluOp.ADD, sums)
        left = second[0] if second else first
    return _last_five(b, value, [_spread(pitch, place, left) for place in range(5)])


def _last_five(b: Block, value: Node, maps: Sequence[tuple[int | None, ...]]) -> Node:
    """Return ((0 + 1) + (2 + 3)) + 4 of a value's copies."""
    at, copies = b.turned(value, maps, AluOp.ADD)
    low, high = (b.alu(AluOp.ADD, *copies[m : m + 2], at=at) for m in (0, 2))
    last = b.alu(AluOp.COPY, copies[4], at=at)
    return b.alu(AluOp.ADD, b.alu(AluOp.ADD, low, high), last)


def lane_or(b: Block, value: Node) -> Node:
    """OR of all lanes' bits, in every lane: the value of the only lane that is not zero."""
    left = LANES // COPIES  # lanes after the first trip
    turns = [_turn(LANES, left * m) for m in range(COPIES)]
    (twenty,) = halves(b, AluOp.OR, tree(b, AluOp.OR, value, turns))
    spread = [_broadcast(LANES, place) for place in range(left)]
    first, *others = halves(b, AluOp.OR, tree(b, AluOp.OR, twenty, spread), down_to=5)
    for other in others:
        first = b.alu(AluOp.OR, first, other)
    return first


def lane_max(b: Block, value: Node, pitch: int = LANES) -> Node:
    """Maximum over the lanes of each segment of `pitch` (a multiple of 16) lanes, in each."""
    if b.turning:
        return _max_by_turns(b, value, pitch)
    short = pitch // COPIES
    node = _max_of(b, value, [_turn(pitch, short * m) for m in range(COPIES)])
    return node if short == 1 else _max_of(b, node, [_turn(pitch, m) for m in range(short)])


def _max_by_turns(b: Block, value: Node, pitch: int) -> Node:
    node, left = by_turns(b, AluOp.MAX, value, pitch)
    reach = 1  # every lane has the largest of so many
    while reach < left:
        more = min(reach, left - reach)
        at, copies = b.turned(node, [_turn(pitch, 0), _turn(pitch, more)], AluOp.MAX)
        node = b.alu(AluOp.MAX, *copies, at=at)
        reach += more
    return node


def _max_of(b: Block, value: Node, maps: list[tuple[int | None, ...]]) -> Node:
    """Maximum of a value's copies, four pairs every other cycle: large ALUs are few."""
    maps += maps[-1:] * (len(maps) % 2)  # a copy without a partner meets itself
    half = len(maps) // 2
    copies = b.copies(value, maps, pairs=4, gap=2, op=AluOp.MAX)
    best: Node | None = None
    for first in range(0, half, 4):
        nodes = [
            b.alu(AluOp.MAX, copies[m][1], copies[m + half][1], at=copies[m][0])
            for m in range(first, min(first + 4, half))
        ]
        nodes += [best] if best is not None else []
        while len(nodes) > 1:
            odd = nodes[len(nodes) // 2 * 2 :]
            nodes = [
                b.alu(AluOp.MAX, nodes[m], nodes[m + 1]) for m in range(0, len(nodes) - 1, 2)
            ] + odd
        (best,) = nodes
    assert best is not None
    return best
