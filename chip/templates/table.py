"""Every operation's template, cached by what it depends on: opcode, shape and chip."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from chip.operations import Args, Opcode
from chip.spec import ChipSpec
from chip.templates import attend, matmul, rope, vector
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
SHAPE = (
    "rows", "hidden", "eps", "k", "n", "dtype", "shares", "heads", "kv_heads", "head_dim",
    "context", "bucket", "kv_of", "out", "first_column",
)  # fmt: skip
"""Arguments that a template may depend on; all others are addresses or the like."""


def template(opcode: Opcode, a: Args, spec: ChipSpec) -> Template:
    """Return an operation's template. Raises ValueError for SEND and RECEIVE."""
    if opcode not in BUILDERS:
        raise ValueError(f"{opcode}: its duration is the link's, not the chip's")
    return _template(opcode, tuple((name, a[name]) for name in SHAPE if name in a), spec)


@lru_cache(maxsize=4096)
def _template(opcode: Opcode, shape: tuple[tuple[str, Any], ...], spec: ChipSpec) -> Template:
    return BUILDERS[opcode](dict(shape), spec)
