"""A plain BERT in NumPy to test against: the int8 arithmetic, all tokens on one device.

As tests/int_model.py: read off docs/design.md, section 6, and transformers' BertModel. It shares
the elementary functions of `chip.kernels.vmath` with the kernels, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from int_model import IntLinear, quantise, to_f16

from chip.kernels import vmath

Array = np.ndarray
f32 = np.float32
FUNCTIONS = {"gelu": vmath.gelu, "gelu_new": vmath.gelu_tanh}


class IntBert:
    """The int8 model: weights are fp32 arrays under BertModel's names."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Array]) -> None:
        self.config, self.weights = config, weights
        self.linear = {
            name.removesuffix(".weight"): IntLinear(tensor)
            for name, tensor in weights.items()
            if name.startswith("encoder.") and tensor.ndim == 2
        }

    def hidden(self, tokens: Sequence[int], types: Sequence[int]) -> Array:
        """Return the last hidden states, [len, hidden] fp32."""
        w, name = self.weights, "embeddings.{}_embeddings.weight"
        x = w[name.format("word")][list(tokens)] + w[name.format("token_type")][list(types)]
        x = self.norm(x + w[name.format("position")][: len(tokens)], "embeddings")
        for layer in range(self.config["num_hidden_layers"]):
            at = f"encoder.layer.{layer}"
            y = self.product(self.attention(x, f"{at}.attention.self"), f"{at}.attention.output")
            x = self.norm(x + to_f16(y), f"{at}.attention.output")
            y = self.product(x, f"{at}.intermediate")
            y = self.product(to_f16(FUNCTIONS[self.config["hidden_act"]](y)), f"{at}.output")
            x = self.norm(x + to_f16(y), f"{at}.output")
        return x

    def product(self, x: Array, owner: str, last: str = "dense") -> Array:
        """Multiply each row, quantised; add the bias."""
        name = f"{owner}.{last}"
        rows = [self.linear[name](quantise(row)) for row in x]
        return np.stack(rows) + self.weights[f"{name}.bias"].astype(f32)

    def norm(self, x: Array, owner: str) -> Array:
        gamma, beta = (
            self.weights[f"{owner}.LayerNorm.{part}"].astype(f32) for part in ("weight", "bias")
        )
        per = f32(1 / x.shape[1])
        d = x - (vmath.lane_sum(x) * per)[:, None]
        scale = vmath.rsqrt(vmath.lane_sum(d * d) * per + f32(self.config["layer_norm_eps"]))
        return (d * scale[:, None]) * gamma + beta

    def attention(self, x: Array, owner: str) -> Array:
        """Let all tokens see each other: [len, hidden], rounded to fp16."""
        heads, rows = self.config["num_attention_heads"], len(x)
        q, k, v = (
            self.product(x, owner, name).reshape(rows, heads, -1)
            for name in ("query", "key", "value")
        )
        (q, sq), (k, sk), (v, sv) = quantise(q), quantise(k), quantise(v)
        sq = sq * f32(1 / np.sqrt(q.shape[2]))
        # tokens stand in the cache in their order, heads before them here
        scores = np.einsum("rhd,thd->rht", q, k).astype(f32) * (sq[:, :, None] * sk.T)
        e = vmath.exp(scores - scores.max(axis=2, keepdims=True))
        p, scale = quantise((e * vmath.recip(vmath.lane_sum(e))[:, :, None]) * sv.T)
        out = np.einsum("rht,thd->rhd", p, v).astype(f32) * scale[:, :, None]
        return to_f16(out).reshape(rows, -1)
