"""Plain whole Llamas in NumPy to test against: `IntLlama` (the int8 arithmetic) and `F32Llama`.

One device, no chips, no layout, no schedule; one token after another with a KV cache. IntLlama is
DESIGN section 6 read off the page: it takes the elementary functions, which are definitions, from
`chip.kernels.vmath` and shares nothing else with the kernels. Integer products are integer
products here (int64). F32Llama is ordinary fp32 NumPy, to measure what int8 costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chip.kernels import vmath

Array = np.ndarray
f32 = np.float32


@dataclass(frozen=True)
class Shape:
    """What the arithmetic needs of a Hugging Face config.json."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    inv_freq: Array  # [head_dim/2] float64

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        # Newer configs keep all of RoPE in rope_parameters, older ones in two places.
        rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        theta = config.get("rope_theta") or rope.get("rope_theta") or 10000.0
        inv_freq = vmath.inv_frequencies(float(theta), head_dim)
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "llama3"):
            raise ValueError(f"rope_scaling: only llama3 is known here, got {kind!r}")
        if kind == "llama3":
            inv_freq = vmath.llama3_scaled_inv_freq(
                inv_freq,
                rope["factor"],
                rope["low_freq_factor"],
                rope["high_freq_factor"],
                rope["original_max_position_embeddings"],
            )
        return cls(
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            eps=config["rms_norm_eps"],
            inv_freq=inv_freq,
        )


def head_weight(weights: Mapping[str, Array]) -> Array:
    """Return the LM head [vocab, hidden]: its own, or the embedding where they are tied."""
    return weights.get("lm_head.weight", weights["model.embed_tokens.weight"])


def to_f16(x: Array) -> Array:
    """Round to fp16, saturating; kept as fp32."""
    return np.clip(x, f32(-65504), f32(65504)).astype(np.float16).astype(f32)


def quantise(x: Array) -> tuple[Array, Array]:
    """Quantise [..., n] over its last axis: integers [..., n] (int64) and scales [...]."""
    a = np.abs(x).max(axis=-1)
    alive = a >= 2.0**-100
    factor = np.where(alive, f32(127) * vmath.recip(np.where(alive, a, f32(1))), f32(0))
    q = np.clip(np.rint(x * factor[..., None]), -127, 127)
    return q.astype(np.int64), np.where(alive, a * f32(1 / 127), f32(0))


class IntLinear:
    """A weight matrix [N, K]: int8 per output column, times one activation vector."""

    def __init__(self, w: Array) -> None:
        w = w.astype(f32)
        a = np.abs(w).max(axis=1)
        alive = a >= 2.0**-100
        self.scale = np.where(alive, a / f32(127), f32(0))
        q = np.rint(w / np.where(alive, self.scale, f32(1))[:, None])
        self.q = (np.clip(q, -127, 127) * alive[:, None]).astype(np.int64)

    def __call__(self, quantised: tuple[Array, Array]) -> Array:
        x, scale = quantised
        acc = (self.q @ x).astype(np.int32)
        return (acc.astype(f32) * scale) * self.scale


class Cache:
    """One layer's KV cache: integers and one scale per token and KV head."""

    def __init__(self, shape: Shape, tokens: int) -> None:
        self.k = np.zeros((shape.kv_heads, tokens, shape.head_dim), np.int64)
        self.v = np.zeros_like(self.k)
        self.ks = np.zeros((shape.kv_heads, tokens), f32)
        self.vs = np.zeros_like(self.ks)


def rotate(heads: Array, rope: Array) -> Array:
    """Rotate [n, head_dim] by rope [2, head_dim/2], Hugging Face's half-split convention."""
    a, b = np.split(heads, 2, axis=1)
    cos, sin = rope
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1)


ACTIVATIONS = {"silu": lambda gate: gate * vmath.sigmoid(gate)}


