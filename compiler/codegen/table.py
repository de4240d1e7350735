"""Every operation's template, cached by what it depends on: opcode, shape and chip."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from chip.ops.attention import Attend, Rope
from chip.ops.experts import ExpertsEach, ExpertsSum, Route
from chip.ops.opcodes import described, shape_of
from chip.ops.product import Matmul
from chip.ops.program import Computation
from chip.ops.vector import Add, Apply, Gate, Gather, LayerNorm, Norm, TopK
from chip.spec import MODELLED, VECTOR_BYTES, ChipSpec
from compiler.codegen import rope, route, topk, vector
from compiler.codegen.attention import attend, attend16
from compiler.codegen.core.builder import LANES
from compiler.codegen.core.law import obey
from compiler.codegen.core.template import Template, laid_out
from compiler.codegen.core.uses import check
from compiler.codegen.estimate import estimate
from compiler.codegen.products import experts, matmul, product16, streamed
from compiler.codegen.products.row_passes import SCALES, in_passes, rows_at_once
from compiler.codegen.unlowered import is_unlowered, unlowered

FEW_ROWS = 4  # for which planes that share columns are always sooner done
SHARED_ROWS = 32  # for more never: a row takes them two cycles, planes for themselves one


def template(op: Computation, spec: ChipSpec) -> Template:
    """Return an operation's template.

    Raises TemplateError for one that cannot be laid out, or that the machine would refuse.
    """
    shape = shape_of(op)
    check_law(shape, spec)
    return _template(shape, spec)


def laid_out_only(op: Computation, spec: ChipSpec) -> Template:
    """Return an operation's template, for its cost: whether it is lawful is still to be asked.

    Raises TemplateError for one that cannot be laid out.
    """
    return _template(shape_of(op), spec)


@lru_cache(maxsize=4096)
def check_law(shape: Computation, spec: ChipSpec) -> None:
    """Raise TemplateError for a shape whose template the machine would refuse.

    Asked of chips with the floor plan that templates are laid on; profiles have no other.
    """
    found = _template(shape, spec)
    if found.lowered and all(getattr(spec, name) == value for name, value in MODELLED.items()):
        obey(f"{shape.opcode} of {described(shape)}", found, spec)


@lru_cache(maxsize=4096)
def _template(shape: Computation, spec: ChipSpec) -> Template:
    with laid_out(shape.opcode):
        return _laid(shape, spec)


def _laid(shape: Computation, spec: ChipSpec) -> Template:
    if (estimated := unlowered(shape, spec, lambda like: _template(like, spec))) is not None:
        return estimated
    if not has_instructions(shape, spec):
        if isinstance(shape, Matmul | Rope | Attend | TopK):
            return estimate(shape, spec)
        return replace(_build(shape, spec), lowered=False)
    found = _build(shape, spec)
    check(f"{shape.opcode} of {described(shape)}", found.asked())
    return found


def _build(op: Computation, spec: ChipSpec) -> Template:  # a case an operation
    if isinstance(op, Norm):
        return vector.norm(op, spec)
    if isinstance(op, LayerNorm):
        return vector.layer_norm(op, spec)
    if isinstance(op, Gather):
        return vector.gather(op, spec)
    if isinstance(op, Add):
        return vector.add(op, spec)
    if isinstance(op, Gate):
        return vector.gate(op, spec)
    if isinstance(op, Apply):
        return vector.apply(op, spec)
    if isinstance(op, Rope):
        return rope.rope(op, spec)
    if isinstance(op, TopK):
        return topk.topk(op, spec)
    if isinstance(op, Route):
        return route.route(op, spec)
    if isinstance(op, ExpertsEach | ExpertsSum):
        return experts.experts(op, spec)
    if isinstance(op, Attend):
        return (attend.attend if op.dtype == "int8" else attend16.attend16)(op, spec)
    assert isinstance(op, Matmul), op.opcode  # the others are estimates (unlowered.py)
    return _matmul(op, spec)


def _matmul(op: Matmul, spec: ChipSpec) -> Template:
    """Return the shorter of the two ways in which a product of several rows is laid out."""
    shared = matmul.matmul if op.dtype == "int8" else product16.matmul16
    if not streamed.fits(op, spec):
        return in_passes(shared, op, spec)
    if op.rows > SHARED_ROWS or not shares(op, spec):
        return streamed.matmul_rows(op, spec)
    found = shared(op, spec)
    if op.rows <= FEW_ROWS:
        return found
    return min(found, streamed.matmul_rows(op, spec), key=lambda template: template.cycles)


def shares(op: Matmul, spec: ChipSpec) -> bool:
    """Tell whether the planes can share a product's columns."""
    return op.dtype == "int8" or product16.fits(spec)


def has_instructions(op: Computation, spec: ChipSpec) -> bool:
    """Tell whether an operation can be lowered; the others' cost is an estimate."""
    if is_unlowered(op, spec):
        return False
    if isinstance(op, Norm | LayerNorm | Gather):
        return op.dtype != "int8" or op.rows <= LANES  # scales: one a lane
    if isinstance(op, Matmul):
        if streamed.fits(op, spec):
            return True
        most = rows_at_once(spec)  # passes of so few rows would cut vectors of scales
        fits = op.rows <= most or most % SCALES == 0
        return fits and (op.dtype == "int8" or product16.fits(spec))
    if isinstance(op, TopK):
        return 2 * op.k <= LANES
    if isinstance(op, Rope | Attend) and op.layout.row_bytes != VECTOR_BYTES:
        return False
    if isinstance(op, Attend):
        return attend.fits(op, spec) if op.dtype == "int8" else attend16.fits(op, spec)
    return True
