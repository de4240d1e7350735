"""The verifier's own look at slots and rows: each spoiled one is refused by name."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
from plain_ops import args, with_args
from schedules import check, edit, find, machine

from chip.ops.attention import Attend, Rope
from chip.ops.opcodes import Opcode
from chip.ops.program import Scheduled
from chip.sram import bulk_turn
from compiler.errors import ScheduleError
from compiler.ir import StepSchedule
from compiler.model.presets import PRESETS
from compiler.pipeline import CompiledModel, Options, compile_model
from compiler.place.layout import parse_layout

STEP = "decode2/32"
ATTEND, ROPE = "layers.1.self_attn.attend", "layers.1.self_attn.rope"


@lru_cache(maxsize=4)
def made(top_k: int = 0) -> CompiledModel:
    options = Options(
        max_model_len=32, prefill_chunk=4, buckets=(32,), sequences=3, batch=2, top_k=top_k
    )
    return compile_model(PRESETS["tiny"], machine("lesson"), parse_layout("1x2+1"), options)


def spoiled(
    opcode: Opcode, name: str, nth: int, chip: int = 0, top_k: int = 0, step: str = STEP,
    **changes: Any,
) -> tuple[CompiledModel, StepSchedule, Scheduled]:  # fmt: skip
    """Return a step with one operation changed: a number added to each of these values."""
    model = made(top_k)
    schedule = model.steps[step]
    old = find(schedule, chip, opcode, name, nth)
    values = {key: args(old)[key] + by for key, by in changes.items()}
    return model, edit(schedule, chip, old, with_args(old, **values)), old


def refused(model: CompiledModel, schedule: StepSchedule) -> str:
    with pytest.raises(ScheduleError) as caught:
        check(model, schedule)
    return str(caught.value)


@pytest.mark.parametrize("step", ["decode/32", STEP, "prefill4/32"])
@pytest.mark.parametrize(
    ("changes", "name"),
    [({"slots": -1}, "kv"), ({"kv_step": 320}, "kv"), ({"kvs_step": -320}, "kvs")],
)
@pytest.mark.parametrize(("opcode", "of"), [(Opcode.ROPE, ROPE), (Opcode.ATTEND, ATTEND)])
def test_slots_of_another_number_or_at_another_place(
    opcode: Opcode, of: str, changes: dict[str, int], name: str, step: str
) -> None:
    model, schedule, old = spoiled(opcode, of, 0, step=step, **changes)
    was = args(old)
    wanted = (3, was[f"{name}_step"])
    got = tuple(was[key] + changes.get(key, 0) for key in ("slots", f"{name}_step"))
    assert refused(model, schedule) == (
        f"chip 0, {of} ({opcode}): wanted (slots, {name}_step) {wanted}, got {got}"
    )


@pytest.mark.parametrize(("name", "by"), [("q", -320), ("sq", -640), ("y", 320)])
def test_a_row_of_other_operands(name: str, by: int) -> None:
    model, schedule, old = spoiled(Opcode.ATTEND, ATTEND, 1, **{name: by})
    was = args(old)[name]
    assert refused(model, schedule) == (
        f"chip 0, {ATTEND} (attend): wanted {name} of row 1 at {was}, got {was + by}"
    )


def test_a_row_twice_and_one_never() -> None:
    model, schedule, _ = spoiled(Opcode.ATTEND, ATTEND, 1, row=-1)
    assert refused(model, schedule) == (
        f"chip 0, {ATTEND} (attend): wanted one for each of rows [0, 1], got [0, 0]"
    )


def test_a_row_in_a_step_that_has_one_slot() -> None:
    model = made()
    schedule = model.steps["prefill4/32"]
    old = find(schedule, 0, Opcode.ATTEND, ATTEND)
    wrong = edit(schedule, 0, old, with_args(old, row=0))
    assert refused(model, wrong) == f"chip 0, {ATTEND} (attend): wanted row None, got 0"


def test_the_logits_of_another_row() -> None:
    model, schedule, old = spoiled(Opcode.SEND, "host.result", 1, chip=2, src=-1280)
    was = args(old)["src"]
    assert refused(model, schedule) == (
        f"chip 2, host.result (send): wanted src of row 1 at {was}, got {was - 1280}"
    )


def test_a_result_that_says_another_row() -> None:
    model, schedule, _ = spoiled(Opcode.SEND, "host.result", 1, chip=2, row=-1)
    assert refused(model, schedule) == (
        "chip 2, host.result (send): wanted one for each of rows [0, 1], got [0, 0]"
    )
    model, schedule, _ = spoiled(Opcode.RECEIVE, "host.result", 0, chip=3, row=1)
    assert refused(model, schedule) == (
        "host, host.result (receive): wanted one for each of rows [0, 1], got [1, 1]"
    )


def test_the_largest_of_another_row() -> None:
    model, schedule, old = spoiled(Opcode.TOPK, "sample.top_k", 1, chip=2, top_k=3, x=-1280)
    was = args(old)["x"]
    assert refused(model, schedule) == (
        f"chip 2, sample.top_k (topk): wanted x of row 1 at {was}, got {was - 1280}"
    )
    model, schedule, old = spoiled(Opcode.SEND, "host.result", 1, chip=2, top_k=3, src=-320)
    was = args(old)["src"]
    assert refused(model, schedule) == (
        f"chip 2, host.result (send): wanted src of row 1 at {was}, got {was - 320}"
    )
    model, schedule, _ = spoiled(Opcode.TOPK, "sample.top_k", 0, chip=2, top_k=3, row=1)
    assert refused(model, schedule) == (
        "chip 2, sample.top_k (topk): wanted one for each of rows [0, 1], got [1, 1]"
    )


def respaced(step: int) -> str:
    """Compile with caches of keys and values so many bytes from slot to slot; what is said of it.

    Tensors and operations agree, so only where the slots lie is wrong.
    """
    model = made()
    schedule, memories = model.steps[STEP], []
    for chip, memory in enumerate(model.memories):
        tensors = list(memory.tensors)
        for operation in schedule.programs[chip].operations:
            op = operation.op
            if isinstance(op, Rope):
                at = next(n for n, tensor in enumerate(tensors) if tensor.address == op.kv)
                tensors[at] = replace(tensors[at], size=op.layout.total_bytes + 2 * step)
            if isinstance(op, Rope | Attend):
                schedule = edit(schedule, chip, operation, with_args(operation, kv_step=step))
        memories.append(replace(memory, tensors=tuple(tensors)))
    with pytest.raises(ScheduleError) as caught:
        check(replace(model, memories=tuple(memories)), schedule)
    return str(caught.value)


def test_slots_that_are_no_whole_turns_apart() -> None:
    turn = bulk_turn(made().chip)
    rope = find(made().steps[STEP], 0, Opcode.ROPE, "layers.0.self_attn.rope")
    step = args(rope)["kv_step"] + 320 * 64
    assert respaced(step) == (
        f"chip 0, layers.0.self_attn.rope (rope): wanted kv_step whole turns of {turn}, got {step}"
    )


def test_a_slot_on_another_layers() -> None:
    turn = bulk_turn(made().chip)
    caches = [args(find(made().steps[STEP], 0, Opcode.ROPE, f"layers.{n}.self_attn.rope"))["kv"]
              for n in range(3)]  # fmt: skip
    size = caches[1] - caches[0]
    assert turn < caches[2] - caches[0]
    where, met = caches[0] + turn, f"until {caches[1] + size}"
    assert respaced(turn) == (
        f"chip 0, layers.0.self_attn.attend: the cache of slot 1 at {where} lies on that of "
        f"layers.1.self_attn.attend, slot 0, {met}"
    )
