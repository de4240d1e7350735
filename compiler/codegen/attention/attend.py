"""ATTEND: scores, softmax and weighted values over the whole context bucket, int8.

A batch of rows goes through five passes, each over all heads:

1. scores Q.K and their maxima (compiler/codegen/attention/scores.py);
2. exponentials of score less row maximum, and their sums (softmax);
3. weights, exponential x sum reciprocal x value scale, and the largest weight (weights, `Peaks`);
4. the same weights, quantised, which multiply the values: P.V (weights, `Feeds`);
5. sums of P.V, scaled and rounded (results).

Between the first two is one more where scores are capped, or a row sees a window (bends).

Between passes a block for every quad combines the lanes of what is known of each head: row maximum,
sum reciprocal, scale of the weights. Values are transposed and loaded where no pass reads scratch
memory. A pass is a list of jobs with their times; instructions are made when a template is bound.
Numerics: chip/kernels/twin.py. The order of integer sums and of maxima is free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from chip.errors import TemplateError
from chip.isa.instructions import AluOp
from chip.isa.issue import Issue
from chip.ops.attention import Attend
from chip.ops.cost import C2C_TURN
from chip.ops.scratch import COLUMN, QUAD
from chip.spec import VECTOR_BYTES, ChipSpec, vectors
from compiler.codegen.attention import many
from compiler.codegen.attention.bends import Bends
from compiler.codegen.attention.quarters import lanes_within
from compiler.codegen.attention.resources import LANE_NUMBERS
from compiler.codegen.attention.results import Results
from compiler.codegen.attention.scores import Scores
from compiler.codegen.attention.shape import Attention, Quad, Tile, check_ring
from compiler.codegen.attention.softmax import Exponentials
from compiler.codegen.attention.tiles import AHEAD, Planes, load_issues
from compiler.codegen.attention.tiles import Load as TileLoad
from compiler.codegen.attention.weights import Feeds, Peaks
from compiler.codegen.attention.wires import Ports, VxmOnly, Wires
from compiler.codegen.core.builder import Block
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.control import Bulk, Part
from compiler.codegen.core.parts import LANES, Load, Node, Ref
from compiler.codegen.core.reductions import lane_max, lane_sum
from compiler.codegen.core.template import Placed, Template, aligned, even_stream, row_block
from compiler.codegen.core.uses import Uses, clash, of_issues, of_nodes, together
from compiler.codegen.vector import scale_factor

Fill = Callable[[Block, int, int | None], None]
"""Builds a block by the tiles of which there are maxima, and where sinks are among what is known"""
Pass = Scores | Bends | Exponentials | Peaks | Feeds | Results


def _known(which: int) -> Ref:
    """Where the numbers of a quad's heads are: maximum or sum reciprocal, factor, scale."""
    return Ref("stats", 4 * which, 4)


def _largest(b: Block, tiles: int) -> Node:
    """Load the maxima of all tiles; return the largest."""
    node = b.alu(AluOp.COPY, Load(Ref("stats", 0, 4), "f32"))
    for tile in range(1, tiles):
        node = b.alu(AluOp.MAX, Load(Ref("stats", 4 * tile, 4), "f32"), node)
    return node


def _row_maxima(b: Block, tiles: int, sink: int | None) -> None:
    """The row maximum of every head; of its sink, less the maximum, the exponential is kept."""
    peak = lane_max(b, _largest(b, tiles), COLUMN)
    if sink is not None:
        peak = b.alu(AluOp.MAX, peak, Load(_known(sink), "f32"))
        below = b.alu(AluOp.SUB, Load(_known(sink), "f32"), peak)
        b.alu(AluOp.EXP, below, out=_known(sink))
    b.alu(AluOp.COPY, peak, out=_known(0))


def _sum_reciprocals(b: Block, _: int, sink: int | None) -> None:
    """The reciprocal of every head's sum of exponentials, its sink's too: rsqrt twice."""
    total = lane_sum(b, b.alu(AluOp.COPY, Load(_known(0), "f32")), COLUMN)
    if sink is not None:
        total = b.alu(AluOp.ADD, total, Load(_known(sink), "f32"))
    root = b.alu(AluOp.RSQRT, total)
    b.alu(AluOp.MUL, root, root, out=_known(0))


def _scales(b: Block, _: int, __: int | None) -> None:
    """Factor and scale of every head's weights."""
    factor, scale = scale_factor(b, lane_max(b, b.alu(AluOp.COPY, Load(_known(1), "f32")), COLUMN))
    b.alu(AluOp.COPY, factor, out=_known(1))
    b.alu(AluOp.COPY, scale, out=_known(2))


@lru_cache(maxsize=64)
def _block(
    fill: Fill, tiles: int, sink: int | None, quads: int, spec: ChipSpec
) -> Block:  # fmt: skip
    """Build the block of one of so many quads: from what one pass left to what the next needs."""

    def build(_: int, interval: int) -> Block:
        b = Block(spec, pinned=frozenset({LANE_NUMBERS.lane}), interval=interval)
        fill(b, tiles, sink)
        return b

    return row_block(build, quads)


