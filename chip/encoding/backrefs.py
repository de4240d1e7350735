"""Back-references: codes of a queue that come again are fetched again instead of stored again.

A `BackReference` stands for `length` codes, the first of them `distance` codes back; a length above
the distance is a loop. Codes are deltas (chip/encoding/deltas.py), so rows, tiles and heads that
differ in their addresses alone have the same codes.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

MATCHED = 8  # codes that must be alike to look further
CANDIDATES = 16  # of the places that begin alike, the latest that are looked at


class BackReference(NamedTuple):
    """Fetch `length` codes again, from `distance` codes back."""

    distance: int
    length: int


def compressed(codes: Sequence[bytes]) -> Iterator[bytes | BackReference]:
    """Yield codes, and back-references for those that come again: each as long as can be found."""
    seen: defaultdict[tuple[bytes, ...], deque[int]] = defaultdict(
        lambda: deque(maxlen=CANDIDATES)
    )  # fmt: skip
    at = 0
    while at < len(codes):
        found, length = None, 1
        for before in reversed(seen.get(tuple(codes[at : at + MATCHED]), ())):
            if (count := _alike(codes, before, at, length)) > length:
                found, length = BackReference(at - before, count), count
        yield codes[at] if found is None else found
        for place in range(at, min(at + length, len(codes) - MATCHED + 1)):
            seen[tuple(codes[place : place + MATCHED])].append(place)
        at += length


def _alike(codes: Sequence[bytes], before: int, at: int, least: int) -> int:
    """Return how many codes from two places on are alike; 0 if certainly not over `least`."""
    if at + least >= len(codes) or codes[before + least] != codes[at + least]:
        return 0
    count = 0
    while at + count < len(codes) and codes[before + count] == codes[at + count]:
        count += 1
    return count
