"""Accesses to bulk memory whose slices are not known: lawful wherever their vectors lie.

A value that passes the slices of a hemisphere in one direction meets each a hop later than the one
before. So accesses that go with it, whatever their slices, have one diagonal: cycle - flow, as the
value has. On a diagonal each slice is accessed once: neighbouring vectors lie in different ones.
Two operands may lie anywhere to one another, so a diagonal has vectors of one. Accesses of opposite
directions meet at a slice if their diagonals say so for any of the hemisphere's slices.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from chip.floorplan import bulk_slices, mem, position
from chip.machine.collect import EDGE, Collector
from chip.machine.events import I64, EventRun, EventTable, IssueIndex, duplicate, keys, order_of


class BulkEvents(NamedTuple):
    """A vector of bulk memory is read or written."""

    way: I64  # hemisphere * 2, + 1 eastward
    diagonal: I64  # cycle - flow
    vector: I64  # counted within the hemisphere
    operand: I64  # whose vector it is
    issue: IssueIndex

    @staticmethod
    def run(*, way: int, diagonal: int, vector: int, operand: int, apart: int) -> EventRun:
        """Vectors at once, `apart` from each other."""
        return way, diagonal, vector, operand, 0, 0, apart, 0


def bulk_events(table: Collector) -> EventTable[BulkEvents]:
    """Return an empty table, whose events come again as the collector's do."""
    return EventTable(BulkEvents, table.repeat())


def check_bulk(accesses: EventTable[BulkEvents], table: Collector) -> None:
    """Raise IssueError for two accesses of bulk memory that may meet."""
    events = accesses.expand()
    place = keys(events.way, events.diagonal)
    slices = len(bulk_slices(table.spec))
    key = place * 256 + events.vector % slices
    order = order_of(key)
    if (twice := duplicate(key[order])) is not None:
        what = "two accesses of one slice in one cycle"
        raise table.refusal(what, events.issue, order[twice], order[twice + 1])
    here, operand = place[order], events.operand[order]
    if (mixed := (np.diff(here) == 0) & (np.diff(operand) != 0)).any():
        event = int(np.argmax(mixed))
        what = "accesses of two operands that may lie in one slice"
        raise table.refusal(what, events.issue, order[event], order[event + 1])
    for hemisphere in range(table.spec.hemispheres):
        _check_opposite(events, hemisphere, table)


def _check_opposite(events: BulkEvents, hemisphere: int, table: Collector) -> None:
    west, east = (np.flatnonzero(events.way == 2 * hemisphere + way) for way in (0, 1))
    if not len(west) or not len(east):
        return
    ordered = east[order_of(events.diagonal[east])]
    diagonals = events.diagonal[ordered]
    for at in sorted({position(mem(hemisphere, n), table.spec) for n in bulk_slices(table.spec)}):
        # on a westward diagonal w this place is passed at w + EDGE - at, on an eastward e at e + at
        wanted = events.diagonal[west] + EDGE - 2 * at
        found = np.searchsorted(diagonals, wanted)
        meets = found < len(diagonals)
        meets[meets] = diagonals[found[meets]] == wanted[meets]
        if meets.any():
            event = int(np.argmax(meets))
            what = "accesses of opposite directions that may meet at a slice"
            raise table.refusal(what, events.issue, west[event], ordered[found[event]])
