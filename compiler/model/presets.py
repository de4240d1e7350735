"""Models known by name: their public configurations, without weights.

Each has its source: the repository on the Hugging Face Hub whose `config.json` has the sizes, and
`generation_config.json` the tokens that end a text. What is marked "recalled" was not held against
the page; a folder given with `--weights` is (compiler/model/frontend.py), and whatever differs is
refused by its key. The tiny ones are made up for tests and have room for the byte tokenizer (256
bytes, BOS 256, EOS 257).
"""

from __future__ import annotations

import math
from typing import Any

from chip.ops.opcodes import Function
from compiler.model.architecture import (
    BERT,
    GEMMA2,
    GPT_OSS,
    LLAMA,
    MISTRAL,
    MIXTRAL,
    QWEN2,
    QWEN3,
)
from compiler.model.config import Encoder, Experts, ModelConfig
from compiler.model.rope import Llama3RopeScaling, YarnRopeScaling

_LLAMA_31_ROPE = Llama3RopeScaling(
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
_LLAMA_32: dict[str, Any] = {
    "architecture": LLAMA, "vocab_size": 128256, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "rope_scaling": Llama3RopeScaling(
        factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
    "tie_word_embeddings": True, "bos_token_id": 128000,
    "eos_token_ids": (128001, 128008, 128009),  # recalled, of the instructed models
}  # fmt: skip
_MISTRAL: dict[str, Any] = {
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "rope_scaling": None,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_ids": (2,),
}  # fmt: skip
_GEMMA2: dict[str, Any] = {
    "architecture": GEMMA2, "vocab_size": 256000, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": None, "tie_word_embeddings": True,
    "attention_cap": 50.0, "logit_cap": 30.0, "bos_token_id": 2,
    "eos_token_ids": (1, 107),  # recalled: <eos>, and <end_of_turn> of the instructed models
}  # fmt: skip
_QWEN: dict[str, Any] = {
    "rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_scaling": None, "tie_word_embeddings": False,
    "bos_token_id": 151643, "eos_token_ids": (151645, 151643),
}  # fmt: skip
_GPT_OSS: dict[str, Any] = {
    "architecture": GPT_OSS, "hidden_size": 2880, "intermediate_size": 2880, "num_heads": 64,
    "num_kv_heads": 8, "head_dim": 64, "vocab_size": 201088, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5, "rope_theta": 150000.0,
    "rope_scaling": YarnRopeScaling(
        factor=32.0, attention_factor=0.1 * math.log(32) + 1, beta_fast=32.0, beta_slow=1.0,
        truncate=False, original_max_position_embeddings=4096,
    ),
    "tie_word_embeddings": False, "attention_bias": True,
    "bos_token_id": 199998, "eos_token_ids": (200002, 199999, 200012),  # recalled
}  # fmt: skip


def _alternate(window: int, layers: int) -> tuple[int | None, ...]:
    """Return a window for the first layer, the third, and so on."""
    return tuple(None if index % 2 else window for index in range(layers))


_PRESETS = (
    ModelConfig(  # meta-llama/Llama-3.1-8B
        name="llama-8b",
        architecture=LLAMA,
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=128256,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling=_LLAMA_31_ROPE,
        tie_word_embeddings=False,
        bos_token_id=128000,
        eos_token_ids=(128001,),
    ),
    ModelConfig(  # meta-llama/Llama-3.1-70B-Instruct, and Llama-3.3-70B-Instruct: all is equal
        name="llama-70b",
        architecture=LLAMA,
        hidden_size=8192,
        intermediate_size=28672,
        num_layers=80,
        num_heads=64,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=128256,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling=_LLAMA_31_ROPE,
        tie_word_embeddings=False,
        bos_token_id=128000,
        eos_token_ids=(128001, 128008, 128009),
    ),
    ModelConfig(  # meta-llama/Llama-3.2-1B-Instruct
        name="llama-3.2-1b", hidden_size=2048, intermediate_size=8192, num_layers=16,
        num_heads=32, num_kv_heads=8, head_dim=64, **_LLAMA_32,
    ),
    ModelConfig(  # meta-llama/Llama-3.2-3B-Instruct
        name="llama-3.2-3b", hidden_size=3072, intermediate_size=8192, num_layers=28,
        num_heads=24, num_kv_heads=8, head_dim=128, **_LLAMA_32,
    ),
    ModelConfig(  # mistralai/Mistral-7B-Instruct-v0.3 (rope_theta recalled); v0.1 has a window
        name="mistral-7b", architecture=MISTRAL, hidden_size=4096, intermediate_size=14336,
        num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128, vocab_size=32768, **_MISTRAL,
    ),
    ModelConfig(  # mistralai/Mixtral-8x7B-Instruct-v0.1
        name="mixtral-8x7b", architecture=MIXTRAL, hidden_size=4096, intermediate_size=14336,
        num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128, vocab_size=32000,
        experts=Experts(count=8, chosen=2), **_MISTRAL,
    ),
    ModelConfig(  # google/gemma-2-2b-it
        name="gemma2-2b", hidden_size=2304, intermediate_size=9216, num_layers=26, num_heads=8,
        num_kv_heads=4, head_dim=256, windows=_alternate(4096, 26), **_GEMMA2,
    ),
    ModelConfig(  # google/gemma-2-9b-it
        name="gemma2-9b", hidden_size=3584, intermediate_size=14336, num_layers=42, num_heads=16,
        num_kv_heads=8, head_dim=256, windows=_alternate(4096, 42), **_GEMMA2,
    ),
    ModelConfig(  # google/gemma-2-27b-it: query_pre_attn_scalar is not the head_dim
        name="gemma2-27b", hidden_size=4608, intermediate_size=36864, num_layers=46, num_heads=32,
        num_kv_heads=16, head_dim=128, windows=_alternate(4096, 46),
        attention_scale=1 / math.sqrt(144), **_GEMMA2,
    ),
    ModelConfig(  # Qwen/Qwen2.5-7B-Instruct (context recalled: the base model has 131,072)
        name="qwen2.5-7b", architecture=QWEN2, hidden_size=3584, intermediate_size=18944,
        num_layers=28, num_heads=28, num_kv_heads=4, head_dim=128, vocab_size=152064,
        max_position_embeddings=32768, **_QWEN,
    ),
    ModelConfig(  # Qwen/Qwen2.5-32B-Instruct (context recalled; the base model's eps is 1e-5)
        name="qwen2.5-32b", architecture=QWEN2, hidden_size=5120, intermediate_size=27648,
        num_layers=64, num_heads=40, num_kv_heads=8, head_dim=128, vocab_size=152064,
        max_position_embeddings=32768, **_QWEN,
    ),
    ModelConfig(  # Qwen/Qwen3-8B
        name="qwen3-8b", architecture=QWEN3, hidden_size=4096, intermediate_size=12288,
        num_layers=36, num_heads=32, num_kv_heads=8, head_dim=128, vocab_size=151936,
        max_position_embeddings=40960, **_QWEN,
    ),
    ModelConfig(  # Qwen/Qwen3-32B
        name="qwen3-32b", architecture=QWEN3, hidden_size=5120, intermediate_size=25600,
        num_layers=64, num_heads=64, num_kv_heads=8, head_dim=128, vocab_size=151936,
        max_position_embeddings=40960, **_QWEN,
    ),
    ModelConfig(  # openai/gpt-oss-20b
        name="gpt-oss-20b", num_layers=24, windows=_alternate(128, 24),
        experts=Experts(count=32, chosen=4), **_GPT_OSS,
    ),
    ModelConfig(  # openai/gpt-oss-120b
        name="gpt-oss-120b", num_layers=36, windows=_alternate(128, 36),
        experts=Experts(count=128, chosen=4), **_GPT_OSS,
    ),
    ModelConfig(  # google-bert/bert-base-uncased
        name="bert-base",
        architecture=BERT,
        hidden_size=768,
        intermediate_size=3072,
        num_layers=12,
        num_heads=12,
        num_kv_heads=12,
        head_dim=64,
        vocab_size=30522,
        max_position_embeddings=512,
        rms_norm_eps=1e-12,
        rope_theta=None,
        rope_scaling=None,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_ids=(),
        encoder=Encoder(type_vocab_size=2, activation=Function.GELU),
    ),
    ModelConfig(  # google-bert/bert-large-uncased
        name="bert-large",
        architecture=BERT,
        hidden_size=1024,
        intermediate_size=4096,
        num_layers=24,
        num_heads=16,
        num_kv_heads=16,
        head_dim=64,
        vocab_size=30522,
        max_position_embeddings=512,
        rms_norm_eps=1e-12,
        rope_theta=None,
        rope_scaling=None,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_ids=(),
        encoder=Encoder(type_vocab_size=2, activation=Function.GELU),
    ),
    ModelConfig(
        name="tiny",
        architecture=LLAMA,
        hidden_size=64,
        intermediate_size=172,  # neither a multiple of 16 nor of 320
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=320,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        tie_word_embeddings=False,
        bos_token_id=256,
        eos_token_ids=(257,),
    ),
    ModelConfig(
        name="tiny-bert",
        architecture=BERT,
        hidden_size=64,
        intermediate_size=172,
        num_layers=3,
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
        vocab_size=320,
        max_position_embeddings=256,
        rms_norm_eps=1e-12,
        rope_theta=None,
        rope_scaling=None,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_ids=(),
        encoder=Encoder(type_vocab_size=2, activation=Function.GELU),
    ),
    ModelConfig(
        name="tiny-wide",  # wide enough for a vector to span several words, and K to be padded
        architecture=LLAMA,
        hidden_size=768,
        intermediate_size=2048,
        num_layers=2,
        num_heads=12,
        num_kv_heads=4,
        head_dim=64,
        vocab_size=1024,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=Llama3RopeScaling(
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=128,
        ),
        tie_word_embeddings=True,
        bos_token_id=256,
        eos_token_ids=(257,),
    ),
)  # fmt: skip

PRESETS: dict[str, ModelConfig] = {preset.name: preset for preset in _PRESETS}
"""Every preset by name, in the order shown to users."""

GROQ_NAMES: dict[str, tuple[str, ...]] = {
    "llama-8b": ("llama-3.1-8b-instant",),
    "llama-70b": ("llama-3.1-70b-versatile", "llama-3.3-70b-versatile"),
    "mixtral-8x7b": ("mixtral-8x7b-32768",),
    "gemma2-9b": ("gemma2-9b-it",),
    "qwen3-32b": ("qwen/qwen3-32b",),
    "gpt-oss-20b": ("openai/gpt-oss-20b",),
    "gpt-oss-120b": ("openai/gpt-oss-120b",),
}
"""GroqCloud's ids for the presets, so that clients need not be changed."""

PRESET_OF: dict[str, str] = {
    **{name: name for name in PRESETS},
    **{groq: name for name, ids in GROQ_NAMES.items() for groq in ids},
}
"""The preset of every name and id."""
