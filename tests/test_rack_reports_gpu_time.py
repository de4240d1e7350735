"""The roofline of GPUs: each term by hand, and how it behaves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compiler.model.presets import PRESETS
from rack.machines.gpu import Efficiency, GpuDtype, load_gpu
from rack.reports.gpu_time import (
    EXACT,
    Load,
    Terms,
    balance,
    cache_bytes,
    fewest_gpus,
    intensity,
    operations,
    places,
    seen,
    terms,
    weight_bytes,
)

H100 = load_gpu("h100-sxm")
LLAMA = PRESETS["llama-8b"]
LAYER = 4096 * 2 * (4096 + 1024) + 3 * 4096 * 14336
HEAD = 4096 * 128256
LOAD = Load(config=LLAMA, dtype=GpuDtype.FP16, gpus=1, batch=1, context=512, kv_bytes=2)


def test_sizes_of_llama_8b() -> None:
    assert weight_bytes(LLAMA, GpuDtype.FP16) == 2 * (32 * LAYER + 2 * HEAD) == 16_059_990_016
    assert weight_bytes(LLAMA, GpuDtype.FP16, 1) == 2 * (32 * LAYER + HEAD)  # one table is read
    assert weight_bytes(LLAMA, GpuDtype.FP8, 1) == 32 * LAYER + 2 * HEAD
    assert operations(LLAMA) == 2 * (32 * LAYER + HEAD)
    assert cache_bytes(LLAMA, 512, 2) == 512 * 131_072


def test_experts_are_read_as_tokens_choose_them() -> None:
    config = PRESETS["mixtral-8x7b"]
    expert = 3 * 4096 * 14336 * 2 * 32
    one, most = (weight_bytes(config, GpuDtype.FP16, tokens) for tokens in (1, 10_000))
    assert most - one == pytest.approx(6 * expert)  # two of eight, then all
    two = weight_bytes(config, GpuDtype.FP16, 2)
    assert two - one == pytest.approx(1.5 * expert)  # 8 - 8 * 0.75^2 = 3.5 of eight
    assert operations(config) == 2 * (
        32 * (4096 * 2 * 5120 + 2 * 3 * 4096 * 14336) + 4096 * config.vocab_size
    )
    mx = PRESETS["gpt-oss-120b"]
    by_expert = 36 * 128 * 3 * 2880 * 2880
    small, wide = (weight_bytes(mx, dtype) for dtype in (GpuDtype.MXFP4, GpuDtype.FP16))
    assert wide - small == pytest.approx(by_expert * (16 - 4.25) / 8)


def test_a_window_cuts_what_is_seen() -> None:
    config = PRESETS["gpt-oss-20b"]
    assert seen(config, 100) == 24 * 100
    assert seen(config, 1000) == 12 * 128 + 12 * 1000
    assert seen(LLAMA, 1000) == 32 * 1000


def test_terms_by_hand() -> None:
    found = terms(H100, replace(LOAD, batch=4))
    read = 2 * (32 * LAYER + HEAD) + 4 * 512 * 131_072
    assert found.memory == pytest.approx(read / 3350e9)
    assert found.products == pytest.approx(4 * 2 * (32 * LAYER + HEAD) / 989e12)
    assert (found.prompts, found.exchange, found.layers) == (0, 0, 16)
    four = terms(H100, replace(LOAD, batch=4, gpus=4))
    assert four.memory == pytest.approx(found.memory / 4)
    assert four.products == pytest.approx(found.products / 4)
    assert four.exchange == pytest.approx(2 * 32 * 1.5 * 4 * 4096 * 2 / 450e9)
    assert four.layers == 32
    busy = terms(H100, replace(LOAD, prompt_tokens=10, prompt_context=256))
    attention = 4 * 4096 * 32 * 256
    assert busy.prompts == pytest.approx(10 * (2 * 32 * LAYER + attention) / 989e12)
    assert terms(H100, replace(LOAD, config=PRESETS["gpt-oss-20b"], gpus=2)).layers == 48


def test_a_step_is_the_roofline_and_what_comes_on_top() -> None:
    one = Terms(memory=4.0, products=3.0, prompts=2.0, exchange=1.0, layers=10)
    assert one.seconds(EXACT) == 7.0
    assert one.seconds(Efficiency(memory=0.5, compute=0.25, layer_s=0.1)) == 12 + 8 + 2 + 1


def test_a_batch_never_makes_a_step_shorter_nor_a_token_dearer() -> None:
    before = 0.0
    for batch in range(1, 200):
        now = terms(H100, replace(LOAD, batch=batch)).seconds(H100.efficiency)
        assert now >= before
        assert before == 0 or now / batch <= before / (batch - 1)
        before = now


def test_what_fits() -> None:
    assert places(H100, LOAD) == int((72e9 - 16_059_990_016) // (512 * 131_072))
    large = replace(LOAD, config=PRESETS["llama-70b"])
    assert places(H100, large) == 0
    assert fewest_gpus(H100, LOAD) == 1
    assert fewest_gpus(H100, large) == 2
    assert fewest_gpus(H100, replace(large, dtype=GpuDtype.FP8)) == 2  # 72.7 GB
    assert fewest_gpus(load_gpu("h200"), replace(large, dtype=GpuDtype.FP8)) == 1
    tiny = replace(H100, memory_bytes=10**9)
    assert fewest_gpus(tiny, large) is None


def test_where_products_take_as_long_as_memory() -> None:
    """Without a KV cache that is the ridge, as two operations a weight are two bytes of fp16."""
    short = replace(LOAD, context=1)
    lesson = load_gpu("h100-lesson")
    assert balance(lesson, short, EXACT, 4096) == 149
    assert balance(H100, short, EXACT, 4096) == 296
    assert balance(H100, LOAD, EXACT, 4096) is None  # a sequence's cache takes longer itself
    assert intensity(replace(LOAD, batch=148, context=0)) == pytest.approx(148)
    found = balance(lesson, LOAD, EXACT, 4096)
    assert found is not None
    for batch, bound in ((found - 1, False), (found, True)):
        each = terms(lesson, replace(LOAD, batch=batch))
        assert (each.products >= each.memory) is bound
