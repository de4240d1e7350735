"""Bind a chip's program for one step to instructions: templates at addresses and absolute cycles.

An operation's template (compiler/codegen) fixes every cycle; here its memory operands get their
slice and stream from the operand's address (`chip.sram.near_place`), its rows their numbers, and
all cycles the operation's start. Transfers are placed around the computations
(compiler/codegen/lower_links.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from chip.floorplan import Queue
from chip.isa.instructions import Alu, Instruction, RuntimeDeskew
from chip.isa.issue import Issue
from chip.isa.operands import Position, Source
from chip.ops.attention import Attend, Rope, cache_of
from chip.ops.moves import Receive, Send
from chip.ops.opcodes import bound_values
from chip.ops.product import GatherFirst, Matmul
from chip.ops.program import Program, Scheduled
from chip.ops.rows import segment_offsets
from chip.ops.vector import Add, Gather
from chip.spec import VECTOR_BYTES, ChipSpec
from compiler.codegen.core.bind import bind
from compiler.codegen.lower_links import place_transfers
from compiler.codegen.table import template
from compiler.errors import LoweringError


def lower(
    program: Program, row_slots: Sequence[int] = (), *, spec: ChipSpec,
    ports: Mapping[int, int], slots: Mapping[int, int],
) -> list[Issue]:  # fmt: skip
    """Return the instructions of one chip's step, cycles relative to the step's base.

    `row_slots`: each row's sequence slot, 0 by default. `ports`: the port of each link; `slots`:
    cycles between its vectors.
    """
    out: list[Issue] = []
    for operation in program.operations:
        if not isinstance(operation.op, Send | Receive):
            out += lower_operation(operation, spec, row_slots)
    out += place_transfers(program, spec, out, ports, slots)
    return out + stops(program, {issue.queue for issue in out})


def stops(program: Program, queues: Iterable[Queue]) -> list[Issue]:
    """Return what stops these queues while the program's counter is set right."""
    return [
        Issue(queue, begin, RuntimeDeskew(cycles=end - begin), name="realign")
        for begin, end in program.realign for queue in sorted(queues)
    ]  # fmt: skip


def lower_operation(
    operation: Scheduled, spec: ChipSpec, row_slots: Sequence[int] = ()
) -> list[Issue]:  # fmt: skip
    """Return the instructions of one operation that computes. Raises LoweringError."""
    op = operation.op
    assert not isinstance(op, Send | Receive), "transfers are lowered together"
    found = template(op, spec)
    if not found.lowered:
        raise LoweringError(
            f"{operation.name}: {op.opcode} has no instructions for {_kind(op)} and this shape; "
            "its cost is an estimate"
        )
    issues = bind(found, bases_of(op, row_slots), bound_values(op), spec)
    if isinstance(op, Attend) and op.row is not None:
        issues = [replace(i, instruction=_of_row(i.instruction, op.row)) for i in issues]
    return [
        Issue(i.queue, i.cycle + operation.start, i.instruction, i.n, i.d, operation.name)
        for i in issues
    ]


def _of_row(instruction: Instruction, row: int) -> Instruction:
    """Return an instruction that takes the position of another row than the first."""
    if not isinstance(instruction, Alu):
        return instruction
    a, b, c = (_at_row(source, row) for source in (instruction.a, instruction.b, instruction.c))
    assert a is not None
    return replace(instruction, a=a, b=b, c=c)


def _at_row(source: Source | None, row: int) -> Source | None:
    return replace(source, row=source.row + row) if isinstance(source, Position) else source


def _kind(op: object) -> str:
    if getattr(op, "group", None) is not None:
        return "int4 weights"
    return str(getattr(op, "dtype", "its operands"))


def bases_of(op: object, row_slots: Sequence[int] = ()) -> dict[str, int]:
    """First vector of every operand; `src:n` is segment n of a gather buffer.

    `kv:n` and `kvs:n` are those of the slot that row n of a ROPE is of.
    """
    bases = {name: value // VECTOR_BYTES for name, value in bound_values(op).items()}
    rows, of = (op.rows, op.source) if isinstance(op, Matmul) else (getattr(op, "rows", 1), op)
    if isinstance(of, Gather | Add | GatherFirst):
        for number, offset in enumerate(segment_offsets(of.shares, rows)[:-1]):
            bases[f"src:{number}"] = (of.src + offset) // VECTOR_BYTES
    if isinstance(op, Rope | Attend):
        first = (op.row or 0) if isinstance(op, Attend) else 0
        slots = row_slots or (0,) * (first + op.rows)
        for row in range(op.rows):
            bases |= _caches(op, slots[first + row], f":{row}")
        bases |= _caches(op, slots[first], "")
    return bases


def _caches(op: Rope | Attend, slot: int, which: str) -> dict[str, int]:
    """Return where a slot's caches begin, as operands of this name."""
    kv, kvs = cache_of(op, slot)
    found = {f"kv{which}": kv // VECTOR_BYTES}
    return found if kvs is None else {**found, f"kvs{which}": kvs // VECTOR_BYTES}
