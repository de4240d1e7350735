"""Finds where a queue's codes come again, so that they are fetched again instead of stored again.

A `Back` stands for `count` codes, the first of them `distance` codes before it; more codes than the
distance are a loop. Codes say how a queue goes on from where it stands (chip/encoding/deltas.py),
so rows, tiles and heads that differ in their addresses alone have the same codes.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

SEEN = 8  # codes that must be alike to look further
PLACES = 16  # of those that begin alike, the latest that are looked at


class Back(NamedTuple):
    """Fetch `length` codes again, from `distance` codes back."""

    distance: int
    length: int


def shortened(codes: Sequence[bytes]) -> Iterator[bytes | Back]:
    """Yield codes and what stands for those that come again, as many at once as can be found."""
    seen: defaultdict[tuple[bytes, ...], deque[int]] = defaultdict(lambda: deque(maxlen=PLACES))
    at = 0
    while at < len(codes):
        best = Back(0, 1)
        for before in reversed(seen.get(tuple(codes[at : at + SEEN]), ())):
            if (count := _alike(codes, before, at, best.length)) > best.length:
                best = Back(at - before, count)
        yield best if best.distance else codes[at]
        for place in range(at, min(at + best.length, len(codes) - SEEN + 1)):
            seen[tuple(codes[place : place + SEEN])].append(place)
        at += best.length


def _alike(codes: Sequence[bytes], before: int, at: int, least: int) -> int:
    """Return how many codes from two places on are alike; 0 if certainly not over `least`."""
    if at + least >= len(codes) or codes[before + least] != codes[at + least]:
        return 0
    count = 0
    while at + count < len(codes) and codes[before + count] == codes[at + count]:
        count += 1
    return count
