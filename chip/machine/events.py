"""Events of a program as tables with named columns, and look-ups among them by place and cycle.

An event is one use of one thing by one issue: a stream register is written, an SRAM word is read,
an ALU completes a result. The `n` issues of an Issue make a run of events: each column starts at a
number and grows by a step from one issue to the next (`period`: cycles). A table keeps runs, and
expands them all at once into columns with an element for each event.

A place (a queue, an SRAM word, an ALU) and a cycle make one sortable key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
EventRun = tuple[int, ...]
"""Where each column of a run starts, then each column's step."""


class IssueIndex(NamedTuple):
    """Which issue each event comes from."""

    burst: I64
    nth: I64  # issue of its burst

    def where(self, kept: NDArray[np.bool_]) -> IssueIndex:
        """Return those of some events."""
        return IssueIndex(self.burst[kept], self.nth[kept])

    def joined(self, other: IssueIndex) -> IssueIndex:
        """Return those of these events and others."""
        return IssueIndex(np.append(self.burst, other.burst), np.append(self.nth, other.nth))


class QueueEvents(NamedTuple):
    """An instruction is issued."""

    queue: I64
    cycle: I64
    issue: IssueIndex

    @staticmethod
    def run(*, queue: int, cycle: int, period: int) -> EventRun:
        return queue, cycle, 0, period


class StreamEvents(NamedTuple):
    """A vector is put on a stream, or taken from it."""

    stream: I64  # Stream.code
    diagonal: I64  # cycle - flow
    flow: I64  # place along the stream's direction
    data: I64  # the value number that is put, or the operand number that takes it
    issue: IssueIndex

    @staticmethod
    def run(
        *, stream: int, diagonal: int, period: int, flow: int, data: int, data_step: int
    ) -> EventRun:
        return stream, diagonal, flow, data, 0, period, 0, data_step

    @staticmethod
    def neighbours(*, stream: int, diagonal: int, flow: int, data: int) -> EventRun:
        """Vectors on neighbouring streams at once."""
        return stream, diagonal, flow, data, 1, 0, 0, 1


class WordEvents(NamedTuple):
    """An SRAM word is read or written, and the instruction holds its address."""

    slice_: I64
    word: I64
    cycle: I64
    data: I64  # the value number that a read makes, or the operand number of a write
    issue: IssueIndex

    @staticmethod
    def run(
        *, slice_: int, word: int, word_step: int, cycle: int, period: int, data: int
    ) -> EventRun:  # fmt: skip
        return slice_, word, cycle, data, 0, word_step, period, 1


class PortEvents(NamedTuple):
    """A slice's port is used for a word whose address comes with the step or from a stream."""

    slice_: I64
    writes: I64  # 1: a write, 0: a read
    cycle: I64
    issue: IssueIndex

    @staticmethod
    def run(*, slice_: int, writes: bool, cycle: int, period: int) -> EventRun:
        return slice_, int(writes), cycle, 0, 0, period


class ResultEvents(NamedTuple):
    """A result enters an ALU's output register."""

    alu: I64
    cycle: I64
    value: I64
    issue: IssueIndex

    @staticmethod
    def run(*, alu: int, cycle: int, period: int, value: int, value_step: int) -> EventRun:
        return alu, cycle, value, 0, period, value_step


class RegisterEvents(NamedTuple):
    """An ALU's output register is read."""

    alu: I64
    cycle: I64
    operand: I64
    chained: I64  # 1: the result must complete in this cycle, 0: the latest one is taken
    issue: IssueIndex

    @staticmethod
    def run(*, alu: int, cycle: int, period: int, operand: int, chained: bool) -> EventRun:
        return alu, cycle, operand, int(chained), 0, period, 1, 0


class LoadEvents(NamedTuple):
    """A column of weights enters a plane's weight buffer."""

    plane: I64
    cycle: I64
    column: I64
    operand: I64
    issue: IssueIndex

    @staticmethod
    def neighbours(*, plane: int, cycle: int, column: int, operand: int) -> EventRun:
        """Neighbouring columns at once."""
        return plane, cycle, column, operand, 0, 0, 1, 1


class InstallEvents(NamedTuple):
    """A plane's weight buffer is installed in the array."""

    plane: I64
    cycle: I64
    columns: I64
    issue: IssueIndex

    @staticmethod
    def run(*, plane: int, cycle: int, period: int, columns: int) -> EventRun:
        return plane, cycle, columns, 0, period, 0


class SlotEvents(NamedTuple):
    """A slot of a plane's activation buffer is filled or read."""

    plane: I64
    slot: I64
    cycle: I64
    operand: I64
    issue: IssueIndex

    @staticmethod
    def run(
        *, plane: int, slot: int, slot_step: int, cycle: int, period: int, operand: int
    ) -> EventRun:  # fmt: skip
        return plane, slot, cycle, operand, 0, slot_step, period, 1


