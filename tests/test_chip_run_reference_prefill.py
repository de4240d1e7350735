"""Chunks of a prompt on the machine and by the fast executor: equal bits, equal cycles.

A layer of llama-8b or 70B as it is on a chip of a group of 1, 4 or 8: heads as they are, widths
cut, and two chips of the group where there are more. One case by default; every number of rows,
bucket and type with `--grid`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from operation_grid import GROUPS, PREFILL_BUCKETS, PREFILL_ROWS
from schedules import machine

from compiler.model.presets import PRESETS
from compiler.model.weights import WeightsRef
from compiler.pipeline import Options, compile_model
from compiler.place.layout import parse_layout
from rack.run.local import LocalRack

Case = tuple[str, int, int, int, str]
"""Model, chips, rows, bucket, type."""
CUT = {  # widths that have no heads in them
    "llama-8b": {"hidden_size": 336, "intermediate_size": 704},
    "llama-70b": {"hidden_size": 704, "intermediate_size": 344},
}
DEFAULT: list[Case] = [
    ("llama-8b", 4, 8, 256, "int8"),  # was refused until ALUs' results were reserved
]


def every() -> Iterator[Case]:
    """The whole grid."""
    return product(CUT, GROUPS, PREFILL_ROWS, PREFILL_BUCKETS, ("int8", "fp16"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = list(every()) if metafunc.config.getoption("--grid") else DEFAULT
    metafunc.parametrize("case", cases, ids=lambda case: "-".join(map(str, case)))


def test_a_chunk_at_the_end_of_its_bucket(case: Case) -> None:
    name, chips, rows, bucket, dtype = case
    cut = {"num_layers": 1, "vocab_size": 320, "bos_token_id": 256, "eos_token_ids": (257,)}
    preset, here = PRESETS[name], min(chips, 2)
    heads = {
        "num_heads": preset.num_heads // chips * here,
        "num_kv_heads": preset.num_kv_heads // chips * here,
    }
    config = replace(preset, **cut, **heads, **CUT[name])  # type: ignore[arg-type]
    options = Options(dtype=dtype, max_model_len=bucket, prefill_chunk=rows, buckets=(bucket,))
    layout = parse_layout(f"1x{here}")
    model = compile_model(config, machine("groqrack"), layout, options)
    chunk = next(step.name for step in model.steps.values() if step.kind.rows == rows)
    decode = next(step.name for step in model.steps.values() if step.kind.decode)
    tokens = np.random.default_rng(rows).integers(0, 320, rows + 1).tolist()
    results = []
    for executor in ("fast", "reference"):
        rack = LocalRack(model, WeightsRef.synthetic(config, 7), executor=executor)
        rack.reset()
        first = bucket - rows - 1
        chunked = rack.run_step(chunk, range(first, first + rows), tokens[:-1])
        token = rack.run_step(decode, [bucket - 1], tokens[-1:])
        assert token.logits is not None
        results.append((chunked.cycles, token.cycles, token.hash_share, token.logits.tobytes()))
        rack.close()
    assert results[0] == results[1]
