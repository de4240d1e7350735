"""The cost model of a chip: what an operation costs is the length of its template."""

from __future__ import annotations

from functools import partial

from chip.errors import TemplateError
from chip.ops.cost import Cost, CostModel
from chip.ops.opcodes import described
from chip.ops.program import Computation
from chip.spec import ChipSpec
from compiler.codegen.table import laid_out_only


def cost_model(spec: ChipSpec) -> CostModel:
    """Return the costs of operations on a chip, worked out as they are asked for."""
    return CostModel(spec=spec, build=partial(_cost, spec))


def _cost(spec: ChipSpec, op: Computation) -> Cost:
    try:
        built = laid_out_only(op, spec)
    except TemplateError as error:
        raise TemplateError(f"{op.opcode.name} of {described(op)}: {error}") from None
    return Cost(built.cycles, built.stream_cycles, built.needed)
