"""The one description of a layer and of the head.

It lists their operations in order. Each operation names the buffers that it reads and writes, its
columns, the axis along which they are dealt, and its tensors. From this list follow the graph, the
tensors that a checkpoint must have (compiler/model/weights.py), each chip's share of them
(compiler/place/partition.py), buffers with their lifetimes (compiler/place/buffers.py) and each
chip's operations in a step (compiler/schedule/steps.py). The verifier has a table of its own.

A difference between architectures is a field of `Architecture` and a line here. Encoders' layers
are in compiler/model/encoder.py.
"""

from __future__ import annotations

from compiler.model import encoder
from compiler.model.architecture import ARCHITECTURES
from compiler.model.config import ModelConfig
from compiler.model.operation import (
    RESIDUAL,
    ROPE,
    GraphOp,
    Kind,
    Split,
    WeightTensor,
    add,
    gather,
)

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"
ENTERING = (RESIDUAL, ROPE)


def layer(config: ModelConfig, index: int = 0) -> tuple[GraphOp, ...]:
    """Return the operations of a layer in order."""
    if config.encoder is not None:
        return encoder.layer(config, config.encoder, index)
    return tuple(op.in_layer(index) for op in _layer(config, index))


def embeddings(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return the tables whose rows the host looks up, and adds in this order: name to shape."""
    if config.encoder is not None:
        return encoder.embeddings(config, config.encoder)
    return {EMBEDDING: (config.vocab_size, config.hidden_size)}


def entering(config: ModelConfig) -> tuple[str, ...]:
    """Return what the host, or the group before, gives to a group."""
    return ENTERING if config.rope_theta is not None else (RESIDUAL,)


def _layer(config: ModelConfig, index: int) -> tuple[GraphOp, ...]:
    """Return a decoder's layer; names are those within the layer."""
    hidden, inter = config.hidden_size, config.intermediate_size
    heads, kv_heads = config.q_size, config.kv_size
    features = ARCHITECTURES[config.architecture]
    activation, bias = features.activation, config.attention_bias
    window = config.windows[index] if config.windows else None
    return (
        _norm("input_layernorm", hidden, "attn.in"),
        _linear("self_attn.qkv_proj", "attn.in", "qkv", Split.QKV, hidden,
                ("self_attn.q_proj", heads, Split.HEADS),
                ("self_attn.k_proj", kv_heads, Split.KV_HEADS),
                ("self_attn.v_proj", kv_heads, Split.KV_HEADS), bias=bias or features.qkv_bias),
        GraphOp(name="self_attn.rope", kind=Kind.ROPE, inputs=("qkv", ROPE), output="query",
                features=heads, split=Split.HEADS),
        GraphOp(name="self_attn.attend", kind=Kind.ATTEND, inputs=("query",), output="attn.out",
                features=heads, split=Split.HEADS, exchanged=True, window=window),
        gather("self_attn.o_proj", "attn.out", "o.in", heads, Split.HEADS),
        _projection("self_attn.o_proj", "o.in", "o.out", heads, hidden, bias=bias),
        add("self_attn.add", "o.out", hidden),
        _norm("post_attention_layernorm", hidden, "mlp.in"),
        _linear("mlp.gate_up_proj", "mlp.in", "gate_up", Split.INTER, hidden,
                ("mlp.gate_proj", inter, Split.INTER), ("mlp.up_proj", inter, Split.INTER),
                bias=config.mlp_bias),
        GraphOp(name=f"mlp.{activation}", kind=Kind.GATE, inputs=("gate_up",), output="mlp.mid",
                features=inter, split=Split.INTER, exchanged=True, activation=activation),
        gather("mlp.down_proj", "mlp.mid", "down.in", inter, Split.INTER),
        _projection("mlp.down_proj", "down.in", "mlp.out", inter, hidden, bias=config.mlp_bias),
        add("mlp.add", "mlp.out", hidden),
    )  # fmt: skip


def head(config: ModelConfig) -> tuple[GraphOp, ...]:
    """Return the operations after the last layer, in order."""
    if config.encoder is not None:
        return encoder.head(config)
    return (
        _norm("norm", config.hidden_size, "head.in", FINAL_NORM),
        _linear("lm_head", "head.in", "logits", Split.VOCAB, config.hidden_size,
                ("lm_head", config.vocab_size, Split.VOCAB)),
    )  # fmt: skip


def _norm(name: str, hidden: int, output: str, tensor: str | None = None) -> GraphOp:
    """Norm the residual."""
    weight = WeightTensor(name=tensor or f"{name}.weight", rows=hidden, split=Split.NONE)
    return GraphOp(
        name=name, kind=Kind.NORM, inputs=(RESIDUAL,), output=output, features=hidden,
        split=Split.NONE, tensors=(weight,),
    )  # fmt: skip


def _linear(
    name: str, source: str, output: str, split: Split, k: int, *tensors: tuple[str, int, Split],
    bias: bool = False, exchanged: bool = False,
) -> GraphOp:  # fmt: skip
    """Multiply by matrices, given as (name, output columns, split), side by side; add biases."""
    weights, biases = (
        tuple(
            WeightTensor(name=f"{tensor}.{part}", rows=rows, split=axis)
            for tensor, rows, axis in tensors
        )
        for part in ("weight", "bias")
    )
    return GraphOp(
        name=name, kind=Kind.LINEAR, inputs=(source,), output=output,
        features=sum(weight.rows for weight in weights), split=split, exchanged=exchanged,
        tensors=weights, biases=biases if bias else (), in_features=k,
    )  # fmt: skip


def _projection(
    name: str, source: str, output: str, k: int, hidden: int, *, bias: bool
) -> GraphOp:  # fmt: skip
    """Project back to the residual's columns; the result is exchanged."""
    to = (name, hidden, Split.HIDDEN)
    return _linear(name, source, output, Split.HIDDEN, k, to, bias=bias, exchanged=True)
