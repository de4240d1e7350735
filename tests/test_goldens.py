"""The goldens against a plain float64 Llama that reads them through the compiler's front end.

Shows that configuration and weights are read with the meaning that transformers gives them,
before any chip is involved; and that the committed logits belong to the committed weights.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compiler.model.frontend import Model, ModelConfig, resolve_model
from compiler.model.layer import EMBEDDING, FINAL_NORM, LM_HEAD
from compiler.model.rope import DynamicRopeScaling, LinearRopeScaling, YarnRopeScaling
from compiler.model.weights import WeightSource, required_tensors

GOLDENS = Path(__file__).parent / "goldens"
DECODERS = sorted(
    path.parent.name
    for path in GOLDENS.glob("*/config.json")
    if "CausalLM" in path.read_text(encoding="utf-8")
)
F64 = NDArray[np.float64]


def frequencies(config: ModelConfig) -> F64:
    """Give the RoPE frequencies, [head_dim / 2] radians a token."""
    half = np.arange(0, config.head_dim, 2) / config.head_dim
    plain = 1.0 / config.rope_theta**half
    scaling = config.rope_scaling
    if scaling is None or isinstance(scaling, DynamicRopeScaling):
        return plain
    if isinstance(scaling, LinearRopeScaling):
        return plain / scaling.factor
    if isinstance(scaling, YarnRopeScaling):
        return yarn(config, scaling, plain)
    turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = np.clip((turns - scaling.low_freq_factor) / span, 0, 1)
    return plain * (kept + (1 - kept) / scaling.factor)


def yarn(config: ModelConfig, scaling: YarnRopeScaling, plain: F64) -> F64:
    """Give YaRN's frequencies, by its own words: turns within the original length."""
    low, high = (
        config.head_dim * math.log(scaling.original_max_position_embeddings / (turns * 2 * math.pi))
        / (2 * math.log(config.rope_theta))
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )  # fmt: skip
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    slow = np.clip((np.arange(len(plain)) - low) / (high - low or 0.001), 0, 1)
    return plain / scaling.factor * slow + plain * (1 - slow)


def rotate(x: F64, config: ModelConfig) -> F64:
    """Apply RoPE to [T, heads, head_dim], Hugging Face's half-split layout."""
    angle = np.outer(np.arange(len(x)), frequencies(config))[:, None, :]
    a, b = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angle), np.sin(angle)
    if isinstance(config.rope_scaling, YarnRopeScaling):
        cos, sin = (part * config.rope_scaling.attention_factor for part in (cos, sin))
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def norm(x: F64, weight: Any, config: ModelConfig) -> F64:
    """Apply RMSNorm to the last axis."""
    weight = weight + (1 if config.architecture == "Gemma2ForCausalLM" else 0)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.rms_norm_eps) * weight


def capped(x: F64, cap: float | None) -> F64:
    return x if cap is None else cap * np.tanh(x / cap)


def gate(x: F64, config: ModelConfig) -> F64:
    """Apply the function of the MLP's gate."""
    if config.architecture == "Gemma2ForCausalLM":
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / (1 + np.exp(-x))


def linear(x: F64, w: dict[str, F64], name: str) -> F64:
    """Multiply by a matrix, and add its bias if it has one."""
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)


def unseen(config: ModelConfig, layer: int, n: int) -> NDArray[np.bool_]:
    """Tell which tokens each row does not see: [n, n]."""
    behind = np.arange(n)[:, None] - np.arange(n)
    window = config.windows[layer] if config.windows else None
    return (behind < 0) | (behind >= (window or n))


def attention(x: F64, config: ModelConfig, w: dict[str, F64], layer: int) -> F64:
    """Attend causally: [T, hidden] to [T, hidden]."""
    prefix = f"model.layers.{layer}.self_attn"
    q, k, v = (
        linear(x, w, f"{prefix}.{name}_proj").reshape(len(x), -1, config.head_dim) for name in "qkv"
    )
    if f"{prefix}.q_norm.weight" in w:
        q, k = (norm(x, w[f"{prefix}.{of}_norm.weight"], config) for x, of in ((q, "q"), (k, "k")))
    q, k = rotate(q, config), rotate(k, config)
    group = config.num_heads // config.num_kv_heads
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scale = config.attention_scale or 1 / math.sqrt(config.head_dim)
    scores = capped(np.einsum("qhd,khd->hqk", q, k) * scale, config.attention_cap)
    scores[:, unseen(config, layer, len(x))] = -np.inf
    p = np.exp(scores - scores.max(-1, keepdims=True))
    if f"{prefix}.sinks" in w:  # a score of no token for each head
        sinks = np.exp(w[f"{prefix}.sinks"][:, None, None] - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True) + sinks
    else:
        p /= p.sum(-1, keepdims=True)
    joined = np.einsum("hqk,khd->qhd", p, v).reshape(len(x), -1)
    return linear(joined, w, f"{prefix}.o_proj")


