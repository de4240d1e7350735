"""A schedule as Chrome trace events, one chip at a time (memory stays that of one program).

A chip is a process; a unit, or one end of a link, is a thread. A slice is an operation, named by
its provenance, or a transfer, named by what it carries (`transfer_names`); a flow arrow leads from
one end of a transfer to the other. Steps that overlap are on threads of their own. `ts` and `dur`
are microseconds of emulated time in whole nanoseconds. Both ends of a slice are rounded down, so
neighbours never overlap. The exact cycles are in `args`. Format: "Trace Event Format" of the
Chromium project.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from chip.ops.moves import Receive, Send
from chip.ops.opcodes import CHIP_UNITS, Region, plain
from chip.ops.program import Program, Scheduled
from compiler.ir import Memory, StepSchedule
from compiler.pipeline import CompiledModel
from rack.reports.transfer_names import transfer_names

Event = dict[str, Any]
PlacedStep = tuple[StepSchedule, int]
"""A step and its base cycle."""

THREADS = 10_000
"""Chip c is process c, its threads (c + 1) x THREADS + 1, ...: viewers take thread 0 for the idle
task and a thread numbered like its process for the main one, so no thread is either."""

REALIGNS = "ICU"
"""The thread that shows when a chip stops for its counter: its instruction control units stall."""

_SHAPE = ("rows", "k", "n", "hidden", "heads", "kv_heads", "bucket", "vectors", "dtype")


class TraceEvents:
    """The events of `steps` of a compiled model."""

    def __init__(self, compiled: CompiledModel, steps: Sequence[PlacedStep]) -> None:
        self.compiled, self.steps = compiled, steps
        self.clock_hz = compiled.chip.clock_hz
        self.links = compiled.network.links
        self.host = compiled.layout.chips
        firsts = [0]
        for schedule, _ in steps:
            firsts.append(firsts[-1] + len(schedule.transfers))
        self._first_flow = firsts  # step number -> id of its first flow arrow
        once = {id(schedule): schedule for schedule, _ in steps}
        graph = compiled.partition.graph
        carried = {key: transfer_names(graph, schedule) for key, schedule in once.items()}
        self._carried = [carried[id(schedule)] for schedule, _ in steps]

    def microseconds(self, cycle: int) -> float:
        """Emulated time of a cycle, cut to whole nanoseconds."""
        return cycle * 10**9 // self.clock_hz / 1000

    def events(self) -> Iterator[Event]:
        """Every event, chip after chip, then the host, then the steps as a whole."""
        for node in range(self.host + 1):
            yield from self._node(node)
        pid = self.host + 1
        first = (pid + 1) * THREADS + 1
        yield from self._process(pid, "steps", "from the step message to the last result")
        lanes = tracks([(base, base + schedule.cycles) for schedule, base in self.steps])
        for lane in range(max(lanes) + 1):
            name = f"step {lane + 1}" if lane else "step"
            yield self._meta(pid, first + lane, "thread_name", name=name)
        for (schedule, base), lane in zip(self.steps, lanes, strict=True):
            end = base + schedule.cycles
            yield self._slice(first + lane, schedule.name, base, end, cat="step")

    # -- one chip

    def _node(self, node: int) -> Iterator[Event]:
        programs = [(schedule.programs[node], base) for schedule, base in self.steps]
        tids = self._threads(node, [program for program, _ in programs])
        yield from self._process(node, *self._names(node))
        for key, tid in tids.items():
            yield self._meta(node, tid, "thread_name", name=self._thread_name(key))
            yield self._meta(node, tid, "thread_sort_index", sort_index=tid)
        for number, (program, base) in enumerate(programs):
            for operation in program.operations:
                yield from self._operation(tids, operation, base, number)
            for begin, end in program.realign:
                tid = tids["unit", REALIGNS]
                yield self._slice(tid, "RUNTIME_DESKEW", base + begin, base + end, "exchange")
        yield from self._link_counter(node, programs)
        if node < self.host:
            yield from self._sram_counter(self.compiled.memories[node], programs)

    def _names(self, node: int) -> tuple[str, str]:
        if node == self.host:
            return "host", "sends embedding and RoPE rows, takes results"
        holds = []
        for group, rank in self.compiled.partition.groups_of(node):
            if len(group.layers):
                layers = f"layers {group.layers[0]}-{group.layers[-1]}"
                holds.append(f"stage {group.index} rank {rank}, {layers}")
            if group.has_head:
                holds.append("LM head")
        width = len(str(self.host - 1))  # viewers sort by name
        return f"chip {node:0{width}}", ", ".join(holds)

    def _threads(self, node: int, programs: Sequence[Program]) -> dict[tuple[str, int | str], int]:
        """Thread numbers: units, then outgoing links, then incoming ones."""
        units: set[str] = set()
        if node < self.host:
            units = set(CHIP_UNITS)
            for program in programs:
                units |= {u for o in program.operations for u in _own_units(o)}
                units |= {REALIGNS} if program.realign else set()
        keys: list[tuple[str, int | str]] = [("unit", unit) for unit in sorted(units)]
        keys += [("out", link.id) for link in self.links if link.src == node]
        keys += [("in", link.id) for link in self.links if link.dst == node]
        return {key: (node + 1) * THREADS + place for place, key in enumerate(keys, 1)}

    def _thread_name(self, key: tuple[str, int | str]) -> str:
        kind, what = key
        return str(what) if kind == "unit" else f"{self.links[int(what)].name} {kind}"

    def _operation(
        self, tids: dict[tuple[str, int | str], int], operation: Scheduled, base: int, number: int
    ) -> Iterator[Event]:
        start, end, op = base + operation.start, base + operation.end, operation.op
        args: dict[str, Any] = {"opcode": str(operation.opcode)}
        values = plain(op)
        args |= {key: values[key] for key in _SHAPE if key in values}
        if operation.nop:
            args["nop_cycles"] = operation.nop
        if not isinstance(op, Send | Receive):
            for unit in _own_units(operation):
                tid = tids["unit", unit]
                yield self._slice(tid, operation.name, start, end, op.part, args)
            return
        link, sends = self.links[op.link], isinstance(op, Send)
        if not sends:
            start -= link.slot_cycles  # its first packet comes in during the slot before
        tid = tids["out" if sends else "in", link.id]
        args |= {"link": link.name, "transfer": op.transfer}
        name = self._carried[number][op.transfer]
        yield self._slice(tid, name, start, end, op.part, args)
        flow = self._first_flow[number] + op.transfer
        yield {
            "ph": "s" if sends else "f", **({} if sends else {"bp": "e"}), "id": flow,
            "pid": tid // THREADS - 1, "tid": tid, "ts": self.microseconds(start),
            "name": name, "cat": "transfer",
        }  # fmt: skip

    # -- counters

    def _link_counter(self, node: int, programs: Sequence[tuple[Program, int]]) -> Iterator[Event]:
        """How many of the chip's links send, and how many take vectors in."""
        changes: dict[int, list[int]] = defaultdict(lambda: [0, 0])
        for program, base in programs:
            for operation in program.operations:
                if not isinstance(operation.op, Send | Receive):
                    continue
                side = int(isinstance(operation.op, Receive))
                slot = self.links[operation.op.link].slot_cycles
                changes[base + operation.start - side * slot][side] += 1
                changes[base + operation.end][side] -= 1
        sending = taking = 0
        for cycle in sorted(changes):
            sending, taking = sending + changes[cycle][0], taking + changes[cycle][1]
            yield self._counter(node, "links in use", cycle, sending=sending, receiving=taking)

    def _sram_counter(
        self, memory: Memory, programs: Sequence[tuple[Program, int]]
    ) -> Iterator[Event]:
        """Bytes of constants, of cache, and of buffers that hold something still to be read."""
        changes: dict[int, int] = defaultdict(int, {0: 0})
        for program, base in programs:
            for cycle, change in live_changes(program, memory):
                changes[base + cycle] += change
        live = 0
        fixed = {"constants": memory.constant_bytes, "kv_cache": memory.kv_bytes}
        for cycle in sorted(changes):
            live += changes[cycle]
            yield self._counter(memory.chip, "SRAM bytes", cycle, **fixed, live_buffers=live)

    # -- events

    def _process(self, pid: int, name: str, label: str) -> Iterator[Event]:
        yield self._meta(pid, (pid + 1) * THREADS, "process_name", name=name)
        yield self._meta(pid, (pid + 1) * THREADS, "process_labels", labels=label)
        yield self._meta(pid, (pid + 1) * THREADS, "process_sort_index", sort_index=pid)

    @staticmethod
    def _meta(pid: int, tid: int, kind: str, **args: Any) -> Event:
        return {"ph": "M", "pid": pid, "tid": tid, "name": kind, "args": args}

    def _slice(
        self, tid: int, name: str, start: int, end: int, cat: str,
        args: dict[str, Any] | None = None,
    ) -> Event:  # fmt: skip
        begin = self.microseconds(start)
        # In nanoseconds, so that begin + duration is the neighbour's begin to the last digit.
        width = end * 10**9 // self.clock_hz - start * 10**9 // self.clock_hz
        return {
            "ph": "X", "pid": tid // THREADS - 1, "tid": tid, "ts": begin, "dur": width / 1000,
            "name": name, "cat": cat,
            "args": {"start_cycle": start, "cycles": end - start, **(args or {})},
        }  # fmt: skip

    def _counter(self, node: int, name: str, cycle: int, **series: int) -> Event:
        tid, at = (node + 1) * THREADS, self.microseconds(cycle)
        return {"ph": "C", "pid": node, "tid": tid, "ts": at, "name": name, "args": series}


