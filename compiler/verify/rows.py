"""Check slots and rows: each row of a step has its own cache, its own operands and its own result.

The verifier's other checks take a buffer or a layer's caches as one. Here each slot's cache lies
apart from the others', whole turns through the slices on, and in a decode step of several rows an
ATTEND, and on each head chip a result, is there once for every row, at the row's own place.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

from chip.ops.attention import Attend, Rope
from chip.ops.moves import Receive, Send
from chip.ops.product import Matmul
from chip.ops.program import Program, Scheduled
from chip.ops.vector import TopK
from chip.spec import VECTOR_BYTES, ChipSpec
from compiler.errors import ScheduleError
from compiler.ir import Memory, StepSchedule

RESULT = "host.result"  # of transfers of logits
WINDOW = 64  # vectors that load into the planes in a cycle


def check_rows(schedule: StepSchedule, memories: Sequence[Memory], spec: ChipSpec) -> None:
    """Raise ScheduleError for a slot or a row out of its place, by name."""
    several = schedule.kind.decode and schedule.kind.rows > 1
    for program in schedule.programs:
        where = f"chip {program.chip}" if program.chip < len(memories) else "host"
        for operation in program.operations:
            if isinstance(operation.op, Rope | Attend):
                _check_slots(where, operation, memories[program.chip], spec)
            if not several and getattr(operation.op, "row", None) is not None:
                raise _wrong(where, operation, "row", None, getattr(operation.op, "row", None))
        if several:
            _check_attends(where, program)
            _check_results(where, program)


def _wrong(where: str, of: Scheduled, what: str, wanted: object, got: object) -> ScheduleError:
    return ScheduleError(f"{where}, {of.name} ({of.opcode}): wanted {what} {wanted}, got {got}")


# -- slots


def _steps(op: Rope | Attend, spec: ChipSpec) -> dict[str, tuple[int, int]]:
    """Return, by operand, the bytes of a slot's cache, and from one slot to the next."""
    layout, sides = op.layout, spec.hemispheres
    bulk = spec.slices // sides - spec.work_slices - spec.feed_slices
    turns = {"kv": math.lcm(WINDOW, sides * 16, sides * bulk), "kvs": sides * spec.work_slices}
    sizes = {"kv": layout.total_bytes, "kvs": layout.scales_bytes}
    return {
        name: (size, math.ceil(size / (turns[name] * VECTOR_BYTES)) * turns[name] * VECTOR_BYTES)
        for name, size in sizes.items()
        if getattr(op, name) is not None
    }


def _check_slots(where: str, operation: Scheduled, memory: Memory, spec: ChipSpec) -> None:
    """Check that all slots of the layer's tensors are this operation's, and where they are."""
    op = operation.op
    assert isinstance(op, Rope | Attend)
    tensors = {tensor.address: tensor.size for tensor in memory.tensors}
    for name, (size, step) in _steps(op, spec).items():
        between = tensors.get(getattr(op, name), 0) - size  # memory.py says that it is the layer's
        slots = between // step + 1
        wanted = (slots, step) if between else (None, None)
        if (got := (op.slots, getattr(op, f"{name}_step"))) != wanted or between % step:
            raise _wrong(where, operation, f"(slots, {name}_step)", wanted, got)


# -- rows


def _check_attends(where: str, program: Program) -> None:
    """Check that every row attends once, to its own queries, and where its result is."""
    turned: dict[str, Rope] = {}
    attends: dict[str, list[Scheduled]] = defaultdict(list)
    for operation in program.operations:
        layer = operation.name.rsplit(".", 1)[0]
        if isinstance(operation.op, Rope):
            turned[layer] = operation.op
        elif isinstance(operation.op, Attend):
            attends[layer].append(operation)
    for layer, found in attends.items():
        rope = turned[layer]
        first = found[0].op
        assert isinstance(first, Attend)
        _check_each(where, found, rope.rows)
        layout, heads = rope.layout, rope.heads
        for row, operation in enumerate(found):
            op = operation.op
            assert isinstance(op, Attend)
            scales = None if rope.sq is None else rope.sq + row * layout.query_scale_bytes(heads)
            y = math.ceil(heads * op.head_dim * 2 / VECTOR_BYTES) * VECTOR_BYTES
            for name, wanted in (
                ("rows", 1), ("q", rope.q + row * layout.query_bytes(heads)), ("sq", scales),
                ("y", first.y + row * y),
            ):  # fmt: skip
                if (got := getattr(op, name)) != wanted:
                    raise _wrong(where, operation, f"{name} of row {row} at", wanted, got)


def _check_each(where: str, found: Sequence[Scheduled], rows: int) -> None:
    """Check that operations are those of rows 0, 1, ... in order."""
    got = [getattr(operation.op, "row", None) for operation in found]
    if got != list(range(rows)):
        raise _wrong(where, found[0], "one for each of rows", list(range(rows)), got)


def _check_results(where: str, program: Program) -> None:
    """Check that every row's logits, or the largest of them, leave from their place for the host.

    The host must receive as many.
    """
    heads = (operation.op for operation in program.operations)
    logits = [op for op in heads if isinstance(op, Matmul) and op.first_column is not None]
    for product in logits:
        sends = [o for o in program.operations if isinstance(o.op, Send) and o.name == RESULT]
        tops = [o for o in program.operations if isinstance(o.op, TopK)]
        for found in [sends, tops] if tops else [sends]:
            _check_each(where, found, program.rows)
        (_, (at, size)), *_ = product.result.writes(product)
        at_rows = [at + row * (size // program.rows) for row in range(program.rows)]
        if tops:
            _check_places(where, tops, "x", at_rows)
            at_rows = [top.op.y for top in tops if isinstance(top.op, TopK)]
        _check_places(where, sends, "src", at_rows)
    if not logits:
        for found in _received(program):
            _check_each(where, found, program.rows)


def _check_places(
    where: str, found: Sequence[Scheduled], name: str, wanted: Sequence[int]
) -> None:  # fmt: skip
    """Check where an operand of each row is."""
    for row, (operation, at) in enumerate(zip(found, wanted, strict=True)):
        if (got := getattr(operation.op, name)) != at:
            raise _wrong(where, operation, f"{name} of row {row} at", at, got)


def _received(program: Program) -> Iterator[list[Scheduled]]:
    """Yield the host's receives of results, link by link."""
    links: dict[int, list[Scheduled]] = defaultdict(list)
    for operation in program.operations:
        if isinstance(operation.op, Receive) and operation.name == RESULT:
            links[operation.op.link].append(operation)
    yield from links.values()
