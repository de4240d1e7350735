"""Models known by name: their public configurations, without weights.

Sources: meta-llama/Llama-3.1-8B and meta-llama/Llama-3.1-70B-Instruct, `config.json` and
`generation_config.json` on the Hugging Face Hub; google-bert/bert-base-uncased and
google-bert/bert-large-uncased, `config.json`. The tiny ones are made up for tests and have
room for the byte tokenizer (256 bytes, BOS 256, EOS 257).
"""

from __future__ import annotations

from chip.ops.opcodes import Function
from compiler.model.architecture import BERT, LLAMA
from compiler.model.config import Encoder, ModelConfig
from compiler.model.rope import Llama3RopeScaling

_LLAMA_31_ROPE = Llama3RopeScaling(
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)

_PRESETS = (
    ModelConfig(
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
    ModelConfig(
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
    ModelConfig(
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
    ModelConfig(
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
)

PRESETS: dict[str, ModelConfig] = {preset.name: preset for preset in _PRESETS}
"""Every preset by name, in the order shown to users."""
