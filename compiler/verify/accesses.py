"""What the verifier knows of one node's memory: every access of every operation, with its cycles.

Collected from the schedule; judged in compiler/verify/memory.py.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from chip.ops.cost import needed, receive_cycles, result_stream_cycles, send_lead_cycles
from chip.ops.operations import Opcode, Region, operands
from chip.ops.program import Operation
from chip.spec import VECTOR_BYTES, ChipSpec
from compiler.errors import ScheduleError
from compiler.ir import Memory


@dataclass(slots=True)
class Access:
    """One operation's use of one region, in absolute cycles.

    `first` and `last` are when its first and last vectors are taken or given; between them
    vectors follow evenly.
    """

    operation: Operation
    operand: str
    step: int  # place in `steps`
    start: int
    end: int
    first: int
    last: int


@dataclass(slots=True)
class Node:
    """What happens in the memory of one node."""

    label: str
    limit: int
    memory: Memory | None
    reads: list[tuple[Region, Access]] = field(default_factory=list)
    writes: dict[Region, list[Access]] = field(default_factory=lambda: defaultdict(list))
    receives: dict[tuple[int, int], tuple[Region, Access]] = field(default_factory=dict)
    gathers: dict[tuple[int, Opcode, str], Operation] = field(default_factory=dict)
    sends: dict[tuple[int, int], Operation] = field(default_factory=dict)


def collect(operation: Operation, node: Node, step: int, base: int, spec: ChipSpec) -> None:
    """Note what an operation reads and writes. Raises ScheduleError outside the memory."""
    args, start, end = operation.args, base + operation.start, base + operation.end
    reads, writes = operands(operation.opcode, args)
    for name, region in (*reads, *writes):
        if region[0] < 0 or region[0] % VECTOR_BYTES or region[0] + region[1] > node.limit:
            raise ScheduleError(
                f"{node.label}, {operation.name} ({operation.opcode}): {name} at {region} is "
                f"outside {node.limit} bytes of SRAM or not on a vector"
            )
    for name, region in reads:
        first, last = _taken(operation, name, spec)
        if operation.opcode is Opcode.SEND and node.memory is not None and "forward" not in args:
            first, last = (cycle - send_lead_cycles(spec) for cycle in (first, last))
        access = Access(operation, name, step, start + first, end, start + first, start + last)
        node.reads.append((region, access))
    arrives = operation.opcode is Opcode.RECEIVE and node.memory is not None
    landed = receive_cycles(spec) if arrives else 0
    for name, region in writes:
        first = start if operation.opcode is Opcode.RECEIVE else end - _given(operation, spec)
        first, last = first + landed, end + landed
        access = Access(operation, name, step, start, last, first, last)
        if region[1]:
            node.writes[region].append(access)
        if operation.opcode is Opcode.RECEIVE:
            node.receives[step, args["transfer"]] = (region, access)
    if operation.opcode is Opcode.SEND:
        node.sends[step, args["transfer"]] = operation
    if "shares" in args:
        node.gathers[step, operation.opcode, operation.name] = operation


def _taken(operation: Operation, operand: str, spec: ChipSpec) -> tuple[int, int]:
    """When an operand's first and last vectors are taken, after the operation's start."""
    if operation.opcode is Opcode.SEND:
        n = operation.args["vectors"]
        return 0, (operation.end - operation.start) // n * (n - 1)
    return needed(operation.opcode, operand, operation.args, spec)


def _given(operation: Operation, spec: ChipSpec) -> int:
    return result_stream_cycles(operation.opcode, operation.args, spec)
