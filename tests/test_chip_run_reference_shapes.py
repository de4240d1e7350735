"""Steps of odd shapes and row counts on the machine: operations overlap without colliding.

Operations share the work slices' ports cycle by cycle, so what fits for one shape need not for
another. All of SHAPES with 1, 2, 3, 16 and 17 rows on 1 and 2 chips was run once; here are some.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from schedules import machine

from compiler.model.presets import PRESETS
from compiler.model.weights import WeightsRef
from compiler.pipeline import Options, compile_model
from compiler.place.layout import parse_layout
from rack.run.local import LocalRack

SHAPES = {
    "even": {"hidden_size": 64, "intermediate_size": 172},
    "odd segments": {"hidden_size": 96, "intermediate_size": 80, "vocab_size": 300},
    "beyond a vector": {
        "hidden_size": 336, "intermediate_size": 336, "num_heads": 6, "num_kv_heads": 2,
        "head_dim": 56,
    },
    "narrow columns": {
        "hidden_size": 48, "intermediate_size": 40, "num_heads": 3, "num_kv_heads": 1,
        "head_dim": 16, "vocab_size": 272,
    },
    "two blocks": {
        "hidden_size": 352, "intermediate_size": 656, "num_kv_heads": 4, "head_dim": 64,
    },
}  # fmt: skip
CASES = [
    ("even", "1x2", 3),
    ("odd segments", "1x1", 2),
    ("beyond a vector", "1x1", 2),
    ("narrow columns", "1x2", 2),
    ("two blocks", "1x1", 3),
    pytest.param("odd segments", "1x1", 16, marks=pytest.mark.slow),
    pytest.param("narrow columns", "1x1", 17, marks=pytest.mark.slow),
    pytest.param("two blocks", "1x2", 1, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("shape", "layout", "rows"), CASES)
def test_a_chunk_and_a_token(shape: str, layout: str, rows: int) -> None:
    config = replace(PRESETS["tiny"], num_layers=1, **SHAPES[shape])  # type: ignore[arg-type]
    options = Options(max_model_len=24, prefill_chunk=rows, buckets=(24,))
    model = compile_model(config, machine("lesson"), parse_layout(layout), options)
    chunk = next(step.name for step in model.steps.values() if step.kind.rows == rows)
    decode = next(step.name for step in model.steps.values() if step.kind.decode)
    results = []
    for executor in ("fast", "reference"):
        rack = LocalRack(model, WeightsRef.synthetic(config, 7), executor=executor)
        rack.reset()
        first = rack.run_step(chunk, range(rows), [7 + i for i in range(rows)])
        token = rack.run_step(decode, [rows], [9])
        assert token.logits is not None
        results.append((first.cycles, token.cycles, token.hash_share, token.logits.tobytes()))
        rack.close()
    assert results[0] == results[1]
