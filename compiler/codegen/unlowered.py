"""What is still without instructions: features of operations, and operations, of newer models.

Each costs what operations with instructions would, and a part of their work beside. Such an
estimate can be scheduled and run by the fast executor, but not lowered (`Template.lowered`). A
template that is written for one takes its case away here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from chip.ops.experts import ExpertsEach, ExpertsSum, Route
from chip.ops.product import Activations, Matmul, Plain
from chip.ops.program import Computation
from chip.ops.vector import TopK
from chip.spec import ChipSpec
from compiler.codegen.core.template import Template
from compiler.codegen.estimate import latencies, mxm_pass_cycles, packed_pass_cycles
from compiler.codegen.products import experts
from compiler.codegen.route import fits

Lay = Callable[[Computation], Template]


def is_unlowered(op: Computation, spec: ChipSpec) -> bool:
    """Tell whether an operation is one of these."""
    if isinstance(op, Matmul):
        return op.group is not None
    if isinstance(op, ExpertsEach | ExpertsSum):
        return not experts.fits(op, spec)
    return isinstance(op, Route) and not fits(op)


def unlowered(op: Computation, spec: ChipSpec, lay: Lay) -> Template | None:
    """Return the estimate of an operation without instructions; None for one that has some.

    `lay` gives the template of an operation that is like it, and has instructions.
    """
    if not is_unlowered(op, spec):
        return None
    if isinstance(op, Matmul):
        return _packed(op, spec, lay(replace(op, group=None)))
    assert isinstance(op, Route | ExpertsEach | ExpertsSum), op.opcode
    like = lay(_alike(op))
    return _empty(like, like.cycles * _times(op), like.stream_cycles)


def _packed(op: Matmul, spec: ChipSpec, like: Template) -> Template:
    """Return the estimate of a product with int4 weights, from the same product in int8.

    What differs is what the planes stream. Sums are scaled and added group by group as they leave
    the planes, which the VXM does in the time of the loads, but for the last one.
    """
    assert op.group is not None
    shape = (spec, op.k, op.n, op.rows)
    less = mxm_pass_cycles("int8", *shape) - packed_pass_cycles(*shape, op.group)
    cycles = like.cycles - less + latencies(spec).chain
    return _empty(like, cycles, like.stream_cycles * min(cycles, like.cycles) // like.cycles)


def _empty(like: Template, cycles: int, stream_cycles: int) -> Template:
    """Return cycles without instructions; operands are needed when the like one needs them."""
    return Template(
        placed=(), cycles=cycles, needed=like.needed, stream_cycles=stream_cycles, lowered=False
    )


def _alike(op: Route | ExpertsEach | ExpertsSum) -> Computation:
    """Return the operation that an expert runs; a route is like a pick of each row."""
    if isinstance(op, Route):
        return TopK(k=op.chosen, n=op.experts, x=0, y=0, first_column=0)
    out = "f32" if isinstance(op, ExpertsEach) else "f16"
    scale = None if op.sw is None else 0
    return Matmul(
        rows=op.rows if op.every else 1, k=op.k, n=op.n, dtype=op.dtype, group=op.group,
        out=out, source=Activations(x=0, s=op.s), result=Plain(y=0), w=0, sw=scale, b=op.b,
    )  # fmt: skip


def _times(op: Route | ExpertsEach | ExpertsSum) -> int:
    """Return how often: for each chosen expert of each row, or for every expert."""
    if isinstance(op, Route):
        return op.rows
    return op.experts if op.every else op.rows * op.chosen
