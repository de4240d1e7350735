"""SRAM: which write each read sees, what a step finds in memory and what it leaves there.

A read sees the last write to its word in an earlier cycle. What a write with a run-time address may
hit is known as a range of vectors only: reads of that range after the write are done in the step
(late reads), and no other access may lie among them. Slices with addresses from streams (Gather,
Scatter) are left to chip/machine/live.py, word by word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chip.errors import IssueError
from chip.isa.instructions import Read, Write
from chip.isa.issue import culprit
from chip.isa.operands import At, Chosen
from chip.machine.collect import Burst, Collector, leads, slice_of
from chip.machine.events import I64, IssueIndex, WordEvents, keys, latest, order_of, place_of
from chip.machine.ports import EITHER, Accesses, check_ports
from chip.spec import RUN, ChipSpec


@dataclass(frozen=True, slots=True)
class MemoryMap:
    """Where each vector of the SRAM lies, and which hold something when a step starts."""

    slice_of: I64  # [vectors]: hemisphere * slices a hemisphere + slice
    word_of: I64  # [vectors]
    valid: NDArray[np.bool_]  # [vectors]: constants and the KV cache

    def vectors(self, slice_: int, words: I64) -> I64:
        """Return the vectors that words of one slice hold."""
        own = np.flatnonzero(self.slice_of == slice_)
        order = np.argsort(self.word_of[own])
        return own[order[np.searchsorted(self.word_of[own][order], words)]]

    def vector_table(self, spec: ChipSpec) -> I64:
        """Return the vector of every slice and word, -1 for none: [slices, words]."""
        table = np.full((spec.slices, spec.banks * spec.words_per_bank), -1, np.int64)
        table[self.slice_of, self.word_of] = np.arange(len(self.slice_of))
        return table


class Commits(NamedTuple):
    """What a step leaves in memory."""

    vectors: I64
    values: I64  # value numbers


@dataclass(frozen=True, slots=True)
class MemoryFlow:
    """How values go through memory."""

    initial: I64  # [words]: vectors that are read as the step finds them
    alias: I64  # [values + words]: the value that each value is; a read's is the one written
    commits: Commits
    late_reads: set[int]  # bursts that read what run-time writes may have hit
    live: set[int]  # bursts of MEM in slices with addresses from streams


class _Known(NamedTuple):
    """Accesses whose addresses are known, one element each."""

    slice_: I64
    vector: I64
    cycle: I64
    data: I64  # the value number of a read, the operand number of a write
    issue: IssueIndex

    def where(self, kept: NDArray[np.bool_]) -> _Known:
        """Return some of them."""
        slice_, vector, cycle, data = (column[kept] for column in self[:4])
        return _Known(slice_, vector, cycle, data, self.issue.where(kept))


def resolve_memory(table: Collector, source: I64, memory: MemoryMap) -> MemoryFlow:
    """Trace reads to writes. `source` must hold the values that writes take.

    Raises IssueError for ports and banks used twice, for poison, and for accesses among words
    whose addresses are known at run time only.
    """
    vector_of = memory.vector_table(table.spec)
    writes = _known(table.sram_writes.expand(), vector_of)
    reads = _known(table.sram_reads.expand(), vector_of)
    _check_all_ports(table, memory, reads, writes)
    live, live_slices = {burst.number for burst in table.mapped}, _live_slices(table)
    if len(live_slices):
        _check_receives(table, writes, live_slices)
        read, written = (np.isin(some.slice_, live_slices) for some in (reads, writes))
        live.update(reads.issue.burst[read].tolist(), writes.issue.burst[written].tolist())
        reads, writes = reads.where(~read), writes.where(~written)
    key = keys(writes.vector, writes.cycle)
    order = order_of(key)
    ordered = key[order]
    found = latest(ordered, keys(reads.vector, reads.cycle), now=False)
    fresh = found < 0
    if (poison := fresh & ~memory.valid[reads.vector]).any():
        event = int(np.argmax(poison))
        what = f"vector {int(reads.vector[event])} was never written"
        raise table.refusal(what, reads.issue, event)
    late = _late_reads(table, memory, reads, writes, live_slices)
    initial, word = np.unique(reads.vector[fresh], return_inverse=True)
    seen = np.empty(len(reads.data), np.int64)  # the value that each read sees
    seen[fresh] = table.values + word
    seen[~fresh] = source[writes.data[order[found[~fresh]]]]
    now = ~np.isin(reads.issue.burst, np.fromiter(late, np.int64, len(late)))
    alias = np.arange(table.values + len(initial))
    alias[reads.data[now]] = seen[now]
    last = order[_last_of_each(place_of(ordered))]
    alias = _followed(alias)
    commits = Commits(writes.vector[last], alias[source[writes.data[last]]])
    return MemoryFlow(initial, alias, commits, late, live)


def _known(events: WordEvents, vector_of: I64) -> _Known:
    vector = vector_of[events.slice_, events.word]
    return _Known(events.slice_, vector, events.cycle, events.data, events.issue)


def _live_slices(table: Collector) -> I64:
    """Return the slices that have accesses with addresses from streams."""
    return np.unique([slice_of(burst.issue, table.spec) for burst in table.mapped])


def _check_receives(table: Collector, writes: _Known, live_slices: I64) -> None:
    """Refuse a vector that a port puts among words whose addresses come from streams."""
    received = np.isin(writes.issue.burst, [burst.number for burst in table.received])
    if (among := received & np.isin(writes.slice_, live_slices)).any():
        what = "a vector received in a slice whose words are gathered or scattered"
        name = table.culprit(writes.issue, int(np.argmax(among)))
        raise IssueError(what, name, culprit(table.mapped[0].issue))


def _last_of_each(place: I64) -> I64:
    """Return the index of the last element of each run of equal places."""
    if not len(place):
        return np.empty(0, np.int64)
    return np.flatnonzero(np.append(np.diff(place) != 0, True))


def _followed(alias: I64) -> I64:
    """Follow aliases of aliases to the end."""
    while not np.array_equal(nearer := alias[alias], alias):
        alias = nearer
    return alias


def _check_all_ports(table: Collector, memory: MemoryMap, reads: _Known, writes: _Known) -> None:
    uses = table.port_uses.expand()
    both = []
    for known, kind in ((reads, 0), (writes, 1)):
        bank = memory.word_of[known.vector] // table.spec.words_per_bank
        own = Accesses(known.slice_, known.cycle, bank, known.issue)
        kept = uses.writes == kind
        either = np.full(np.count_nonzero(kept), EITHER)
        other = Accesses(uses.slice_[kept], uses.cycle[kept], either, uses.issue.where(kept))
        both.append(own.joined(other))
    check_ports(both[0], both[1], table.culprit)


def _late_reads(
    table: Collector, memory: MemoryMap, reads: _Known, writes: _Known, live_slices: I64
) -> set[int]:  # fmt: skip
    """Return the bursts that read, afterwards, words that run-time writes may have hit."""
    late: set[int] = set()
    for burst in table.dynamic:
        at = burst.issue.instruction
        assert isinstance(at, (Read, Write))
        assert isinstance(at.address, At)
        _check_range(table, memory, writes, burst, at.address, live_slices)
        if isinstance(at, Read):
            late.add(burst.number)
        else:
            late |= _reads_after(table, reads, burst, at.address)
    for burst in table.chosen:
        if leads(burst.issue, table.spec):
            late.add(burst.number)
            _check_blocks(table, memory, writes, burst, live_slices)
    return late


def block_vectors(block: Chosen, spec: ChipSpec) -> I64:
    """Return the vectors of the first block that a read may mean."""
    at = _place(block.base, spec) + block.spread * np.arange(block.count)
    run, place = np.divmod(at, RUN)
    side = block.base // RUN % spec.hemispheres
    out: I64 = (run * spec.hemispheres + side) * RUN + place
    return out


def _place(vector: int, spec: ChipSpec) -> int:
    """Return a vector of bulk memory's number among those of its hemisphere."""
    return vector // (RUN * spec.hemispheres) * RUN + vector % RUN


