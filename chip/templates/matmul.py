"""MATMUL: x . w, scaled, fp32 or fp16. The timeline is in chip/templates/product.py."""

from __future__ import annotations

from collections.abc import Sequence

from chip.operations import Args, row_bytes
from chip.spec import VECTOR_BYTES, ChipSpec
from chip.templates.product import Product
from chip.templates.template import Placed, Template


def matmul(a: Args, spec: ChipSpec) -> Template:
    """x . w, scaled, fp32 or fp16."""
    product = Product(a, spec)
    feeds, drains = product.feeds(), product.drains
    end = max(p.start + (p.n - 1) * p.period + p.block.end for p in drains)
    fed = product.fed(product.groups[0], 0) - product.feed_delay
    row = row_bytes(a["n"], 4 if a["out"] == "f32" else 2) // VECTOR_BYTES
    return Template(
        placed=(*feeds, *drains),
        cycles=end,
        row_vectors={"x": row_bytes(a["k"], 1) // VECTOR_BYTES, "s": 0, "sw": 0, "y": row},
        needed={"x": (fed, fed), "s": (fed, fed)},
        stream_cycles=_even_stream(drains, end, row) if a["rows"] == 1 else 0,
        streams=(product,),
    )


def _even_stream(drains: Sequence[Placed], end: int, vecs: int) -> int:
    """Return the longest time over which even delivery is never ahead of the groups'."""
    spans = [
        (end - p.start - p.block.end) * (vecs - 1) // (vecs - 1 - p.shift["y"])
        for p in drains if p.shift["y"] < vecs - 1
    ]  # fmt: skip
    return max(0, min(spans, default=0))
