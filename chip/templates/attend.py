"""ATTEND: scores, softmax and weighted values over the whole context bucket, int8.

One row of queries, one packed vector of KV heads (chip/kv.py) at a time. Keys load into the planes
as weights do, tokens as columns; every head's scores stay in an accumulator row. Values are turned
by the SXMs, so that tokens lie along K: the tokens of a window's western runs go to the western
planes, the others to the eastern, 320 tokens of the bucket to one plane of each side. Then each
head has a block of VXM work, in four passes over its tokens: maximum; exponentials and their sum;
weights and their maximum; quantised weights, which go to the planes. Between passes weights lie in
scratch memory. Heads' results meet in ALU registers until a group of 320 is complete.

Numerics: chip/kernels/twin.py. The order of integer sums is free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from chip.floorplan import Role, hops, mem, mxm, sxm
from chip.isa import Read
from chip.issue import Issue, delays
from chip.operand import Stream
from chip.operations import Args, kv_layout
from chip.spec import VECTOR_BYTES, ChipSpec, vectors
from chip.sram import bulk_place
from chip.templates.attention import (
    BLOCK_QUEUE,
    Attention,
    Piece,
)
from chip.templates.beside import one_by_one, side_by_side
from chip.templates.builder import LANES
from chip.templates.softmax import Heads
from chip.templates.template import Placed, Template, aligned


@dataclass(frozen=True, slots=True)
class Beside:
    """What matrix units and cache do for one piece, in every row."""

    attention: Attention
    piece: Piece
    start: int
    rows: int
    period: int

    def issues(self, base: Callable[[str], int]) -> Iterator[Issue]:
        """Yield the cache's Reads and the instructions of MXM and SXM."""
        spec = self.attention.spec
        read = delays(spec)["READ"].d_func
        for row in range(self.rows):
            now = self.start + row * self.period
            for timed in self.piece.timed:
                queue = sxm(timed.plane // 2, BLOCK_QUEUE)
                if timed.role is not None:
                    queue = mxm(timed.plane, timed.role)
                yield Issue(queue, now + timed.cycle, timed.instruction, timed.n)
            for run in self.piece.runs:
                for n in range(run.count):
                    side, number, word = bulk_place(spec, base("kv") + run.vector + n)
                    unit = sxm(side, 0) if run.to_sxm else mxm(2 * side, Role.LOAD)
                    queue = mem(side, number)
                    cycle = now + run.cycle - read - hops(queue, unit, spec)
                    stream = Stream(side == 1, run.lane + n)
                    yield Issue(queue, cycle, Read(address=word, stream=stream))


def attend(a: Args, spec: ChipSpec) -> Template:
    """Attention over the bucket, one head after another; int8."""
    layout = kv_layout(a)
    if a["dtype"] != "int8" or layout.row_bytes != VECTOR_BYTES:
        got = f"{a['head_dim']} {a['dtype']}"
        raise ValueError(f"ATTEND: wanted int8 heads of at most {LANES}, got {got}")
    attention = Heads(a, spec)
    pieces: list[tuple[int, Piece]] = []
    now = 0
    for part in attention.parts:
        piece = attention.scores(part)
        if attention.once:
            attention.values(piece, part, range(len(attention.tokens)), piece.end)
        pieces.append((now, piece))
        now += aligned(piece.end)
        heads = [attention.head(part, head) for head in part.heads]
        starts = side_by_side(heads, spec.vxm_alus) if attention.once else one_by_one(heads)
        pieces += [(now + at, piece) for at, piece in zip(starts, heads, strict=True)]
        now += max(at + aligned(p.end) for at, p in zip(starts, heads, strict=True))
    rows = a["rows"]
    steps = {
        "q": layout.query_bytes(a["heads"]) // VECTOR_BYTES,
        "sq": layout.query_scale_bytes(a["heads"]) // VECTOR_BYTES,
        "y": vectors(a["heads"] * a["head_dim"] * 2),
    }
    return Template(
        placed=tuple(Placed(block=p.block, start=at, n=rows, period=now) for at, p in pieces),
        cycles=rows * now,
        row_vectors=steps,
        streams=tuple(Beside(attention, p, at, rows, now) for at, p in pieces),
    )
