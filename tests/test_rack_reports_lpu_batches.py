"""Prompts through a pipeline: three stages of it tell the rate of all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compiler.model.presets import PRESETS
from compiler.pipeline import Options, compile_model
from compiler.place.layout import parse_layout
from rack.machines.profile import load_hardware
from rack.reports.lpu_batches import STAGES, prompt_tokens_per_s

MACHINE = load_hardware("lesson")
DEEP = replace(PRESETS["tiny"], name="deep", num_layers=8)


@pytest.mark.parametrize("layout", ["8x1+1", "4x2+2", "2x2+1"])
def test_three_stages_tell_the_rate_of_all(layout: str) -> None:
    options = Options(max_model_len=64, prefill_chunk=8, buckets=(64,))
    whole = compile_model(DEEP, MACHINE, parse_layout(layout), options)
    (chunk,) = (step for step in whole.steps.values() if step.kind.rows == 8)
    rate = 8 * 9e8 / whole.cycles_until(chunk.name, chunk.name)
    steps = list[tuple[int, int]]()
    found = prompt_tokens_per_s(whole, MACHINE, 64, lambda done, total: steps.append((done, total)))
    assert found == pytest.approx(rate, rel=0.02)
    assert steps[-1] == (3, 3), "decode, and prefill of eight rows and of two"
    assert (whole.layout.stages > STAGES) is (layout != "2x2+1")
