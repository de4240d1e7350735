"""Where a step's cycles go: the critical path by part, the busiest link and unit, the roofline.

Read off the finished schedule, so it cannot differ from what runs.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from chip.ops.cost import needed, receive_cycles, result_stream_cycles, send_lead_cycles
from chip.ops.operations import DEFINITIONS, Opcode, item_bytes, kv_layout, row_bytes
from chip.ops.program import Operation
from chip.spec import pad_vector
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
    """One step: cycles by part (they add up to the step's), bottlenecks, roofline."""

    step: str
    cycles: int
    parts: dict[str, int]
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
    return Analysis(
        step=schedule.name,
        cycles=schedule.cycles,
        parts=_critical_path(compiled, schedule),
        link=_busiest_link(compiled, schedule),
        unit=_busiest_unit(schedule),
        roofline_cycles=roofline,
        stream_bytes=total,
    )


def _critical_path(compiled: CompiledModel, schedule: StepSchedule) -> dict[str, int]:
    """Walk back from the last result: what each cycle was spent on."""
    parts = dict.fromkeys(PARTS, 0)
    nodes = [list(program.operations) for program in schedule.programs]
    sends = {
        operation.args["transfer"]: (node, operation)
        for node, operations in enumerate(nodes)
        for operation in operations
        if operation.opcode is Opcode.SEND
    }
    last = [(op.end, i, op) for i, p in enumerate(schedule.programs) for op in p.operations]
    at, node, current = max(last, key=lambda item: item[0])
    parts["turnaround"] = schedule.cycles - at
    while True:
        part = DEFINITIONS[current.opcode].part
        if current.opcode is Opcode.RECEIVE:
            node, current_send = sends[current.args["transfer"]]
            is_host = compiled.network.links[current.args["link"]].is_host
            part = "host port" if is_host else "exchange"
            current = current_send
        parts[part] += at - current.start
        at = current.start
        if at <= 0:
            return parts
        previous = _before(nodes[node], current, compiled)
        if previous is None:  # held back by a NOP: for whatever ended last before it
            earlier = [op for op in nodes[node] if op.end <= at and op.opcode is not Opcode.SEND]
            if not earlier:
                parts["exchange"] += at
                return parts
            previous = max(earlier, key=lambda op: op.end)
            parts["exchange"] += at - previous.end
            at = previous.end
        current = previous


def _before(
    operations: list[Operation], current: Operation, compiled: CompiledModel
) -> Operation | None:
    """Return the operation that let `current` start just then, by its first or last vector."""
    wanted = []
    passes_on = "forward" in current.args
    if current.opcode is Opcode.SEND:
        n = current.args["vectors"]
        tail = (current.end - current.start) // n * (n - 1)
        chip = compiled.chip
        taken = current.start - (chip.forward_cycles if passes_on else send_lead_cycles(chip))
        wanted.append((taken, taken + tail))
    for name in DEFINITIONS[current.opcode].reads if current.opcode is not Opcode.SEND else ():
        first, last = needed(current.opcode, name, current.args, compiled.chip)
        wanted.append((current.start + first, current.start + last))
    wanted.append((current.start, current.start))  # its unit
    for first_at, last_at in wanted:
        for operation in operations:
            if operation.opcode is Opcode.SEND or operation.start >= current.start:
                continue
            begun, ended = _given(operation, compiled, landed=not passes_on)
            if ended == last_at or begun == first_at:
                return operation
    return None


def _given(operation: Operation, compiled: CompiledModel, *, landed: bool) -> tuple[int, int]:
    """When an operation's first and last results are there; `landed`: in SRAM."""
    if operation.opcode is Opcode.RECEIVE:
        behind = receive_cycles(compiled.chip) if landed else 0
        return operation.start + behind, operation.end + behind
    stream = result_stream_cycles(operation.opcode, operation.args, compiled.chip)
    return operation.end - stream, operation.end


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
            for unit in operation.units:
                if not unit.startswith("C2C"):
                    busy[program.chip, unit] += operation.end - operation.start
    chip, unit = max(busy, key=lambda key: (busy[key], -key[0]))
    return Busiest(name=f"chip {chip} {unit}", cycles=busy[chip, unit])


def _stream_bytes(operation: Operation) -> int:
    a = operation.args
    if operation.opcode is Opcode.MATMUL:
        return int(a["n"]) * row_bytes(pad_vector(a["k"]), item_bytes(a["dtype"]))
    if operation.opcode is Opcode.ATTEND:
        return kv_layout(a).read_bytes(a["bucket"])
    return 0


def _roofline(compiled: CompiledModel, schedule: StepSchedule) -> tuple[int, int]:
    """Cycles that reading weights and cache takes at full stream rate, group after group."""
    per_chip = [
        sum(_stream_bytes(operation) for operation in program.operations)
        for program in schedule.programs
    ]
    rate = compiled.chip.stream_bytes_per_cycle
    groups = compiled.partition.groups
    cycles = sum(-(-max(per_chip[chip] for chip in g.chips) // rate) for g in groups)
    return cycles, sum(per_chip)
