"""How much there is of something over time: its mean in spans of equal length.

There are at most SPANS of them; as time goes on they get twice as long. What is there is given as
ramps: from a cycle to another it goes from one height to another, in a straight line.
"""

from __future__ import annotations

import numpy as np

SPANS = 1024
_FIRST_CYCLES = 1 << 12
_HELD = 1 << 12  # ramps that are added together


class Load:
    """A sum of ramps."""

    def __init__(self) -> None:
        self.span_cycles = _FIRST_CYCLES
        self.area = 0.0  # height x cycles of all ramps
        self._areas = np.zeros(SPANS)  # the same by span, in span lengths
        self._ramps: list[tuple[int, int, float, float]] = []

    def add(self, begin: int, end: int, first: float, last: float) -> None:
        """Add what goes from one height at a cycle to another at a later one."""
        self.area += (end - begin) * (first + last) / 2
        self._ramps.append((begin, end, first, last))
        if len(self._ramps) >= _HELD:
            self._flush()

    def mean(self, begin: float, end: float) -> float:
        """Return the mean over the spans that a stretch of cycles touches."""
        self._flush()
        self._reach(end)
        low = min(int(begin / self.span_cycles), SPANS - 1)
        return float(self._areas[low : max(low + 1, int(np.ceil(end / self.span_cycles)))].mean())

    def most(self) -> float:
        """Return the largest mean of a span."""
        self._flush()
        return float(self._areas.max())

    def curve(self, end: int, points: int) -> list[tuple[float, float]]:
        """Return (cycle, mean) of the middles of up to so many stretches before a cycle."""
        self._flush()
        self._reach(end)
        used = max(1, -(-end // self.span_cycles))
        each = -(-used // points)
        return [
            ((at + min(at + each, used)) / 2 * self.span_cycles,
             float(self._areas[at : min(at + each, used)].mean()))
            for at in range(0, used, each)
        ]  # fmt: skip

    def _flush(self) -> None:
        """Add the ramps that are held to the spans."""
        if not self._ramps:
            return
        held = np.array(self._ramps, np.float64)
        self._ramps.clear()
        self._reach(held[:, 1].max())
        begin, end = held[:, 0] / self.span_cycles, held[:, 1] / self.span_cycles
        first, last = held[:, 2], held[:, 3]
        low, high = np.floor(begin).astype(int), np.floor(end).astype(int)
        within = low == high
        total = (end - begin) * (first + last) / 2
        slope = np.divide(last - first, end - begin, out=np.zeros_like(total), where=~within)
        head, tail = low + 1 - begin, end - high  # parts of the first and the last span
        self._count(low, np.where(within, total, head * (first + slope * head / 2)))
        self._count(high, np.where(within, 0.0, tail * (last - slope * tail / 2)))
        start = np.where(within, 0.0, first + slope * (0.5 - begin))  # of whole spans between
        whole = np.cumsum(self._steps(low + 1, high, start))
        rising = np.cumsum(self._steps(low + 1, high, slope)) * np.arange(SPANS)
        self._areas += whole + rising

    def _reach(self, end: float) -> None:
        """Let the spans be long enough to reach a cycle."""
        while end > SPANS * self.span_cycles:
            pairs = self._areas.reshape(-1, 2).sum(axis=1) / 2
            self._areas = np.concatenate([pairs, np.zeros(SPANS - len(pairs))])
            self.span_cycles *= 2

    def _count(self, spans: np.ndarray, areas: np.ndarray) -> None:
        """Add areas to their spans; one that begins at the very end has none."""
        self._areas += np.bincount(spans, areas, minlength=SPANS + 1)[:SPANS]

    def _steps(self, begin: np.ndarray, end: np.ndarray, heights: np.ndarray) -> np.ndarray:
        """Return what heights from one span until another add to the span before."""
        inside = np.where(end > begin, heights, 0.0)
        up = np.bincount(begin, inside, minlength=SPANS + 2)
        down = np.bincount(np.maximum(begin, end), inside, minlength=SPANS + 2)
        steps: np.ndarray = (up - down)[:SPANS]
        return steps
