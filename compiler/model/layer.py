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

import math

from compiler.model import encoder
from compiler.model.architecture import ARCHITECTURES
from compiler.model.config import Experts, ModelConfig
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


def embedding_scale(config: ModelConfig) -> float:
    """Return what the host multiplies a token's row by."""
    known = ARCHITECTURES.get(config.architecture)
    return math.sqrt(config.hidden_size) if known is not None and known.scaled_embedding else 1.0


def _layer(config: ModelConfig, index: int) -> tuple[GraphOp, ...]:
    """Return a decoder's layer; names are those within the layer."""
    mlp = _mlp(config) if config.experts is None else _experts(config, config.experts)
    return (*_attention(config, index), *mlp)


def _attention(config: ModelConfig, index: int) -> tuple[GraphOp, ...]:
    hidden, heads, kv_heads = config.hidden_size, config.q_size, config.kv_size
    features, bias = ARCHITECTURES[config.architecture], config.attention_bias
    norms = (("gq", "q"), ("gk", "k")) if features.head_norms else ()
    window = config.windows[index] if config.windows else None
    sinks = WeightTensor(name="self_attn.sinks", rows=config.num_heads, split=Split.HEADS)
    return (
        _norm(config, "input_layernorm", "attn.in"),
        _linear("self_attn.qkv_proj", "attn.in", "qkv", Split.QKV, hidden,
                ("self_attn.q_proj", heads, Split.HEADS),
                ("self_attn.k_proj", kv_heads, Split.KV_HEADS),
                ("self_attn.v_proj", kv_heads, Split.KV_HEADS), bias=bias or features.qkv_bias),
        GraphOp(name="self_attn.rope", kind=Kind.ROPE, inputs=("qkv", ROPE), output="query",
                features=heads, split=Split.HEADS, window=window,
                vectors=tuple((operand, _gamma(config, f"self_attn.{of}_norm", config.head_dim))
                              for operand, of in norms)),
        GraphOp(name="self_attn.attend", kind=Kind.ATTEND, inputs=("query",), output="attn.out",
                features=heads, split=Split.HEADS, exchanged=True, cap=config.attention_cap,
                window=window, vectors=(("sinks", sinks),) if features.sinks else ()),
        gather("self_attn.o_proj", "attn.out", "o.in", heads, Split.HEADS),
        _projection("self_attn.o_proj", "o.in", "o.out", heads, hidden, bias=bias),
        _add(config, "self_attn.add", "o.out", "post_attention_layernorm"),
    )  # fmt: skip


def _mlp(config: ModelConfig) -> tuple[GraphOp, ...]:
    hidden, inter, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
    return (
        _mlp_norm(config),
        _linear("mlp.gate_up_proj", "mlp.in", "gate_up", Split.INTER, hidden,
                ("mlp.gate_proj", inter, Split.INTER), ("mlp.up_proj", inter, Split.INTER),
                bias=bias),
        _gate(config),
        gather("mlp.down_proj", "mlp.mid", "down.in", inter, Split.INTER),
        _projection("mlp.down_proj", "down.in", "mlp.out", inter, hidden, bias=bias),
        _add(config, "mlp.add", "mlp.out", "post_feedforward_layernorm"),
    )  # fmt: skip


def _experts(config: ModelConfig, experts: Experts) -> tuple[GraphOp, ...]:
    """Return the mixture in the MLP's place. Every chip routes; experts are dealt like an MLP."""
    hidden, inter, chosen = config.hidden_size, config.intermediate_size, experts.chosen
    features = ARCHITECTURES[config.architecture].mixture
    assert features is not None  # ModelConfig has experts only for a mixture
    return (
        _mlp_norm(config),
        _linear("mlp.router", "mlp.in", "router", Split.NONE, hidden,
                (features.router, experts.count, Split.NONE), bias=features.bias),
        GraphOp(name="mlp.route", kind=Kind.ROUTE, inputs=("router",), output="chosen",
                features=chosen, split=Split.NONE, experts=experts, after=features.after),
        _of_each("mlp.gate_up_proj", Kind.EXPERTS_EACH, "mlp.in", "gate_up", Split.INTER, hidden,
                 inter, experts, (features.gate, features.up), bias=features.bias),
        _gate(config, chosen),
        gather("mlp.down_proj", "mlp.mid", "down.in", inter, Split.INTER, chosen),
        _of_each("mlp.down_proj", Kind.EXPERTS_SUM, "down.in", "mlp.out", Split.HIDDEN, inter,
                 hidden, experts, (features.down,), bias=features.bias),
        _add(config, "mlp.add", "mlp.out", "post_feedforward_layernorm"),
    )  # fmt: skip


