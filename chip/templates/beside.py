"""Pieces of work beside each other: each starts as early as ports, streams and ALUs allow."""

from __future__ import annotations

from functools import cache
from itertools import accumulate

import numpy as np

from chip.isa import LARGE_ALUS, LARGE_OPS, AluOp
from chip.templates.attention import (
    OUT,
    PINNED,
    TURN,
    Piece,
)
from chip.templates.builder import Block, Node
from chip.templates.template import aligned


def one_by_one(pieces: list[Piece]) -> list[int]:
    """Return the pieces' starts when each waits for the one before."""
    ends = accumulate(aligned(piece.end) for piece in pieces)
    return [0, *ends][: len(pieces)]


class _Alus:
    """Which ALUs are taken when, by pieces that run beside each other."""

    def __init__(self, count: int, horizon: int) -> None:
        self.issued = np.zeros((count, horizon), np.bool_)
        self.held = np.zeros((count, horizon), np.bool_)

    def assign(self, block: Block, start: int) -> bool:
        """Give a block's nodes ALUs beside all others'; False where there is none."""
        chosen: list[tuple[Node, int]] = []
        issued, held = self.issued.copy(), self.held.copy()
        for node in sorted(block.nodes, key=lambda n: (n.alu not in OUT, n.cycle, n.done)):
            at, span = start + node.cycle, slice(start + node.done, start + node.last_use + 1)
            for number in (node.alu,) if node.alu in OUT else _able(node.op):
                if not issued[number, at] and not held[number, span].any():
                    break
            else:
                return False
            issued[number, at] = held[number, span] = True
            chosen.append((node, int(number or 0)))
        for node, number in chosen:
            node.alu = number
        self.issued, self.held = issued, held
        return True


@cache
def _able(op: AluOp) -> tuple[int, ...]:
    """ALUs that a node may take: the small ones first, where they do."""
    numbers = [n for n in range(16) if n not in PINNED]
    large = [n for n in numbers if n in LARGE_ALUS]
    return tuple(large if op in LARGE_OPS else [n for n in numbers if n not in large] + large)


def side_by_side(pieces: list[Piece], alus: int) -> list[int]:
    """Return the pieces' earliest starts, in turns of the work ports, with none in another's way.

    Results are collected in registers, so they keep the pieces' order.
    """
    numbers: dict[tuple[object, ...], int] = {}
    taken = np.empty(0, np.int64)
    table = _Alus(alus, sum(aligned(piece.end) for piece in pieces) + TURN)
    starts: list[int] = []
    collected = start = step = 0
    for piece in pieces:
        uses = piece.uses()
        own = np.array([(numbers.setdefault(what, len(numbers)) << 24) + at for what, at in uses])
        first, last = piece.collected()
        start += max(step - 2 * TURN, TURN) if starts else 0
        while (
            start + first < collected
            or np.isin(own + start, taken).any()
            or not table.assign(piece.block, start)
        ):
            start += TURN
        step = start - starts[-1] if starts else 0
        taken = np.union1d(taken, own + start)
        starts.append(start)
        collected = start + last
    return starts
