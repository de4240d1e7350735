"""The model as a graph of operations with shapes and provenance, before any chip is named.

A value is either replicated (the residual stream, a norm's output) or split by columns over the
chips of a group; a split value that another chip needs is exchanged, rounded to fp16.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from compiler.model.config import ModelConfig


class Kind(StrEnum):
    """What a graph operation does."""

    NORM = "norm"
    LINEAR = "linear"
    ROPE = "rope"
    ATTEND = "attend"
    SILU = "silu"
    ADD = "add"


class Split(StrEnum):
    """Along which axis a value's columns are dealt to the chips of a group."""

    NONE = "replicated"
    QKV = "query and key/value heads"
    HEADS = "query heads"
    HIDDEN = "hidden"
    INTER = "intermediate"
    VOCAB = "vocabulary"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOp:
    """One operation: `name` is its provenance, `weights` the Hugging Face tensors it holds."""

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    output: str
    features: int  # columns of the output
    split: Split
    dtype: str  # "f32" or "f16"; f16 values are exchanged
    weights: tuple[str, ...] = ()
    in_features: int = 0  # K of a LINEAR

    def __str__(self) -> str:
        shape = f"[rows, {self.features}] {self.dtype}"
        inputs = ", ".join(self.inputs)
        return f"{self.name:<36} {self.kind:<7}({inputs}) -> {self.output} {shape}, {self.split}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A model: the operations of each layer, then those of the head."""

    config: ModelConfig
    layers: tuple[tuple[GraphOp, ...], ...]
    head: tuple[GraphOp, ...]

    def __str__(self) -> str:
        return "\n".join(str(op) for ops in (*self.layers, self.head) for op in ops)


def build_graph(config: ModelConfig) -> Graph:
    """Build the graph of a Llama: per layer attention and a gated MLP, then norm and LM head."""
    layers = tuple(_layer(config, index) for index in range(config.num_layers))
    head = (
        _norm(config, "norm", "model.norm.weight"),
        GraphOp(
            name="lm_head",
            kind=Kind.LINEAR,
            inputs=("norm.out",),
            output="logits",
            features=config.vocab_size,
            split=Split.VOCAB,
            dtype="f32",
            weights=("lm_head.weight",),
            in_features=config.hidden_size,
        ),
    )
    return Graph(config=config, layers=layers, head=head)


def _norm(config: ModelConfig, name: str, weight: str) -> GraphOp:
    return GraphOp(
        name=name,
        kind=Kind.NORM,
        inputs=("residual",),
        output=f"{name}.out",
        features=config.hidden_size,
        split=Split.NONE,
        dtype="f32",
        weights=(weight,),
    )


def _op(
    layer: int, name: str, kind: Kind, source: tuple[str, ...], features: int, split: Split,
    dtype: str, weights: tuple[str, ...] = (), k: int = 0,
) -> GraphOp:  # fmt: skip
    full = f"layers.{layer}.{name}"
    return GraphOp(
        name=full,
        kind=kind,
        inputs=source,
        output="residual" if kind is Kind.ADD else f"{full}.out",
        features=features,
        split=split,
        dtype=dtype,
        weights=tuple(f"model.layers.{layer}.{weight}.weight" for weight in weights),
        in_features=k,
    )


def _layer(config: ModelConfig, index: int) -> tuple[GraphOp, ...]:
    prefix, hf = f"layers.{index}", f"model.layers.{index}"
    heads, kv, dim = config.num_heads, config.num_kv_heads, config.head_dim
    hidden, inter = config.hidden_size, config.intermediate_size

    op = partial(_op, index)

    def out(name: str) -> tuple[str, ...]:
        return (f"{prefix}.{name}.out",)

    qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    gate_up = ("mlp.gate_proj", "mlp.up_proj")
    attention = _norm(config, f"{prefix}.input_layernorm", f"{hf}.input_layernorm.weight")
    post = f"{prefix}.post_attention_layernorm"
    mlp = _norm(config, post, f"{hf}.post_attention_layernorm.weight")
    return (
        attention,
        op("self_attn.qkv_proj", Kind.LINEAR, (attention.output,), (heads + 2 * kv) * dim,
           Split.QKV, "f32", weights=qkv, k=hidden),
        op("self_attn.rope", Kind.ROPE, out("self_attn.qkv_proj"), heads * dim, Split.HEADS, "f32"),
        op("self_attn.attend", Kind.ATTEND, out("self_attn.rope"), heads * dim, Split.HEADS, "f16"),
        op("self_attn.o_proj", Kind.LINEAR, out("self_attn.attend"), hidden, Split.HIDDEN, "f16",
           weights=("self_attn.o_proj",), k=heads * dim),
        op("self_attn.add", Kind.ADD, ("residual", *out("self_attn.o_proj")), hidden,
           Split.NONE, "f32"),
        mlp,
        op("mlp.gate_up_proj", Kind.LINEAR, (mlp.output,), 2 * inter, Split.INTER, "f32",
           weights=gate_up, k=hidden),
        op("mlp.silu", Kind.SILU, out("mlp.gate_up_proj"), inter, Split.INTER, "f16"),
        op("mlp.down_proj", Kind.LINEAR, out("mlp.silu"), hidden, Split.HIDDEN, "f16",
           weights=("mlp.down_proj",), k=inter),
        op("mlp.add", Kind.ADD, ("residual", *out("mlp.down_proj")), hidden, Split.NONE, "f32"),
    )  # fmt: skip
