"""Make the small checkpoints beside this file and what transformers says they compute.

`make goldens` runs this with torch and transformers as requirements.txt has them; the project
itself needs neither. Another CPU rounds otherwise: a golden.npz whose ids are the same and whose
logits agree to 1e-5 is left as it is.

Each folder is a Hugging Face checkpoint of random weights and a `golden.npz`:

    token_ids  [T] int64           the prompt
    logits     [T, vocab] float32  of the prompt (at most its last 24 tokens), in fp32 arithmetic on
                                   the stored weights
    greedy     [G] int64           greedy continuation of the prompt, in fp32, ignoring EOS

An encoder's golden.npz (BERT) has, beside `token_ids`:

    types   [T] int64            the tokens' types
    hidden  [T, hidden] float32  last hidden states, in fp32 arithmetic on the stored weights

Weights have a standard deviation of about 0.2 and norms differ from 1, so that logits are far
apart and a mistake anywhere shows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

HERE = Path(__file__).parent
PROMPT_TOKENS = 24
LONG_PROMPT_TOKENS = 330  # of models in RINGS
GREEDY_TOKENS = 16
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,  # so small that 24 tokens already see the scaling
}

# name -> (dtype on disk, shards, rope keys of transformers < 5, config)
CASES: dict[str, tuple[torch.dtype, bool, bool, dict[str, Any]]] = {
    "gqa": (
        torch.float32,
        False,
        True,
        {
            "hidden_size": 32,
            "intermediate_size": 60,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 97,
            "tie_word_embeddings": True,
        },
    ),
    "mha_untied": (
        torch.float16,
        False,
        False,
        {
            "hidden_size": 48,
            "intermediate_size": 100,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "vocab_size": 131,
            "tie_word_embeddings": False,
            "rms_norm_eps": 1e-5,
        },
    ),
    "rope_llama3": (
        torch.bfloat16,
        False,
        False,
        {
            "hidden_size": 64,
            "intermediate_size": 72,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "vocab_size": 131,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_theta": 50000.0, **LLAMA3_ROPE},
        },
    ),
    "head_dim": (
        torch.float16,
        False,
        False,
        {
            "hidden_size": 80,
            "intermediate_size": 60,
            "num_hidden_layers": 2,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "head_dim": 12,
            "vocab_size": 131,
            "tie_word_embeddings": True,
        },
    ),
    "sharded": (
        torch.bfloat16,
        True,
        True,
        {
            "hidden_size": 48,
            "intermediate_size": 100,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "vocab_size": 131,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_theta": 10000.0, **LLAMA3_ROPE},
        },
    ),
}

# name -> (dtype on disk, family, config), of families other than Llama and of Llamas with biases
FAMILIES: dict[str, tuple[torch.dtype, str, dict[str, Any]]] = {
    "llama_bias": (
        torch.float32,
        "Llama",
        {
            "hidden_size": 36,
            "intermediate_size": 60,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 10,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
        },
    ),
    "qwen2": (
        torch.bfloat16,
        "Qwen2",
        {
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "qwen2_window": (
        torch.float16,
        "Qwen2",
        {
            "hidden_size": 50,
            "intermediate_size": 77,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "use_sliding_window": True,
            "sliding_window": 7,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    "mistral": (
        torch.bfloat16,
        "Mistral",
        {
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "sliding_window": 6,
        },
    ),
    "mistral_dim": (
        torch.float16,
        "Mistral",
        {
            "hidden_size": 44,
            "intermediate_size": 61,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "head_dim": 18,
            "sliding_window": None,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        },
    ),
    "qwen3": (
        torch.bfloat16,
        "Qwen3",
        {
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3_odd": (
        torch.float16,
        "Qwen3",
        {
            "hidden_size": 42,
            "intermediate_size": 71,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 10,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 2,
            "tie_word_embeddings": False,
        },
    ),
    "gemma2": (
        torch.bfloat16,
        "Gemma2",
        {
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "attn_logit_softcapping": 2.0,  # so low that scores meet it
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma2_odd": (
        torch.float32,
        "Gemma2",
        {
            "hidden_size": 45,
            "intermediate_size": 70,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 14,
            "query_pre_attn_scalar": 20,
            "sliding_window": 3,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
    ),
    "mixtral": (
        torch.bfloat16,
        "Mixtral",
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
    ),
    "mixtral_odd": (
        torch.float16,
        "Mixtral",
        {
            "hidden_size": 42,
            "intermediate_size": 37,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "head_dim": 10,
            "sliding_window": 5,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "tie_word_embeddings": True,
        },
    ),
    "gpt_oss": (
        torch.bfloat16,
        "GptOss",
        {
            "hidden_size": 64,
            "intermediate_size": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "sliding_window": 8,
            "num_local_experts": 6,
            "num_experts_per_tok": 4,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 4.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "gpt_oss_odd": (
        torch.float16,
        "GptOss",
        {
            "hidden_size": 42,
            "intermediate_size": 37,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 10,
            "sliding_window": 3,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
}

# Those whose experts are stored joined, as transformers 5 holds them; others as checkpoints are
JOINED = {"mixtral_odd"}
MXFP4 = {"gpt_oss"}  # those whose experts are so

# The same, of models that are run beyond what layers with a window keep: 320 tokens, as any window
# of up to 193 (docs/decisions/0015-windows-in-rings.md)
RINGS: dict[str, tuple[torch.dtype, str, dict[str, Any]]] = {
    "mistral_ring": (
        torch.bfloat16,
        "Mistral",
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "sliding_window": 40,
            "max_position_embeddings": 1024,
        },
    ),
    "gemma2_ring": (
        torch.float16,
        "Gemma2",
        {
            "hidden_size": 30,
            "intermediate_size": 43,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 10,
            "query_pre_attn_scalar": 10,
            "sliding_window": 193,
            "tie_word_embeddings": False,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
            "max_position_embeddings": 1024,
        },
    ),
    "gpt_oss_ring": (
        torch.bfloat16,
        "GptOss",
        {
            "hidden_size": 32,
            "intermediate_size": 20,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": 128,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "max_position_embeddings": 1024,
        },
    ),
}

# name -> (dtype on disk, class, LayerNorm's tensors as before transformers 5, config)
ENCODERS: dict[str, tuple[torch.dtype, str, bool, dict[str, Any]]] = {
    "bert": (
        torch.float16,
        "BertModel",
        False,
        {"hidden_size": 48, "intermediate_size": 100, "num_attention_heads": 4},
    ),
    "bert_mlm": (
        torch.float32,
        "BertForMaskedLM",
        True,
        {
            "hidden_size": 32,
            "intermediate_size": 60,
            "num_attention_heads": 2,
            "hidden_act": "gelu_new",
            "layer_norm_eps": 1e-5,
            "type_vocab_size": 3,
        },
    ),
}


def random_model(config: Any, dtype: torch.dtype, seed: int, of: str = "LlamaForCausalLM") -> Any:
    """Build a model whose weights are exactly representable in `dtype`, held in fp32."""
    generator = torch.Generator().manual_seed(seed)
    model = getattr(transformers, of)(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            is_norm = "norm" in name.lower() and weight.ndim == 1 and not name.endswith("bias")
            middle = 0.0 if config.model_type == "gemma2" else 1.0  # Gemma adds 1 itself
            value = middle + 0.2 * noise if is_norm else noise * (0.3 if "embed" in name else 0.2)
            weight.copy_(value.to(dtype).float())
    return model


def golden(
    model: Any, vocab_size: int, seed: int, prompt: int = PROMPT_TOKENS
) -> dict[str, np.ndarray]:
    """Run the prompt and the greedy continuation, without a cache: [T], [24, vocab], [G]."""
    ids = torch.randint(0, vocab_size, (1, prompt), generator=torch.manual_seed(seed))
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0]
        row = ids
        for _ in range(GREEDY_TOKENS):
            last = model(row, use_cache=False).logits[0, -1]
            row = torch.cat([row, last.argmax().view(1, 1)], dim=1)
    return {
        "token_ids": ids[0].numpy(),
        "logits": logits[-PROMPT_TOKENS:].float().numpy(),
        "greedy": row[0, prompt:].numpy(),
    }


def keep_or_write(file: Path, found: dict[str, np.ndarray]) -> None:
    """Write what was computed, unless the file has the same ids, and logits but for rounding."""
    if file.exists():
        with np.load(file) as known:
            exact = [name for name in found if found[name].dtype == np.int64]
            rounded = [name for name in found if name not in exact]
            same = all(np.array_equal(known[name], found[name]) for name in exact)
            close = all(
                known[name].shape == found[name].shape
                and np.allclose(known[name], found[name], rtol=0, atol=1e-5)
                for name in rounded
            )
        if same and close:
            return
    np.savez_compressed(file, **found)


def use_old_rope_keys(folder: Path) -> None:
    """Rewrite config.json the way transformers 4 wrote it: rope_theta beside rope_scaling."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2) + "\n")


