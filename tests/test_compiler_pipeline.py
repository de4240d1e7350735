"""The passes together: what is chosen, what is refused, and the hash of it all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from schedules import compiled, machine

from compiler.errors import CapacityError, CompilerError
from compiler.model.presets import PRESETS
from compiler.pipeline import Options, compile_model, context_buckets, prefill_sizes
from compiler.place.layout import parse_layout
from compiler.schedule.steps import slower_paces
from rack.machines.hardware import Hardware
from rack.machines.profile import load_hardware

TINY = PRESETS["tiny"]
ONE = parse_layout("1x1")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dtype": "fp32"}, "dtype: wanted one of int8, int4, fp16, got 'fp32'"),
        ({"int4_group": 64}, "int4_group: wanted dtype int4, whose weights have groups, got int8"),
        (
            {"dtype": "int4", "int4_group": 128},
            "int4_group: wanted one of 320, 160, 64, 32, got 128",
        ),
        ({"max_model_len": 0}, "max_model_len: wanted at least 1, got 0"),
        ({"prefill_chunk": 0}, "prefill_chunk: wanted at least 1, got 0"),
        ({"top_k": -1}, "top_k: wanted 0 or more, got -1"),
        ({"buckets": ()}, "buckets: wanted rising positive sizes, got ()"),
        ({"buckets": (2, 1)}, "buckets: wanted rising positive sizes, got (2, 1)"),
        ({"buckets": (2, 2)}, "buckets: wanted rising positive sizes, got (2, 2)"),
        ({"buckets": (0, 2)}, "buckets: wanted rising positive sizes, got (0, 2)"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], text: str) -> None:
    with pytest.raises(CompilerError) as caught:
        Options(**options)
    assert str(caught.value) == text


def test_more_context_than_positions() -> None:
    with pytest.raises(CompilerError, match=r"^max_model_len: tiny has 256 positions, got 257$"):
        compile_model(TINY, machine("lesson"), ONE, Options(max_model_len=257))


def test_a_step_beyond_the_context() -> None:
    with pytest.raises(CompilerError, match=r"^context: wanted at most 64, got 65$"):
        compiled("1x1").step(1, 65, decode=True)


def test_steps_are_picked_by_rows_and_context() -> None:
    model = compiled("1x1")
    assert model.step(1, 1, decode=True).name == "decode/32"
    assert model.step(1, 32, decode=True).name == "decode/32"
    assert model.step(1, 33, decode=True).name == "decode/64"
    assert model.step(1, 1, decode=False).name == "prefill2/32"
    assert model.step(2, 64, decode=False).name == "prefill2/64"
    assert model.step(3, 12, decode=False).name == "prefill8/32"
    assert set(model.steps) == {
        f"{name}/{bucket}" for name in ("decode", "prefill2", "prefill8") for bucket in (32, 64)
    }


def test_sizes_and_buckets() -> None:
    assert prefill_sizes(128) == (128, 32, 8, 2)
    assert prefill_sizes(16) == (16, 4)
    assert prefill_sizes(5) == (5, 1)
    assert prefill_sizes(1) == (1,)
    assert context_buckets(Options(), 1500) == (256, 512, 1024, 1500)
    assert context_buckets(Options(), 256) == (256,)
    assert context_buckets(Options(buckets=(8, 64, 99)), 64) == (8, 64)


def test_every_chunk_of_any_prompt_finds_a_step() -> None:
    for chunk in (1, 3, 5, 6, 8, 17):
        sizes = prefill_sizes(chunk)
        assert all(any(size >= rows for size in sizes) for rows in range(1, chunk + 1))


def test_the_largest_context_and_chunk_that_fit_are_taken() -> None:
    small = replace(machine("lesson").chip, slices=16, sram_bytes=16 * 2 * 320 * 200)
    target = replace(machine("lesson"), chip=small)
    config = replace(TINY, max_position_embeddings=1024)
    chosen = compile_model(config, target, ONE, kinds="decode")
    assert 16 <= chosen.max_model_len < 1024
    assert chosen.max_model_len % 16 == 0
    longer = Options(max_model_len=chosen.max_model_len + 16, prefill_chunk=16)
    with pytest.raises(CapacityError, match=r"layout 1x1, context .* bytes missing"):
        compile_model(config, target, ONE, longer)
    short = compile_model(config, target, ONE, Options(max_model_len=64), kinds="decode")
    assert short.prefill_chunk >= chosen.prefill_chunk
    roomy = compile_model(config, machine("lesson"), ONE, kinds="decode")
    assert (roomy.max_model_len, roomy.prefill_chunk) == (1024, 128)


def test_what_does_not_fit_at_all() -> None:
    with pytest.raises(CapacityError) as caught:
        compile_model(PRESETS["llama-8b"], machine("lesson"), parse_layout("1x4"))
    error = caught.value
    assert error.available == 230_686_720
    assert error.missing == error.needed - error.available > 10**9
    assert str(error).startswith("layout 1x4, context 1: chip 0 wants ")


def test_kinds_of_compilation() -> None:
    every = compiled("2x2+1")
    decode = compiled("2x2+1", kinds="decode")
    estimate = compiled("2x2+1", kinds="estimate")
    assert set(decode.steps) == {"decode/32", "decode/64"}
    assert set(estimate.steps) == {"decode/32"}
    for name, step in decode.steps.items():
        assert step == every.steps[name]
    assert len({every.schedule_hash, decode.schedule_hash, estimate.schedule_hash}) == 3


def test_the_hash_sees_everything() -> None:
    base = compiled("2x2+1")
    others = [
        compiled("2x2+2"), compiled("2x2+1", "groqrack"), compiled("2x2+1", dtype="fp16"),
        compiled("2x2+1", top_k=4), compiled("2x2+1", chunk=4), compiled("2x2+1", context=65),
        compile_model(
            TINY, machine("lesson"), parse_layout("2x2+1"),
            Options(max_model_len=64, prefill_chunk=8, buckets=(32,), binding=(1, 0, 2, 3, 4)),
        ),
        compile_model(
            replace(TINY, rope_theta=9999.0), machine("lesson"), parse_layout("2x2+1"),
            Options(max_model_len=64, prefill_chunk=8, buckets=(32,)),
        ),
    ]  # fmt: skip
    assert len({model.schedule_hash for model in (base, *others)}) == len(others) + 1
    assert len(base.schedule_hash) == len(hashlib.sha256().hexdigest())


def test_top_k_returns_less_over_the_host_port() -> None:
    full, few = compiled("1x2"), compiled("1x2", top_k=3)
    assert full.steps["decode/32"].host.size > few.steps["decode/32"].host.size
    assert full.steps["prefill8/32"].host.size == few.steps["prefill8/32"].host.size


def test_llama_8b_compiles_for_a_rack() -> None:
    model = compile_model(
        PRESETS["llama-8b"], machine("groqrack"), parse_layout("16x4+4"),
        Options(max_model_len=2048), kinds="estimate",
    )  # fmt: skip
    assert model.layout.chips == 68
    fullest = min(memory.free_bytes for memory in model.memories)
    assert fullest >= 0
    matrices = sum(t.size for m in model.memories for t in m.tensors if t.kind == "weight")
    assert 7.0e9 < matrices < 8.0e9  # 7.5 billion int8 weights outside the embedding


GROQ = load_hardware("groqrack")
WHAT_IFS: dict[str, tuple[Callable[[int], Hardware], tuple[int, ...]]] = {
    "link lanes": (
        lambda lanes: replace(GROQ, chip_link=replace(GROQ.chip_link, lanes=lanes)),
        (4, 5, 6, 7, 8, 16, 64),
    ),
    "link latency": (
        lambda cycles: replace(GROQ, chip_link=replace(GROQ.chip_link, latency_cycles=cycles)),
        (400, 216, 108, 1),
    ),
    "way through a chip": (
        lambda cycles: replace(GROQ, chip=replace(GROQ.chip, forward_cycles=cycles)),
        (360, 180, 1),
    ),
    "host rate": (
        lambda gbps: replace(
            GROQ, host_link=replace(GROQ.host_link, line_rate_bps=gbps * 10**9, rate_divisor=1)
        ),
        (96, 192, 384),
    ),
}


@pytest.mark.parametrize(
    ("what", "layout"),
    [
        ("link lanes", "2x2+4"), ("host rate", "2x2+4"), ("link latency", "2x6+4"),
        ("way through a chip", "2x6+4"),
    ],
)  # fmt: skip
def test_a_faster_machine_is_never_slower(what: str, layout: str) -> None:
    """Doubled links made it slower: products left more gaps for them than they were worth."""
    make, values = WHAT_IFS[what]
    config = replace(PRESETS["llama-8b"], num_layers=2)
    cycles = []
    for value in values:
        model = compile_model(
            config, make(value), parse_layout(layout), Options(max_model_len=64), kinds="estimate"
        )
        cycles.append(model.steps["decode/64"].cycles)
    assert cycles == sorted(cycles, reverse=True)
    assert cycles[0] > cycles[-1]


def test_a_link_is_driven_at_a_slower_pace_where_that_is_faster() -> None:
    """As fast as the links at which products leave gaps of 16 cycles, and it runs so."""
    make, _ = WHAT_IFS["link lanes"]
    config, layout = replace(PRESETS["llama-8b"], num_layers=2), parse_layout("2x2+4")
    options = Options(max_model_len=64)
    models = [
        compile_model(config, make(lanes), layout, options, kinds="estimate") for lanes in (6, 8)
    ]
    for model in models:
        assert {link.slot_cycles for link in model.network.links if not link.is_host} == {16}
    assert models[0].steps == models[1].steps
    assert [list(slower_paces(slot)) for slot in (1, 8, 15, 16, 24, 60)] == [
        [8, 16, 24], [16, 24], [16, 24], [24], [], []
    ]  # fmt: skip