def _mlp_norm(config: ModelConfig) -> GraphOp:
    """Return the norm before the MLP. It has one name, whatever a family calls its tensor."""
    features = ARCHITECTURES[config.architecture]
    norm = "pre_feedforward_layernorm" if features.post_norms else "post_attention_layernorm"
    return _norm(config, "post_attention_layernorm", "mlp.in", f"{norm}.weight")


def _gate(config: ModelConfig, each: int = 1) -> GraphOp:
    activation = ARCHITECTURES[config.architecture].activation
    return GraphOp(
        name=f"mlp.{activation}", kind=Kind.GATE, inputs=("gate_up",), output="mlp.mid",
        features=config.intermediate_size, split=Split.INTER, exchanged=True,
        activation=activation, each=each,
    )  # fmt: skip


def _of_each(
    name: str, kind: Kind, source: str, output: str, split: Split, k: int, rows: int,
    experts: Experts, owners: tuple[str, ...], *, bias: bool,
) -> GraphOp:  # fmt: skip
    """Multiply by matrices of the chosen experts; `owners` are an expert's, side by side."""
    weights, biases = (
        tuple(
            WeightTensor(name=f"{owner.format(number)}.{part}", rows=rows, split=split)
            for number in range(experts.count) for owner in owners
        )
        for part in ("weight", "bias")
    )  # fmt: skip
    summed = kind is Kind.EXPERTS_SUM
    return GraphOp(
        name=name, kind=kind, inputs=(source, "chosen"), output=output,
        features=rows * len(owners), split=split, exchanged=summed, tensors=weights,
        biases=biases if bias else (), in_features=k, experts=experts,
        each=1 if summed else experts.chosen,
    )  # fmt: skip


def head(config: ModelConfig) -> tuple[GraphOp, ...]:
    """Return the operations after the last layer, in order."""
    if config.encoder is not None:
        return encoder.head(config)
    return (
        _norm(config, "norm", "head.in", FINAL_NORM),
        _linear("lm_head", "head.in", "logits", Split.VOCAB, config.hidden_size,
                ("lm_head", config.vocab_size, Split.VOCAB), cap=config.logit_cap),
    )  # fmt: skip


def _gamma(config: ModelConfig, owner: str, rows: int) -> WeightTensor:
    offset = ARCHITECTURES[config.architecture].norm_offset
    return WeightTensor(name=f"{owner}.weight", rows=rows, split=Split.NONE, offset=offset)


def _norm(config: ModelConfig, name: str, output: str, tensor: str | None = None) -> GraphOp:
    """Norm the residual."""
    hidden = config.hidden_size
    owner = name if tensor is None else tensor.removesuffix(".weight")
    return GraphOp(
        name=name, kind=Kind.NORM, inputs=(RESIDUAL,), output=output, features=hidden,
        split=Split.NONE, tensors=(_gamma(config, owner, hidden),),
    )  # fmt: skip


def _add(config: ModelConfig, name: str, source: str, post: str) -> GraphOp:
    """Add a branch to the residual, with its norm if the architecture has such."""
    hidden, has = config.hidden_size, ARCHITECTURES[config.architecture].post_norms
    return add(name, source, hidden, _gamma(config, post, hidden) if has else None)


def _linear(
    name: str, source: str, output: str, split: Split, k: int, *tensors: tuple[str, int, Split],
    bias: bool = False, exchanged: bool = False, cap: float | None = None,
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
        tensors=weights, biases=biases if bias else (), in_features=k, cap=cap,
    )  # fmt: skip


def _projection(
    name: str, source: str, output: str, k: int, hidden: int, *, bias: bool
) -> GraphOp:  # fmt: skip
    """Project back to the residual's columns; the result is exchanged."""
    to = (name, hidden, Split.HIDDEN)
    return _linear(name, source, output, Split.HIDDEN, k, to, bias=bias, exchanged=True)
