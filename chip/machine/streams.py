"""Streams: which writer each operand sees.

A value moves one stream register a cycle, so in a frame that moves with the stream it stands still:
`diagonal = cycle - flow` is the same where it is put and wherever it is taken, where flow counts
hops along the stream's direction. A unit sees the nearest writer strictly upstream, which is the
writer on the reader's diagonal with the greatest flow below the reader's own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from chip.isa.operands import Stream
from chip.machine.collect import FLOW_BITS, Collector
from chip.machine.events import I64, IssueIndex, StreamEvents, duplicate, order_of

_DIAGONAL_BITS = 36
_DIAGONAL_BIAS = (
    1 << 20
)  # diagonals lie before cycle 0 by a flow, and cycles before the step's base


class Flights(NamedTuple):
    """Stream values on their way, one element for each time that one is taken."""

    leaves: I64  # cycle in which it is put
    taken: I64  # the cycle after it is taken
    reader: IssueIndex


def resolve_streams(table: Collector, source: I64) -> Flights:
    """Enter in `source` the value of each operand taken from a stream.

    Raises IssueError for two writers of one stream register, and for an operand without a writer.
    """
    writes, reads = table.stream_writes.expand(), table.stream_reads.expand()
    key = _keys(writes)
    order = order_of(key)
    ordered = key[order]
    if (twice := duplicate(ordered)) is not None:
        stream = Stream.of_code(int(writes.stream[order[twice]]))
        what = f"two values on stream {stream} in one register"
        raise table.refusal(what, writes.issue, order[twice], order[twice + 1])
    wanted = _keys(reads)
    found = np.searchsorted(ordered, wanted) - 1
    there = found >= 0
    there[there] = ordered[found[there]] >> FLOW_BITS == wanted[there] >> FLOW_BITS
    if not there.all():
        event = int(np.argmin(there))
        what = f"nothing on stream {Stream.of_code(int(reads.stream[event]))}"
        raise table.refusal(what, reads.issue, event)
    writer = order[found]
    source[reads.data] = writes.data[writer]
    leaves = reads.diagonal + writes.flow[writer]  # both are on one diagonal
    return Flights(leaves, reads.diagonal + reads.flow + 1, reads.issue)


def _keys(events: StreamEvents) -> I64:
    """Return stream, diagonal and flow as one integer, ordered in this order."""
    return (lines(events) << FLOW_BITS) + events.flow


def lines(events: StreamEvents) -> I64:
    """Return stream and diagonal as one integer: where a value stands still."""
    return (events.stream << _DIAGONAL_BITS) + events.diagonal + _DIAGONAL_BIAS
