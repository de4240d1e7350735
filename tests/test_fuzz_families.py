"""Spoiled config.json files of every family: each is read, or refused in one line."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from fuzz_kit import examples, judge, spoil_json

from compiler.model.config import ModelConfig
from compiler.model.frontend import load_config
from compiler.model.weights import WeightsRef

GOLDENS = Path(__file__).parent / "goldens"
NAMES = ["gpt_oss", "mixtral_odd", "gemma2", "qwen3_odd", "qwen2_window", "mistral", "llama_bias"]
SMALL = 8  # layers and experts of models whose tensors are looked for


def read(folder: Path, name: str) -> ModelConfig:
    """Read a configuration, and the golden's tensors by it."""
    config = load_config(folder)
    small = config.num_layers <= SMALL
    if small and (config.experts is None or config.experts.count <= SMALL):
        WeightsRef.from_folder(config, GOLDENS / name).open()
    return config


@pytest.mark.parametrize("name", NAMES)
def test_spoiled_configs(name: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    text, came = (GOLDENS / name / "config.json").read_bytes(), Counter[bool]()
    for case in range(examples(pytestconfig, 1 / 4)):
        rng = random.Random(f"{name} {case}")
        spoiled, what = spoil_json(rng, text)
        (tmp_path / "config.json").write_bytes(spoiled)
        outcome = judge(f"{name} {case}: {what}", lambda: read(tmp_path, name))
        assert outcome.refusal is None or len(outcome.refusal) < 600, outcome.refusal
        came[outcome.refusal is None] += 1
    assert min(came.values()) > 0
    assert len(came) == 2  # some are read, some refused