def make(name: str, seed: int) -> None:
    """Write one checkpoint folder with its golden.npz."""
    dtype, sharded, old_keys, sizes = CASES[name]
    config = transformers.LlamaConfig(
        max_position_embeddings=64, bos_token_id=1, eos_token_id=2, **sizes
    )
    config._attn_implementation = "eager"
    model = random_model(config, dtype, seed)
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    keep_or_write(folder / "golden.npz", golden(model, config.vocab_size, seed))
    shard_size = "40KB" if sharded else "1GB"
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    if old_keys:
        use_old_rope_keys(folder)


def make_family(name: str, seed: int, prompt: int = PROMPT_TOKENS) -> None:
    """Write the checkpoint folder of a family with its golden.npz."""
    dtype, family, sizes = (FAMILIES | RINGS)[name]
    config = getattr(transformers, f"{family}Config")(
        num_hidden_layers=3, vocab_size=97, bos_token_id=1, eos_token_id=2, pad_token_id=None,
        **({"max_position_embeddings": 64} | sizes),
    )  # fmt: skip
    config._attn_implementation = config._experts_implementation = "eager"
    model = random_model(config, dtype, seed, f"{family}ForCausalLM")
    packed = pack_experts(model, seed) if name in MXFP4 else {}
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    keep_or_write(folder / "golden.npz", golden(model, config.vocab_size, seed, prompt))
    model.to(dtype).save_pretrained(folder, save_original_format=name not in JOINED)
    if packed:
        use_packed(folder, packed)