def read(config: ModelConfig, source: WeightSource) -> dict[str, F64]:
    """Read every tensor, and the LM head by its own name, tied or not."""
    shapes = required_tensors(config) | {LM_HEAD: (config.vocab_size, config.hidden_size)}
    return {
        name: (
            source.vector(name) if len(shape) == 1 else source.f32_rows(name, 0, shape[0])
        ).astype(np.float64)
        for name, shape in shapes.items()
    }


def logits(model: Model, ids: Any) -> F64:
    """Run a whole sequence: [T] ids to [T, vocab]."""
    config, w = model.config, read(model.config, model.weights_ref.open())
    x, post = w[EMBEDDING][ids], config.architecture == "Gemma2ForCausalLM"
    if post:
        x = x * math.sqrt(config.hidden_size)

    def normed(y: F64, name: str) -> F64:
        return norm(y, w[f"{name}.weight"], config)

    for layer in range(config.num_layers):
        p = f"model.layers.{layer}"
        y = attention(normed(x, f"{p}.input_layernorm"), config, w, layer)
        x = x + (normed(y, f"{p}.post_attention_layernorm") if post else y)
        before = "pre_feedforward_layernorm" if post else "post_attention_layernorm"
        y = normed(x, f"{p}.{before}")
        y = mlp(y, config, w, f"{p}.mlp") if config.experts is None else experts(y, config, w, p)
        x = x + (normed(y, f"{p}.post_feedforward_layernorm") if post else y)
    return capped(norm(x, w[FINAL_NORM], config) @ w[LM_HEAD].T, config.logit_cap)


def experts(x: F64, config: ModelConfig, w: dict[str, F64], p: str) -> F64:
    """Apply the mixture that stands in the MLP's place: [T, hidden] to [T, hidden]."""
    mixtral = config.architecture == "MixtralForCausalLM"
    p, names = f"{p}.mlp", ("gate_proj", "up_proj", "down_proj")
    if mixtral:
        p, names = p.replace("mlp", "block_sparse_moe"), ("w1", "w3", "w2")
    scores = linear(x, w, f"{p}.gate" if mixtral else f"{p}.router")
    out = np.zeros_like(x)
    assert config.experts is not None
    for row, score in enumerate(scores):
        best = np.argsort(-score, kind="stable")[: config.experts.chosen]
        weights = np.exp(score[best] - score.max())
        for e, weight in zip(best, weights / weights.sum(), strict=True):
            one, up, down = (f"{p}.experts.{e}.{name}" for name in names)
            made, beside = linear(x[row], w, one), linear(x[row], w, up)
            if mixtral:
                made = gate(made, config) * beside
            else:
                made = np.minimum(made, 7)
                made = made / (1 + np.exp(-1.702 * made)) * (np.clip(beside, -7, 7) + 1)
            out[row] += weight * linear(made, w, down)
    return out


def mlp(x: F64, config: ModelConfig, w: dict[str, F64], p: str) -> F64:
    """Apply the gated MLP: [T, hidden] to [T, hidden]."""
    gated = gate(linear(x, w, f"{p}.gate_proj"), config) * linear(x, w, f"{p}.up_proj")
    return linear(gated, w, f"{p}.down_proj")


@pytest.mark.parametrize("name", DECODERS)
def test_goldens_follow_from_what_is_read(name: str) -> None:
    golden = np.load(GOLDENS / name / "golden.npz")
    ids = np.concatenate([golden["token_ids"], golden["greedy"]])
    got = logits(resolve_model(str(GOLDENS / name)), ids)
    prompt, rows = len(golden["token_ids"]), len(golden["logits"])
    assert golden["logits"].std() > 1  # not flat, so that agreement means something
    assert np.abs(got[prompt - rows : prompt] - golden["logits"]).max() < 1e-4
    assert np.array_equal(got[prompt - 1 : -1].argmax(-1), golden["greedy"])


def test_the_trained_model_follows_too(stories260k: Path) -> None:
    model = resolve_model(str(stories260k))
    for golden in json.loads((stories260k / "greedy.json").read_text()):
        ids, prompt = golden["token_ids"], len(golden["prompt_token_ids"])
        assert logits(model, ids)[prompt - 1 : -1].argmax(-1).tolist() == ids[prompt:]
