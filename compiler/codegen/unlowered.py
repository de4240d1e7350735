"""What is still without instructions: features of operations, and operations, of newer models.

Each costs what operations with instructions would, and a part of their work beside. Such an
estimate can be scheduled and run by the fast executor, but not lowered (`Template.lowered`). A
template that is written for one takes its case away here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from chip.ops.attention import Attend, Rope
from chip.ops.experts import ExpertsEach, ExpertsSum, Route
from chip.ops.product import Activations, Matmul, Plain
from chip.ops.program import Computation
from chip.ops.vector import TopK
from compiler.codegen.core.template import Template
from compiler.codegen.route import fits

Lay = Callable[[Computation], Template]


def unlowered(op: Computation, lay: Lay) -> Template | None:
    """Return the estimate of an operation without instructions; None for one that has some.

    `lay` gives the template of an operation that is like it, and has instructions.
    """
    if isinstance(op, ExpertsEach | ExpertsSum) or (isinstance(op, Route) and not fits(op)):
        return _empty(lay(_alike(op)), _times(op) - 1)
    if isinstance(op, Rope | Attend) and op.ring is not None:  # slots are as many tokens
        return _empty(lay(replace(op, ring=None, context=op.ring)), 0)
    return None


def _empty(like: Template, again: int) -> Template:
    """Return a template's cycles without its instructions: run some times again."""
    return Template(
        placed=(), cycles=like.cycles * (1 + again), needed=like.needed,
        stream_cycles=like.stream_cycles, lowered=False,
    )  # fmt: skip


def _alike(op: Route | ExpertsEach | ExpertsSum) -> Computation:
    """Return the operation that an expert runs; a route is like a pick of each row."""
    if isinstance(op, Route):
        return TopK(k=op.chosen, n=op.experts, x=0, y=0, first_column=0)
    out = "f32" if isinstance(op, ExpertsEach) else "f16"
    scale = None if op.sw is None else 0
    return Matmul(
        rows=op.rows if op.every else 1, k=op.k, n=op.n, dtype=op.dtype, out=out,
        source=Activations(x=0, s=op.s), result=Plain(y=0), w=0, sw=scale, b=op.b,
    )  # fmt: skip


def _times(op: Route | ExpertsEach | ExpertsSum) -> int:
    """Return how often: for each chosen expert of each row, or for every expert."""
    if isinstance(op, Route):
        return op.rows
    return op.experts if op.every else op.rows * op.chosen
