"""Traces every operand to what produced it, and refuses what the hardware could not do.

The result holds no data: value numbers of every operand, the words read from memory as the step
finds it, the words written when it ends. Read, then commit: a value is seen from the cycle after it
was written, whether in SRAM, in a stream register or in the MXM's buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chip.errors import MachineError
from chip.isa.instructions import TILES, Read, Write
from chip.isa.issue import Issue, delays
from chip.isa.operands import At
from chip.machine.check import culprit
from chip.machine.collect import Burst, Collector, slice_of
from chip.machine.matrix import MatrixResolver
from chip.machine.ports import EITHER, Accesses, check_ports
from chip.machine.stops import check_stops
from chip.machine.tables import I64, duplicate, keys, latest, place_of
from chip.spec import ChipSpec

_DIAGONAL_BIAS = 1 << 20
_FLOW_BITS = 6


@dataclass(frozen=True, slots=True)
class Memory:
    """Where each vector of the SRAM lies, and which hold something when a step starts."""

    slice_of: I64  # [vectors]: hemisphere * slices a hemisphere + slice
    word_of: I64  # [vectors]
    valid: NDArray[np.bool_]  # [vectors]: constants and the KV cache

    def vectors(self, place: int, words: I64) -> I64:
        """Return the vectors that words of one slice hold."""
        own = np.flatnonzero(self.slice_of == place)
        order = np.argsort(self.word_of[own])
        return own[order[np.searchsorted(self.word_of[own][order], words)]]


@dataclass(slots=True)
class Resolved:
    """A program whose operands are known."""

    spec: ChipSpec
    bursts: list[Burst]
    values: int  # value numbers below this are made by bursts, those above are initial words
    source: I64  # [places]: value numbers of operands; a wide register's first
    initial: I64  # [words]: vectors that are read as the step finds them
    commits: tuple[I64, I64]  # vectors, and the value numbers they hold at the end
    tiles: I64  # [tiles, columns]: value numbers of installed weights, -1 for none
    tile_of: I64  # [places]: the tile that an ACC's product is of
    dynamic: list[int] = field(default_factory=list)  # bursts whose addresses come with the step
    late_reads: set[int] = field(default_factory=set)  # bursts that read what those may have hit
    live: set[int] = field(default_factory=set)  # of MEM, in slices with addresses from streams
    cycles: int = 0  # the last event of the program + 1
    busy_cycles: int = 0  # in which something was issued, or a value was on its way to its reader


class _Words(NamedTuple):
    """Accesses to words whose addresses are known, one element each."""

    slice_: I64
    vector: I64
    cycle: I64
    data: I64  # value number of a read, place of a write's operand
    nth: I64  # issue of its burst
    burst: I64

    def where(self, kept: NDArray[np.bool_]) -> _Words:
        """Return some of them."""
        return _Words(*(column[kept] for column in self))


class Resolver(MatrixResolver):
    """Resolves one program against one memory."""

    def __init__(self, spec: ChipSpec, memory: Memory) -> None:
        super().__init__(spec)
        self.memory = memory
        self.words = spec.banks * spec.words_per_bank
        self.vector_of = np.full((spec.slices, self.words), -1, np.int64)
        self.vector_of[memory.slice_of, memory.word_of] = np.arange(len(memory.slice_of))

    def resolve(self, issues: Sequence[Issue]) -> Resolved:
        """Return the program's dataflow. Raises MachineError for the first thing refused."""
        table = Collector(self.spec)
        for issue in issues:
            table.add(issue)
        self.table, self.source = table, np.full(table.places, -1, np.int64)
        self.tile_of = np.full(table.places, -1, np.int64)
        self._queues()
        self._streams()
        check_stops(table.bursts, self.flights, delays(self.spec))
        alias, initial, commits, late = self._sram()
        self._registers()
        tiles = self._planes()
        while not np.array_equal(nearer := alias[alias], alias):
            alias = nearer
        self.source = np.where(self.source >= 0, alias[self.source], -1)
        last = max((issue.last_cycle for issue in issues), default=0)
        return Resolved(
            spec=self.spec, bursts=table.bursts, values=table.values, source=self.source,
            initial=initial, commits=(commits[0], alias[commits[1]]),
            tiles=np.where(tiles >= 0, self.source[tiles], -1), tile_of=self.tile_of,
            dynamic=[burst.number for burst in table.dynamic], late_reads=late,
            live=self.live, cycles=last + 1 + TILES, busy_cycles=self._busy(),
        )  # fmt: skip

    def _busy(self) -> int:
        """Count the cycles in which something happens; the others a stepping machine may skip."""
        index, (_, cycle, step, _) = self.table.queue_slots.expand()
        issued = cycle + step * index
        spans = [self.flights[:2], (issued, issued + 1)]
        low = min((int(first.min()) for first, _ in spans if len(first)), default=0)
        high = max((int(last.max()) for _, last in spans if len(last)), default=0)
        change = np.zeros(high - low + 2, np.int64)
        for first, last in spans:
            np.add.at(change, first - low, 1)
            np.add.at(change, last - low, -1)
        return int(np.count_nonzero(np.cumsum(change)))

    # -- queues and streams

    def _queues(self) -> None:
        """One issue a queue and cycle."""
        index, (queue, cycle, step, burst) = self.table.queue_slots.expand()
        key = keys(queue, cycle + step * index)
        order = np.argsort(key, kind="stable")
        if (twice := duplicate(key[order])) is not None:
            raise self._refuse(
                "two instructions in one queue and cycle", index, burst, order[twice],
                order[twice + 1],
            )  # fmt: skip

    def _streams(self) -> None:
        """In the moving frame a value stands still: writers and readers meet on a diagonal."""
        index, (code, diagonal, step, flow, value, value_step, burst) = (
            self.table.stream_writes.expand()
        )
        key = _stream_keys(code, diagonal + step * index, flow)
        order = np.argsort(key, kind="stable")
        ordered = key[order]
        if (twice := duplicate(ordered)) is not None:
            stream = int(code[order[twice]])
            what = f"two values on stream {'EW'[stream // 32]}{stream % 32} in one register"
            raise self._refuse(what, index, burst, order[twice], order[twice + 1])
        read_index, (code, diagonal, step, flow, place, place_step, reader) = (
            self.table.stream_reads.expand()
        )
        wanted = _stream_keys(code, diagonal + step * read_index, flow)
        found = np.searchsorted(ordered, wanted) - 1
        there = found >= 0
        there[there] = ordered[found[there]] >> _FLOW_BITS == wanted[there] >> _FLOW_BITS
        if not there.all():
            event = int(np.argmin(there))
            stream = int(code[event])
            what = f"nothing on stream {'EW'[stream // 32]}{stream % 32}"
            raise self._refuse(what, read_index, reader, event)
        writer = order[found]
        left = (diagonal + step * read_index) + (key[writer] & ((1 << _FLOW_BITS) - 1))
        self.flights = left, diagonal + step * read_index + flow + 1, reader, read_index
        self.source[place + place_step * read_index] = (value + value_step * index)[writer]

    # -- memory

    def _sram(self) -> tuple[I64, I64, tuple[I64, I64], set[int]]:
        """Return (alias of each value, initial words, (vectors, values) at the end, late reads)."""
        table = self.table
        index, (where, word, word_step, cycle, step, place, writer) = table.sram_writes.expand()
        vector = self.vector_of[where, word + word_step * index]
        writes = _Words(where, vector, cycle + step * index, place + index, index, writer)
        index, (where, word, word_step, cycle, step, value, reader) = table.sram_reads.expand()
        vector = self.vector_of[where, word + word_step * index]
        reads = _Words(where, vector, cycle + step * index, value + index, index, reader)
        self._ports(reads, writes)
        mapped = np.unique([slice_of(burst.issue, self.spec) for burst in table.mapped])
        live = {burst.number for burst in table.mapped}
        if len(mapped):
            among = [np.isin(words.slice_, mapped) for words in (reads, writes)]
            live.update(
                np.unique(np.append(reads.burst[among[0]], writes.burst[among[1]])).tolist()
            )
            reads, writes = reads.where(~among[0]), writes.where(~among[1])
        self.live = live
        key = keys(writes.vector, writes.cycle)
        order = np.argsort(key, kind="stable")
        ordered = key[order]
        found = latest(ordered, keys(reads.vector, reads.cycle), now=False)
        fresh = found < 0
        bad = fresh & ~self.memory.valid[reads.vector]
        if bad.any():
            event = int(np.argmax(bad))
            what = f"vector {int(reads.vector[event])} was never written"
            raise self._refuse(what, reads.nth, reads.burst, event)
        late = self._late(reads, writes, mapped)
        initial, row = np.unique(reads.vector[fresh], return_inverse=True)
        alias = np.arange(table.values + len(initial))
        written = np.empty(len(reads.data), np.int64)
        written[fresh] = table.values + row
        written[~fresh] = self.source[writes.data[order[found[~fresh]]]]
        now = ~np.isin(reads.burst, np.fromiter(late, np.int64, len(late)))
        alias[reads.data[now]] = written[now]
        last = (
            np.flatnonzero(np.append(np.diff(place_of(ordered)) != 0, True))
            if len(order)
            else order
        )
        events = order[last]
        return alias, initial, (writes.vector[events], self.source[writes.data[events]]), late

    def _ports(self, reads: _Words, writes: _Words) -> None:
        index, (where, is_write, cycle, step, burst) = self.table.port_uses.expand()
        run_time = Accesses(where, cycle + step * index, np.full(len(index), EITHER), index, burst)
        known = []
        for words, kind in ((reads, 0), (writes, 1)):
            bank = self.memory.word_of[words.vector] // self.spec.words_per_bank
            own = Accesses(words.slice_, words.cycle, bank, words.nth, words.burst)
            of_kind = np.flatnonzero(is_write == kind)
            known.append(own.joined(Accesses(*(column[of_kind] for column in run_time))))
        check_ports(known[0], known[1], self._name)

    def _late(self, reads: _Words, writes: _Words, mapped: I64) -> set[int]:
        """Return the bursts that read, afterwards, words that run-time writes may have hit."""
        late: set[int] = set()
        for burst in self.table.dynamic:
            mem, issue = burst.issue.instruction, burst.issue
            assert isinstance(mem, (Read, Write))
            assert isinstance(mem.address, At)
            base, stop = mem.address.base, mem.address.base + mem.address.limit
            if not self.memory.valid[base:stop].all():
                what = "a run-time address among vectors that were never written"
                raise MachineError(what, culprit(issue))
            if np.isin(self.memory.slice_of[base:stop], mapped).any():
                what = "a run-time address in a slice whose words are gathered or scattered"
                other = next(b for b in self.table.mapped)
                raise MachineError(what, culprit(issue), culprit(other.issue))
            if (hit := (writes.vector >= base) & (writes.vector < stop)).any():
                event = int(np.argmax(hit))
                what = "a write among words whose addresses are known at run time only"
                named = self._name(int(writes.burst[event]), int(writes.nth[event]))
                raise MachineError(what, named, culprit(issue))
            if isinstance(mem, Read):
                late.add(burst.number)
                continue
            func = delays(self.spec)["WRITE"].d_func
            first, last = issue.cycle + func, issue.last_cycle + func
            hit = (reads.vector >= base) & (reads.vector < stop)
            among = np.flatnonzero(hit & (reads.cycle > first))
            early = among[reads.cycle[among] <= last]
            if len(early):
                named = self._name(int(reads.burst[early[0]]), int(reads.nth[early[0]]))
                what = "a read among writes whose addresses are known at run time only"
                raise MachineError(what, named, culprit(issue))
            before = np.unique(reads.burst[hit & (reads.cycle <= first)])
            if len(both := np.intersect1d(before, reads.burst[among])):
                raise MachineError(
                    "reads before and after a write whose address is known at run time only",
                    culprit(self.table.bursts[int(both[0])].issue), culprit(issue),
                )  # fmt: skip
            late.update(np.unique(reads.burst[among]).tolist())
        return late

    # -- ALU registers

    def _registers(self) -> None:
        """An ALU's register holds a result until the next one completes."""
        index, (alu, cycle, step, value, value_step, burst) = self.table.completions.expand()
        key = keys(alu, cycle + step * index)
        order = np.argsort(key, kind="stable")
        ordered = key[order]
        if (twice := duplicate(ordered)) is not None:
            what = "two results in one ALU's register in one cycle"
            raise self._refuse(what, index, burst, order[twice], order[twice + 1])
        read_index, (alu, cycle, step, place, exact, reader) = self.table.register_reads.expand()
        wanted = keys(alu, cycle + step * read_index)
        found = latest(ordered, wanted, now=True)
        there = found >= 0
        there[there] &= (exact[there] == 0) | (ordered[found[there]] == wanted[there])
        if not there.all():
            event = int(np.argmin(there))
            what = f"no result in ALU {int(alu[event])}'s register"
            raise self._refuse(what, read_index, reader, event)
        self.source[place + read_index] = (value + value_step * index)[order[found]]


def _stream_keys(code: I64, diagonal: I64, flow: I64) -> I64:
    return (((code << 36) + diagonal + _DIAGONAL_BIAS) << _FLOW_BITS) + flow
