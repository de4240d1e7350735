"""MATMUL: x . w, scaled, fp32 or fp16, and what follows it.

The timelines are in chip/templates/row.py (one row) and chip/templates/product.py (several).
"""

from __future__ import annotations

from chip.ops.operations import Args, row_bytes
from chip.spec import VECTOR_BYTES, ChipSpec
from chip.templates.product import Product
from chip.templates.prologue import arrivals
from chip.templates.row import RowProduct
from chip.templates.template import Placed, Template, even_stream


def matmul(a: Args, spec: ChipSpec) -> Template:
    """x . w, scaled, fp32 or fp16."""
    return _row(a, spec) if a["rows"] == 1 else _rows(a, spec)


def _rows(a: Args, spec: ChipSpec) -> Template:
    product = Product(a, spec)
    drains = product.drains
    end = max(p.start + (p.n - 1) * p.period + p.block.end for p in drains)
    fed = product.fed(product.groups[0], 0) - product.feed_delay
    row = row_bytes(a["n"], 4 if a["out"] == "f32" else 2) // VECTOR_BYTES
    return Template(
        placed=(*product.feeds(), *drains),
        cycles=end,
        row_vectors={"x": row_bytes(a["k"], 1) // VECTOR_BYTES, "s": 0, "sw": 0, "y": row},
        needed={"x": (fed, fed), "s": (fed, fed)},
        streams=(product,),
    )


def _row(a: Args, spec: ChipSpec) -> Template:
    product = RowProduct(a, spec)
    drains = product.drains
    end = max(p.start + p.block.end for p in drains)
    ready = _ready(drains, "r" if a.get("epilogue") == "add" else "y")
    needed: dict[str, tuple[int, int]] = {}
    if product.prologue is None:
        first, last = (product.filled[n] - product.feed_delay for n in (0, -1))
        needed = {"x": (first, last), "s": (first, first)}
    if "arrives" in a:
        needed["src"] = arrivals(a)
    if "pace" in a:
        begun = max(at - a["pace"] * v for v, at in enumerate(ready))
        end = max(end, begun + a["pace"] * (len(ready) - 1))
    return Template(
        placed=(*product.feeds(), *drains),
        cycles=end,
        needed=needed,
        stream_cycles=even_stream(ready, end),
        streams=(product,),
    )


def _ready(drains: list[Placed], operand: str) -> list[int]:
    """Return the cycles from which each vector of the result can be read."""
    ready = {}
    for placed in drains:
        for access in placed.block.accesses:
            if access.write and access.ref.operand == operand:
                first = access.ref.vector + placed.shift[operand]
                for n in range(access.ref.count):
                    ready[first + n] = placed.start + access.cycle + access.beats[n // 2] + 2
    return [ready[v] for v in range(len(ready))]
