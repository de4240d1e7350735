"""Analyse where a step's cycles go: critical path by part and bound, what is busiest, roofline.

All figures are read from the finished schedule, so they cannot differ from what runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from chip.ops.attention import Attend
from chip.ops.cost import receive_cycles, send_lead_cycles
from chip.ops.experts import ExpertsEach, ExpertsSum
from chip.ops.moves import Receive, Send
from chip.ops.product import Matmul
from chip.ops.program import Operation, Scheduled
from compiler.ir import StepSchedule
from compiler.pipeline import CompiledModel

PARTS = ("weights", "attention", "vector", "exchange", "host port", "turnaround")


@dataclass(frozen=True, slots=True, kw_only=True)
class Busiest:
    """Something that is busy for `cycles` of a step."""

    name: str
    cycles: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """One step: cycles by part and by bound (each adds up to the step's), what is busiest, and the
    roofline."""

    step: str
    cycles: int
    parts: dict[str, int]
    bounds: dict[str, int]  # the same cycles by what bounds them, most first
    link: Busiest | None
    unit: Busiest
    roofline_cycles: int
    stream_bytes: int  # weights (padded) and KV cache read by all chips together

    @property
    def roofline_ratio(self) -> float:
        """Step cycles over the stream roofline of its stages, one after another."""
        return self.cycles / self.roofline_cycles


def analyse(compiled: CompiledModel, schedule: StepSchedule) -> Analysis:
    """Analyse one step of a compiled model."""
    roofline, total = _roofline(compiled, schedule)
    parts, bounds = dict.fromkeys(PARTS, 0), defaultdict[str, int](int)
    for piece in _critical_path(compiled, schedule):
        parts[piece.part] += piece.cycles
        bounds[piece.bound] += piece.cycles
    ordered = sorted(((n, cycles) for n, cycles in bounds.items() if cycles), key=lambda b: -b[1])
    return Analysis(
        step=schedule.name,
        cycles=schedule.cycles,
        parts=parts,
        bounds=dict(ordered),
        link=_busiest_link(compiled, schedule),
        unit=_busiest_unit(schedule),
        roofline_cycles=roofline,
        stream_bytes=total,
    )


class _Piece(NamedTuple):
    """Cycles of the critical path: what they count to, and what bounds them."""

    part: str
    bound: str
    cycles: int


def _critical_path(compiled: CompiledModel, schedule: StepSchedule) -> Iterator[_Piece]:
    """Walk back from the last result; yield what cycles were spent on."""
    nodes = [program.operations for program in schedule.programs]
    sends = {
        operation.op.transfer: (node, operation)
        for node, operations in enumerate(nodes)
        for operation in operations
        if isinstance(operation.op, Send)
    }
    given: dict[int, list[_Given]] = {}  # by node
    last = [(op.end, i, op) for i, p in enumerate(schedule.programs) for op in p.operations]
    at, node, current = max(last, key=lambda item: item[0])
    yield _Piece("turnaround", "turnaround", schedule.cycles - at)
    while True:
        if isinstance(current.op, Receive):
            node, current = sends[current.op.transfer]
        yield from _pieces(compiled, current.op, at - current.start)
        at = current.start
        if at <= 0:
            return
        if node not in given:
            given[node] = list(_results(nodes[node], compiled))
        previous = _before(given[node], current, compiled)
        if previous is None:  # a NOP held it back: go on with what ended last before it
            earlier = [o for o in nodes[node] if o.end <= at and not isinstance(o.op, Send)]
            if not earlier:
                yield _Piece("exchange", "waiting for a buffer", at)
                return
            previous = max(earlier, key=lambda op: op.end)
            yield _Piece("exchange", "waiting for a buffer", at - previous.end)
            at = previous.end
        current = previous


def _pieces(compiled: CompiledModel, op: Operation, cycles: int) -> Iterator[_Piece]:
    """Split the cycles that one operation, or a hop of a transfer, has on the path."""
    if isinstance(op, Send):
        link = compiled.network.links[op.link]
        part = "host port" if link.is_host else "exchange"
        flight = min(cycles, link.latency_cycles + link.slack_cycles)
        stream = min(cycles - flight, op.vectors * link.slot_cycles)
        where = "host port" if link.is_host else "links"
        yield _Piece(part, f"latency of {where}", flight)
        yield _Piece(part, f"rate of {where}", stream)
        yield _Piece(part, "ways between links and memory", cycles - flight - stream)
        return
    name = {"weights": "products", "attention": "attention"}.get(op.part)
    if name is None:
        yield _Piece(op.part, "vector work", cycles)
        return
    loads = min(cycles, -(-_stream_bytes(op) // compiled.chip.stream_bytes_per_cycle))
    yield _Piece(op.part, "weight loads" if name == "products" else "cache loads", loads)
    yield _Piece(op.part, f"{name} beside loads", cycles - loads)


class _Given(NamedTuple):
    """An operation, and when its first and last results are there; a transfer's have arrived."""

    operation: Scheduled
    begun: int
    ended: int
    arrives: bool


def _results(
    operations: Sequence[Scheduled], compiled: CompiledModel
) -> Iterator[_Given]:  # fmt: skip
    """Yield what operations give to others of their node: all but what leaves it."""
    for operation in operations:
        op = operation.op
        if isinstance(op, Receive):
            yield _Given(operation, operation.start, operation.end, True)
        elif not isinstance(op, Send):
            begun = operation.end - compiled.costs.stream_cycles(op)
            yield _Given(operation, begun, operation.end, False)


def _before(
    results: Sequence[_Given], current: Scheduled, compiled: CompiledModel
) -> Scheduled | None:  # fmt: skip
    """Return the operation whose first or last vector decided when `current` starts."""
    wanted, op = [], current.op
    passes_on = isinstance(op, Send) and op.forward is not None
    if isinstance(op, Send):
        tail = (current.end - current.start) // op.vectors * (op.vectors - 1)
        chip = compiled.chip
        taken = current.start - (chip.forward_cycles if passes_on else send_lead_cycles(chip))
        wanted.append((taken, taken + tail))
    elif not isinstance(op, Receive):
        for name, _ in op.reads():
            first, last = compiled.costs.needed(op, name)
            wanted.append((current.start + first, current.start + last))
    wanted.append((current.start, current.start))  # its unit
    landing = 0 if passes_on else receive_cycles(compiled.chip)  # from arrival into SRAM
    for first_at, last_at in wanted:
        for operation, begun, ended, arrives in results:
            behind = landing if arrives else 0
            met = ended + behind == last_at or begun + behind == first_at
            if met and operation.start < current.start:
                return operation
    return None


def _busiest_link(compiled: CompiledModel, schedule: StepSchedule) -> Busiest | None:
    busy: dict[int, int] = defaultdict(int)
    for transfer in schedule.transfers:
        link = compiled.network.links[transfer.link]
        if not link.is_host:
            busy[transfer.link] += transfer.vectors * link.slot_cycles
    if not busy:
        return None
    number = max(busy, key=lambda key: (busy[key], -key))
    return Busiest(name=compiled.network.links[number].name, cycles=busy[number])


def _busiest_unit(schedule: StepSchedule) -> Busiest:
    busy: dict[tuple[int, str], int] = defaultdict(int)
    for program in schedule.programs[:-1]:
        for operation in program.operations:
            for unit in operation.op.units:
                if not unit.startswith("C2C"):
                    busy[program.chip, unit] += operation.end - operation.start
    chip, unit = max(busy, key=lambda key: (busy[key], -key[0]))
    return Busiest(name=f"chip {chip} {unit}", cycles=busy[chip, unit])


def _stream_bytes(op: Operation) -> int:
    if isinstance(op, Matmul | ExpertsEach | ExpertsSum):
        return op.weight_bytes
    return op.layout.read_bytes(op.bucket) if isinstance(op, Attend) else 0


def _roofline(compiled: CompiledModel, schedule: StepSchedule) -> tuple[int, int]:
    """Return the cycles to read weights and cache at full stream rate, and the bytes read."""
    per_chip = [
        sum(_stream_bytes(operation.op) for operation in program.operations)
        for program in schedule.programs
    ]
    rate = compiled.chip.stream_bytes_per_cycle
    groups = compiled.partition.groups
    cycles = sum(-(-max(per_chip[chip] for chip in g.chips) // rate) for g in groups)
    return cycles, sum(per_chip)
