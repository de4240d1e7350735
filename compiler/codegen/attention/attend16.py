"""ATTEND in fp16: scores, softmax and weighted values, for a batch of rows at a time.

A cached vector holds several heads' keys or values of a token, 160 fp16 values. Scores: 320 tokens
are the columns of a tile, runs of 16 in the pair of planes of their hemisphere; a query is the
first half of an activation, moved to its KV head's lanes with zeros elsewhere, and zeros are the
second. The softmax of one head keeps scores, exponentials and weights in scratch. Values: 160
tokens are the lanes of half a tile, turned by the eastern SXM for the eastern pair, so that western
ones cross the chip. Numerics: chip/kernels/twin.py, attention_f16.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

from chip.floorplan import Queue, Role, alu, hops, mem, mxm, sxm
from chip.isa.instructions import ABC, ACC, IW, LW, Permute, Transpose
from chip.isa.issue import Issue, delays
from chip.isa.operands import Stream, group
from chip.ops.attention import Attend
from chip.ops.kv import WINDOW_VECTORS
from chip.ops.rows import row_bytes
from chip.ops.scratch import ITEM
from chip.spec import VECTOR_BYTES, ChipSpec, vectors
from chip.sram import RUN
from compiler.codegen.attention.blocks16 import (
    HALF,
    query_block,
    result_block,
    score_block,
    softmax_block,
    weight_block,
    zeros_block,
)
from compiler.codegen.attention.resources import KEYS16, VALUES16
from compiler.codegen.core.builder import C2C_TURN, LANES, Block, Ref
from compiler.codegen.core.control import Control, Fetch
from compiler.codegen.core.template import Placed, Template, aligned, row_block
from compiler.codegen.products.resources import FEED, SUMS16

PAIR_COLUMNS = WINDOW_VECTORS // 2  # tokens of a window that a pair of planes has
ZEROS = 0  # activation slot
MOST_OVERLAPPED = 8  # chunks; of more, a head alone fills the VXM


class Query(NamedTuple):
    """A head of one row of a batch."""

    row: int
    head: int


class _Batch:
    """Lays out a batch of rows: what is placed, fetched and issued, and `at`, until when."""

    def __init__(self, op: Attend, spec: ChipSpec, rows: int) -> None:
        self.rows, self.kv_of = rows, op.kv_of
        self.op, self.spec, self.delay, self.layout = op, spec, delays(spec), op.layout
        self.per, self.dim = self.layout.heads_per_group, op.head_dim
        self.chunks = -(-op.bucket // LANES)
        self.to_mxm = hops(alu(0), mxm(0, Role.LOAD), spec)
        permuted = self.delay["ACC"].d_func + self.delay["PERMUTE"].d_func
        self.drain_delay = permuted + self.to_mxm  # from accumulators through the SXM to the VXM
        self.placed: list[Placed] = []
        self.fixed: list[Issue] = []
        self.fetches: list[Fetch] = []
        self.at = 0

    @classmethod
    def lay_out(cls, op: Attend, spec: ChipSpec, rows: int) -> _Batch:
        """Place queries and scores group by group, the softmax, values group by group, results."""
        batch = cls(op, spec, rows)
        every = [Query(row, head) for row in range(rows) for head in range(len(op.kv_of))]
        groups = sorted({head // batch.per for head in op.kv_of})
        of = {g: [q for q in every if op.kv_of[q.head] // batch.per == g] for g in groups}
        batch._zeros()
        for g in groups:
            batch._queries(of[g])
            for chunk in range(batch.chunks):
                batch._scores(g, of[g], chunk)
        batch._softmax(every)
        for g in groups:
            for half in range(2 * batch.chunks):
                batch._values(g, of[g], half)
        batch._results()
        return batch

    def _issue(self, queue: Queue, cycle: int, instruction: object, n: int = 1, d: int = 1) -> None:
        self.fixed.append(Issue(queue, cycle, instruction, n, d))  # type: ignore[arg-type]

    def _place(self, block: Block, start: int, row: int = 0, **shift: int) -> None:
        self.placed.append(Placed(block=block, start=start, n=1, row=row, shift=shift))

    def _lane(self, head: int) -> int:
        """Return the first lane of a query head's KV head."""
        return self.kv_of[head] % self.per * self.layout.pitch

    def _number(self, query: Query) -> int:
        return query.row * len(self.kv_of) + query.head

    def _scratch(self, query: Query, chunk: int) -> int:
        return ITEM * (self._number(query) * self.chunks + chunk)

    # -- activations

    def _fill(self, block: Block, start: int, slot: int) -> None:
        """Let what a block's first instruction gives go to a slot of both pairs of planes."""
        arrive = start + block.nodes[0].done + self.to_mxm
        for pair in (0, 1):
            fill = ABC(stream=Stream(pair == 1, FEED.stream), slot=slot)
            self._issue(mxm(2 * pair, Role.FEED), arrive, fill)

    def _zeros(self) -> None:
        block = zeros_block(self.spec)
        self._place(block, self.at)
        self._fill(block, self.at, ZEROS)
        self.at += aligned(block.end)

    def _queries(self, queries: list[Query]) -> None:
        """Bring queries to the planes, each in the lanes of its KV head: slots 1 and up."""
        blocks = {head: self._query_block(head) for head in dict.fromkeys(q.head for q in queries)}
        for i, query in enumerate(queries):
            block = blocks[query.head]
            self._place(block, self.at, query.row)
            self._fill(block, self.at, 1 + i)
            last = i == len(queries) - 1
            self.at += aligned(block.end) if last else block.initiation_interval(C2C_TURN)

    def _query_block(self, head: int) -> Block:
        place, own = head % self.per * self.layout.pitch, self._lane(head)
        spread = [None] * own + [place + d for d in range(self.dim)]
        return query_block(self.spec, Ref("q", head // self.per, 1), tuple(spread))

    # -- scores

    def _scores(self, g: int, queries: list[Query], chunk: int) -> None:
        """Multiply up to 320 tokens' keys by every query of a group."""
        bucket, n = self.op.bucket, len(queries)
        windows = -(-min(LANES, bucket - chunk * LANES) // WINDOW_VECTORS)
        first = self.layout.head_offset(g * self.per, value=False) // VECTOR_BYTES + LANES * chunk
        loaded = self.at + self.delay["READ"].d_func + self.to_mxm
        fed = loaded + windows + 1
        summed = fed + self.delay["ABC"].d_func
        for pair in (0, 1):
            load, feed, acc = (mxm(2 * pair, role) for role in Role)
            for run in range(2 * windows):
                token = first + RUN * (2 * run + pair)
                stream = Stream(pair == 1, KEYS16.stream + run % 2 * RUN)
                self.fetches.append(Fetch(load, loaded + run // 2, token, stream))
            weights = LW(
                stream=Stream(pair == 1, KEYS16.stream),
                count=PAIR_COLUMNS,
                column=0,
                step=PAIR_COLUMNS,
            )
            self._issue(load, loaded, weights, windows)
            self._issue(feed, fed - 1, IW(columns=PAIR_COLUMNS * windows))
            for half, activation in enumerate(
                (ABC(slot=1, step=1, fp16=True), ABC(slot=ZEROS, fp16=True))
            ):
                self._issue(feed, fed + half, activation, n, 2)
                add = ACC(slot=0, step=1, first=True, half=half)
                self._issue(acc, summed + half, add, n, 2)
        block = score_block(self.spec, self.dim, chunk)
        pace = block.initiation_interval(C2C_TURN)
        start = aligned(summed + 2 * n + self.drain_delay)
        for i, query in enumerate(queries):
            scratch = self._scratch(query, chunk)
            self._place(block, start + i * pace, query.row, scratch=scratch)
        for pair in (0, 1):
            self._drain_scores(pair, windows, start - self.drain_delay, n, pace)
        self.at = start + (n - 1) * pace + aligned(block.end)

    def _drain_scores(self, pair: int, windows: int, at: int, n: int, pace: int) -> None:
        lanes = PAIR_COLUMNS * windows
        out = group(Stream(pair == 0, SUMS16.left), vectors(4 * lanes))
        acc = ACC(slot=0, step=1, first=False, half=1, product=False, lanes=lanes, out=out)
        self._issue(mxm(2 * pair, Role.DRAIN), at, acc, n, pace)
        spread = tuple(
            token // (2 * RUN) * RUN + token % RUN if token // RUN % 2 == pair else None
            for token in range(WINDOW_VECTORS * windows)
        )
        turn = Permute(
            src=out, dst=group(Stream(pair == 0, SUMS16.turned), 4), item=4, lanes=lanes, map=spread
        )
        self._issue(sxm(pair, SUMS16.queues), at + self.delay["ACC"].d_func + 1, turn, n, pace)

    # -- softmax

    def _softmax(self, queries: list[Query]) -> None:
        overlap = len(queries) > 1 and self.chunks <= MOST_OVERLAPPED
        block = row_block(partial(softmax_block, self.spec, self.chunks), overlap)
        interval = block.interval or aligned(block.end)
        for i, query in enumerate(queries):
            self._place(block, self.at + i * interval, scratch=self._scratch(query, 0))
        self.at += (len(queries) - 1) * interval + aligned(block.end)

    # -- values

    def _values(self, g: int, queries: list[Query], half: int) -> None:
        """Multiply 160 tokens' values by the weights of every query of a group."""
        tokens = min(HALF, self.op.bucket - half * HALF)
        feed, acc = mxm(2, Role.FEED), mxm(2, Role.DRAIN)
        if tokens <= 0:  # nothing: the tile's other half is weights of zero
            for query in queries:
                self._issue(feed, self.at, ABC(slot=ZEROS, fp16=True))
                self._add(acc, self.at + self.delay["ABC"].d_func, query, half)
                self.at += 1
            return
        installed = self._turn(g, half, tokens)
        block = weight_block(self.spec)
        late = block.nodes[0].done + self.to_mxm
        start = max(installed - late, self.at)
        start += start % 2  # so that no read falls on the C2C's turn
        for query in queries:
            scratch = self._scratch(query, half // 2) + half % 2
            self._place(block, start, scratch=scratch)
            self._issue(feed, start + late, ABC(stream=Stream(True, FEED.stream), fp16=True))
            self._add(acc, start + late + self.delay["ABC"].d_func, query, half)
            start += 2
        self.at = start + late

    def _add(self, acc: Queue, cycle: int, query: Query, half: int) -> None:
        self._issue(acc, cycle, ACC(slot=self._number(query), first=half < 2, half=half % 2))

    def _turn(self, g: int, half: int, tokens: int) -> int:
        """Install tokens' values as lanes; return from when on activations may come."""
        unit, load = sxm(1, VALUES16.queue), mxm(2, Role.LOAD)
        farthest = hops(mem(0, self.spec.slices // 2 - 1), unit, self.spec)
        at = self.at + self.delay["READ"].d_func + farthest
        first = self.layout.head_offset(g * self.per, value=True) // VECTOR_BYTES + HALF * half
        runs = -(-tokens // RUN)
        out, groups = Stream(True, VALUES16.tokens), self._columns(g) // RUN
        self.fetches += [Fetch(unit, at + run, first + RUN * run, out) for run in range(runs)]
        self._issue(unit, at, Transpose(src=out, dst=out, groups=groups, item=2), runs)
        loaded = at + self.delay["TRANSPOSE"].d_func + hops(unit, load, self.spec)
        self._issue(load, loaded, LW(stream=out, count=RUN, column=0, step=RUN), groups)
        self._issue(mxm(2, Role.FEED), loaded + groups, IW(columns=RUN * groups))
        return loaded + groups + 1

    def _columns(self, g: int) -> int:
        """Count the lanes of a group's heads, in whole runs."""
        heads = min(self.per, self.op.kv_heads - g * self.per)
        return -(-heads * self.layout.pitch // RUN) * RUN

    # -- results

    def _results(self) -> None:
        """Put a row's heads side by side, 320 values at a time, in fp16."""
        n = len(self.kv_of) * self.dim
        self.at += self.delay["ABC"].d_func + 1
        for first in range(0, n, LANES):
            lanes = min(LANES, n - first)
            heads = range(first // self.dim, -(-(first + lanes) // self.dim))
            block = result_block(self.spec, len(heads), lanes)
            for row in range(self.rows):
                start = aligned(self.at + self.drain_delay)
                self._place(block, start, row, y=first * 2 // VECTOR_BYTES)
                for i, head in enumerate(heads):
                    self._drain(Query(row, head), first, start - self.drain_delay + i)
                self.at = start - self.drain_delay + aligned(block.end)
        self.at += self.drain_delay

    def _drain(self, query: Query, first: int, at: int) -> None:
        """Bring a query's sums to their lanes among 320 results."""
        head = query.head
        columns = self._columns(self.kv_of[head] // self.per)
        out = group(Stream(False, SUMS16.left), vectors(4 * columns))
        acc = ACC(
            slot=self._number(query), first=False, half=1, product=False, lanes=columns, out=out
        )
        self._issue(mxm(2, Role.DRAIN), at, acc)
        spread = [
            self._lane(head) + value % self.dim if value // self.dim == head else None
            for value in range(first, first + LANES)
        ]
        turn = Permute(
            src=out,
            dst=group(Stream(False, SUMS16.turned), 4),
            item=4,
            lanes=columns,
            map=tuple(spread),
        )
        self._issue(sxm(1, SUMS16.queues), at + self.delay["ACC"].d_func + 1, turn)


def fits(op: Attend, spec: ChipSpec) -> bool:
    """Tell whether a group's queries have slots, and all heads accumulator rows."""
    kept = op.kept
    rows = kept.batch * len(kept.kv_of)
    return (
        kept.batch * kept.shared < spec.mxm_activation_slots and rows <= spec.mxm_accumulator_rows
    )


def attend16(op: Attend, spec: ChipSpec) -> Template:
    """Attention over the whole bucket, fp16."""
    rows, batch = op.rows, op.kept.batch
    placed: list[Placed] = []
    controls = []
    at, made = 0, _Batch.lay_out(op, spec, batch)
    for row in range(0, rows, batch):
        if rows - row < batch:
            made = _Batch.lay_out(op, spec, rows - row)
        placed += [replace(p, start=p.start + at, row=p.row + row) for p in made.placed]
        controls.append(Control(spec, at, made.fixed, made.fetches))
        at += aligned(made.at)
    steps = {
        "q": op.layout.query_bytes(op.heads) // VECTOR_BYTES,
        "y": row_bytes(len(op.kv_of) * op.head_dim, 2) // VECTOR_BYTES,
    }
    return Template(placed=tuple(placed), cycles=at, row_vectors=steps, streams=tuple(controls))
