"""A whole Llama through the kernels equals the plain integer model; the plain models are right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from int_model import F32Llama, IntLlama, Shape, greedy, head_weight, mean_nll
from kernel_reference import even_kv_map
from safetensors.numpy import load_file

from chip.kernels import NAMES, load, vmath
from chip.kernels.quant import quantize_weight, tile_weights

f32, f16, i8 = np.float32, np.float16, np.int8

CONFIGS = {
    "tiny": {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 1},
    "wide": {
        "hidden_size": 328,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 90,
    },
}


def random_model(name: str) -> tuple[dict, dict]:
    """A config and seeded weights with HF names: 2 layers, MLP of 333, 50 tokens, untied."""
    config = {"intermediate_size": 333, "num_hidden_layers": 2, "vocab_size": 50}
    config |= {"rms_norm_eps": 1e-5, "rope_theta": 10000.0} | CONFIGS[name]
    rng = np.random.default_rng(11)
    hidden, mid = config["hidden_size"], config["intermediate_size"]
    s = Shape.of(config)
    shapes = {"model.embed_tokens": (50, hidden), "model.norm": (hidden,), "lm_head": (50, hidden)}
    for i in range(2):
        at = f"model.layers.{i}."
        for part, n in (("q", s.heads), ("k", s.kv_heads), ("v", s.kv_heads)):
            shapes[f"{at}self_attn.{part}_proj"] = (n * s.head_dim, hidden)
        shapes[at + "self_attn.o_proj"] = (hidden, s.heads * s.head_dim)
        shapes |= {at + "mlp.gate_proj": (mid, hidden), at + "mlp.up_proj": (mid, hidden)}
        shapes |= {at + "mlp.down_proj": (hidden, mid), at + "input_layernorm": (hidden,)}
        shapes[at + "post_attention_layernorm"] = (hidden,)
    weights = {}
    for key, shape in shapes.items():
        noise = rng.standard_normal(shape).astype(f32)
        weights[key + ".weight"] = noise * f32(0.15) + f32(len(shape) == 1)
    return config, weights


class KernelLlama:
    """The same model through the kernels: `chunk` tokens at a time, columns split in `parts`."""

    def __init__(self, config: dict, weights: dict, name: str, parts: int) -> None:
        self.shape, self.weights, self.parts = Shape.of(config), weights, parts
        self.kernels = load(name)

    def linear(self, x8: np.ndarray, s: np.ndarray, w: np.ndarray, dtype: type) -> list:
        """Multiply by w [N, K], its output columns split among the parts, uneven."""
        pieces = []
        for share in np.array_split(w, self.parts):
            q, scale = quantize_weight(share)
            y = np.empty((len(x8), len(share)), dtype)
            self.kernels.matmul_i8(x8, s, tile_weights(q), scale, y)
            pieces.append(y)
        return pieces

    def normed(self, x: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
        q, s = np.empty((len(x), -(-x.shape[1] // 320) * 320), i8), np.empty(len(x), f32)
        self.kernels.norm_i8(x, self.weights[name], self.shape.eps, q, s)
        return q, s

    def gathered(self, pieces: list) -> tuple[np.ndarray, np.ndarray]:
        n = sum(p.shape[1] for p in pieces)
        q, s = np.empty((len(pieces[0]), -(-n // 320) * 320), i8), np.empty(len(pieces[0]), f32)
        self.kernels.gather_i8(pieces, q, s)
        return q, s

    def logits(self, token_ids: Sequence[int], chunk: int, bucket: int) -> np.ndarray:
        s, rows = self.shape, []
        caches = [self.new_cache(bucket) for _ in range(s.layers)]
        for start in range(0, len(token_ids), chunk):
            ids = list(token_ids[start : start + chunk])
            positions = np.arange(start, start + len(ids))
            x = self.weights["model.embed_tokens.weight"][ids]
            rope = vmath.rope_tables(positions, s.inv_freq)
            for i in range(s.layers):
                self.layer(x, f"model.layers.{i}.", rope, positions, caches[i])
            head = self.linear(*self.normed(x, "model.norm.weight"), head_weight(self.weights), f32)
            rows.append(np.concatenate(head, axis=1))
        return np.concatenate(rows)

    def new_cache(self, bucket: int) -> list:
        n, hd = range(self.shape.kv_heads), self.shape.head_dim
        lanes = [[np.full((bucket, hd), -128, i8) for _ in n] for _ in "kv"]
        scales = [[np.full(bucket, np.nan, f32) for _ in n] for _ in "kv"]
        return [lanes[0], scales[0], lanes[1], scales[1]]

    def layer(
        self, x: np.ndarray, at: str, rope: np.ndarray, positions: np.ndarray, cache: list
    ) -> None:
        s, w, rows = self.shape, self.weights, len(x)
        h = self.normed(x, at + "input_layernorm.weight")
        qkv = [w[f"{at}self_attn.{part}_proj.weight"] for part in "qkv"]
        qkv = np.concatenate(self.linear(*h, np.concatenate(qkv), f32), axis=1)
        q, sq = np.empty((rows, s.heads, s.head_dim), i8), np.empty((rows, s.heads), f32)
        self.kernels.rope_cache_i8(qkv, rope, positions, q, sq, *cache)
        out = np.empty((rows, s.heads * s.head_dim), f16)
        kv_of = even_kv_map(s.heads, s.kv_heads)
        self.kernels.attention_i8(q, sq, *cache, kv_of, positions, out)
        out = self.gathered(np.array_split(out, self.parts, axis=1))
        self.kernels.add(x, self.linear(*out, w[at + "self_attn.o_proj.weight"], f16))

        h = self.normed(x, at + "post_attention_layernorm.weight")
        gate, up = (self.linear(*h, w[f"{at}mlp.{p}_proj.weight"], f32) for p in ("gate", "up"))
        gated = [np.empty(g.shape, f16) for g in gate]
        for g, u, y in zip(gate, up, gated, strict=True):
            self.kernels.silu(np.concatenate([g, u], axis=1), y)
        down = self.linear(*self.gathered(gated), w[at + "mlp.down_proj.weight"], f16)
        self.kernels.add(x, down)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", sorted(CONFIGS))
def test_the_kernels_equal_the_plain_model_on_any_split(size, name):
    config, weights = random_model(size)
    tokens = np.random.default_rng(2).integers(0, 50, 11).tolist()
    want = IntLlama(config, weights).logits(tokens)
    assert np.abs(want).max() > 1
    for parts, chunk, bucket in ((1, 1, 11), (3, 4, 400), (5, 11, 320)):
        got = KernelLlama(config, weights, name, parts).logits(tokens, chunk, bucket)
        assert got.tobytes() == want.tobytes()


def test_the_plain_int_model_follows_fp32():
    config, weights = random_model("wide")
    tokens = list(range(12))
    want = F32Llama(config, weights).logits(tokens)
    error = IntLlama(config, weights).logits(tokens) - want
    # Loose: random weights make attention far sharper than trained ones do.
    assert np.sqrt((error**2).mean() / (want**2).mean()) < 0.15


def test_shape_reads_both_generations_of_config():
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3["original_max_position_embeddings"] = 8192
    config, _ = random_model("tiny")
    old = Shape.of(config | {"rope_theta": 5e5, "rope_scaling": llama3})
    del config["rope_theta"]
    new = Shape.of(config | {"rope_parameters": llama3 | {"rope_theta": 5e5}})
    assert (old.inv_freq == new.inv_freq).all()
    assert old.inv_freq[-1] == vmath.inv_frequencies(5e5, 8)[-1] / 8
    with pytest.raises(ValueError, match="rope_scaling: no such kind is known here, got 'su'"):
        Shape.of(config | {"rope_scaling": {"type": "su"}})


@pytest.fixture(scope="module")
def stories(stories260k: Path) -> tuple[dict, dict, list]:
    config = json.loads((stories260k / "config.json").read_text())
    texts = json.loads((stories260k / "greedy.json").read_text())
    return config, load_file(stories260k / "model.safetensors"), texts


def test_fp32_reproduces_the_greedy_texts(stories):
    config, weights, texts = stories
    model = F32Llama(config, weights)
    for text in texts:
        tokens, prompt = text["token_ids"], len(text["prompt_token_ids"])
        best = model.logits(tokens)[prompt - 1 : -1].argmax(axis=1)
        assert best.tolist() == tokens[prompt:]
    assert greedy(model, texts[1]["prompt_token_ids"], 30) == texts[1]["token_ids"][:30]


@pytest.mark.slow
def test_int8_costs_less_than_2_percent_of_nll(stories):
    config, weights, texts = stories
    models = F32Llama(config, weights), IntLlama(config, weights)
    plain, quantised = (
        sum(mean_nll(m.logits(t["token_ids"]), t["token_ids"]) for t in texts) for m in models
    )
    assert 0.0 < quantised / plain - 1 < 0.02


def test_kernels_equal_the_plain_model_on_trained_weights(stories):
    config, weights, texts = stories
    tokens = texts[0]["token_ids"][:24]
    got = KernelLlama(config, weights, "numpy", 2).logits(tokens, 8, 64)
    assert got.tobytes() == IntLlama(config, weights).logits(tokens).tobytes()
