"""Collect every access to one node's memory, with its cycles, from the schedule.

compiler/verify/memory.py judges them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from chip.ops.cost import Cost, CostModel, receive_cycles, send_lead_cycles
from chip.ops.moves import Receive, Send
from chip.ops.opcodes import Opcode, Region
from chip.ops.product import GatherFirst, Matmul
from chip.ops.program import Scheduled
from chip.ops.vector import Add, Gather
from chip.spec import VECTOR_BYTES
from compiler.errors import ScheduleError
from compiler.ir import Memory


@dataclass(slots=True)
class Access:
    """One operation's use of one region, in absolute cycles.

    `first` and `last` are when its first and last vectors are read or written. The vectors between
    them follow evenly.
    """

    operation: Scheduled
    operand: str
    step: int  # place in `steps`
    start: int
    end: int
    first: int
    last: int


@dataclass(slots=True)
class Node:
    """The accesses to one node's memory, by region."""

    label: str
    limit: int
    memory: Memory | None
    reads: list[tuple[Region, Access]] = field(default_factory=list)
    writes: dict[Region, list[Access]] = field(default_factory=lambda: defaultdict(list))
    receives: dict[tuple[int, int], tuple[Region, Access]] = field(default_factory=dict)
    gathers: dict[tuple[int, Opcode, str], Scheduled] = field(default_factory=dict)
    sends: dict[tuple[int, int], Send] = field(default_factory=dict)


def collect(operation: Scheduled, node: Node, step: int, base: int, costs: CostModel) -> None:
    """Add an operation's reads and writes. Raises ScheduleError for one outside the memory."""
    op, start, end = operation.op, base + operation.start, base + operation.end
    reads, writes, spec = op.reads(), op.writes(), costs.spec
    cost = None if isinstance(op, Send | Receive) else costs.cost(op)
    for name, region in (*reads, *writes):
        if region[0] < 0 or region[0] % VECTOR_BYTES or region[0] + region[1] > node.limit:
            raise ScheduleError(
                f"{node.label}, {operation.name} ({operation.opcode}): {name} at {region} is "
                f"outside {node.limit} bytes of SRAM or not on a vector"
            )
    for name, region in reads:
        first, last = _taken(operation, name, cost)
        if isinstance(op, Send) and node.memory is not None and op.forward is None:
            first, last = (cycle - send_lead_cycles(spec) for cycle in (first, last))
        access = Access(operation, name, step, start + first, end, start + first, start + last)
        node.reads.append((region, access))
    arrives = isinstance(op, Receive) and node.memory is not None
    landed = receive_cycles(spec) if arrives else 0
    for name, region in writes:
        first = start if cost is None else end - cost.stream
        first, last = first + landed, end + landed
        access = Access(operation, name, step, start, last, first, last)
        if region[1]:
            node.writes[region].append(access)
        if isinstance(op, Receive):
            node.receives[step, op.transfer] = (region, access)
    if isinstance(op, Send):
        node.sends[step, op.transfer] = op
    if shares_of(operation) is not None:
        node.gathers[step, operation.opcode, operation.name] = operation


def shares_of(operation: Scheduled) -> tuple[int, ...] | None:
    """Return the widths of the segments that an operation reads, None if it reads none."""
    op = operation.op
    if isinstance(op, Matmul):
        return op.source.shares if isinstance(op.source, GatherFirst) else None
    return op.shares if isinstance(op, Gather | Add) else None


def _taken(operation: Scheduled, operand: str, cost: Cost | None) -> tuple[int, int]:
    """Return when an operand's first and last vectors are read, after the operation's start.

    `cost` is None for moves.
    """
    op = operation.op
    if isinstance(op, Send | Receive):
        return 0, (operation.end - operation.start) // op.vectors * (op.vectors - 1)
    assert cost is not None
    return cost.needed.get(operand, (0, 0))
