"""The verifier refuses what other families have and Llamas do not: constants of their own."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
from schedules import check, edit, find, machine

from chip.ops.opcodes import CONSTANTS, Opcode
from compiler.errors import ScheduleError
from compiler.model.frontend import load_config
from compiler.pipeline import CompiledModel, Options, compile_model
from compiler.place.layout import parse_layout
from compiler.verify.sources import CONSTANTS as SUFFIXES

GOLDENS = Path(__file__).parent / "goldens"
O = Opcode  # noqa: E741
OWN = [
    ("qwen2", O.MATMUL, "self_attn.qkv_proj", "b"),
    ("qwen3", O.ROPE, "self_attn.rope", "gq"),
    ("qwen3", O.ROPE, "self_attn.rope", "gk"),
    ("gemma2", O.ADD, "self_attn.add", "post"),
    ("gemma2", O.ADD, "mlp.add", "post"),
    ("gpt_oss", O.ATTEND, "self_attn.attend", "sinks"),
    ("gpt_oss", O.MATMUL, "mlp.router", "b"),
    ("gpt_oss", O.EXPERTS_EACH, "mlp.gate_up_proj", "b"),
    ("gpt_oss", O.EXPERTS_SUM, "mlp.down_proj", "b"),
    ("mixtral", O.EXPERTS_EACH, "mlp.gate_up_proj", "w"),
    ("mixtral", O.EXPERTS_EACH, "mlp.gate_up_proj", "sw"),
    ("mixtral", O.EXPERTS_SUM, "mlp.down_proj", "w"),
    ("mixtral", O.EXPERTS_SUM, "mlp.down_proj", "sw"),
]


@lru_cache(maxsize=8)
def compiled(name: str) -> CompiledModel:
    options = Options(max_model_len=32, prefill_chunk=4, buckets=(32,))
    config = load_config(GOLDENS / name)
    return compile_model(config, machine("lesson"), parse_layout("1x2"), options, kinds="decode")


def test_every_constant_has_a_suffix() -> None:
    assert set(SUFFIXES) == CONSTANTS


@pytest.mark.parametrize(("name", "opcode", "place", "operand"), OWN)
def test_a_constant_of_another_layer(name: str, opcode: Opcode, place: str, operand: str) -> None:
    model = compiled(name)
    schedule = model.steps["decode/32"]
    one, other = (find(schedule, 1, opcode, f"layers.{n}.{place}") for n in (0, 1))
    wrong, right = getattr(other.op, operand), getattr(one.op, operand)
    changed = replace(one, op=replace(one.op, **{operand: wrong}))
    with pytest.raises(ScheduleError) as caught:
        check(model, edit(schedule, 1, one, changed))
    text = str(caught.value)
    assert text.startswith(f"chip 1, {one.name}: operand {operand} at ({wrong}, ")
    assert f"is not its tensor {one.name}{SUFFIXES[operand]} at ({right}, " in text
