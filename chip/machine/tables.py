"""Events as arrays: runs of equally spaced events expanded at once, and look-ups by place and time.

A place (a stream register's diagonal, an SRAM word, an ALU) and a cycle make one sortable key.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]

TIME_BITS = 36
_BIAS = 1 << 24  # diagonals may lie before cycle 0
_LIMIT = 1 << TIME_BITS


def keys(place: I64, time: I64) -> I64:
    """Return place and time as one integer, ordered by place, then time."""
    shifted = time + _BIAS
    assert not len(shifted) or 0 <= int(shifted.min()) <= int(shifted.max()) < _LIMIT
    return (place << TIME_BITS) | shifted


def place_of(key: I64) -> I64:
    return key >> TIME_BITS


class Runs:
    """Rows of integers, each standing for `n` events; the columns of `expand` say how they step."""

    def __init__(self, columns: int) -> None:
        self.columns, self.rows = columns, list[tuple[int, ...]]()

    def add(self, *row: int) -> None:
        """Add a run: its number of events, then its columns."""
        self.rows.append(row)

    def expand(self) -> tuple[I64, list[I64]]:
        """Return each event's index within its run, and its run's columns."""
        table = np.array(self.rows, np.int64).reshape(len(self.rows), self.columns + 1)
        n = table[:, 0]
        run = np.repeat(np.arange(len(n)), n)
        index = np.arange(len(run)) - np.repeat(np.cumsum(n) - n, n)
        return index, [table[run, column] for column in range(1, self.columns + 1)]


def duplicate(sorted_keys: I64) -> int | None:
    """Return the index of the first key that equals the one after it."""
    same = np.flatnonzero(sorted_keys[1:] == sorted_keys[:-1])
    return int(same[0]) if len(same) else None


def latest(sorted_keys: I64, wanted: I64, *, now: bool) -> I64:
    """For each wanted key, the index of the last event at its place before it, or -1.

    `now` also admits an event at just that time.
    """
    found = np.searchsorted(sorted_keys, wanted, "right" if now else "left") - 1
    there = found >= 0
    there[there] = place_of(sorted_keys[found[there]]) == place_of(wanted[there])
    return np.where(there, found, -1)