class ProductEvents(NamedTuple):
    """A product leaves a plane's array, or an ACC takes it."""

    plane: I64
    cycle: I64
    operand: I64  # the activations of the product
    fp16: I64  # 1: a product of fp16, 0: of int8
    issue: IssueIndex

    @staticmethod
    def run(*, plane: int, cycle: int, period: int, operand: int, fp16: bool) -> EventRun:
        return plane, cycle, operand, int(fp16), 0, period, 1, 0


class SumEvents(NamedTuple):
    """An accumulator row of a plane is started, added to or put out."""

    plane: I64
    row: I64
    cycle: I64
    starts: I64  # 1: the row starts anew, 0: it must have been started
    issue: IssueIndex

    @staticmethod
    def run(
        *, plane: int, row: int, row_step: int, cycle: int, period: int, starts: bool
    ) -> EventRun:  # fmt: skip
        return plane, row, cycle, int(starts), 0, row_step, period, 0


class HalfEvents(NamedTuple):
    """Half of an fp16 tile is added to an accumulator row's partial sums."""

    plane: I64
    row: I64
    cycle: I64
    half: I64  # 0 or 1
    issue: IssueIndex

    @staticmethod
    def run(*, plane: int, row: int, row_step: int, cycle: int, period: int, half: int) -> EventRun:
        return plane, row, cycle, half, 0, row_step, period, 0


Events = TypeVar("Events", bound=NamedTuple)


class EventTable(Generic[Events]):
    """Runs of events of one kind; made as `EventTable(WordEvents)`.

    `repeat`: what gives the events of parts that come again, each in its turn.
    """

    def __init__(
        self, kind: type[Events], repeat: Callable[[Events], Events] | None = None
    ) -> None:
        self._kind, self._columns, self._repeat = kind, len(kind._fields) - 1, repeat
        self._numbers: list[int] = []  # (burst, n, *run) of each run, one after another

    def add(self, burst: int, n: int, run: EventRun, nth: int | None = None) -> None:
        """Add the run of a burst's `n` issues, or `n` events of its issue `nth`."""
        first, step = (0, 1) if nth is None else (nth, 0)
        self._numbers += (burst, n, first, step, *run)

    def expand(self) -> Events:
        """Return the columns of all events, in the order in which they were added."""
        width = 4 + 2 * self._columns
        rows = np.array(self._numbers, np.int64).reshape(-1, width)
        burst, n, *numbers = np.ascontiguousarray(rows.T)
        run = np.repeat(np.arange(len(n)), n)
        within = np.arange(len(run)) - np.repeat(np.cumsum(n) - n, n)
        starts = [numbers[0], *numbers[2 : 2 + self._columns]]
        steps = [numbers[1], *numbers[2 + self._columns :]]
        nth, *columns = [
            first[run] + step[run] * within if step.any() else first[run]
            for first, step in zip(starts, steps, strict=True)
        ]
        events = self._kind._make([*columns, IssueIndex(burst[run], nth)])
        return events if self._repeat is None else self._repeat(events)


_CYCLE_BITS = 36
_CYCLE_BIAS = 1 << 24  # cycles count from the step's base and may lie before it


def keys(place: I64, cycle: I64) -> I64:
    """Return place and cycle as one integer, ordered by place, then cycle."""
    shifted = cycle + _CYCLE_BIAS
    assert not len(shifted) or 0 <= int(shifted.min()) <= int(shifted.max()) < 1 << _CYCLE_BITS
    return (place << _CYCLE_BITS) | shifted


def place_of(key: I64) -> I64:
    """Return the places of keys."""
    return key >> _CYCLE_BITS


def order_of(key: I64) -> I64:
    """Return the order of keys; equal ones as they come."""
    order = np.argsort(key)
    ordered = key[order]
    if (ordered[1:] == ordered[:-1]).any():  # a stable sort takes three times as long
        return np.argsort(key, kind="stable")
    return order


def duplicate(sorted_keys: I64) -> int | None:
    """Return the index of the first key that equals the one after it."""
    same = np.flatnonzero(sorted_keys[1:] == sorted_keys[:-1])
    return int(same[0]) if len(same) else None


def matches(sorted_keys: I64, wanted: I64) -> tuple[I64, NDArray[np.bool_]]:
    """For each wanted key, return an index of the sorted keys, and whether that one equals it."""
    at = np.searchsorted(sorted_keys, wanted)
    equal = at < len(sorted_keys)
    equal[equal] = sorted_keys[at[equal]] == wanted[equal]
    return at, equal


def latest(sorted_keys: I64, wanted: I64, *, now: bool) -> I64:
    """For each wanted key, return the index of the last event at its place before it, or -1.

    `now` also admits an event in just that cycle.
    """
    found = np.searchsorted(sorted_keys, wanted, "right" if now else "left") - 1
    there = found >= 0
    there[there] = place_of(sorted_keys[found[there]]) == place_of(wanted[there])
    return np.where(there, found, -1)
