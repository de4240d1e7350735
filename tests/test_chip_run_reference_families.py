"""Models of other families on the machine: what their layers have beside a Llama's, step by step.

A chunk wraps a window, and a token follows.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from schedules import machine

from compiler.model.config import ModelConfig
from compiler.model.frontend import load_config
from compiler.model.weights import WeightsRef
from compiler.pipeline import Options, compile_model
from compiler.place.layout import parse_layout
from rack.run.local import LocalRack

FOLDERS = Path(__file__).parent / "goldens"
CASES = [  # folder, dtype, layout, rows of the chunk, the first's position
    ("gemma2", "int8", "1x2", 5, 0),  # caps, windows, post-norms, GEGLU
    ("gemma2_odd", "fp16", "1x1", 5, 318),
    ("qwen3_odd", "int8", "1x2", 3, 0),  # norms of heads
    ("qwen3", "fp16", "1x1", 3, 0),
    ("qwen2_window", "int8", "1x1", 5, 318),  # a ring's end
    ("mixtral", "int8", "1x2", 3, 0),  # chosen experts
    ("mixtral", "fp16", "1x1", 2, 0),
    ("gpt_oss", "int8", "1x1", 1, 0),  # with biases
    ("gpt_oss", "fp16", "1x2", 1, 0),
]


def two_layers(name: str) -> ModelConfig:
    """Return a golden model cut to two layers, one of each kind."""
    config = load_config(FOLDERS / name)
    windows = config.windows[:2]
    return replace(config, num_layers=2, windows=windows, max_position_embeddings=400)


@pytest.mark.parametrize(("name", "dtype", "layout", "rows", "first"), CASES)
def test_a_chunk_and_a_token(name: str, dtype: str, layout: str, rows: int, first: int) -> None:
    config, context = two_layers(name), first + 24
    options = Options(dtype=dtype, max_model_len=context, prefill_chunk=rows, buckets=(context,))
    model = compile_model(config, machine("lesson"), parse_layout(layout), options)
    chunk = next(step.name for step in model.steps.values() if step.kind.rows == rows)
    decode = next(step.name for step in model.steps.values() if step.kind.decode)
    results = []
    for executor in ("fast", "reference"):
        rack = LocalRack(model, WeightsRef.synthetic(config, 7), executor=executor)
        rack.reset()
        rows_in = rack.run_step(chunk, range(first, first + rows), [7 + i for i in range(rows)])
        token = rack.run_step(decode, [first + rows], [9])
        assert token.logits is not None
        results.append((rows_in.cycles, token.cycles, token.hash_share, token.logits.tobytes()))
        rack.close()
    assert results[0] == results[1]
