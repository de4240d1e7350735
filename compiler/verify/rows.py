"""Check slots and rows: each row of a step has its own cache, its own operands and its own result.

The verifier's other checks take a buffer or a layer's caches as one. Here each slot's cache of each
layer lies apart from all others, whole turns through the slices on. And in a decode step of several
rows an ATTEND, and on each head chip a result, is there once for every row, at the row's own place.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from chip.ops.attention import Attend, Rope
from chip.ops.moves import Receive, Send
from chip.ops.product import Matmul
from chip.ops.program import Program, Scheduled
from chip.ops.vector import TopK
from chip.spec import VECTOR_BYTES, ChipSpec
from compiler.errors import ScheduleError
from compiler.ir import Memory, StepSchedule

RESULT = "host.result"  # of transfers of logits
RUN = 16  # neighbouring vectors in a hemisphere


def check_rows(
    schedule: StepSchedule, memories: Sequence[Memory], spec: ChipSpec, sequences: int
) -> None:  # fmt: skip
    """Raise ScheduleError for a slot or a row out of its place, by name."""
    several = schedule.kind.decode and schedule.kind.rows > 1
    for program in schedule.programs:
        where = f"chip {program.chip}" if program.chip < len(memories) else "host"
        if program.chip < len(memories):
            _check_slots(where, program, memories[program.chip], spec, sequences)
        for operation in program.operations:
            if not several and getattr(operation.op, "row", None) is not None:
                raise _wrong(where, operation, "row", None, getattr(operation.op, "row", None))
        if several:
            _check_attends(where, program)
            _check_results(where, program)


def _wrong(where: str, of: Scheduled, what: str, wanted: object, got: object) -> ScheduleError:
    return ScheduleError(f"{where}, {of.name} ({of.opcode}): wanted {what} {wanted}, got {got}")


# -- slots


class _Cache(NamedTuple):
    """One operand of an operation: a layer's keys and values, or their scales, in each slot."""

    name: str
    address: int
    size: int
    step: int | None


def _caches(op: Rope | Attend) -> Iterator[tuple[str, _Cache]]:
    layout = op.layout
    yield "kv", _Cache("kv", op.kv, layout.total_bytes, op.kv_step)
    if op.kvs is not None:
        yield "kvs", _Cache("kvs", op.kvs, layout.scales_bytes, op.kvs_step)


def _check_slots(
    where: str, program: Program, memory: Memory, spec: ChipSpec, sequences: int
) -> None:  # fmt: skip
    """Check that each layer has a cache in every slot, whole turns apart, and that none meet."""
    tensors = {tensor.address: tensor.size for tensor in memory.tensors}
    kept: dict[tuple[int, int, int], str] = {}
    for operation in program.operations:
        op = operation.op
        if not isinstance(op, Rope | Attend):
            continue
        for name, cache in _caches(op):
            wanted: tuple[int | None, ...] = (None, None)
            if sequences > 1:  # memory.py says that the tensor is the layer's
                step = (tensors.get(cache.address, 0) - cache.size) // (sequences - 1)
                wanted = (sequences, step)
                kept[cache.address, cache.size, step] = operation.name
            if (got := (op.slots, cache.step)) != wanted:
                raise _wrong(where, operation, f"(slots, {name}_step)", wanted, got)
            if cache.step is not None and cache.step % (turn := _turn(name, spec)):
                raise _wrong(where, operation, f"{name}_step whole turns of", turn, cache.step)
    _check_apart(where, kept, sequences)


def _turn(name: str, spec: ChipSpec) -> int:
    """Return the bytes after which vectors lie in the same slices again: words alone differ."""
    sides, near = spec.hemispheres, spec.work_slices + spec.feed_slices
    bulk = math.lcm(RUN * sides, sides * (spec.slices // sides - near))
    return VECTOR_BYTES * (bulk if name == "kv" else sides * spec.work_slices)


def _check_apart(where: str, kept: Mapping[tuple[int, int, int], str], sequences: int) -> None:
    """Check that no slot's cache of a layer lies on another one."""
    places = sorted(
        (address + slot * step, size, slot, name)
        for (address, size, step), name in kept.items() for slot in range(sequences)
    )  # fmt: skip
    for (at, size, slot, name), (then, _, other, owner) in itertools.pairwise(places):
        if then < at + size:
            raise ScheduleError(
                f"{where}, {owner}: the cache of slot {other} at {then} lies on that of {name}, "
                f"slot {slot}, until {at + size}"
            )


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
