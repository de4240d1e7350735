"""What a layer of an encoder consists of (BERT), and what is before and behind the layers.

BERT norms behind each sum, so that a layer ends with a LayerNorm. Here a layer begins with the one
that ends the layer before, or with that of the embeddings: so it has the form of a decoder's
(compiler/model/layer.py), chips hand the residual on as they do there, and the host's part is to
add three rows a token. Behind the last layer its own LayerNorm is left.

Tensors have the names of transformers' BertModel.
"""

from __future__ import annotations

from compiler.model.config import Encoder, ModelConfig
from compiler.model.operation import (
    RESIDUAL,
    GraphOp,
    Kind,
    Split,
    WeightTensor,
    add,
    gather,
)

WORDS, POSITIONS, TYPES = (
    f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")
)


_PREFIX = "bert."  # of a checkpoint with a head
_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_UNUSED = ("pooler.", "cls.", "embeddings.position_ids")  # what is behind the encoder; a buffer


def canonical(name: str) -> str:
    """Return BertModel's name of a tensor that a checkpoint may have under another."""
    name = name.removeprefix(_PREFIX)
    for old, new in _OLD.items():
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name


def is_unused(name: str) -> bool:
    """Whether a checkpoint's tensor is no part of the encoder."""
    return canonical(name).startswith(_UNUSED)


def embeddings(config: ModelConfig, encoder: Encoder) -> dict[str, tuple[int, int]]:
    """Return the tables that the host reads, in the order in which it adds their rows."""
    hidden = config.hidden_size
    return {
        WORDS: (config.vocab_size, hidden),
        TYPES: (encoder.type_vocab_size, hidden),
        POSITIONS: (config.max_position_embeddings, hidden),
    }


def layer(config: ModelConfig, encoder: Encoder, index: int) -> tuple[GraphOp, ...]:
    """Return the operations of a layer in order."""
    hidden, inter, heads = config.hidden_size, config.intermediate_size, config.q_size
    on, at = f"layers.{index}", f"encoder.layer.{index}"
    before = f"encoder.layer.{index - 1}.output" if index else "embeddings"
    qkv = tuple(
        (f"{at}.attention.self.{name}", heads, split)
        for name, split in (
            ("query", Split.HEADS), ("key", Split.KV_HEADS), ("value", Split.KV_HEADS),
        )
    )  # fmt: skip
    return (
        _norm(f"{on}.input.norm", before, hidden, "attn.in"),
        _linear(f"{on}.attention.qkv", "attn.in", "qkv", Split.QKV, hidden, *qkv),
        GraphOp(name=f"{on}.attention.cache", kind=Kind.ROPE, inputs=("qkv",), output="query",
                features=heads, split=Split.HEADS),
        GraphOp(name=f"{on}.attention.attend", kind=Kind.ATTEND, inputs=("query",),
                output="attn.out", features=heads, split=Split.HEADS, exchanged=True),
        gather(f"{on}.attention.output", "attn.out", "o.in", heads, Split.HEADS),
        _linear(f"{on}.attention.output", "o.in", "o.out", Split.HIDDEN, heads,
                (f"{at}.attention.output.dense", hidden, Split.HIDDEN), exchanged=True),
        add(f"{on}.attention.add", "o.out", hidden),
        _norm(f"{on}.attention.norm", f"{at}.attention.output", hidden, "mlp.in"),
        _linear(f"{on}.intermediate.dense", "mlp.in", "mlp.wide", Split.INTER, hidden,
                (f"{at}.intermediate.dense", inter, Split.INTER)),
        GraphOp(name=f"{on}.intermediate.{encoder.activation}", kind=Kind.APPLY,
                inputs=("mlp.wide",), output="mlp.mid", features=inter, split=Split.INTER,
                exchanged=True, function=encoder.activation),
        gather(f"{on}.output.dense", "mlp.mid", "down.in", inter, Split.INTER),
        _linear(f"{on}.output.dense", "down.in", "mlp.out", Split.HIDDEN, inter,
                (f"{at}.output.dense", hidden, Split.HIDDEN), exchanged=True),
        add(f"{on}.output.add", "mlp.out", hidden),
    )  # fmt: skip


def head(config: ModelConfig) -> tuple[GraphOp, ...]:
    """Return what is behind the last layer: its LayerNorm, which is not quantised."""
    last = f"encoder.layer.{config.num_layers - 1}.output"
    return (_norm("output.norm", last, config.hidden_size, RESIDUAL),)


def _norm(name: str, owner: str, hidden: int, output: str) -> GraphOp:
    """Norm the residual."""
    weight, bias = (
        WeightTensor(name=f"{owner}.LayerNorm.{part}", rows=hidden, split=Split.NONE)
        for part in ("weight", "bias")
    )
    return GraphOp(
        name=name, kind=Kind.LAYER_NORM, inputs=(RESIDUAL,), output=output, features=hidden,
        split=Split.NONE, tensors=(weight,), biases=(bias,),
    )  # fmt: skip


def _linear(
    name: str, source: str, output: str, split: Split, k: int, *owners: tuple[str, int, Split],
    exchanged: bool = False,
) -> GraphOp:  # fmt: skip
    """Multiply by matrices, given as (owner, output columns, split), side by side; add biases."""
    weights, biases = (
        tuple(
            WeightTensor(name=f"{owner}.{part}", rows=rows, split=axis)
            for owner, rows, axis in owners
        )
        for part in ("weight", "bias")
    )
    return GraphOp(
        name=name, kind=Kind.LINEAR, inputs=(source,), output=output,
        features=sum(weight.rows for weight in weights), split=split, exchanged=exchanged,
        tensors=weights, biases=biases, in_features=k,
    )  # fmt: skip
