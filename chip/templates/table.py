"""Every operation's template, cached by what it depends on: opcode, shape and chip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

from chip.ops.cost import key
from chip.ops.operations import MOVES, Args, Opcode, kv_layout
from chip.spec import VECTOR_BYTES, ChipSpec
from chip.templates import attend, attend16, matmul, product16, rope, topk, vector
from chip.templates.builder import LANES
from chip.templates.estimate import ESTIMATES, estimate
from chip.templates.row_passes import SCALES, in_passes, rows_at_once
from chip.templates.template import Template, laid_out
from chip.templates.uses import check

BUILDERS: dict[Opcode, Callable[[Args, ChipSpec], Template]] = {
    Opcode.NORM: vector.norm,
    Opcode.GATHER: vector.gather,
    Opcode.ADD: vector.add,
    Opcode.SILU: vector.silu,
    Opcode.ROPE: rope.rope,
    Opcode.ATTEND: attend.attend,
    Opcode.TOPK: topk.topk,
}


def template(opcode: Opcode, a: Args, spec: ChipSpec) -> Template:
    """Return an operation's template. Raises TemplateError, and ValueError for SEND and RECEIVE."""
    if opcode in MOVES:
        raise ValueError(f"{opcode}: its duration is the link's, not the chip's")
    return _template(*key(opcode, a), spec)


@lru_cache(maxsize=4096)
def _template(opcode: Opcode, shape: tuple[tuple[str, Any], ...], spec: ChipSpec) -> Template:
    with laid_out(opcode):
        return _laid(opcode, dict(shape), spec)


def _laid(opcode: Opcode, a: dict[str, Any], spec: ChipSpec) -> Template:
    if not has_instructions(opcode, a, spec):
        if opcode in ESTIMATES:
            return estimate(opcode, a, spec)
        return replace(BUILDERS[opcode](a, spec), lowered=False)
    found = _build(opcode, a, spec)
    check(f"{opcode} of {', '.join(f'{name} {value}' for name, value in a.items())}", found.asked())
    return found


def _build(opcode: Opcode, a: Args, spec: ChipSpec) -> Template:
    if opcode is Opcode.ATTEND and a["dtype"] == "fp16":
        return attend16.attend16(a, spec)
    if opcode is Opcode.MATMUL:
        build = matmul.matmul if a["dtype"] == "int8" else product16.matmul16
        return in_passes(build, a, spec)
    return BUILDERS[opcode](a, spec)


def has_instructions(opcode: Opcode, a: Args, spec: ChipSpec) -> bool:
    """Tell whether an operation can be lowered; the others' cost is an estimate."""
    if opcode in (Opcode.NORM, Opcode.GATHER):
        return a["dtype"] != "int8" or int(a["rows"]) <= LANES  # scales: one a lane
    if opcode is Opcode.MATMUL:
        most = rows_at_once(spec)  # passes of so few rows would cut vectors of scales
        fits = int(a["rows"]) <= most or most % SCALES == 0
        return fits and (a["dtype"] == "int8" or product16.fits(spec))
    if opcode is Opcode.TOPK:
        return 2 * int(a["k"]) <= LANES
    if opcode in (Opcode.ROPE, Opcode.ATTEND) and kv_layout(a).row_bytes != VECTOR_BYTES:
        return False
    if opcode is Opcode.ATTEND:
        return attend.fits(a, spec) if a["dtype"] == "int8" else attend16.fits(a, spec)
    return True
