"""Plain whole models in NumPy to test against: `IntLlama` (int8 and int4) and `F32Llama`.

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

    kind: str  # model_type
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    inv_freq: Array  # [head_dim/2] float64
    rope_factor: float  # of cosines and sines
    scale: float  # of scores
    windows: tuple[int | None, ...]
    attention_cap: float | None
    logit_cap: float | None
    experts: int
    chosen: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        inv_freq, factor = rope_of(config, head_dim)
        return cls(
            kind=config.get("model_type", "llama"),
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            eps=config["rms_norm_eps"],
            inv_freq=inv_freq,
            rope_factor=factor,
            scale=1 / np.sqrt(config.get("query_pre_attn_scalar", head_dim)),
            windows=windows_of(config),
            attention_cap=config.get("attn_logit_softcapping"),
            logit_cap=config.get("final_logit_softcapping"),
            experts=config.get("num_local_experts") or 0,
            chosen=config.get("num_experts_per_tok") or 0,
        )


def rope_of(config: Mapping[str, Any], head_dim: int) -> tuple[Array, float]:
    """Return RoPE's frequencies, and the factor of cosines and sines."""
    # Newer configs keep all of RoPE in rope_parameters, older ones in two places.
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = config.get("rope_theta") or rope.get("rope_theta") or 10000.0
    inv_freq = vmath.inv_frequencies(float(theta), head_dim)
    kind, factor = rope.get("rope_type", rope.get("type", "default")), rope.get("factor", 1.0)
    if kind in ("default", "dynamic"):  # the latter within the model's positions
        return inv_freq, 1.0
    if kind == "linear":
        return inv_freq / factor, 1.0
    if kind == "yarn":
        fast, slow = rope.get("beta_fast", 32.0), rope.get("beta_slow", 1.0)
        length, truncate = rope["original_max_position_embeddings"], rope.get("truncate", True)
        inv_freq = vmath.yarn_inv_freq(
            inv_freq, theta, factor, fast, slow, length, truncate=truncate
        )
        return inv_freq, rope.get("attention_factor") or vmath.yarn_attention_factor(factor, 1.0)
    if kind != "llama3":
        raise ValueError(f"rope_scaling: no such kind is known here, got {kind!r}")
    return vmath.llama3_scaled_inv_freq(
        inv_freq,
        factor,
        rope["low_freq_factor"],
        rope["high_freq_factor"],
        rope["original_max_position_embeddings"],
    ), 1.0


