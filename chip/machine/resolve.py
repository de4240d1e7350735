"""Traces every operand to what produced it, and refuses what the hardware cannot do.

The result holds no data: the value number of every operand, the words that a step finds in memory,
the words that it leaves there. Read, then commit: a value is seen from the cycle after it
was written, whether in SRAM, in a stream register or in the MXM's buffers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from chip.isa.instructions import TILES
from chip.isa.issue import Issue
from chip.machine.check import Checker
from chip.machine.collect import Burst, Collector
from chip.machine.events import I64, duplicate, keys, latest, order_of
from chip.machine.matrix import resolve_planes
from chip.machine.memory import Commits, MemoryMap, resolve_memory
from chip.machine.stops import check_stops
from chip.machine.streams import Flights, resolve_streams
from chip.spec import ChipSpec


@dataclass(frozen=True, slots=True)
class Resolved:
    """A program whose operands are known."""

    spec: ChipSpec
    bursts: list[Burst]
    values: int  # value numbers below this are made by bursts, those above are initial words
    source: I64  # [operands]: value numbers; the first of a register's
    initial: I64  # [words]: vectors that are read as the step finds them
    commits: Commits
    tiles: I64  # [tiles, columns]: value numbers of installed weights, -1 for none
    tile_of: I64  # [operands]: the tile that an ACC's product is of
    dynamic: list[int]  # bursts whose addresses come with the step
    late_reads: set[int]  # bursts that read what those may have hit
    live: set[int]  # bursts of MEM in slices with addresses from streams
    chosen: list[int]  # bursts that read the block that an index says
    cycles: int  # to the end of the last issue in the last tile
    busy_cycles: int  # in which an instruction is issued, or a value is on its way to its reader


def resolve(issues: Iterable[Issue], spec: ChipSpec, memory: MemoryMap) -> Resolved:
    """Return a program's dataflow. Raises IssueError for the first thing that is refused."""
    table = Collector(spec, Checker(spec))
    for issue in issues:
        table.add(issue)
    source = np.full(table.operands, -1, np.int64)
    issued = issue_cycles(table)
    flights = resolve_streams(table, source)
    for burst in table.received:
        own = burst.operands[0]
        source[own.first : own.first + own.n] = burst.base + np.arange(own.n)
    check_stops(table.bursts, flights, table.delays, spec)
    flow = resolve_memory(table, source, memory)
    resolve_registers(table, source)
    resolve_indices(table, source)
    tiles = resolve_planes(table, source)
    source = np.where(source >= 0, flow.alias[source], -1)
    last = max((burst.issue.last_cycle for burst in table.bursts), default=0)  # skew: + TILES
    return Resolved(
        spec=spec, bursts=table.bursts, values=table.values, source=source, initial=flow.initial,
        commits=flow.commits, tiles=np.where(tiles.operands >= 0, source[tiles.operands], -1),
        tile_of=tiles.of, dynamic=[burst.number for burst in table.dynamic],
        late_reads=flow.late_reads, live=flow.live,
        chosen=[burst.number for burst in table.chosen], cycles=last + 1 + TILES,
        busy_cycles=_busy(issued, flights),
    )  # fmt: skip


def issue_cycles(table: Collector) -> I64:
    """Return the cycle of each issue; a queue has one issue a cycle."""
    issued = table.issued.expand()
    key = keys(issued.queue, issued.cycle)
    order = order_of(key)
    if (twice := duplicate(key[order])) is not None:
        what = "two instructions in one queue and cycle"
        raise table.refusal(what, issued.issue, order[twice], order[twice + 1])
    return issued.cycle


def resolve_registers(table: Collector, source: I64) -> None:
    """An ALU's register holds a result until the next one completes."""
    results, reads = table.results.expand(), table.register_reads.expand()
    key = keys(results.alu, results.cycle)
    order = order_of(key)
    ordered = key[order]
    if (twice := duplicate(ordered)) is not None:
        what = "two results in one ALU's register in one cycle"
        raise table.refusal(what, results.issue, order[twice], order[twice + 1])
    wanted = keys(reads.alu, reads.cycle)
    found = latest(ordered, wanted, now=True)
    there = found >= 0
    there[there] &= (reads.chained[there] == 0) | (ordered[found[there]] == wanted[there])
    if not there.all():
        event = int(np.argmin(there))
        what = f"no result in ALU {int(reads.alu[event])}'s register"
        raise table.refusal(what, reads.issue, event)
    source[reads.operand] = results.value[order[found]]


def resolve_indices(table: Collector, source: I64) -> None:
    """A slice's index holds until the next one comes."""
    indices, reads = table.indices.expand(), table.index_reads.expand()
    key = keys(indices.alu, indices.cycle)
    order = order_of(key)
    found = latest(key[order], keys(reads.alu, reads.cycle), now=True)
    if (found < 0).any():
        event = int(np.argmax(found < 0))
        raise table.refusal("no index in the slice's register", reads.issue, event)
    source[reads.operand] = indices.value[order[found]]


def _busy(issued: I64, flights: Flights) -> int:
    """Count the cycles in which something happens; the others a stepping machine may skip."""
    spans = [(flights.leaves, flights.taken), (issued, issued + 1)]
    low = min((int(first.min()) for first, _ in spans if len(first)), default=0)
    high = max((int(last.max()) for _, last in spans if len(last)), default=0)
    change = np.zeros(high - low + 2, np.int64)
    for first, last in spans:
        np.add.at(change, first - low, 1)
        np.add.at(change, last - low, -1)
    return int(np.count_nonzero(np.cumsum(change)))
