"""The verifier's table of decoders and of a BERT: the results from which each operand is computed.

The table follows the model, not the planner. For every operand of every operation it has the
results that the operand may be. So bytes of another tensor, layer or operand are refused by name.
"""

from __future__ import annotations

from functools import lru_cache

from chip.ops.product import AddTo, Gated, Matmul, NormFirst
from chip.ops.program import Scheduled

# operand -> suffix of its tensor's name
CONSTANTS = {
    "w": "", "sw": ".scale", "b": ".bias", "gamma": "", "beta": ".bias",
    "gq": ".gq", "gk": ".gk", "post": ".post", "sinks": ".sinks",
}  # fmt: skip
NORM_BEFORE = {  # a product -> the norm that may be a part of it
    "self_attn.qkv_proj": "input_layernorm", "mlp.gate_up_proj": "post_attention_layernorm",
    "mlp.router": "post_attention_layernorm", "lm_head": "norm",
}  # fmt: skip
# opcode of a gate, and word of an epilogue -> its place
GATES = {word: f"mlp.{word}" for word in ("silu", "geglu", "clamped_silu")}
ADD_AFTER = {"self_attn.o_proj": "self_attn.add", "mlp.down_proj": "mlp.add"}
CACHES = {"kv": ".kv", "kvs": ".kv.scale"}  # operand -> the rest of its tensor's name

# "opcode place" of a reader -> operand -> "opcode place operand" of those who may have written it.
# `place` is the name without its layer; all are of the reader's layer, but a residual that enters
# a layer may be of the layer before. Chips that hand a residual over name it after who made it.
_ENTERS = ("add mlp.add x", "receive mlp.add dst", "receive residual dst")
_DECODER: dict[str, dict[str, tuple[str, ...]]] = {
    "norm input_layernorm": {"x": _ENTERS},
    "matmul self_attn.qkv_proj": {
        "x": ("norm input_layernorm q",), "s": ("norm input_layernorm s",),
    },
    "rope self_attn.rope": {"qkv": ("matmul self_attn.qkv_proj y",), "rope": ("receive rope dst",)},
    "attend self_attn.attend": {
        name: (f"rope self_attn.rope {name}",) for name in ("q", "sq", "kv", "kvs")
    },
    "send self_attn.attend": {"src": ("attend self_attn.attend y",)},
    "gather self_attn.o_proj": {
        "src": ("attend self_attn.attend y", "receive self_attn.attend dst")
    },
    "matmul self_attn.o_proj": {
        "x": ("gather self_attn.o_proj q",), "s": ("gather self_attn.o_proj s",),
    },
    "send self_attn.o_proj": {"src": ("matmul self_attn.o_proj y",)},
    "add self_attn.add": {
        "x": _ENTERS, "src": ("matmul self_attn.o_proj y", "receive self_attn.o_proj dst"),
    },
    "norm post_attention_layernorm": {"x": ("add self_attn.add x",)},
    "matmul mlp.gate_up_proj": {
        "x": ("norm post_attention_layernorm q",), "s": ("norm post_attention_layernorm s",),
    },
    "matmul mlp.router": {
        "x": ("norm post_attention_layernorm q",), "s": ("norm post_attention_layernorm s",),
    },
    "route mlp.route": {"x": ("matmul mlp.router y",)},
    "experts_each mlp.gate_up_proj": {
        "x": ("norm post_attention_layernorm q", "matmul mlp.router q"),
        "s": ("norm post_attention_layernorm s", "matmul mlp.router qs"),
        "e": ("route mlp.route e",),
    },
    **{
        f"{gate} {at}": {"x": ("matmul mlp.gate_up_proj y", "experts_each mlp.gate_up_proj y")}
        for gate, at in GATES.items()
    },
    **{f"send {at}": {"src": (f"{gate} {at} y",)} for gate, at in GATES.items()},
    "gather mlp.down_proj": {
        "src": tuple(
            made for gate, at in GATES.items() for made in (f"{gate} {at} y", f"receive {at} dst")
        ),
    },
    "matmul mlp.down_proj": {"x": ("gather mlp.down_proj q",), "s": ("gather mlp.down_proj s",)},
    "experts_sum mlp.down_proj": {
        "x": ("gather mlp.down_proj q",), "s": ("gather mlp.down_proj s",),
        "e": ("route mlp.route e",), "g": ("route mlp.route g",),
    },
    "send mlp.down_proj": {"src": ("matmul mlp.down_proj y", "experts_sum mlp.down_proj y")},
    "add mlp.add": {
        "x": ("add self_attn.add x", "receive self_attn.add dst"),
        "src": (
            "matmul mlp.down_proj y", "experts_sum mlp.down_proj y", "receive mlp.down_proj dst",
        ),
    },
    "norm norm": {"x": _ENTERS},
    "matmul lm_head": {"x": ("norm norm q",), "s": ("norm norm s",)},
    "topk sample.top_k": {"x": ("matmul lm_head y",)},
    "send result": {"src": ("matmul lm_head y", "topk sample.top_k y")},
    "send done": {"src": ("add mlp.add x",)},
    "send self_attn.add": {"src": ("add self_attn.add x",)},
    "send mlp.add": {"src": ("add mlp.add x",)},
    "send rope": {"src": ("receive rope dst",)},
}  # fmt: skip
# A BERT's sums are normed where they lie.
_ENTERS_ENCODER = ("add output.add x", "receive output.add dst", "receive residual dst")
FUNCTIONS = {"gelu": "intermediate.gelu", "gelu_tanh": "intermediate.gelu_tanh"}  # opcode -> place
_BERT: dict[str, dict[str, tuple[str, ...]]] = {
    "layer_norm input.norm": {"x": _ENTERS_ENCODER},
    "matmul attention.qkv": {"x": ("layer_norm input.norm q",), "s": ("layer_norm input.norm s",)},
    "rope attention.cache": {"qkv": ("matmul attention.qkv y",)},
    "attend attention.attend": {
        name: (f"rope attention.cache {name}",) for name in ("q", "sq", "kv", "kvs")
    },
    "send attention.attend": {"src": ("attend attention.attend y",)},
    "gather attention.output": {
        "src": ("attend attention.attend y", "receive attention.attend dst")
    },
    "matmul attention.output": {
        "x": ("gather attention.output q",), "s": ("gather attention.output s",),
    },
    "send attention.output": {"src": ("matmul attention.output y",)},
    "add attention.add": {
        "x": ("layer_norm input.norm x",),
        "src": ("matmul attention.output y", "receive attention.output dst"),
    },
    "layer_norm attention.norm": {"x": ("add attention.add x",)},
    "matmul intermediate.dense": {
        "x": ("layer_norm attention.norm q",), "s": ("layer_norm attention.norm s",),
    },
    **{f"{name} {at}": {"x": ("matmul intermediate.dense y",)} for name, at in FUNCTIONS.items()},
    **{f"send {at}": {"src": (f"{name} {at} y",)} for name, at in FUNCTIONS.items()},
    "gather output.dense": {
        "src": tuple(
            made
            for name, at in FUNCTIONS.items() for made in (f"{name} {at} y", f"receive {at} dst")
        ),
    },
    "matmul output.dense": {"x": ("gather output.dense q",), "s": ("gather output.dense s",)},
    "send output.dense": {"src": ("matmul output.dense y",)},
    "add output.add": {
        "x": ("layer_norm attention.norm x",),
        "src": ("matmul output.dense y", "receive output.dense dst"),
    },
    "send output.add": {"src": ("add output.add x",)},
    "layer_norm output.norm": {"x": _ENTERS_ENCODER},
    "send result": {"src": ("layer_norm output.norm x",)},
}  # fmt: skip
_SOURCES = {**_DECODER, **_BERT}
_SOURCES["send result"] = {"src": _DECODER["send result"]["src"] + _BERT["send result"]["src"]}
_ENTERING = ("norm input_layernorm", "add self_attn.add", "layer_norm input.norm")
_FROM_BEFORE = (*_ENTERS[:2], *_ENTERS_ENCODER[:2])  # results of the layer before


