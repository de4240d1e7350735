"""Puts the parts of a program that move data in an order that respects every dependence.

A part is all issues of a Repeat together. Where parts need each other's results in turn (an ALU
that accumulates, loops of ALUs) they are split into single issues.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from chip.machine.tables import I64


@dataclass(frozen=True, slots=True)
class Part:
    """Issues [first, last) of a burst, or something that is done once (burst -1)."""

    burst: int
    first: int
    last: int
    cycle: int  # of its first issue
    d: int = 1  # cycles between issues


class Flow(Protocol):
    """What a part of a program needs and makes, in rows."""

    def needs(self, part: Part) -> I64:
        """Return the rows that a part uses."""

    def makes(self, part: Part) -> I64:
        """Return the rows that a part makes."""

    def chain(self, part: Part) -> int | None:
        """Return the state that the part shares with others, which must go by cycle."""


def order(parts: list[Part], flow: Flow, rows: int) -> list[Part]:
    """Return the parts, split where need be, so that every row is made before it is used.

    Ties go by cycle, then by place in the list.
    """
    while True:
        before, after = _edges(parts, flow, rows)
        done = _sorted(parts, before, after)
        if len(done) == len(parts):
            return [parts[i] for i in done]
        parts = _split(parts, before, after, set(done))


def _edges(parts: list[Part], flow: Flow, rows: int) -> tuple[list[set[int]], list[set[int]]]:
    maker = np.full(rows, -1, np.int64)
    chains: dict[int, list[int]] = {}
    for i, part in enumerate(parts):
        maker[flow.makes(part)] = i
        if (chain := flow.chain(part)) is not None:
            chains.setdefault(chain, []).append(i)
    before = [set(np.unique(maker[flow.needs(part)]).tolist()) - {-1} for part in parts]
    for chained in chains.values():
        chained.sort(key=lambda i: parts[i].cycle)
        for one, next_ in pairwise(chained):
            before[next_].add(one)
    after: list[set[int]] = [set() for _ in parts]
    for i, mine in enumerate(before):
        for other in mine:
            after[other].add(i)
    return before, after


def _sorted(parts: list[Part], before: list[set[int]], after: list[set[int]]) -> list[int]:
    left = [len(mine) for mine in before]
    ready = [(part.cycle, i) for i, part in enumerate(parts) if not left[i]]
    heapq.heapify(ready)
    done = []
    while ready:
        _, i = heapq.heappop(ready)
        done.append(i)
        for other in after[i]:
            left[other] -= 1
            if not left[other]:
                heapq.heappush(ready, (parts[other].cycle, other))
    return done


def _split(
    parts: list[Part], before: list[set[int]], after: list[set[int]], done: set[int]
) -> list[Part]:
    """Split every part that may lie on a cycle; what only follows one is left whole."""
    stuck = set(range(len(parts))) - done
    leaves = [i for i in stuck if not after[i] & stuck]
    while leaves:
        i = leaves.pop()
        stuck.discard(i)
        leaves += [j for j in before[i] & stuck if not after[j] & stuck]
    looped = {i for i in stuck if parts[i].last - parts[i].first > 1}
    assert looped, "single issues cannot need each other"
    out: list[Part] = []
    for i, part in enumerate(parts):
        if i not in looped:
            out.append(part)
            continue
        out += [
            Part(part.burst, k, k + 1, part.cycle + (k - part.first) * part.d, part.d)
            for k in range(part.first, part.last)
        ]
    return out