@lru_cache(maxsize=64)
def _sink_block(heads: tuple[int, ...], sink: int | None, count: int, spec: ChipSpec) -> Block:
    """Bring sinks of a quad's heads, of so many, to its lanes."""
    assert sink is not None
    b = Block(spec, pinned=frozenset({LANE_NUMBERS.lane}))
    lanes = tuple(head for head in heads for _ in range(COLUMN))
    at, operand = b.through_sxm(Ref("sinks", 0, vectors(4 * count)), lanes, 4, count)
    b.alu(AluOp.COPY, operand, at=at, out=_known(sink))
    return b.finish()


def _ports(block: Block) -> tuple[int, list[int]]:
    """Return a block's first read and all cycles at which it takes the work slices' ports."""
    cycles = [
        (block.issue_cycle(access, 0, beat), access.write)
        for access in block.accesses for beat in access.beats
    ]  # fmt: skip
    return min(at for at, write in cycles if not write), [at for at, _ in cycles]


def _values(
    waiting: list[Tile], shape: Attention, planes: Planes, departure: int
) -> tuple[list[TileLoad], int]:
    """Load the next tiles of values; return also when the ways to the planes are free again."""
    loads, free = [], departure
    for tile in waiting[:AHEAD]:
        load, free = planes.values(shape, tile, free)
        loads.append(load)
    del waiting[:AHEAD]
    return loads, free


class Batch:
    """When everything of one batch of rows happens; cycles from the batch's start."""

    def __init__(self, shape: Attention, clock: Clock) -> None:
        self.shape, self.clock, self._vxm = shape, clock, VxmOnly(clock)
        self.uses: list[Uses] = []
        self.reductions: list[tuple[Block, int]] = []
        self.sinks: list[tuple[Block, Quad, int]] = []
        self.loads: list[TileLoad] = []
        self.passes: list[Pass] = []

    @classmethod
    def lay_out(cls, shape: Attention, clock: Clock) -> Batch:
        """Place pass after pass; values load between passes, where none reads scratch memory."""
        batch, ports, planes = cls(shape, clock), Ports(), Planes(clock)
        batch._bring_sinks(ports)
        scores = Scores.lay_out(shape, clock, ports, planes)
        batch.loads += scores.loads
        scored: Scores | Bends = scores
        if shape.bent:
            batch.uses.append(batch._asked(scores))
            batch.passes.append(scores)
            start = scores.left + clock.after_outward
            scored = Bends.lay_out(shape, clock, ports, start)
        left, waiting = scored.left, list(shape.tiles)
        ready = batch._reduce(_row_maxima, scored, ports)
        loads, free = _values(waiting, shape, planes, left)
        powers = Exponentials.lay_out(shape, clock, ports, max(ready, free + clock.after_outward))
        ready = batch._reduce(_sum_reciprocals, powers, ports)
        peaks = Peaks.lay_out(shape, clock, ports, ready)
        ready = batch._reduce(_scales, peaks, ports)
        feeds = Feeds.begin(shape, clock, ports, ready)
        while loads:
            batch.loads += loads
            for load in loads:
                feeds.tile(load, planes, ready)
            loads, free = _values(waiting, shape, planes, feeds.jobs[-1].last + clock.after_inward)
            ready = free + clock.after_outward
        results = Results.lay_out(shape, clock, ports, feeds)
        batch.uses += [batch._asked(one) for one in (feeds, results)]
        batch.passes += [scored, powers, peaks, feeds, results]
        return batch

    @property
    def results(self) -> Results:
        """The last pass."""
        last = self.passes[-1]
        assert isinstance(last, Results)
        return last

    @property
    def cycles(self) -> int:
        """Cycles from one batch to the next."""
        return aligned(self.results.end)

    def _bring_sinks(self, ports: Ports) -> None:
        """Place a block that brings its sinks for every quad, before anything else is read."""
        at, end, shape = 0, 0, self.shape
        for quad in shape.quads if shape.sinks else ():
            block = _sink_block(quad.quarters, shape.sink, len(shape.kv_of), shape.spec)
            self.sinks.append((block, quad, at))
            end = at + block.end
            at += block.initiation_interval(C2C_TURN)
        ports.taken.update(range(end))

    def _asked(self, one: Pass) -> Uses:
        """Return what a pass asks of the ALUs."""
        what, spec, each = type(one).__name__, self.shape.spec, one.each(self._vxm, 0)
        uses = [use for job in each for use in of_issues(what, job, spec, (LANE_NUMBERS.lane,))]
        return together(what, uses)

    def lanes(self, end: int) -> Uses:
        """Return what lanes' numbers ask of the ALUs, kept until the end of all batches."""
        uses = of_issues("lanes", lanes_within(self._vxm), self.shape.spec)
        *before, last = sorted(uses, key=lambda use: (use.alu == LANE_NUMBERS.lane, use.landed))
        return together("lanes", [*before, last._replace(last=end)])

    def _reduce(
        self, fill: Fill, before: Scores | Bends | Exponentials | Peaks,
        ports: Ports,
    ) -> int:  # fmt: skip
        """Place a block for every quad; return when all are done.

        Quads that are stored may begin while the pass before still works on later ones, as soon as
        they meet none of what it has of ALUs, ways and ports.
        """
        quads = len(self.shape.quads)
        tiles = 1 if self.shape.bent else self.shape.scratch.tiles  # of which there are maxima
        block = _block(fill, tiles, self.shape.sink, quads, self.shape.spec)
        step = block.interval or aligned(block.end)
        turns = step * np.arange(quads)
        reads, used = _ports(block)
        held, asked = self._asked(before), of_nodes(fill.__name__, block.nodes)
        self.uses.append(held)

        def free(start: int) -> bool:
            alone = start + asked.table[1].min() > held.table[3].max()
            return all(ports.free(int(start + turn) + at) for turn in turns for at in used) and (
                alone or clash([held, replace(asked, starts=start + turns)]) is None
            )

        start = before.came + 1 - min(step.cycle for step in block.passes)
        start = max(start, *(at - step * n - reads for n, at in enumerate(before.stored)))
        while not free(start):
            start += 1
        ports.taken.update(int(start + turn) + at for turn in turns for at in used)
        self.reductions.append((block, start))
        return start + step * (quads - 1) + block.end

    def placed(self, start: int, rows: int) -> Iterator[Placed]:
        """Yield the blocks of a batch of `rows` rows."""
        for block, quad, at in self.sinks:
            if quad.row < rows:
                yield Placed(block=block, start=start + at, row=quad.number)
        quads = sum(quad.row < rows for quad in self.shape.quads)
        for block, at in self.reductions:
            step = block.interval or aligned(block.end)
            yield Placed(block=block, start=start + at, n=quads, interval=step)