def _check_blocks(
    table: Collector, memory: MemoryMap, writes: _Known, burst: Burst, live_slices: I64
) -> None:  # fmt: skip
    """Check the vectors of every block that an index may name."""
    read = burst.issue.instruction
    assert isinstance(read, Read)
    assert isinstance(read.address, Chosen)
    block, named = read.address, culprit(burst.issue)
    first = block_vectors(block, table.spec) if block.count > 1 else np.array([block.base])
    every = (first + block.apart * np.arange(block.choices)[:, None]).reshape(-1)
    if int(every[-1]) >= len(memory.valid) or not memory.valid[every].all():
        raise IssueError("a chosen block among vectors that were never written", named)
    if np.isin(memory.slice_of[every], live_slices).any():
        what = "a chosen block in a slice whose words are gathered or scattered"
        raise IssueError(what, named, culprit(table.mapped[0].issue))
    if (hit := np.isin(writes.vector, every)).any():
        what = "a write among words whose addresses are known at run time only"
        raise IssueError(what, table.culprit(writes.issue, int(np.argmax(hit))), named)


def _check_range(
    table: Collector, memory: MemoryMap, writes: _Known, burst: Burst, at: At, live_slices: I64
) -> None:  # fmt: skip
    """Check the vectors that a run-time address may name."""
    named = culprit(burst.issue)
    first, stop = at.base, at.base + at.limit
    if not memory.valid[first:stop].all():
        raise IssueError("a run-time address among vectors that were never written", named)
    if np.isin(memory.slice_of[first:stop], live_slices).any():
        what = "a run-time address in a slice whose words are gathered or scattered"
        raise IssueError(what, named, culprit(table.mapped[0].issue))
    if (hit := (writes.vector >= first) & (writes.vector < stop)).any():
        what = "a write among words whose addresses are known at run time only"
        raise IssueError(what, table.culprit(writes.issue, int(np.argmax(hit))), named)


def _reads_after(table: Collector, reads: _Known, burst: Burst, at: At) -> set[int]:
    """Return the bursts that read the range of a run-time write after its issues stored.

    A burst of reads lies before the first store or after the last one, as a whole.
    """
    issue, stores = burst.issue, table.delays["WRITE"].d_func
    first, last = issue.cycle + stores, issue.last_cycle + stores
    hit = (reads.vector >= at.base) & (reads.vector < at.base + at.limit)
    after = np.flatnonzero(hit & (reads.cycle > first))
    if len(among := after[reads.cycle[after] <= last]):
        what = "a read among writes whose addresses are known at run time only"
        raise IssueError(what, table.culprit(reads.issue, int(among[0])), culprit(issue))
    before = reads.issue.burst[hit & (reads.cycle <= first)]
    if len(both := np.intersect1d(before, reads.issue.burst[after])):
        what = "reads before and after a write whose address is known at run time only"
        raise IssueError(what, culprit(table.bursts[both[0]].issue), culprit(issue))
    return set(reads.issue.burst[after].tolist())
