"""Decode steps of several rows, each of another slot: a row's bits are those it has alone.

Over layouts, dtypes and families; int8 and int4 also against the plain model of tests/int_model.py.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from int_model import IntLlama
from safetensors.numpy import load_file
from schedules import WEIGHTS, machine
from sequence_kit import Row, bits, decode, prefill

from chip.ops.attention import Attend
from chip.ops.moves import Receive, Send
from compiler.model.config import ModelConfig
from compiler.model.frontend import resolve_model
from compiler.model.presets import PRESETS
from compiler.model.weights import WeightsRef
from compiler.pipeline import CompiledModel, Options, compile_model, decode_sizes
from compiler.place.layout import parse_layout
from rack.run.local import LocalRack

GOLDENS = Path(__file__).parent / "goldens"
WEIGHTS_OF_ONE = WeightsRef.synthetic(replace(PRESETS["tiny"], num_layers=1), 7)
CASES = [  # model, dtype, layout, machine, tokens of the prompts
    ("gqa", "int8", "2x2+1", "lesson", (5, 1, 9)),
    ("gqa", "fp16", "1x3+2", "groqrack", (2, 7, 3)),
    ("gqa", "int4", "1x2", "lesson", (4, 4, 8)),
    ("gqa", "int8", "1x13", "lesson", (3, 6, 2)),  # vectors are forwarded
    ("mistral_ring", "int8", "3x1+1", "lesson", (330, 12, 321)),
    ("gemma2_ring", "fp16", "1x2", "lesson", (326, 5, 2)),
    ("gpt_oss_ring", "int8", "1x2", "groqrack", (9, 328, 30)),
    ("mixtral", "int8", "1x2", "lesson", (5, 8, 3)),
    ("qwen3", "int8", "1x2", "lesson", (5, 2, 3)),
]


@lru_cache(maxsize=4)
def made(
    name: str, dtype: str, layout: str, hardware: str, sequences: int, batch: int
) -> tuple[CompiledModel, WeightsRef]:
    model = resolve_model(str(GOLDENS / name))
    context = 336 if "ring" in name else 32
    options = Options(
        dtype=dtype, sequences=sequences, batch=batch, max_model_len=context, prefill_chunk=16,
        buckets=(context,),
    )  # fmt: skip
    compiled = compile_model(model.config, machine(hardware), parse_layout(layout), options)
    return compiled, model.weights_ref


def tiny(
    layout: str = "1x2", sequences: int = 5, batch: int = 3, *,
    config: ModelConfig = PRESETS["tiny"], **options: Any,
) -> CompiledModel:  # fmt: skip
    asked = {"max_model_len": 32, "prefill_chunk": 4, "buckets": (16,), **options}
    return compile_model(
        config, machine("lesson"), parse_layout(layout),
        Options(sequences=sequences, batch=batch, **asked),
    )  # fmt: skip


def one_by_one(model: CompiledModel, weights: WeightsRef, prompts: list[list[int]]) -> list[Any]:
    """Return each prompt's bits on a rack of its own, by one-row steps."""
    rack, found = LocalRack(model, weights), []
    rack.reset()
    for prompt in prompts:
        prefill(rack, 0, prompt[:-1])
        found.append(bits(*decode(rack, [(0, len(prompt) - 1, prompt[-1])])))
    rack.close()
    return found


def together(
    model: CompiledModel, weights: WeightsRef, prompts: list[list[int]], slots: list[int],
    executor: str = "fast",
) -> list[Any]:  # fmt: skip
    """Return each prompt's bits by one step of all."""
    rack = LocalRack(model, weights, executor=executor)
    rack.reset()
    for slot, prompt in zip(slots, prompts, strict=True):
        prefill(rack, slot, prompt[:-1])
    rows: list[Row] = [
        (slot, len(prompt) - 1, prompt[-1]) for slot, prompt in zip(slots, prompts, strict=True)
    ]
    results = decode(rack, rows)
    rack.close()
    assert len({result.cycles for result in results}) == 1
    return [bits(result) for result in results]


@pytest.mark.parametrize(("name", "dtype", "layout", "hardware", "lengths"), CASES)
def test_a_row_has_the_bits_that_it_has_alone(
    name: str, dtype: str, layout: str, hardware: str, lengths: tuple[int, ...]
) -> None:
    single, weights = made(name, dtype, layout, hardware, 1, 1)
    several, _ = made(name, dtype, layout, hardware, 4, 3)
    vocab = single.config.vocab_size
    prompts = [
        [(7 * n + 13 * i) % vocab for i in range(length)] for n, length in enumerate(lengths)
    ]
    wanted = one_by_one(single, weights, prompts)
    assert together(several, weights, prompts, [3, 0, 2]) == wanted
    assert len({share for share, _ in wanted}) == 3


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_rows_are_the_plain_models(dtype: str) -> None:
    model, weights = made("gqa", dtype, "1x2", "lesson", 4, 3)
    prompts = [[5, 93, 17, 44], [61, 2], [30, 31, 32, 33, 34, 35]]
    config = json.loads((GOLDENS / "gqa" / "config.json").read_text())
    tensors = load_file(GOLDENS / "gqa" / "model.safetensors")
    plain = IntLlama(config, tensors, 320 if dtype == "int4" else None)
    wanted = [plain.logits(prompt)[-1].tobytes() for prompt in prompts]
    got = together(model, weights, prompts, [0, 1, 2])
    assert [logits for _, logits in got] == wanted


