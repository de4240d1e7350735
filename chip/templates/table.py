"""Every operation's template, cached by what it depends on: opcode, shape and chip."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from chip.cost import key
from chip.operations import Args, Opcode, kv_layout
from chip.spec import VECTOR_BYTES, ChipSpec
from chip.templates import attend, matmul, rope, vector
from chip.templates.estimate import estimate
from chip.templates.template import Template

BUILDERS: dict[Opcode, Callable[[Args, ChipSpec], Template]] = {
    Opcode.NORM: vector.norm,
    Opcode.GATHER: vector.gather,
    Opcode.MATMUL: matmul.matmul,
    Opcode.ADD: vector.add,
    Opcode.SILU: vector.silu,
    Opcode.ROPE: rope.rope,
    Opcode.ATTEND: attend.attend,
}


def template(opcode: Opcode, a: Args, spec: ChipSpec) -> Template:
    """Return an operation's template. Raises ValueError for SEND and RECEIVE."""
    if opcode not in BUILDERS and opcode is not Opcode.TOPK:
        raise ValueError(f"{opcode}: its duration is the link's, not the chip's")
    return _template(*key(opcode, a), spec)


@lru_cache(maxsize=4096)
def _template(opcode: Opcode, shape: tuple[tuple[str, Any], ...], spec: ChipSpec) -> Template:
    a = dict(shape)
    if not has_instructions(opcode, a, spec):
        return estimate(opcode, a, spec)
    return BUILDERS[opcode](a, spec)


def has_instructions(opcode: Opcode, a: Args, spec: ChipSpec) -> bool:
    """Tell whether an operation has a template; the others' cost is an estimate."""
    if opcode in (Opcode.ROPE, Opcode.ATTEND):
        return bool(a["dtype"] == "int8") and kv_layout(a).row_bytes == VECTOR_BYTES
    if opcode is Opcode.MATMUL:
        return bool(a["dtype"] == "int8") and 2 * int(a["rows"]) <= spec.mxm_accumulator_rows
    return opcode is not Opcode.TOPK
