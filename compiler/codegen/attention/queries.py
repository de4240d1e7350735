"""Queries through the planes that hold keys: from work memory to sums at the VXM.

A quad's heads are fed one after another. Each head's sums leave the accumulators at once. The SXMs
put both sides' tokens in order, one column after another; each head has a stream of its own and
comes a cycle after the head before. So the VXM takes a column of all heads as one operand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chip.floorplan import Role, mxm, sxm
from chip.isa.instructions import ABC, ACC, AluOp, Permute
from chip.isa.issue import Issue
from chip.isa.operands import Group, In, Stream, Tap, group
from chip.ops.scratch import COLUMN
from chip.spec import VECTOR_BYTES, vectors
from compiler.codegen.attention.resources import QUERIES
from compiler.codegen.attention.shape import Attention, Quad, Tile
from compiler.codegen.attention.wires import Wires
from compiler.codegen.core.clock import Clock


@dataclass(slots=True)
class Job:
    """A quad and a tile. `times`: when the last head's part of each pair's first column comes."""

    number: int
    tile: Tile
    quad: Quad
    fed: int = 0  # the first head's cycle at the planes
    queries: tuple[tuple[tuple[int, ...], int], ...] = ()  # (packed vectors, port's cycle)
    scale_ports: tuple[int, ...] = ()
    key_ports: tuple[tuple[int, ...], ...] = ()  # of each pair of columns
    times: tuple[int, ...] = ()
    store: int = 0  # when the maximum leaves for memory

    @property
    def skew(self) -> int:
        return len(self.quad.heads) - 1

    @property
    def last(self) -> int:
        """When the last column has come."""
        return self.time(self.tile.columns - 1)

    def time(self, column: int) -> int:
        """Return when a column has come."""
        return self.times[column // 2] + column % 2


def to_sums(clock: Clock) -> int:
    """Cycles from an activation at the planes to its sums at the SXMs."""
    return clock.of["ABC"] + clock.of["ACC"] + clock.to_mxm - clock.to_sxm


def feed(job: Job, row: int, shape: Attention, wires: Wires) -> Iterator[Issue]:
    """Queries: work memory, past the VXM or through it, both SXMs, planes."""
    clock = wires.clock
    step = shape.layout.query_bytes(len(shape.kv_of)) // VECTOR_BYTES
    for pair, port in job.queries:
        for number, vector in enumerate(pair):
            yield from wires.fetch("q", [row * step + vector], port)
            tap, at = wires.tap("q", row * step + vector), port + clock.fetch
            own = int(not tap.stream.eastward)  # the side that it comes from
            if 1 - own in job.tile.sides():  # it flows on to the other
                yield from _turned(job, vector, 1 - own, (tap,), at, shape, clock)
            if own in job.tile.sides():
                back = group(Stream(own == 1, QUERIES.query), 1)
                copy = In((tap,), "i8")
                yield wires.alu(QUERIES.senders[number], at, AluOp.COPY, copy, out=back)
                yield from _turned(job, vector, own, back, at + clock.of["COPY"], shape, clock)


def _turned(
    job: Job, vector: int, side: int, src: Group, left: int, shape: Attention, clock: Clock
) -> Iterator[Issue]:
    """Turn a query vector that passes the VXM at `left` for each head that it has."""
    there = left + clock.to_sxm
    copied = src[0].stream.number == QUERIES.query
    first = QUERIES.turn_copied if copied else QUERIES.turn_passed
    for i, head in enumerate(job.quad.heads):
        own, spread = shape.queries[head]
        if own == vector:
            leave = job.fed + i - (clock.to_mxm - clock.to_sxm)
            late = leave - there - clock.of["PERMUTE"]
            dst = (Tap(Stream(side == 1, QUERIES.fed), late),)
            turn = Permute(src=src, dst=dst, item=1, map=spread)
            yield Issue(sxm(side, first + i), there, turn)


def through_planes(job: Job, clock: Clock) -> Iterator[Issue]:
    """Queries through the planes; sums through the SXMs, where tokens come in order."""
    tile, of = job.tile, clock.of
    for side in tile.sides():
        plane, width = tile.plane(side), tile.width(side)
        src = group(Stream(side == 0, QUERIES.parts), vectors(4 * width))
        heads = len(job.quad.heads)
        abc = ABC(stream=Stream(side == 1, QUERIES.fed))
        yield Issue(mxm(plane, Role.FEED), job.fed, abc, heads)
        acc = ACC(slot=0, first=True, lanes=width, out=src)
        yield Issue(mxm(plane, Role.DRAIN), job.fed + of["ABC"], acc, heads)
        for vector in tile.vectors:
            if side not in tile.sides(vector):
                continue
            late = [job.time(c) - job.times[0] for c in tile.columns_of(vector)]
            spread = tile.spread(vector, side)
            for i in range(heads):
                dst = tuple(Tap(Stream(side == 0, QUERIES.sums + i), beat) for beat in late)
                turn = Permute(
                    src=src, dst=dst, item=4, lanes=width, out_lanes=COLUMN * len(late),
                    map=spread,
                )  # fmt: skip
                yield Issue(
                    sxm(side, QUERIES.turn_sums + vector), job.fed + to_sums(clock) + i, turn
                )