class IntLlama:
    """The int8 model: weights are fp32 arrays under Hugging Face's names."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Array]) -> None:
        self.shape = Shape.of(config)
        self.weights = weights
        self.activation = ACTIVATIONS[config.get("hidden_act", "silu")]
        self.head = IntLinear(head_weight(weights))
        parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
        parts += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        self.layers = [
            {
                p.split(".")[1]: IntLinear(weights[f"model.layers.{i}.{p}.weight"])
                for p in parts
            }
            for i in range(self.shape.layers)
        ]  # fmt: skip

    def logits(self, token_ids: Sequence[int]) -> Array:
        """Return the logits after each token: [len, vocab] fp32."""
        caches = [Cache(self.shape, len(token_ids)) for _ in self.layers]
        rows = []
        for position, token in enumerate(token_ids):
            x = self.weights["model.embed_tokens.weight"][token].astype(f32)
            rope = vmath.rope_tables([position], self.shape.inv_freq)[0]
            for i, layer in enumerate(self.layers):
                name = f"model.layers.{i}."
                h = quantise(self.norm(x, name + "input_layernorm.weight"))
                x = x + self.attention(layer, h, rope, caches[i], position)
                h = quantise(self.norm(x, name + "post_attention_layernorm.weight"))
                gate, up = layer["gate_proj"](h), layer["up_proj"](h)
                gated = to_f16(self.activation(gate) * up)
                x = x + to_f16(layer["down_proj"](quantise(gated)))
            rows.append(self.head(quantise(self.norm(x, "model.norm.weight"))))
        return np.stack(rows)

    def norm(self, x: Array, name: str) -> Array:
        mean = vmath.lane_sum((x * x)[None]) * f32(1 / len(x))
        r = vmath.rsqrt(mean + f32(self.shape.eps))[0]
        return (x * r) * self.weights[name].astype(f32)

    def attention(
        self,
        layer: Mapping[str, IntLinear],
        h: tuple[Array, Array],
        rope: Array,
        cache: Cache,
        position: int,
    ) -> Array:
        """Write this token to the cache, attend, and return o_proj's output [hidden]."""
        s = self.shape
        q = rotate(layer["q_proj"](h).reshape(s.heads, s.head_dim), rope)
        k = rotate(layer["k_proj"](h).reshape(s.kv_heads, s.head_dim), rope)
        v = layer["v_proj"](h).reshape(s.kv_heads, s.head_dim)
        cache.k[:, position], cache.ks[:, position] = quantise(k)
        cache.v[:, position], cache.vs[:, position] = quantise(v)

        kv_of = np.arange(s.heads) * s.kv_heads // s.heads  # each query head's KV head
        seen = slice(0, position + 1)
        qq, sq = quantise(q)
        sq = sq * f32(1 / np.sqrt(s.head_dim))
        acc = np.einsum("jd,jtd->jt", qq, cache.k[kv_of, seen]).astype(f32)
        scores = acc * (sq[:, None] * cache.ks[kv_of, seen])
        e = vmath.exp(scores - scores.max(axis=1, keepdims=True))
        p = e * vmath.recip(vmath.lane_sum(e))[:, None]
        pq, scale = quantise(p * cache.vs[kv_of, seen])
        acc = np.einsum("jt,jtd->jd", pq, cache.v[kv_of, seen]).astype(f32)
        attended = to_f16(acc * scale[:, None]).reshape(-1)
        return to_f16(layer["o_proj"](quantise(attended)))


class F32Llama:
    """The same model in ordinary fp32."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Array]) -> None:
        self.shape = Shape.of(config)
        self.weights = {name: w.astype(f32) for name, w in weights.items()}

    def logits(self, token_ids: Sequence[int]) -> Array:
        """Return the logits after each token: [len, vocab] fp32. All tokens at once."""
        w, s = self.weights, self.shape
        x = w["model.embed_tokens.weight"][list(token_ids)]
        angle = np.arange(len(x))[:, None] * s.inv_freq
        cos, sin = np.cos(angle).astype(f32)[:, None], np.sin(angle).astype(f32)[:, None]
        for i in range(s.layers):
            name = f"model.layers.{i}."
            h = self.norm(x, name + "input_layernorm.weight")
            x = x + self.attention(h, name + "self_attn.", cos, sin)
            h = self.norm(x, name + "post_attention_layernorm.weight")
            gate = h @ w[name + "mlp.gate_proj.weight"].T
            up = h @ w[name + "mlp.up_proj.weight"].T
            x = x + (gate / (1 + np.exp(-gate)) * up) @ w[name + "mlp.down_proj.weight"].T
        return self.norm(x, "model.norm.weight") @ head_weight(w).T

    def norm(self, x: Array, name: str) -> Array:
        mean = (x * x).mean(axis=-1, keepdims=True)
        return x / np.sqrt(mean + f32(self.shape.eps)) * self.weights[name]

    def attention(self, h: Array, name: str, cos: Array, sin: Array) -> Array:
        s, n = self.shape, len(h)

        def project(which: str, heads: int) -> Array:
            return (h @ self.weights[f"{name}{which}_proj.weight"].T).reshape(n, heads, s.head_dim)

        def rotate(heads: Array) -> Array:
            a, b = np.split(heads, 2, axis=2)
            return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=2)

        q, k = rotate(project("q", s.heads)), rotate(project("k", s.kv_heads))
        group = s.heads // s.kv_heads
        k, v = np.repeat(k, group, axis=1), np.repeat(project("v", s.kv_heads), group, axis=1)
        scores = np.einsum("rhd,thd->hrt", q, k) / f32(np.sqrt(s.head_dim))
        scores = np.where(np.tri(n, dtype=bool), scores, f32(-np.inf))
        e = np.exp(scores - scores.max(axis=2, keepdims=True))
        p = e / e.sum(axis=2, keepdims=True)
        out = np.einsum("hrt,thd->rhd", p, v).reshape(n, -1)
        return out @ self.weights[name + "o_proj.weight"].T


def mean_nll(logits: Array, token_ids: Sequence[int]) -> float:
    """Return the mean negative log-likelihood of tokens 1.. given the logits of tokens 0..-1."""
    z = logits[:-1].astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return float(-log_p[np.arange(len(z)), list(token_ids[1:])].mean())


def greedy(model: F32Llama | IntLlama, prompt: Sequence[int], total: int) -> list[int]:
    """Continue greedily to `total` tokens, recomputing everything (small models only)."""
    tokens = list(prompt)
    while len(tokens) < total:
        tokens.append(int(np.argmax(model.logits(tokens)[-1])))
    return tokens
