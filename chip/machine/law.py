"""Whether the machine would run instructions, without memory and data.

The rules and the words are those of a whole program (chip/machine/resolve.py). Beyond them nothing
may be lost: what is put on a stream, into a slot of the activation buffer, into the array or into
an accumulator's row is taken before something else comes there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chip.isa.operands import Stream
from chip.machine.collect import FLOW_BITS, Collector
from chip.machine.events import I64, keys
from chip.machine.matrix import resolve_planes, rows_of
from chip.machine.ports import EITHER, Accesses, check_ports
from chip.machine.resolve import issue_cycles, resolve_registers
from chip.machine.streams import lines, resolve_streams


def refuse_unlawful(table: Collector) -> None:
    """Raise IssueError for the first thing that cannot be, or is lost."""
    source = np.full(table.operands, -1, np.int64)
    issue_cycles(table)
    resolve_streams(table, source)
    _check_streams(table, source)
    _check_ports(table)
    resolve_registers(table, source)
    tiles = resolve_planes(table, source)
    _check_weights(table, source)
    _check_tiles(table, tiles.of, len(tiles.operands))
    _check_slots(table)
    _check_sums(table)


def _check_ports(table: Collector) -> None:
    """Check the ports that instructions name; an address may be in either bank."""
    both = []
    uses = table.port_uses.expand()
    for events, kind in ((table.sram_reads.expand(), 0), (table.sram_writes.expand(), 1)):
        kept = uses.writes == kind
        either = np.full(len(events.cycle), EITHER)
        own = Accesses(events.slice_, events.cycle, either, events.issue)
        either = np.full(np.count_nonzero(kept), EITHER)
        other = Accesses(uses.slice_[kept], uses.cycle[kept], either, uses.issue.where(kept))
        both.append(own.joined(other))
    check_ports(both[0], both[1], table.culprit)


def _check_streams(table: Collector, source: I64) -> None:
    """No vector on a stream gives way to another before it is taken.

    One that nobody takes further on may leave the chip.
    """
    writes, reads = table.stream_writes.expand(), table.stream_reads.expand()
    taken = np.zeros(table.values, np.bool_)
    taken[source[source >= 0]] = True
    untaken = np.flatnonzero(~taken[writes.data])
    line = lines(writes)[untaken] << FLOW_BITS
    last = np.sort((lines(reads) << FLOW_BITS) + reads.flow)  # of a line: who takes farthest on
    found = np.searchsorted(last, line + (1 << FLOW_BITS)) - 1
    lost = found >= 0
    lost[lost] = last[found[lost]] > line[lost] + writes.flow[untaken][lost]
    if lost.any():
        event = int(untaken[np.argmax(lost)])
        stream = Stream.of_code(int(writes.stream[event]))
        raise table.refusal(f"a value on stream {stream} that is lost", writes.issue, event)


def _check_weights(table: Collector, source: I64) -> None:
    """No vector is taken both as weights and as activations."""
    weights = source[table.loads.expand().operand]
    for events in (table.products.expand(), table.slot_fills.expand()):
        if (both := np.isin(source[events.operand], weights)).any():
            what = "weights that are taken as activations"
            raise table.refusal(what, events.issue, int(np.argmax(both)))


def _check_tiles(table: Collector, of: I64, count: int) -> None:
    """Every tile that is installed is multiplied."""
    used = np.zeros(count, np.bool_)
    used[of[of >= 0]] = True
    if not used.all():
        installs = table.installs.expand()
        order = np.argsort(keys(installs.plane, installs.cycle), kind="stable")
        what = "weights in the array that are lost"
        raise table.refusal(what, installs.issue, int(order[np.argmin(used)]))


def _check_slots(table: Collector) -> None:
    """A slot of the activation buffer is read before it is filled anew."""
    fills, reads = table.slot_fills.expand(), table.slot_reads.expand()
    key = np.append(  # a read sees what was there before its cycle
        keys(rows_of(reads.plane, reads.slot), reads.cycle),
        keys(rows_of(fills.plane, fills.slot), fills.cycle),
    )
    fill = np.arange(len(key)) >= len(reads.cycle)
    if (event := _unread(key, fill, ~fill)) is not None:
        what = "a row of the activation buffer that is lost"
        raise table.refusal(what, fills.issue, event - len(reads.cycle))


def _check_sums(table: Collector) -> None:
    """An accumulator row is put out before it is started anew."""
    sums = table.sums.expand()
    out = [bool(getattr(burst.issue.instruction, "out", ())) for burst in table.bursts]
    given = np.array(out, np.bool_)[table.added(sums.issue.burst)]
    key = keys(rows_of(sums.plane, sums.row), sums.cycle)
    if (event := _unread(key, sums.starts == 1, given)) is not None:
        raise table.refusal("an accumulator row that is lost", sums.issue, event)


def _unread(key: I64, begins: NDArray[np.bool_], ends: NDArray[np.bool_]) -> int | None:
    """Return the first event that begins something that nobody takes before it begins anew.

    `key`: place and cycle of each event; the first of each place begins something. An event that
    begins and ends takes its own.
    """
    order = np.argsort(key, kind="stable")
    begins, ends = begins[order], ends[order]
    number = np.cumsum(begins)  # of the last beginning up to here
    taken = np.zeros(int(number[-1]) + 1 if len(number) else 1, np.bool_)
    taken[number[ends]] = True
    starts = np.flatnonzero(begins)
    lost = ~taken[1:]
    if not lost.any():
        return None
    return int(order[starts[int(np.argmax(lost))]])
