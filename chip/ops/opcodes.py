"""The closed set of scheduled operations, and what every operation has in common.

An operation is a frozen dataclass of its own: `Norm`, `Gather`, `Add`, `Gate` and `TopK`
(chip/ops/vector.py), `Matmul` (product.py), `Rope` and `Attend` (attention.py), `Send` and
`Receive` (moves.py). Its fields are the operands' addresses in SRAM, marked `BOUND`, and its shape:
everything else. An operation's instructions and cycles depend on the shape alone.

Each has `opcode`, `part` (the row of `plan` that its cycles count to), `units` (held from start to
end), and `reads()` and `writes()`: the operands with their regions, in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from enum import StrEnum
from functools import lru_cache
from operator import attrgetter
from typing import Any, TypeVar

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
"""Marks a field that is a dataclass with `BOUND` fields of its own."""
MXM = tuple(f"MXM{plane}" for plane in range(4))
CHIP_UNITS = (*MXM, "VXM", "SXM")
CONSTANTS = frozenset({"w", "sw", "gamma"})  # operands that no step writes


class Opcode(StrEnum):
    """The operations' names."""

    NORM = "norm"  # RMSNorm, then quantise
    GATHER = "gather"  # join the segments of an all-gather, then quantise
    MATMUL = "matmul"  # weights x activations, dequantised
    ROPE = "rope"  # rotate q and k, quantise q, write the KV cache
    ATTEND = "attend"  # scores, softmax, weighted values, over the whole context bucket
    ADD = "add"  # residual += gathered segments
    SILU = "silu"  # silu(gate) * up
    TOPK = "topk"  # the k largest logits and their columns
    SEND = "send"
    RECEIVE = "receive"


class Activation(StrEnum):
    """Functions of a gate: each is the opcode of a `Gate`, and the word of a product's `Gated`."""

    SILU = "silu"  # gate * sigmoid(gate)


D = TypeVar("D")


@lru_cache(maxsize=64)
def _fields(of: type[Any]) -> tuple[tuple[str, bool], ...]:
    """Return the names of a dataclass's fields, each with whether it is `BOUND`."""
    return tuple((one.name, "bound" in one.metadata) for one in fields(of))


@lru_cache(maxsize=64)
def _plain_fields(of: type[Any]) -> tuple[str, ...]:
    """Return the names of the fields that the plain form has under their own names."""
    return tuple(one.name for one in fields(of) if "word" not in one.metadata)


def _fields_of(operation: object) -> tuple[tuple[str, bool], ...]:
    return _fields(type(operation))  # type: ignore[arg-type]  # a type is hashable


def shape_of(operation: D) -> D:
    """Return the operation with all that is `BOUND` set to 0: what its cost depends on."""
    changed: dict[str, Any] = {}
    for name, bound in _fields_of(operation):
        value = getattr(operation, name)
        if is_dataclass(value):
            changed[name] = shape_of(value)
        elif bound and value is not None:
            changed[name] = 0
    return replace(operation, **changed)  # type: ignore[type-var]


Key = tuple[object, ...]
"""What a cost depends on, as a tuple: cheaper to make than the shape, so costs are found by it."""


@lru_cache(maxsize=64)
def _shape_fields(
    of: type[Any],
) -> tuple[Callable[[Any], object] | None, tuple[str, ...], tuple[str, ...]]:
    """Return what gets a dataclass's unbound values, its `BOUND` fields that may be absent, and
    its parts."""
    parts = tuple(one.name for one in fields(of) if "part" in one.metadata)
    names = [n for n, bound in _fields(of) if not bound and n not in parts]  # type: ignore[arg-type]
    optional = tuple(
        one.name for one in fields(of) if "bound" in one.metadata and one.default is None
    )
    return (attrgetter(*names) if names else None), optional, parts


def shape_key(operation: object) -> Key:
    """Return a tuple that is equal for operations of equal shape, and for no others."""
    of = type(operation)
    getter, optional, parts = _shape_fields(of)  # type: ignore[arg-type]  # a type is hashable
    return (
        of,
        None if getter is None else getter(operation),
        *[getattr(operation, name) is None for name in optional],
        *[shape_key(getattr(operation, part)) for part in parts],
    )


def bound_values(operation: object) -> dict[str, int]:
    """Return what is `BOUND`, by name: addresses, and numbers that instructions are given."""
    out: dict[str, int] = {}
    for name, bound in _fields_of(operation):
        value = getattr(operation, name)
        if is_dataclass(value):
            out |= bound_values(value)
        elif bound and value is not None:
            out[name] = value
    return out


def plain(operation: object) -> dict[str, Any]:
    """Return the values of an operation by name, its parts' beside its own; None is left out.

    This is the form that is hashed and stored. A part gives its `word` under its `role`.
    """
    out: dict[str, Any] = {}
    for name in _plain_fields(type(operation)):  # type: ignore[arg-type]  # a type is hashable
        value = getattr(operation, name)
        if is_dataclass(value):
            if role := getattr(value, "role", None):
                out[role] = value.word  # type: ignore[union-attr]
            out |= plain(value)
        elif value is not None:
            out[name] = value
    return out


def described(shape: object) -> str:
    """Return a shape as text, for messages."""
    bound = bound_values(shape)
    return ", ".join(f"{key} {value}" for key, value in plain(shape).items() if key not in bound)