def tracks(spans: Sequence[tuple[int, int]]) -> list[int]:
    """Return a track for each span, the first on which nothing else is: spans by their starts."""
    ends: list[int] = []  # of each track
    out = []
    for start, end in spans:
        track = next((n for n, last in enumerate(ends) if last <= start), len(ends))
        ends[track:] = [end, *ends[track + 1 :]]
        out.append(track)
    return out


def _own_units(operation: Scheduled) -> tuple[str, ...]:
    """Units of the chip that an operation holds; a move holds a link instead."""
    return () if isinstance(operation.op, Send | Receive) else operation.op.units


def live_changes(program: Program, memory: Memory) -> Iterator[tuple[int, int]]:
    """(cycle, bytes more or fewer) of a chip's buffers that hold something still to be read.

    A byte lives from the start of the operation that writes it to the end of its last reader.
    """
    tensors = sorted((tensor.address, tensor.size) for tensor in memory.tensors)
    starts = [address for address, _ in tensors]

    def is_buffer(region: Region) -> bool:
        at = bisect_right(starts, region[0]) - 1
        return region[1] > 0 and (at < 0 or region[0] >= sum(tensors[at]))

    accesses: list[tuple[int, int, bool, Region]] = []  # (start, end, writes, region)
    for operation in program.operations:
        for writes, uses in ((False, operation.op.reads()), (True, operation.op.writes())):
            accesses += [
                (operation.start, operation.end, writes, region)
                for _, region in uses
                if is_buffer(region)
            ]
    edges = sorted({edge for *_, (first, size) in accesses for edge in (first, first + size)})
    index = {edge: number for number, edge in enumerate(edges)}
    lives: dict[int, tuple[int, int]] = {}  # piece between two edges -> (born, last used)
    for start, end, writes, (first, size) in sorted(accesses):
        for piece in range(index[first], index[first + size]):
            born, used = lives.get(piece, (start, end))
            if writes and used < start:
                yield from _life(edges, piece, born, used)
                born = start
            lives[piece] = (born, max(used, end))
    for piece, (born, used) in lives.items():
        yield from _life(edges, piece, born, used)


def _life(edges: Sequence[int], piece: int, born: int, used: int) -> Iterator[tuple[int, int]]:
    size = edges[piece + 1] - edges[piece]
    yield born, size
    yield used, -size
