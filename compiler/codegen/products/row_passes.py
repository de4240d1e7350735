"""Products of more rows than the accumulators hold twice: one pass of rows after another.

Sums of one group of columns leave while the next group is summed, so that a pass has half of a
plane's accumulator rows. Each pass loads the weights anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from chip.isa.issue import Issue
from chip.ops.product import Matmul
from chip.spec import VECTOR_BYTES, ChipSpec
from compiler.codegen.core.control import Bulk, Part
from compiler.codegen.core.template import Placed, Stream, Template, parts_of

SCALES = VECTOR_BYTES // 4  # rows whose scales share a vector


@dataclass(frozen=True, slots=True)
class Later:
    """A stream of instructions, so many cycles later."""

    stream: Stream
    cycles: int

    def parts(self, base: Callable[[str], int]) -> Iterator[Part]:
        """Yield the parts, so many cycles later."""
        for starts, issues in parts_of(self.stream, base):
            yield Part([start + self.cycles for start in starts], issues)

    def issues(self, base: Callable[[str], int]) -> Iterator[Issue | Bulk]:
        for issue in self.stream.issues(base):
            yield issue.moved(self.cycles)


def rows_at_once(spec: ChipSpec) -> int:
    """Return how many rows a pass takes: whole vectors of scales, if there is room for them."""
    most = spec.mxm_accumulator_rows // 2
    return most // SCALES * SCALES or most


def in_passes(
    build: Callable[[Matmul, ChipSpec], Template], op: Matmul, spec: ChipSpec
) -> Template:  # fmt: skip
    """Return a product's template, built for as many rows at a time as fit."""
    rows, most = op.rows, rows_at_once(spec)
    if rows <= most:
        return build(op, spec)
    placed: list[Placed] = []
    streams: list[Stream] = []
    at, needed = 0, dict[str, tuple[int, int]]()
    for first in range(0, rows, most):
        part = build(replace(op, rows=min(most, rows - first)), spec)
        moved = {name: first * step for name, step in part.row_vectors.items()}
        moved["s"] = first // SCALES
        for block in part.placed:
            shift = {name: block.shift.get(name, 0) + more for name, more in moved.items()}
            placed.append(replace(block, start=at + block.start, shift=shift))
        streams += [Later(stream, at) for stream in part.streams]
        needed = needed or part.needed
        at += part.cycles
    return replace(
        part, placed=tuple(placed), streams=tuple(streams), cycles=at, needed=needed,
        stream_cycles=0,
    )  # fmt: skip
