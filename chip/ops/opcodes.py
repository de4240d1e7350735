"""The closed set of scheduled operations, and what every operation has in common.

An operation is a frozen dataclass of its own: `Norm`, `LayerNorm`, `Gather`, `Add`, `Gate`,
`Apply` and `TopK` (chip/ops/vector.py), `Matmul` (product.py), `Route`, `ExpertsEach` and
`ExpertsSum` (experts.py), `Rope` and `Attend` (attention.py), `Send` and `Receive` (moves.py). Its
fields are the operands' addresses in SRAM, marked `BOUND`, and its shape: everything else. An
operation's instructions and cycles depend on the shape alone.

Each has `opcode`, `part` (the row of `plan` that its cycles count to), `units` (held from start to
end), and `reads()` and `writes()`: the operands with their regions, in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from enum import StrEnum
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

Region = tuple[int, int]
"""(first byte, bytes) in SRAM."""
Use = tuple[str, Region]
"""An operand's name, and the region of it that is read or written."""
BOUND = {"bound": True}
"""Marks a field that the shape does not have: an address, or a number that is filled in when the
operation's instructions are bound to them."""
WORD = {"word": True}
"""Marks a field that the opcode, or a part's word, gives: the plain form has it there alone."""
PART = {"part": True}
"""Marks a part: a field that is never absent, and a dataclass whose fields are marked, too."""
MXM = tuple(f"MXM{plane}" for plane in range(4))
CHIP_UNITS = (*MXM, "VXM", "SXM")
# operands that no step writes
CONSTANTS = frozenset({"w", "sw", "b", "gamma", "beta", "post", "gq", "gk", "sinks"})


class Opcode(StrEnum):
    """The operations' names."""

    NORM = "norm"  # RMSNorm, then quantise
    LAYER_NORM = "layer_norm"  # LayerNorm, then quantise
    GATHER = "gather"  # join the segments of an all-gather, then quantise
    MATMUL = "matmul"  # weights x activations, dequantised
    ROPE = "rope"  # rotate q and k, where there are tables; quantise q, write the KV cache
    ATTEND = "attend"  # scores, softmax, weighted values, over the whole context bucket
    ADD = "add"  # residual += gathered segments
    SILU = "silu"  # silu(gate) * up
    GEGLU = "geglu"  # gelu_tanh(gate) * up
    CLAMPED_SILU = "clamped_silu"  # silu of a clamped gate, times a clamped up plus one
    ROUTE = "route"  # the chosen experts of each row, and their weights
    EXPERTS_EACH = "experts_each"  # each row times the weights of each of its experts
    EXPERTS_SUM = "experts_sum"  # the rows of each expert times its weights, weighted and summed
    GELU = "gelu"  # of one value, by the error function
    GELU_TANH = "gelu_tanh"  # the same, by its approximation with tanh
    TOPK = "topk"  # the k largest logits and their columns
    SEND = "send"
    RECEIVE = "receive"


class Activation(StrEnum):
    """Functions of a gate: each is the opcode of a `Gate`, and the word of a product's `Gated`."""

    SILU = "silu"  # gate * sigmoid(gate)
    GEGLU = "geglu"  # gelu_tanh(gate)
    CLAMPED_SILU = "clamped_silu"  # g * sigmoid(1.702 g), g = min(gate, 7); up is clamped too, + 1


class Function(StrEnum):
    """Functions of one value, without a gate: each is the opcode of an `Apply`."""

    GELU = "gelu"  # x * (1 + erf(x / sqrt 2)) / 2
    GELU_TANH = "gelu_tanh"  # x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2


D = TypeVar("D")
Getter = Callable[[Any], tuple[Any, ...]]


class _Layout(NamedTuple):
    """What the fields of a dataclass are, by name; `bound` and `plain` in their order."""

    bound: tuple[tuple[str, bool], ...]  # those that are bound, and parts: each with which it is
    plain: tuple[tuple[str, bool], ...]  # those that the plain form has, and parts
    parts: tuple[str, ...]
    optional: tuple[str, ...]  # those that are bound, and may be absent
    shape: Getter  # the values of all that are neither bound nor parts


@lru_cache(maxsize=64)
def _layout(of: type[Any]) -> _Layout:
    marked = [(one.name, one.metadata) for one in fields(of)]
    defaults = {one.name: one.default for one in fields(of)}
    return _Layout(
        bound=tuple(
            (name, "part" in mark) for name, mark in marked if "bound" in mark or "part" in mark
        ),
        plain=tuple((name, "part" in mark) for name, mark in marked if "word" not in mark),
        parts=tuple(name for name, mark in marked if "part" in mark),
        optional=tuple(name for name, mark in marked if "bound" in mark and defaults[name] is None),
        shape=_getter(
            [name for name, mark in marked if "bound" not in mark and "part" not in mark]
        ),
    )


def _getter(names: list[str]) -> Getter:
    """Return what gets a tuple of the values of some fields."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda operation: tuple(getattr(operation, name) for name in names)


def _layout_of(operation: object) -> _Layout:
    return _layout(type(operation))  # type: ignore[arg-type]  # a type is hashable


def shape_of(operation: D) -> D:
    """Return the operation with all that is `BOUND` set to 0: what its cost depends on."""
    changed: dict[str, Any] = {}
    for name, part in _layout_of(operation).bound:
        value = getattr(operation, name)
        if part:
            changed[name] = shape_of(value)
        elif value is not None:
            changed[name] = 0
    return replace(operation, **changed)  # type: ignore[type-var]


Key = tuple[object, ...]
"""What a cost depends on, as a tuple: cheaper to make than the shape, so costs are found by it."""


def shape_key(operation: object) -> Key:
    """Return a tuple that is equal for operations of equal shape, and for no others."""
    of = type(operation)
    layout = _layout(of)  # type: ignore[arg-type]  # a type is hashable
    return (
        of,
        layout.shape(operation),
        *[getattr(operation, name) is None for name in layout.optional],
        *[shape_key(getattr(operation, name)) for name in layout.parts],
    )


def bound_values(operation: object) -> dict[str, int]:
    """Return what is `BOUND`, by name: addresses, and numbers that instructions are given."""
    out: dict[str, int] = {}
    for name, part in _layout_of(operation).bound:
        value = getattr(operation, name)
        if part:
            out |= bound_values(value)
        elif value is not None:
            out[name] = value
    return out


def plain(operation: object) -> dict[str, Any]:
    """Return the values of an operation by name, its parts' beside its own; None is left out.

    This is the form that is hashed and stored. A part gives its `word` under its `role`.
    """
    out: dict[str, Any] = {}
    for name, part in _layout_of(operation).plain:
        value = getattr(operation, name)
        if part:
            if role := getattr(value, "role", None):
                out[role] = value.word
            out |= plain(value)
        elif value is not None:
            out[name] = value
    return out


def described(shape: object) -> str:
    """Return a shape as text, for messages."""
    bound = bound_values(shape)
    return ", ".join(f"{key} {value}" for key, value in plain(shape).items() if key not in bound)