def pack_experts(model: Any, seed: int) -> dict[str, torch.Tensor]:
    """Give experts random MXFP4 matrices, by transformers' own reading; return those as stored."""
    generator, out = torch.Generator().manual_seed(seed), {}
    for name, weight in model.named_parameters():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            count, k, n = weight.shape
            blocks = torch.randint(0, 256, (count, n, k // 32, 16), generator=generator)
            scales = torch.randint(122, 125, (count, n, k // 32), generator=generator)
            out[f"{name}_blocks"], out[f"{name}_scales"] = (
                part.to(torch.uint8) for part in (blocks, scales)
            )
            values = convert_moe_packed_tensors(out[f"{name}_blocks"], out[f"{name}_scales"])
            with torch.no_grad():
                weight.copy_(values.float())
    return out


def use_packed(folder: Path, packed: dict[str, torch.Tensor]) -> None:
    """Rewrite a checkpoint so that it has packed matrices, as gpt-oss on the Hub."""
    path, config = folder / "model.safetensors", folder / "config.json"
    plain = {name.removesuffix("_blocks").removesuffix("_scales") for name in packed}
    tensors = {name: one for name, one in load_file(path).items() if name not in plain}
    save_file({**tensors, **packed}, path, metadata={"format": "pt"})
    keys = json.loads(config.read_text())
    keys["quantization_config"] = {"quant_method": "mxfp4"}
    config.write_text(json.dumps(keys, indent=2) + "\n")


def use_old_norm_names(folder: Path) -> None:
    """Rewrite the weights the way old BERT checkpoints have them: LayerNorm.gamma and .beta."""
    path, old = folder / "model.safetensors", {"weight": "gamma", "bias": "beta"}
    tensors = {}
    for name, tensor in load_file(path).items():
        owner, _, last = name.rpartition(".")
        tensors[f"{owner}.{old[last]}" if owner.endswith("LayerNorm") else name] = tensor
    save_file(tensors, path, metadata={"format": "pt"})


def make_encoder(name: str, seed: int) -> None:
    """Write an encoder's checkpoint folder with its golden.npz."""
    dtype, of, old_names, sizes = ENCODERS[name]
    config = transformers.BertConfig(
        num_hidden_layers=2, vocab_size=61, max_position_embeddings=40, **sizes
    )
    config._attn_implementation = "eager"
    model = random_model(config, dtype, seed, of)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, config.vocab_size, (1, PROMPT_TOKENS), generator=generator)
    types = torch.randint(0, config.type_vocab_size, (1, PROMPT_TOKENS), generator=generator)
    with torch.no_grad():
        hidden = model.base_model(ids, token_type_ids=types).last_hidden_state[0]
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    found = {"token_ids": ids[0].numpy(), "types": types[0].numpy(), "hidden": hidden.numpy()}
    keep_or_write(folder / "golden.npz", found)
    model.to(dtype).save_pretrained(folder)
    if old_names:
        use_old_norm_names(folder)


if __name__ == "__main__":
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    for number, case in enumerate(CASES):
        if len(sys.argv) < 2 or case in sys.argv[1:]:
            make(case, seed=100 + number)
            print(case)
    for number, case in enumerate(FAMILIES):
        if len(sys.argv) < 2 or case in sys.argv[1:]:
            make_family(case, seed=300 + number)
            print(case)
    for number, case in enumerate(RINGS):
        if len(sys.argv) < 2 or case in sys.argv[1:]:
            make_family(case, 400 + number, LONG_PROMPT_TOKENS)
            print(case)
    for number, case in enumerate(ENCODERS):
        if len(sys.argv) < 2 or case in sys.argv[1:]:
            make_encoder(case, seed=200 + number)
            print(case)
