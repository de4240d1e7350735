"""A checkpoint's first chunk, instruction by instruction: the reference executor on real folders.

Its prompt fills more rows of bucket 256 than attention's reductions once had room for: the machine
refused what `--executor fast` reported cycles for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers

from compiler.model.frontend import load_config
from compiler.model.weights import required_tensors
from rack.commands.generate import main

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 272, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture
def grouped(tmp_path: Path) -> Path:
    """Give a checkpoint of one layer whose six heads share two KV heads."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    rng = np.random.default_rng(5)
    tensors = required_tensors(load_config(tmp_path)).items()
    save_file(
        {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in tensors},
        tmp_path / "model.safetensors",
    )
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = tokenizers.Tokenizer(models.BPE(vocab=letters, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def generated(folder: Path, executor: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    argv = [str(folder), "--dtype", "int8", "--executor", executor, "--layout", "1x1"]
    argv += ["--transport", "local", "--prompt", "Hello, rack", "--max-tokens", "1"]
    assert main([*argv, "--prefill-chunk", "8", "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_a_prompt_is_the_same_on_the_machine(
    grouped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference, fast = (generated(grouped, name, capsys) for name in ("reference", "fast"))
    assert len(fast["prompt_token_ids"]) == len("Hello, rack") > 8  # a whole chunk, and a tail
    for same in ("data_hash", "schedule_hash", "token_ids"):
        assert reference[same] == fast[same]
    cycles = ("prompt_cycles", "decode_cycles")
    assert [reference["emulated"][n] for n in cycles] == [fast["emulated"][n] for n in cycles]
