"""`config.json` of the presets, with the keys and values that are on the Hugging Face Hub.

Keys without a meaning for inference (dropout, torch_dtype, …) are left out. Sources, and what of it
is recalled, are in compiler/model/presets.py.
"""

from __future__ import annotations

from typing import Any

_LLAMA_3: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False,
    "mlp_bias": False, "hidden_act": "silu", "max_position_embeddings": 131072,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "vocab_size": 128256,
    "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
}  # fmt: skip
_LLAMA_3_ROPE: dict[str, Any] = {
    "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
_LLAMA_31 = {
    **_LLAMA_3, "rope_scaling": {**_LLAMA_3_ROPE, "factor": 8.0}, "tie_word_embeddings": False,
}  # fmt: skip
_LLAMA_32 = {
    **_LLAMA_3, "rope_scaling": {**_LLAMA_3_ROPE, "factor": 32.0}, "tie_word_embeddings": True,
}  # fmt: skip
_GEMMA_2: dict[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "attention_bias": False,
    "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    "cache_implementation": "hybrid", "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192,
    "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
    "sliding_window": 4096, "sliding_window_size": 4096, "vocab_size": 256000, "bos_token_id": 2,
    "eos_token_id": [1, 107],
}  # fmt: skip
_QWEN: dict[str, Any] = {
    "hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "tie_word_embeddings": False, "use_sliding_window": False, "bos_token_id": 151643,
    "eos_token_id": [151645, 151643],
}  # fmt: skip
_QWEN_25 = {
    **_QWEN, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 152064,
    "max_position_embeddings": 32768, "sliding_window": 131072,
}  # fmt: skip
_QWEN_3 = {
    **_QWEN, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151936,
    "attention_bias": False, "head_dim": 128, "max_position_embeddings": 40960,
    "rope_scaling": None, "sliding_window": None,
}  # fmt: skip
_GPT_OSS: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "attention_bias": True,
    "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880,
    "initial_context_length": 4096, "intermediate_size": 2880, "max_position_embeddings": 131072,
    "num_attention_heads": 64, "num_experts_per_tok": 4, "num_key_value_heads": 8,
    "quantization_config": {
        "modules_to_not_convert": [
            "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens",
            "lm_head",
        ],
        "quant_method": "mxfp4",
    },
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
        "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": False,
    },
    "rope_theta": 150000, "sliding_window": 128, "swiglu_limit": 7.0, "tie_word_embeddings": False,
    "vocab_size": 201088, "bos_token_id": 199998, "eos_token_id": [200002, 199999, 200012],
}  # fmt: skip


def _sizes(hidden: int, ffn: int, layers: int, heads: int, kv_heads: int) -> dict[str, int]:
    return {
        "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads,
    }  # fmt: skip


PUBLISHED: dict[str, dict[str, Any]] = {
    "llama-8b": {**_LLAMA_31, **_sizes(4096, 14336, 32, 32, 8), "eos_token_id": 128001},
    "llama-70b": {**_LLAMA_31, **_sizes(8192, 28672, 80, 64, 8)},
    "llama-3.2-1b": {**_LLAMA_32, **_sizes(2048, 8192, 16, 32, 8), "head_dim": 64},
    "llama-3.2-3b": {**_LLAMA_32, **_sizes(3072, 8192, 28, 24, 8), "head_dim": 128},
    "mistral-7b": {
        **_sizes(4096, 14336, 32, 32, 8), "architectures": ["MistralForCausalLM"],
        "model_type": "mistral", "hidden_act": "silu", "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
        "tie_word_embeddings": False, "vocab_size": 32768, "bos_token_id": 1, "eos_token_id": 2,
    },
    "mixtral-8x7b": {
        **_sizes(4096, 14336, 32, 32, 8), "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral", "hidden_act": "silu", "max_position_embeddings": 32768,
        "num_experts_per_tok": 2, "num_local_experts": 8, "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False,
        "vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2,
    },
    "gemma2-2b": {**_GEMMA_2, **_sizes(2304, 9216, 26, 8, 4), "head_dim": 256},
    "gemma2-9b": {**_GEMMA_2, **_sizes(3584, 14336, 42, 16, 8), "head_dim": 256},
    "gemma2-27b": {
        **_GEMMA_2, **_sizes(4608, 36864, 46, 32, 16), "head_dim": 128,
        "query_pre_attn_scalar": 144,
    },
    "qwen2.5-7b": {**_QWEN_25, **_sizes(3584, 18944, 28, 28, 4), "max_window_layers": 28},
    "qwen2.5-32b": {**_QWEN_25, **_sizes(5120, 27648, 64, 40, 8), "max_window_layers": 70},
    "qwen3-8b": {**_QWEN_3, **_sizes(4096, 12288, 36, 32, 8), "max_window_layers": 36},
    "qwen3-32b": {**_QWEN_3, **_sizes(5120, 25600, 64, 64, 8), "max_window_layers": 64},
    "gpt-oss-20b": {
        **_GPT_OSS, "num_hidden_layers": 24, "num_local_experts": 32,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
    },
    "gpt-oss-120b": {
        **_GPT_OSS, "num_hidden_layers": 36, "num_local_experts": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 18,
    },
}  # fmt: skip
