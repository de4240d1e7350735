"""MATMUL: x . w, scaled, fp32 or fp16, and what follows it.

The timelines are in compiler/codegen/products/row.py (one row) and
compiler/codegen/products/rows.py (several).
"""

from __future__ import annotations

from collections.abc import Sequence

from chip.ops.product import AddTo, Matmul, NormFirst
from chip.ops.rows import row_bytes
from chip.spec import VECTOR_BYTES, ChipSpec
from compiler.codegen.core.template import Placed, Template, even_stream
from compiler.codegen.products import row, rows
from compiler.codegen.products.prologue import arrivals
from compiler.codegen.products.shares import ALONE, Registers, Share


def matmul(op: Matmul, spec: ChipSpec) -> Template:
    """x . w, scaled, fp32 or fp16."""
    return one_row(op, spec) if op.rows == 1 else _rows(op, spec)


def _rows(op: Matmul, spec: ChipSpec) -> Template:
    product = rows.lay_out(op, spec)
    fed = product.loads[0].fed(0) - product.lead
    steps = {"x": row_bytes(op.k, 1) // VECTOR_BYTES, "s": 0, "sw": 0, "b": 0}
    return Template(
        placed=(*product.feeds(), *product.drains),
        cycles=product.end,
        row_vectors={**steps, "y": row_bytes(op.n, op.out_bytes) // VECTOR_BYTES},
        needed={"x": (fed, fed), "s": (fed, fed)},
        streams=(product,),
    )


def one_row(
    op: Matmul, spec: ChipSpec, share: Share | None = None, scales: int = 1,
    registers: Registers = ALONE,
) -> Template:  # fmt: skip
    """x . w of one row. `share`: of a weighted sum; `scales`: rows that share a vector of these."""
    product = row.lay_out(op, spec, share, scales, registers)
    drains = product.drains
    end = max(p.start + p.block.end for p in drains)
    written = share.out if share else "r" if isinstance(op.result, AddTo) else "y"
    ready = _ready(drains, written)
    needed: dict[str, tuple[int, int]] = {}
    if product.prologue is None:
        first, last = (product.filled[n] - product.clock.feed for n in (0, -1))
        needed = {"x": (first, last), "s": (first, first)}
    source, pace = op.source, op.links.pace
    if isinstance(source, NormFirst) and source.arrives is not None:
        needed["src"] = arrivals(source.arrives, op.k)
    if pace is not None:
        begun = max(at - pace * v for v, at in enumerate(ready))
        end = max(end, begun + pace * (len(ready) - 1))
    return Template(
        placed=(*product.feeds(), *drains),
        cycles=end,
        needed=needed,
        stream_cycles=even_stream(ready, end),
        streams=(product,),
    )


def _ready(drains: Sequence[Placed], operand: str) -> list[int]:
    """Return the cycles from which each vector of the result can be read."""
    ready = {}
    for placed in drains:
        for access in placed.block.accesses:
            if access.write and access.ref.operand == operand:
                first = access.ref.vector + placed.shift[operand]
                for n in range(access.ref.count):
                    ready[first + n] = (
                        placed.start + access.cycle + access.beats[n // access.wide] + 2
                    )
    return [ready[v] for v in range(len(ready))]
