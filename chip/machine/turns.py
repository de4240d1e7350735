"""Parts of a program that come again and again: their events are collected once, and repeated here.

A part is what is added to a Collector between two calls of `again`. From one start to the next its
cycles move, and its values, operands and bursts get numbers of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, TypeVar

import numpy as np

from chip.machine.events import I64, IssueIndex

Events = TypeVar("Events", bound=NamedTuple)
_TIMES = frozenset({"cycle", "diagonal"})


class Counted(IntEnum):
    """What has numbers, in the order in which it is added."""

    BURST = 0
    VALUE = 1
    OPERAND = 2


class Where(NamedTuple):
    """A burst as it was added, how many cycles later it comes, and what it is part of."""

    burst: int
    later: int
    part: str


@dataclass(slots=True)
class Turns:
    """The parts: how much was added before each, and where each starts."""

    _before: list[tuple[int, int, int]] = field(default_factory=list)  # by Counted
    _starts: list[I64] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)

    def again(self, name: str, before: tuple[int, int, int], starts: Sequence[int]) -> None:
        """Begin a part. `before`: how many bursts, values and operands there are."""
        assert len(starts), "a part comes at least once"
        self._before.append(before)
        self._names.append(name)
        self._starts.append(np.asarray(starts, np.int64))

    @property
    def plain(self) -> bool:
        """Whether everything comes once, as it was added."""
        return not self._starts

    def totals(self, added: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return how many bursts, values and operands there are in all turns."""
        if self.plain:
            return added
        bursts, values, operands = self._first(added)[-1].tolist()
        return bursts, values, operands

    def repeat(
        self, events: Events, added: tuple[int, int, int], column: str, of: Counted
    ) -> Events:
        """Return events in all turns. `column` has numbers of what is counted, if it is there."""
        if self.plain:
            return events
        issue: IssueIndex = events[-1]
        before, first = self._sizes(added), self._first(added)
        part = np.searchsorted(before[0][:, Counted.BURST], issue.burst, "right") - 1
        turns = np.array([len(starts) for starts in self._starts])
        count = turns[part]
        at = np.repeat(np.arange(len(part)), count)
        turn = np.arange(len(at)) - np.repeat(np.cumsum(count) - count, count)
        part = part[at]
        later = np.concatenate(self._starts)[(np.cumsum(turns) - turns)[part] + turn]

        def numbers(column: I64, of: Counted) -> I64:
            moved: I64 = first[part, of] - before[0][part, of] + turn * before[1][part, of]
            return column[at] + moved

        columns = []
        for name, values in zip(events._fields[:-1], events[:-1], strict=True):
            if name == column:
                columns.append(numbers(values, of))
            else:
                columns.append(values[at] + later if name in _TIMES else values[at])
        burst = numbers(issue.burst, Counted.BURST)
        return events._make([*columns, IssueIndex(burst, issue.nth[at])])

    def where(self, burst: int, added: tuple[int, int, int]) -> Where:
        """Return what a burst's number means."""
        if self.plain:
            return Where(burst, 0, "")
        (before, size), first = self._sizes(added), self._first(added)[:, Counted.BURST]
        part = int(np.searchsorted(first, burst, "right")) - 1
        turn, place = divmod(burst - int(first[part]), int(size[part, Counted.BURST]))
        own = int(before[part, Counted.BURST]) + place
        return Where(own, int(self._starts[part][turn]), self._names[part])

    def added(self, bursts: I64, added: tuple[int, int, int]) -> I64:
        """Return each burst as it was added."""
        if self.plain:
            return bursts
        (before, size), first = self._sizes(added), self._first(added)[:, Counted.BURST]
        part = np.searchsorted(first, bursts, "right") - 1
        own: I64 = before[part, Counted.BURST] + (bursts - first[part]) % size[part, Counted.BURST]
        return own

    def _sizes(self, added: tuple[int, int, int]) -> tuple[I64, I64]:
        """Return what there is before each part, and in it: [parts, 3] each."""
        before = np.array([*self._before, added], np.int64)
        return before[:-1], np.diff(before, axis=0)

    def _first(self, added: tuple[int, int, int]) -> I64:
        """Return the first numbers of each part, and those behind the last: [parts + 1, 3]."""
        turns = np.array([len(starts) for starts in self._starts])[:, None]
        sums = np.cumsum(self._sizes(added)[1] * turns, axis=0)
        return np.concatenate([np.zeros((1, 3), np.int64), sums])
