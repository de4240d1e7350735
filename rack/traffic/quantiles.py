"""Means and percentiles of many values in little memory.

Every different value is counted, so percentiles are exact. From MOST different values on they are
counted by their first 11 binary digits: a percentile is then within 0.05 % of the exact one. Means
are exact either way. Between two ranks a percentile is interpolated, as NumPy does it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

MOST = 1 << 16
DIGITS = 11
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


class Quantiles:
    """Values from 0 on, each counted as often as it came."""

    def __init__(self) -> None:
        self.count = 0
        self.exact = True
        self._sum: float = 0  # an integer while all values are
        self._counts: dict[float, int] = {}

    def add(self, value: float, times: int = 1) -> None:
        """Take a value."""
        self.count += times
        self._sum += value * times
        key = value if self.exact else _rounded(value)
        self._counts[key] = self._counts.get(key, 0) + times
        if self.exact and len(self._counts) > MOST:
            self._shorten()

    def add_all(self, values: Mapping[int, int]) -> None:
        """Take values, each so many times."""
        for value, times in values.items():
            self.add(value, times)

    def mean(self) -> float | None:
        """Return the mean; None of nothing."""
        return self._sum / self.count if self.count else None

    def at(self, percentiles: Sequence[float]) -> list[float | None]:
        """Return percentiles; None of nothing."""
        if not self.count:
            return [None] * len(percentiles)
        values = np.array(sorted(self._counts), np.float64)
        ends = np.cumsum([self._counts[value] for value in sorted(self._counts)])
        ranks = np.array(percentiles) / 100 * (self.count - 1)
        low = values[np.searchsorted(ends, np.floor(ranks), side="right")]
        high = values[np.searchsorted(ends, np.ceil(ranks), side="right")]
        found: list[float | None] = (low + (high - low) * (ranks - np.floor(ranks))).tolist()
        return found

    def _shorten(self) -> None:
        self.exact = False
        before, self._counts = self._counts, {}
        for value, times in before.items():
            key = _rounded(value)
            self._counts[key] = self._counts.get(key, 0) + times


def _rounded(value: float) -> float:
    """Return the number of DIGITS binary digits that is nearest to a value."""
    part, exponent = math.frexp(value)
    return math.ldexp(round(part * 2**DIGITS), exponent - DIGITS)