@pytest.mark.parametrize(("top_k", "layout"), [(3, "1x2+2"), (2, "2x1")])
def test_each_row_has_its_own_largest(top_k: int, layout: str) -> None:
    prompts = [[5, 93, 17, 44], [61, 2], [9]]
    wanted = one_by_one(tiny(layout, 1, 1, top_k=top_k), WEIGHTS, prompts)
    assert together(tiny(layout, top_k=top_k), WEIGHTS, prompts, [2, 4, 1]) == wanted


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_the_reference_machine_gives_the_same_bits(dtype: str) -> None:
    config = replace(PRESETS["tiny"], num_layers=1)
    asked = {"max_model_len": 8, "buckets": (8,), "prefill_chunk": 1}
    model, weights = tiny("1x1", 3, 2, config=config, dtype=dtype, **asked), WEIGHTS_OF_ONE
    prompts, slots = [[5, 93], [61, 2]], [2, 1]
    got = together(model, weights, prompts, slots, "reference")
    assert got == together(model, weights, prompts, slots)


def test_rows_that_are_not_there_do_nothing_and_cost_the_same() -> None:
    model = tiny("2x2+1", 5, 4)
    prompts = [[5, 93, 17, 44], [61, 2], [9]]
    wanted = one_by_one(tiny("2x2+1", 1, 1), WEIGHTS, prompts)
    assert model.step(3, 4, decode=True).name == "decode4/16"
    assert together(model, WEIGHTS, prompts, [0, 1, 4]) == wanted


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_sequences_in_any_order_of_steps(data: st.DataObject) -> None:
    """Each sequence takes a step when it is drawn, alone or with others; its bits are its own."""
    model, _ = _small()
    lengths = [data.draw(st.integers(2, 9)) for _ in range(4)]
    slots = data.draw(st.permutations(range(5)))[:4]
    prompts = [[(31 * n + 7 * i + 3) % 320 for i in range(size)] for n, size in enumerate(lengths)]
    rack, done = LocalRack(model, WEIGHTS), [0] * 4
    rack.reset()
    got: list[list[Any]] = [[] for _ in prompts]
    while ready := [n for n in range(4) if done[n] < lengths[n]]:
        chosen = data.draw(st.permutations(ready))[: data.draw(st.integers(1, min(3, len(ready))))]
        rows = [(slots[n], done[n], prompts[n][done[n]]) for n in chosen]
        for n, result in zip(chosen, decode(rack, rows), strict=True):
            got[n].append(bits(result))
            done[n] += 1
    rack.close()
    for prompt, results in zip(prompts, got, strict=True):
        assert results == _decoded(tuple(prompt))


@lru_cache(maxsize=1)
def _small() -> tuple[CompiledModel, CompiledModel]:
    return tiny("1x2"), tiny("1x2", 1, 1)


@lru_cache(maxsize=64)
def _decoded(prompt: tuple[int, ...]) -> list[Any]:
    rack = LocalRack(_small()[1], WEIGHTS)
    rack.reset()
    found = [bits(*decode(rack, [(0, at, token)])) for at, token in enumerate(prompt)]
    rack.close()
    return found


def test_sizes_and_names_of_steps() -> None:
    assert [decode_sizes(b) for b in (1, 2, 3, 4, 6, 8)] == [
        (1,), (1, 2), (1, 2, 3), (1, 2, 4), (1, 2, 4, 6), (1, 2, 4, 8),
    ]  # fmt: skip
    model = tiny("1x1", 7, 6)
    assert model.decode_sizes == (1, 2, 4, 6)
    named = [name for name, step in model.steps.items() if step.kind.decode]
    assert named[:4] == ["decode/16", "decode/32", "decode2/16", "decode2/32"]
    assert [model.step(n, 17, decode=True).name for n in (1, 2, 3, 5)] == [
        "decode/32", "decode2/32", "decode4/32", "decode6/32",
    ]  # fmt: skip
    assert model.prefill_chunk == 4  # though a batch has more rows


def test_a_batch_is_attended_row_by_row_and_leaves_row_by_row() -> None:
    model = tiny("2x2+2", 5, 3)
    step = model.steps["decode3/16"]
    attends = [o.op for o in step.programs[0].operations if isinstance(o.op, Attend)]
    assert [(op.rows, op.row, op.slots) for op in attends[:3]] == [(1, n, 5) for n in range(3)]
    sends = [o.op for o in step.programs[4].operations if o.name == "host.result"]
    assert [op.row for op in sends if isinstance(op, Send)] == [0, 1, 2]
    came = [o.op for o in step.programs[6].operations if o.name == "host.result"]
    assert sorted(op.row or 0 for op in came if isinstance(op, Receive)) == [0, 0, 1, 1, 2, 2]
    others = [o.op for o in model.steps["decode/16"].programs[4].operations]
    assert {getattr(op, "row", None) for op in others} == {None}
    for cycles in zip(*(
        [model.steps[f"decode{n}/{bucket}"].cycles for n in ("", 2, 3)] for bucket in (16, 32)
    ), strict=True):  # fmt: skip
        assert list(cycles) == sorted(cycles)