@dataclass(frozen=True, slots=True)
class Passes:
    """All batches' instructions outside blocks."""

    batch: Batch
    starts: tuple[int, ...]

    def issues(self, base: Callable[[str], int]) -> Iterator[Issue | Bulk]:
        """Yield reads, writes and instructions at operands' addresses."""
        wires = Wires(self.batch.clock, base)
        yield from lanes_within(wires)
        for number, start in enumerate(self.starts):
            for one in self._batch(number, wires):
                yield one.moved(start)

    def parts(self, base: Callable[[str], int]) -> Iterator[Part]:
        """Yield lanes' numbers, and the first batch: no other has more rows."""
        wires = Wires(self.batch.clock, base)
        yield Part((0,), lanes_within(wires))
        yield Part(self.starts, self._batch(0, wires))

    def _batch(self, number: int, wires: Wires) -> Iterator[Issue | Bulk]:
        batch, shape = self.batch, self.batch.shape
        for load in batch.loads:
            yield from load_issues(load, shape, batch.clock)
        for one in batch.passes:
            for job in one.each(wires, number * shape.scratch.batch):
                yield from job


def fits(op: Attend, spec: ChipSpec) -> bool:
    """Tell whether every head of a batch has an accumulator row."""
    kept = op.kept
    return QUAD * len(kept.quads) * kept.batch <= spec.mxm_accumulator_rows


def attend(op: Attend, spec: ChipSpec) -> Template:
    """Attention over the bucket; int8: the shorter of two ways in which many rows are laid out."""
    found = in_batches(op, spec)
    plain = op.window is None and op.cap is None and op.sinks is None
    if not plain or not many.fits(op, spec):
        return found
    try:
        other = many.attend_many(op, spec)
    except (TemplateError, OverflowError):
        return found
    return min(found, other, key=lambda template: template.cycles)


def in_batches(op: Attend, spec: ChipSpec) -> Template:
    """Attention in batches of rows, pass after pass."""
    check_ring(op)
    shape, clock = Attention(op, spec), Clock(spec)
    if op.dtype != "int8" or shape.layout.row_bytes != VECTOR_BYTES:
        got = f"{op.head_dim} {op.dtype}"
        raise ValueError(f"ATTEND: wanted int8 heads of at most {LANES}, got {got}")
    batch, rows = Batch.lay_out(shape, clock), shape.scratch.batch
    starts = tuple(n * batch.cycles for n in range(-(-shape.rows // rows)))
    placed = [
        one
        for n, start in enumerate(starts)
        for one in batch.placed(start, min(rows, shape.rows - n * rows))
    ]
    end = starts[-1] + batch.results.end
    ready = [
        start + at
        for n, start in enumerate(starts)
        for row, at in batch.results.ready()
        if n * rows + row < shape.rows
    ]
    return Template(
        placed=tuple(placed),
        cycles=end,
        row_vectors={"stats": shape.scratch.known},
        stream_cycles=even_stream(ready, end),
        streams=(Passes(batch, starts),),
        uses=(batch.lanes(end), *(replace(one, starts=np.array(starts)) for one in batch.uses)),
    )
