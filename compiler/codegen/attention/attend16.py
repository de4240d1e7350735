"""ATTEND in fp16: scores, softmax and weighted values, for a batch of rows at a time.

A cached vector holds several heads' keys or values of a token, 160 fp16 values. Scores: 320 tokens
are the columns of a tile, runs of 16 in the pair of planes of their hemisphere; a query is the
first half of an activation, moved to its KV head's lanes with zeros elsewhere, and zeros are the
second. The softmax of one head keeps scores, exponentials and weights in scratch. Values: 160
tokens are the lanes of half a tile, turned by the eastern SXM for the eastern pair, so that western
ones cross the chip. Numerics: chip/kernels/twin.py, attention_f16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import NamedTuple

from chip.floorplan import Role, alu, hops, mem, mxm, sxm
from chip.isa.instructions import ABC, ACC, IW, LW, Permute, Transpose
from chip.isa.issue import Issue, delays
from chip.isa.operands import Stream, group
from chip.ops.attention import Attend
from chip.ops.kv import WINDOW_VECTORS
from chip.ops.rows import row_bytes
from chip.ops.scratch import ITEM
from chip.spec import RUN, VECTOR_BYTES, ChipSpec, vectors
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
from compiler.codegen.attention.shape import check_ring
from compiler.codegen.core.builder import C2C_TURN, LANES, Block, Ref
from compiler.codegen.core.control import Bulk, Control
from compiler.codegen.core.template import Placed, Template, aligned, row_block
from compiler.codegen.products.resources import FEED, SUMS16

PAIR_COLUMNS = WINDOW_VECTORS // 2  # tokens of a window that a pair of planes has
ZEROS = 0  # activation slot
MOST_OVERLAPPED = 8  # chunks; of more, a head alone fills the VXM


class Query(NamedTuple):
    """A head of one row of a batch."""

    row: int
    head: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Laid:
    """A stretch of the template: blocks, instructions, what is fetched, and when it is over."""

    placed: tuple[Placed, ...] = ()
    of_heads: tuple[Placed, ...] = ()  # blocks whose row is a head
    fixed: tuple[Issue, ...] = ()
    fetches: tuple[Bulk, ...] = ()
    end: int


@dataclass(frozen=True, slots=True)
class _Batch:
    """Lays out a batch of rows, stretch by stretch: each begins at a cycle, `at`."""

    op: Attend
    spec: ChipSpec
    rows: int

    def lay_out(self) -> Laid:
        """Place queries and scores group by group, the softmax, values group by group, results."""
        kv_of, per = self.op.kv_of, self.per
        every = [Query(row, head) for row in range(self.rows) for head in range(len(kv_of))]
        groups = sorted({head // per for head in kv_of})
        of = {g: [q for q in every if kv_of[q.head] // per == g] for g in groups}
        stretches: list[Callable[[int], Laid]] = [self._zeros]
        for g in groups:
            stretches.append(partial(self._queries, of[g]))
            stretches += [partial(self._scores, g, of[g], chunk) for chunk in range(self.chunks)]
        stretches.append(partial(self._softmax, every))
        for g in groups:
            stretches += [partial(self._values, g, of[g], half) for half in range(2 * self.chunks)]
        at, laid = 0, []
        for stretch in (*stretches, self._results):
            laid.append(stretch(at))
            at = laid[-1].end
        return Laid(
            placed=tuple(chain.from_iterable(one.placed for one in laid)),
            of_heads=tuple(chain.from_iterable(one.of_heads for one in laid)),
            fixed=tuple(chain.from_iterable(one.fixed for one in laid)),
            fetches=tuple(chain.from_iterable(one.fetches for one in laid)),
            end=at,
        )

    @property
    def per(self) -> int:
        """KV heads in a cached vector."""
        return self.op.layout.heads_per_group

    @property
    def chunks(self) -> int:
        """Tiles of keys in a bucket."""
        return -(-self.op.bucket // LANES)

    @property
    def to_mxm(self) -> int:
        """Cycles from the VXM to the planes, and back."""
        return hops(alu(0), mxm(0, Role.LOAD), self.spec)

    @property
    def drain_delay(self) -> int:
        """Cycles from accumulators through the SXM to the VXM."""
        delay = delays(self.spec)
        return delay["ACC"].d_func + delay["PERMUTE"].d_func + self.to_mxm

    def _lane(self, head: int) -> int:
        """Return the first lane of a query head's KV head."""
        return self.op.kv_of[head] % self.per * self.op.layout.pitch

    def _number(self, query: Query) -> int:
        return query.row * len(self.op.kv_of) + query.head

    def _scratch(self, query: Query, chunk: int) -> int:
        return ITEM * (self._number(query) * self.chunks + chunk)

    # -- activations

    def _fill(self, block: Block, start: int, slot: int) -> list[Issue]:
        """Let what a block's first instruction gives go to a slot of both pairs of planes."""
        arrive = start + block.nodes[0].done + self.to_mxm
        return [
            Issue(
                mxm(2 * pair, Role.FEED),
                arrive,
                ABC(stream=Stream(pair == 1, FEED.stream), slot=slot),
            )
            for pair in (0, 1)
        ]

    def _zeros(self, at: int) -> Laid:
        block = zeros_block(self.spec)
        fill = self._fill(block, at, ZEROS)
        return Laid(placed=(_place(block, at),), fixed=tuple(fill), end=at + aligned(block.end))

    def _queries(self, queries: list[Query], at: int) -> Laid:
        """Bring queries to the planes, each in the lanes of its KV head: slots 1 and up."""
        blocks = {head: self._query_block(head) for head in dict.fromkeys(q.head for q in queries)}
        placed, fixed = [], []
        for i, query in enumerate(queries):
            block = blocks[query.head]
            placed.append(_place(block, at, query.row))
            fixed += self._fill(block, at, 1 + i)
            last = i == len(queries) - 1
            at += aligned(block.end) if last else block.initiation_interval(C2C_TURN)
        return Laid(placed=tuple(placed), fixed=tuple(fixed), end=at)

    def _query_block(self, head: int) -> Block:
        place, own = head % self.per * self.op.layout.pitch, self._lane(head)
        spread = [None] * own + [place + d for d in range(self.op.head_dim)]
        return query_block(self.spec, Ref("q", head // self.per, 1), tuple(spread))

    # -- scores

    def _scores(self, g: int, queries: list[Query], chunk: int, at: int) -> Laid:
        """Multiply up to 320 tokens' keys by every query of a group."""
        bucket, n, delay = self.op.bucket, len(queries), delays(self.spec)
        windows = -(-min(LANES, bucket - chunk * LANES) // WINDOW_VECTORS)
        head = self.op.layout.head_offset(g * self.per, value=False)
        first = head // VECTOR_BYTES + LANES * chunk
        loaded = at + delay["READ"].d_func + self.to_mxm
        fed = loaded + windows + 1
        summed = fed + delay["ABC"].d_func
        fixed: list[Issue] = []
        fetches = []
        for pair in (0, 1):
            load, feed, acc = (mxm(2 * pair, role) for role in Role)
            for run in range(2 * windows):
                token = first + RUN * (2 * run + pair)
                stream = Stream(pair == 1, KEYS16.stream + run % 2 * RUN)
                fetches.append(Bulk(load, loaded + run // 2, "kv", token, stream))
            weights = LW(
                stream=Stream(pair == 1, KEYS16.stream),
                count=PAIR_COLUMNS,
                column=0,
                step=PAIR_COLUMNS,
            )
            fixed.append(Issue(load, loaded, weights, windows))
            fixed.append(Issue(feed, fed - 1, IW(columns=PAIR_COLUMNS * windows)))
            for half, activation in enumerate(
                (ABC(slot=1, step=1, fp16=True), ABC(slot=ZEROS, fp16=True))
            ):
                fixed.append(Issue(feed, fed + half, activation, n, 2))
                add = ACC(slot=0, step=1, first=True, half=half)
                fixed.append(Issue(acc, summed + half, add, n, 2))
        block = score_block(self.spec, self.op, chunk)
        pace = block.initiation_interval(C2C_TURN)
        start = aligned(summed + 2 * n + self.drain_delay)
        placed = tuple(
            _place(block, start + i * pace, query.row, scratch=self._scratch(query, chunk))
            for i, query in enumerate(queries)
        )
        for pair in (0, 1):
            fixed += self._drain_scores(pair, windows, start - self.drain_delay, n, pace)
        return Laid(
            placed=placed, fixed=tuple(fixed), fetches=tuple(fetches),
            end=start + (n - 1) * pace + aligned(block.end),
        )  # fmt: skip

    def _drain_scores(self, pair: int, windows: int, at: int, n: int, pace: int) -> list[Issue]:
        lanes = PAIR_COLUMNS * windows
        out = group(Stream(pair == 0, SUMS16.left), vectors(4 * lanes))
        acc = ACC(slot=0, step=1, first=False, half=1, product=False, lanes=lanes, out=out)
        spread = tuple(
            token // (2 * RUN) * RUN + token % RUN if token // RUN % 2 == pair else None
            for token in range(WINDOW_VECTORS * windows)
        )
        turn = Permute(
            src=out, dst=group(Stream(pair == 0, SUMS16.turned), 4), item=4, lanes=lanes, map=spread
        )
        turned = at + delays(self.spec)["ACC"].d_func + 1
        return [
            Issue(mxm(2 * pair, Role.DRAIN), at, acc, n, pace),
            Issue(sxm(pair, SUMS16.queues), turned, turn, n, pace),
        ]

    # -- softmax

    def _softmax(self, queries: list[Query], at: int) -> Laid:
        runs = len(queries) if self.chunks <= MOST_OVERLAPPED else 1
        sinks = 0 if self.op.sinks is None else len(self.op.kv_of)
        block = row_block(partial(softmax_block, self.spec, self.chunks, sinks), runs)
        interval = block.interval or aligned(block.end)
        placed = tuple(
            _place(block, at + i * interval, query.head, scratch=self._scratch(query, 0))
            for i, query in enumerate(queries)
        )
        end = at + (len(queries) - 1) * interval + aligned(block.end)
        return Laid(of_heads=placed, end=end)

    # -- values

    def _values(self, g: int, queries: list[Query], half: int, at: int) -> Laid:
        """Multiply 160 tokens' values by the weights of every query of a group."""
        tokens, delay = min(HALF, self.op.bucket - half * HALF), delays(self.spec)
        feed, fixed = mxm(2, Role.FEED), []
        if tokens <= 0:  # nothing: the tile's other half is weights of zero
            for query in queries:
                fixed.append(Issue(feed, at, ABC(slot=ZEROS, fp16=True)))
                fixed.append(self._add(at + delay["ABC"].d_func, query, half))
                at += 1
            return Laid(fixed=tuple(fixed), end=at)
        turned = self._turn(g, half, tokens, at)
        block = weight_block(self.spec)
        late = block.nodes[0].done + self.to_mxm
        start = max(turned.end - late, at)
        start += start % 2  # so that no read falls on the C2C's turn
        placed = []
        for query in queries:
            scratch = self._scratch(query, half // 2) + half % 2
            placed.append(_place(block, start, scratch=scratch))
            arrived = ABC(stream=Stream(True, FEED.stream), fp16=True)
            fixed.append(Issue(feed, start + late, arrived))
            fixed.append(self._add(start + late + delay["ABC"].d_func, query, half))
            start += 2
        return Laid(
            placed=tuple(placed), fixed=(*turned.fixed, *fixed), fetches=turned.fetches,
            end=start + late,
        )  # fmt: skip

    def _add(self, cycle: int, query: Query, half: int) -> Issue:
        acc = ACC(slot=self._number(query), first=half < 2, half=half % 2)
        return Issue(mxm(2, Role.DRAIN), cycle, acc)

    def _turn(self, g: int, half: int, tokens: int, at: int) -> Laid:
        """Install tokens' values as lanes; from its end on activations may come."""
        unit, load, delay = sxm(1, VALUES16.queue), mxm(2, Role.LOAD), delays(self.spec)
        farthest = hops(mem(0, self.spec.slices // 2 - 1), unit, self.spec)
        at += delay["READ"].d_func + farthest
        head = self.op.layout.head_offset(g * self.per, value=True)
        first = head // VECTOR_BYTES + HALF * half
        runs = -(-tokens // RUN)
        out, groups = Stream(True, VALUES16.tokens), self._columns(g) // RUN
        loaded = at + delay["TRANSPOSE"].d_func + hops(unit, load, self.spec)
        return Laid(
            fixed=(
                Issue(unit, at, Transpose(src=out, dst=out, groups=groups, item=2), runs),
                Issue(load, loaded, LW(stream=out, count=RUN, column=0, step=RUN), groups),
                Issue(mxm(2, Role.FEED), loaded + groups, IW(columns=RUN * groups)),
            ),
            fetches=tuple(
                Bulk(unit, at + run, "kv", first + RUN * run, out) for run in range(runs)
            ),
            end=loaded + groups + 1,
        )

    def _columns(self, g: int) -> int:
        """Count the lanes of a group's heads, in whole runs."""
        heads = min(self.per, self.op.kv_heads - g * self.per)
        return -(-heads * self.op.layout.pitch // RUN) * RUN

    # -- results

    def _results(self, at: int) -> Laid:
        """Put a row's heads side by side, 320 values at a time, in fp16."""
        dim = self.op.head_dim
        n = len(self.op.kv_of) * dim
        at += delays(self.spec)["ABC"].d_func + 1
        placed, fixed = [], []
        for first in range(0, n, LANES):
            lanes = min(LANES, n - first)
            heads = range(first // dim, -(-(first + lanes) // dim))
            block = result_block(self.spec, len(heads), lanes)
            for row in range(self.rows):
                start = aligned(at + self.drain_delay)
                placed.append(_place(block, start, row, y=first * 2 // VECTOR_BYTES))
                for i, head in enumerate(heads):
                    fixed += self._drain(Query(row, head), first, start - self.drain_delay + i)
                at = start - self.drain_delay + aligned(block.end)
        return Laid(placed=tuple(placed), fixed=tuple(fixed), end=at + self.drain_delay)

    def _drain(self, query: Query, first: int, at: int) -> list[Issue]:
        """Bring a query's sums to their lanes among 320 results."""
        head, dim = query.head, self.op.head_dim
        columns, lane = self._columns(self.op.kv_of[head] // self.per), self._lane(head)
        out = group(Stream(False, SUMS16.left), vectors(4 * columns))
        acc = ACC(
            slot=self._number(query), first=False, half=1, product=False, lanes=columns, out=out
        )
        spread = [
            lane + value % dim if value // dim == head else None
            for value in range(first, first + LANES)
        ]
        turn = Permute(
            src=out,
            dst=group(Stream(False, SUMS16.turned), 4),
            item=4,
            lanes=columns,
            map=tuple(spread),
        )
        turned = at + delays(self.spec)["ACC"].d_func + 1
        return [Issue(mxm(2, Role.DRAIN), at, acc), Issue(sxm(1, SUMS16.queues), turned, turn)]


def _place(block: Block, start: int, row: int = 0, **shift: int) -> Placed:
    return Placed(block=block, start=start, n=1, row=row, shift=shift)


def fits(op: Attend, spec: ChipSpec) -> bool:
    """Tell whether a group's queries have slots, and all heads accumulator rows."""
    kept = op.kept
    rows = kept.batch * len(kept.kv_of)
    return (
        kept.batch * kept.shared < spec.mxm_activation_slots and rows <= spec.mxm_accumulator_rows
    )


def attend16(op: Attend, spec: ChipSpec) -> Template:
    """Attention over the whole bucket, fp16."""
    check_ring(op)
    rows, batch = op.rows, op.kept.batch
    placed: list[Placed] = []
    whole, rest = divmod(rows, batch)
    controls = list[Control]()
    at = row = 0
    for count, times in ((batch, whole), (rest, int(rest > 0))):
        if not times:
            continue
        made, starts = _Batch(op, spec, count).lay_out(), list[int]()
        for _ in range(times):
            placed += [replace(p, start=p.start + at, row=p.row + row) for p in made.placed]
            placed += [replace(p, start=p.start + at) for p in made.of_heads]
            starts.append(at)
            at, row = at + aligned(made.end), row + count
        controls.append(Control(tuple(starts), made.fixed, made.fetches))
    steps = {
        "q": op.layout.query_bytes(op.heads) // VECTOR_BYTES,
        "y": row_bytes(len(op.kv_of) * op.head_dim, 2) // VECTOR_BYTES,
    }
    return Template(placed=tuple(placed), cycles=at, row_vectors=steps, streams=tuple(controls))