@lru_cache(maxsize=65536)
def place_of(name: str) -> tuple[int | None, str]:
    """Split a name: layers.3.mlp.add is (3, mlp.add), stage1.rope is (None, rope)."""
    head, _, rest = name.partition(".")
    if head == "layers":
        number, _, place = rest.partition(".")
        return int(number), place
    return None, rest if head == "host" or head.startswith("stage") else name


def made_as(operation: Scheduled) -> tuple[int | None, str]:
    """Return layer and place of an operation's result in the table.

    A product with an epilogue has the place of the operation that it replaces.
    """
    layer, place = place_of(operation.name)
    epilogue = _epilogue(operation)
    if epilogue == "add":
        return layer, ADD_AFTER.get(place, place)
    return layer, GATES.get(epilogue or "", place)


def _epilogue(operation: Scheduled) -> str | None:
    op = operation.op
    done = op.result if isinstance(op, Matmul) else None
    return done.word if isinstance(done, AddTo | Gated) else None


def norm_before(operation: Scheduled) -> str:
    """Return the name of the norm that an operation is, or that its prologue replaces."""
    place = place_of(operation.name)[1]
    prefix = operation.name.removesuffix(place)
    return prefix + NORM_BEFORE.get(place, place) if _is_norm(operation) else operation.name


def _is_norm(operation: Scheduled) -> bool:
    op = operation.op
    return isinstance(op, Matmul) and isinstance(op.source, NormFirst)


def is_known(reader: Scheduled, operand: str) -> bool:
    """Say whether the table has the operation with this operand."""
    key, name = _read_as(reader, operand)
    return name in _SOURCES.get(key, {})


def may_read(reader: Scheduled, operand: str, writer: Scheduled, result: str) -> bool:
    """Say whether `operand` of `reader` is computed from `result` of `writer`."""
    layer, (of_layer, of_place) = place_of(reader.name)[0], made_as(writer)
    key, name = _read_as(reader, operand)
    epilogue = _epilogue(writer)
    made = "x" if epilogue == "add" and result == "r" else result
    source = f"{epilogue or writer.opcode} {of_place} {made}"
    before = key in _ENTERING and source in _FROM_BEFORE
    same_layer = layer is None or of_layer is None or of_layer == layer - before
    return same_layer and source in _SOURCES[key][name]


def _read_as(reader: Scheduled, operand: str) -> tuple[str, str]:
    """Return a read's key and operand in the table; prologues and epilogues have their own."""
    place, opcode = place_of(reader.name)[1], str(reader.opcode)
    op = reader.op
    if isinstance(op, Matmul) and operand == "src":
        if _is_norm(reader):
            return f"norm {NORM_BEFORE.get(place, place)}", "x"
        opcode = "gather"
    if isinstance(op, Matmul) and operand == "r":
        return f"add {ADD_AFTER.get(place, place)}", "x"
    return f"{opcode} {place}", operand