def windows_of(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Return each layer's window."""
    size, layers = config.get("sliding_window"), config["num_hidden_layers"]
    kinds = config.get("layer_types") or ["sliding_attention"] * layers
    return tuple(size if kind == "sliding_attention" else None for kind in kinds)


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
    """A weight matrix [N, K]: int8 per output column, times one activation vector; plus a bias."""

    def __init__(self, w: Array, bias: Array | None = None) -> None:
        w = w.astype(f32)
        a = np.abs(w).max(axis=1)
        alive = a >= 2.0**-100
        self.scale = np.where(alive, a / f32(127), f32(0))
        q = np.rint(w / np.where(alive, self.scale, f32(1))[:, None])
        self.q = (np.clip(q, -127, 127) * alive[:, None]).astype(np.int64)
        self.bias = None if bias is None else bias.astype(f32)

    def __call__(self, quantised: tuple[Array, Array]) -> Array:
        x, scale = quantised
        acc = (self.q @ x).astype(np.int32)
        y = (acc.astype(f32) * scale) * self.scale
        return y if self.bias is None else y + self.bias


class Int4Linear:
    """A weight matrix [N, K]: -7 to 7, one scale per output column and `group` rows of K."""

    def __init__(self, w: Array, group: int, bias: Array | None = None) -> None:
        n, k = w.shape
        padded = np.pad(w.astype(f32), ((0, 0), (0, -k % 320)))
        groups = padded.reshape(n, -1, group)
        a = np.abs(groups).max(axis=2)
        alive = a >= 2.0**-100
        self.scale = np.where(alive, a / f32(7), f32(0))  # [N, groups]
        q = np.rint(groups / np.where(alive, self.scale, f32(1))[..., None])
        self.q = (np.clip(q, -7, 7) * alive[..., None]).astype(np.int64)  # [N, groups, group]
        self.bias = None if bias is None else bias.astype(f32)

    def __call__(self, quantised: tuple[Array, Array]) -> Array:
        x, scale = quantised
        x = np.pad(x, (0, self.q[0].size - len(x))).reshape(self.q.shape[1:])
        y = np.zeros(len(self.q), f32)
        for g, lanes in enumerate(x):  # in the order of K
            y = y + (self.q[:, g] @ lanes).astype(np.int32).astype(f32) * self.scale[:, g]
        y = y * scale
        return y if self.bias is None else y + self.bias


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


def clamped(gate: Array, up: Array) -> Array:
    """Gate as gpt-oss does: both are clamped, the gate is steeper, and 1 is added to `up`."""
    gate, up = np.minimum(gate, f32(7)), np.maximum(np.minimum(up, f32(7)), f32(-7))
    return (gate * vmath.sigmoid(gate * f32(1.702))) * (up + f32(1))


GATES = {
    "silu": lambda gate, up: gate * vmath.sigmoid(gate) * up,
    "gelu_pytorch_tanh": lambda gate, up: vmath.gelu_tanh(gate) * up,
    "clamped": clamped,
}


def gate_of(config: Mapping[str, Any]) -> Any:
    """Return the function of gate and up."""
    if config.get("model_type") == "gpt_oss":
        return GATES["clamped"]
    return GATES[config.get("hidden_activation") or config.get("hidden_act", "silu")]


def cap(x: Array, most: float | None) -> Array:
    """Return most * tanh(x / most); x without a cap."""
    if most is None:
        return x
    return vmath.tanh(x * f32(1 / most)) * f32(most)


def softmax(scores: Array, sinks: Array | None = None) -> Array:
    """Softmax of the last axis; `sinks` are scores that take part and are dropped."""
    top = scores.max(axis=-1)
    top = top if sinks is None else np.maximum(top, sinks)
    e = vmath.exp(scores - top[..., None])
    total = vmath.lane_sum(e)
    total = total if sinks is None else total + vmath.exp(sinks - top)
    return e * vmath.recip(total)[..., None]


def mxfp4(blocks: Array, scales: Array) -> Array:
    """Unpack [N, K / 32, 16] bytes with scales [N, K / 32] to [N, K]: sign, exponent, mantissa."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).astype(int)  # the low half comes first
    exponent, mantissa = codes >> 1 & 3, codes & 1
    normal = (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    values = np.where(exponent == 0, mantissa / 2, normal) * np.where(codes & 8, -1, 1)
    values = values.reshape(*scales.shape, 32) * 2.0 ** (scales[..., None].astype(int) - 127)
    return values.reshape(len(blocks), -1).astype(f32)


def expert_weights(weights: Mapping[str, Array], at: str, e: int) -> dict[str, tuple[Array, ...]]:
    """Return gate, up and down of an expert, each a matrix [N, K] and a bias if it has one."""
    parts = {"gate": "w1", "up": "w3", "down": "w2"}
    old = f"{at}block_sparse_moe.experts.{e}."
    if f"{old}w1.weight" in weights:
        return {part: (weights[f"{old}{name}.weight"],) for part, name in parts.items()}
    if f"{at}mlp.experts.down_proj_blocks" in weights:  # gpt-oss: [N, K], packed
        both, down = (
            mxfp4(
                *(weights[f"{at}mlp.experts.{n}_proj_{part}"][e] for part in ("blocks", "scales"))
            ).T
            for n in ("gate_up", "down")
        )
    else:
        both, down = (weights[f"{at}mlp.experts.{n}_proj"][e] for n in ("gate_up", "down"))
    if f"{at}mlp.experts.gate_up_proj_bias" in weights:  # gpt-oss: [K, N], gate and up in turns
        b1, b2 = (weights[f"{at}mlp.experts.{n}_proj_bias"][e] for n in ("gate_up", "down"))
        gate, up = (both.T[i::2] for i in (0, 1))
        return {"gate": (gate, b1[::2]), "up": (up, b1[1::2]), "down": (down.T, b2)}
    half = len(both) // 2
    return {"gate": (both[:half],), "up": (both[half:],), "down": (down,)}


class IntLlama:
    """The int8 model of any family: weights are fp32 arrays under Hugging Face's names.

    `group`: weights are int4, with one scale per output column and so many rows of K.
    """

    def __init__(
        self, config: Mapping[str, Any], weights: Mapping[str, Array], group: int | None = None
    ) -> None:  # fmt: skip
        self.group = group
        self.shape = Shape.of(config)
        self.weights = weights
        self.gate = gate_of(config)
        self.head = self.matrix(head_weight(weights))
        self.layers = [self.linears(f"model.layers.{i}.") for i in range(self.shape.layers)]

    def matrix(self, w: Array, bias: Array | None = None) -> IntLinear | Int4Linear:
        return IntLinear(w, bias) if self.group is None else Int4Linear(w, self.group, bias)

    def linears(self, at: str) -> dict[Any, IntLinear | Int4Linear]:
        """Return a layer's matrices; those of an expert by its number and part."""

        def linear(name: str) -> IntLinear | Int4Linear:
            return self.matrix(
                self.weights[f"{at}{name}.weight"], self.weights.get(f"{at}{name}.bias")
            )

        found: dict[Any, IntLinear | Int4Linear] = {
            f"{part}_proj": linear(f"self_attn.{part}_proj") for part in "qkvo"
        }
        if not self.shape.experts:
            return found | {
                f"{part}_proj": linear(f"mlp.{part}_proj") for part in ("gate", "up", "down")
            }
        routers = ("block_sparse_moe.gate", "mlp.gate", "mlp.router")
        (router,) = (name for name in routers if f"{at}{name}.weight" in self.weights)
        found["router"] = linear(router)
        for e in range(self.shape.experts):
            for part, arrays in expert_weights(self.weights, at, e).items():
                found[e, part] = self.matrix(*arrays)
        return found

    def logits(self, token_ids: Sequence[int]) -> Array:
        """Return the logits after each token: [len, vocab] fp32."""
        s = self.shape
        caches = [Cache(s, len(token_ids)) for _ in self.layers]
        rows = []
        for position, token in enumerate(token_ids):
            x = self.weights["model.embed_tokens.weight"][token].astype(f32)
            if s.kind == "gemma2":
                x = x * f32(np.sqrt(len(x)))
            rope = vmath.rope_tables([position], s.inv_freq)[0] * f32(s.rope_factor)
            for i, layer in enumerate(self.layers):
                x = self.layer(x, i, layer, rope, caches[i], position)
            rows.append(cap(self.head(quantise(self.norm(x, "model.norm.weight"))), s.logit_cap))
        return np.stack(rows)

    def layer(
        self, x: Array, i: int, layer: Mapping[Any, IntLinear | Int4Linear], rope: Array,
        cache: Cache, position: int,
    ) -> Array:  # fmt: skip
        """Run one layer of one token."""
        name = f"model.layers.{i}."
        mlp_norm, post = "post_attention_layernorm.weight", self.shape.kind == "gemma2"
        h = quantise(self.norm(x, name + "input_layernorm.weight"))
        branch = self.attention(layer, h, rope, cache, position, i)
        if post:
            branch = self.norm(branch, name + "post_attention_layernorm.weight")
            mlp_norm = "pre_feedforward_layernorm.weight"
        x = x + branch
        h = quantise(self.norm(x, name + mlp_norm))
        branch = self.experts(layer, h) if self.shape.experts else self.mlp(layer, h)
        if post:
            branch = self.norm(branch, name + "post_feedforward_layernorm.weight")
        return x + branch

    def mlp(self, layer: Mapping[Any, IntLinear | Int4Linear], h: tuple[Array, Array]) -> Array:
        gated = to_f16(self.gate(layer["gate_proj"](h), layer["up_proj"](h)))
        return to_f16(layer["down_proj"](quantise(gated)))

    def experts(self, layer: Mapping[Any, IntLinear | Int4Linear], h: tuple[Array, Array]) -> Array:
        """Sum the chosen experts' results in ascending order of their numbers."""
        scores, s = layer["router"](h), self.shape
        best = sorted(sorted(range(s.experts), key=lambda e: (-scores[e], e))[: s.chosen])
        if s.kind == "gpt_oss":
            g = softmax(scores[None, best])[0]
        else:
            g = softmax(scores[None])[0, best]
            g = g * vmath.recip(vmath.lane_sum(g[None]))[0]
        total = np.zeros(1, f32)
        for weight, e in zip(g, best, strict=True):
            gated = to_f16(self.gate(layer[e, "gate"](h), layer[e, "up"](h)))
            total = total + weight * layer[e, "down"](quantise(gated))
        return to_f16(total)

    def norm(self, x: Array, name: str) -> Array:
        """RMSNorm of the last axis, by the weight of that name."""
        weight = self.weights[name].astype(f32)
        if self.shape.kind == "gemma2":
            weight = f32(1) + weight
        mean = vmath.lane_sum(x * x) * f32(1 / x.shape[-1])
        return (x * vmath.rsqrt(mean + f32(self.shape.eps))[..., None]) * weight

    def heads(self, made: Array, n: int, name: str) -> Array:
        """Cut a product into heads, and norm them if the model has a norm of that name."""
        made = made.reshape(n, self.shape.head_dim)
        return self.norm(made, name) if name in self.weights else made

    def attention(
        self,
        layer: Mapping[Any, IntLinear | Int4Linear],
        h: tuple[Array, Array],
        rope: Array,
        cache: Cache,
        position: int,
        i: int,
    ) -> Array:
        """Write this token to the cache, attend, and return o_proj's output [hidden]."""
        s, at = self.shape, f"model.layers.{i}.self_attn."
        q = rotate(self.heads(layer["q_proj"](h), s.heads, f"{at}q_norm.weight"), rope)
        k = rotate(self.heads(layer["k_proj"](h), s.kv_heads, f"{at}k_norm.weight"), rope)
        v = layer["v_proj"](h).reshape(s.kv_heads, s.head_dim)
        cache.k[:, position], cache.ks[:, position] = quantise(k)
        cache.v[:, position], cache.vs[:, position] = quantise(v)

        kv_of = np.arange(s.heads) * s.kv_heads // s.heads  # each query head's KV head
        window = s.windows[i]
        first = 0 if window is None else max(0, position + 1 - window)
        seen = slice(first, position + 1)
        qq, sq = quantise(q)
        sq = sq * f32(s.scale)
        acc = np.einsum("jd,jtd->jt", qq, cache.k[kv_of, seen]).astype(f32)
        # The sum of a softmax goes by the places where tokens are kept: a layer with a window keeps
        # no more of them than it needs for steps of 128 rows, in whole vectors of 320.
        kept = position + 1 if window is None else -(-(window + 127) // 320) * 320
        place = np.arange(first, position + 1) % kept
        scores = np.full((s.heads, min(position + 1, kept)), -np.inf, f32)
        scores[:, place] = cap(acc * (sq[:, None] * cache.ks[kv_of, seen]), s.attention_cap)
        sinks = self.weights.get(f"{at}sinks")
        p = softmax(scores, None if sinks is None else sinks.astype(f32))[:, place]
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
