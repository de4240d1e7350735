"""ATTEND in fp16: scores, softmax and weighted values, one row after another.

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

from chip.floorplan import Queue, Role, alu, hops, mem, mxm, sxm
from chip.isa import ABC, ACC, IW, LW, AluOp, Permute, Transpose
from chip.issue import Issue, delays
from chip.operand import Immediate, In, Lane, Position, Stream, group
from chip.operations import Args, kv_layout, row_bytes
from chip.spec import VECTOR_BYTES, ChipSpec, vectors
from chip.templates.builder import LANES, Block, Load, Ref
from chip.templates.control import Control, Fetch
from chip.templates.product16 import FEED, FEEDERS, SUMS, TURNED
from chip.templates.softmax16 import softmax16
from chip.templates.template import Placed, Template, aligned, row_block
from chip.templates.vector import f32

HALF = LANES // 2  # values of a vector
RUN, WINDOW = 16, 64  # tokens that lie in one hemisphere, and in which every pair has 32
TOKENS = 8  # first eastward stream of values on their way to be turned
ZEROS = 0  # activation slot
MOST_OVERLAPPED = 8  # chunks; of more, a head alone fills the VXM
HIDDEN = Immediate(float("-inf"))


class _Row:
    """Lays out one row: what is placed, fetched and issued, and `at`, until when."""

    def __init__(self, a: Args, spec: ChipSpec) -> None:
        self.a, self.spec, self.delay, self.layout = a, spec, delays(spec), kv_layout(a)
        self.per, self.dim = self.layout.heads_per_group, int(a["head_dim"])
        self.chunks = -(-int(a["bucket"]) // LANES)
        self.to_mxm = hops(alu(0), mxm(0, Role.LOAD), spec)
        permuted = self.delay["ACC"].d_func + self.delay["PERMUTE"].d_func
        self.drain_delay = permuted + self.to_mxm  # from accumulators through the SXM to the VXM
        self.placed: list[Placed] = []
        self.fixed: list[Issue] = []
        self.fetches: list[Fetch] = []
        self.at = 0
        by_group = [
            [j for j, head in enumerate(a["kv_of"]) if head // self.per == g]
            for g in range(self.layout.groups)
        ]
        self._zeros()
        for g, heads in enumerate(by_group):
            if heads:
                self._queries(heads)
                for chunk in range(self.chunks):
                    self._scores(g, heads, chunk)
        self._softmax()
        for g, heads in enumerate(by_group):
            for half in range(2 * self.chunks if heads else 0):
                self._values(g, heads, half)
        self._results()

    def _issue(self, queue: Queue, cycle: int, instruction: object, n: int = 1, d: int = 1) -> None:
        self.fixed.append(Issue(queue, cycle, instruction, n, d))  # type: ignore[arg-type]

    def _place(self, block: Block, start: int, **shift: int) -> None:
        self.placed.append(Placed(block=block, start=start, shift=shift))

    def _lane(self, head: int) -> int:
        """Return the first lane of a query head's KV head."""
        return int(self.a["kv_of"][head]) % self.per * self.layout.pitch

    def _scratch(self, head: int, chunk: int) -> int:
        return 4 * (head * self.chunks + chunk)

    # -- activations

    def _fill(self, block: Block, start: int, slot: int) -> None:
        """Let what a block's first instruction gives go to a slot of both pairs of planes."""
        arrive = start + block.nodes[0].done + self.to_mxm
        for pair in (0, 1):
            fill = ABC(stream=Stream(pair == 1, FEED), slot=slot)
            self._issue(mxm(2 * pair, Role.FEED), arrive, fill)

    def _both_ways(self, b: Block, value: In | Immediate, lanes: int, at: int | None) -> Block:
        west, east = (group(Stream(side == 1, FEED), 1) for side in (0, 1))
        b.twin(
            b.alu(AluOp.COPY, value, lanes=lanes, at=at, on=FEEDERS[0], out=west), FEEDERS[1], east
        )
        return b.finish()

    def _zeros(self) -> None:
        block = self._both_ways(Block(self.spec), f32(0.0), VECTOR_BYTES // 4, None)
        self._place(block, self.at)
        self._fill(block, self.at, ZEROS)
        self.at += aligned(block.end)

    def _queries(self, heads: list[int]) -> None:
        """Bring queries to the planes, each in the lanes of its KV head: slots 1 and up."""
        for i, head in enumerate(heads):
            b, place = Block(self.spec), head % self.per * self.layout.pitch
            own = self._lane(head)
            spread = [None] * own + [place + d for d in range(self.dim)]
            ref = Ref("q", head // self.per, 1)
            at, operand = b.through_sxm(ref, tuple(spread), 2, HALF)
            block = self._both_ways(b, In(operand.taps[:1], "f16"), HALF, at)
            self._place(block, self.at)
            self._fill(block, self.at, 1 + i)
            self.at += block.initiation(8) if i < len(heads) - 1 else aligned(block.end)

    # -- scores

    def _scores(self, g: int, heads: list[int], chunk: int) -> None:
        """Multiply up to 320 tokens' keys by every query of a group."""
        bucket, n = int(self.a["bucket"]), len(heads)
        windows = -(-min(LANES, bucket - chunk * LANES) // WINDOW)
        first = self.layout.head_offset(g * self.per, value=False) // VECTOR_BYTES + LANES * chunk
        loaded = self.at + self.delay["READ"].d_func + self.to_mxm
        fed = loaded + windows + 1
        summed = fed + self.delay["ABC"].d_func
        for pair in (0, 1):
            load, feed, acc = (mxm(2 * pair, role) for role in Role)
            for run in range(2 * windows):
                token, stream = first + RUN * (2 * run + pair), Stream(pair == 1, run % 2 * RUN)
                self.fetches.append(Fetch(load, loaded + run // 2, token, stream))
            weights = LW(stream=Stream(pair == 1, 0), count=32, column=0, step=32)
            self._issue(load, loaded, weights, windows)
            self._issue(feed, fed - 1, IW(columns=32 * windows))
            for half, activation in enumerate(
                (ABC(slot=1, step=1, fp16=True), ABC(slot=ZEROS, fp16=True))
            ):
                self._issue(feed, fed + half, activation, n, 2)
                add = ACC(slot=0, step=1, first=True, half=half)
                self._issue(acc, summed + half, add, n, 2)
        block = self._score_block(chunk, windows)
        pace = block.initiation(8)
        start = aligned(summed + 2 * n + self.drain_delay)
        for i, head in enumerate(heads):
            self._place(block, start + i * pace, scratch=self._scratch(head, chunk))
        for pair in (0, 1):
            self._drain_scores(pair, windows, start - self.drain_delay, n, pace)
        self.at = start + (n - 1) * pace + aligned(block.end)

    def _drain_scores(self, pair: int, windows: int, at: int, n: int, pace: int) -> None:
        out = group(Stream(pair == 0, SUMS), vectors(4 * 32 * windows))
        lanes = 32 * windows
        acc = ACC(slot=0, step=1, first=False, half=1, product=False, lanes=lanes, out=out)
        self._issue(mxm(2 * pair, Role.DRAIN), at, acc, n, pace)
        spread = tuple(
            token // (2 * RUN) * RUN + token % RUN if token // RUN % 2 == pair else None
            for token in range(WINDOW * windows)
        )
        turn = Permute(
            src=out, dst=group(Stream(pair == 0, TURNED), 4), item=4, lanes=lanes, map=spread
        )
        self._issue(sxm(pair, 0), at + self.delay["ACC"].d_func + 1, turn, n, pace)

    def _score_block(self, chunk: int, windows: int) -> Block:
        """Scale one query's scores; tokens that its row does not see become minus infinity."""
        b = Block(self.spec)
        parts = [In(group(Stream(pair == 0, TURNED), 4)) for pair in (0, 1)]
        score = b.alu(AluOp.MUL, b.alu(AluOp.OR, *parts, at=0), f32(self.dim**-0.5))
        seen = b.alu(AluOp.LE, Lane(LANES * chunk), Position(0), after=score.done - 2)
        b.alu(AluOp.CHOOSE, seen, score, HIDDEN, out=Ref("scratch", 0, 4))
        return b.finish()

    # -- softmax

    def _softmax(self) -> None:
        heads = len(self.a["kv_of"])
        overlap = heads > 1 and self.chunks <= MOST_OVERLAPPED
        block = row_block(partial(softmax16, self.spec, self.chunks), overlap)
        period = block.period or aligned(block.end)
        for head in range(heads):
            self._place(block, self.at + head * period, scratch=self._scratch(head, 0))
        self.at += (heads - 1) * period + aligned(block.end)

    # -- values

    def _values(self, g: int, heads: list[int], half: int) -> None:
        """Multiply 160 tokens' values by the weights of every query of a group."""
        tokens = min(HALF, int(self.a["bucket"]) - half * HALF)
        feed, acc = mxm(2, Role.FEED), mxm(2, Role.DRAIN)
        if tokens <= 0:  # nothing: the tile's other half is weights of zero
            for head in heads:
                self._issue(feed, self.at, ABC(slot=ZEROS, fp16=True))
                self._add(acc, self.at + self.delay["ABC"].d_func, head, half)
                self.at += 1
            return
        installed = self._turn(g, half, tokens)
        block = self._weight_block()
        late = block.nodes[0].done + self.to_mxm
        start = max(installed - late, self.at)
        start += start % 2  # so that no read falls on the C2C's turn
        for head in heads:
            scratch = self._scratch(head, half // 2) + half % 2
            self._place(block, start, scratch=scratch)
            self._issue(feed, start + late, ABC(stream=Stream(True, FEED), fp16=True))
            self._add(acc, start + late + self.delay["ABC"].d_func, head, half)
            start += 2
        self.at = start + late

    def _add(self, acc: Queue, cycle: int, head: int, half: int) -> None:
        self._issue(acc, cycle, ACC(slot=head, first=half < 2, half=half % 2))

    def _turn(self, g: int, half: int, tokens: int) -> int:
        """Install tokens' values as lanes; return from when on activations may come."""
        unit, load = sxm(1, 0), mxm(2, Role.LOAD)
        farthest = hops(mem(0, self.spec.slices // 2 - 1), unit, self.spec)
        at = self.at + self.delay["READ"].d_func + farthest
        first = self.layout.head_offset(g * self.per, value=True) // VECTOR_BYTES + HALF * half
        runs = -(-tokens // RUN)
        out, groups = Stream(True, TOKENS), self._columns(g) // RUN
        self.fetches += [Fetch(unit, at + run, first + RUN * run, out) for run in range(runs)]
        self._issue(unit, at, Transpose(src=out, dst=out, groups=groups, item=2), runs)
        loaded = at + self.delay["TRANSPOSE"].d_func + hops(unit, load, self.spec)
        self._issue(load, loaded, LW(stream=out, count=RUN, column=0, step=RUN), groups)
        self._issue(mxm(2, Role.FEED), loaded + groups, IW(columns=RUN * groups))
        return loaded + groups + 1

    def _columns(self, g: int) -> int:
        """Count the lanes of a group's heads, in whole runs."""
        heads = min(self.per, int(self.a["kv_heads"]) - g * self.per)
        return -(-heads * self.layout.pitch // RUN) * RUN

    def _weight_block(self) -> Block:
        """Bring one vector of weights to the eastern pair."""
        b = Block(self.spec)
        out = group(Stream(True, FEED), 1)
        b.alu(AluOp.COPY, Load(Ref("scratch", 0, 1), "i8"), on=FEEDERS[1], out=out)
        return b.finish()

    # -- results

    def _results(self) -> None:
        """Put heads side by side, 320 values at a time, in fp16."""
        n = len(self.a["kv_of"]) * self.dim
        self.at += self.delay["ABC"].d_func + 1
        for first in range(0, n, LANES):
            lanes = min(LANES, n - first)
            heads = range(first // self.dim, -(-(first + lanes) // self.dim))
            b = Block(self.spec)
            inward = In(group(Stream(False, TURNED), 4))
            total = b.alu(AluOp.COPY, inward, at=0)
            for i in range(1, len(heads)):
                total = b.alu(AluOp.OR, total, inward, at=i)
            b.alu(AluOp.CVT_F16, total, lanes=lanes, out=Ref("y", 0, vectors(2 * lanes)))
            start = aligned(self.at + self.drain_delay)
            self._place(b.finish(), start, y=first * 2 // VECTOR_BYTES)
            for i, head in enumerate(heads):
                self._drain(head, first, start - self.drain_delay + i)
            self.at = start + aligned(b.end)

    def _drain(self, head: int, first: int, at: int) -> None:
        """Bring a head's sums to their lanes among 320 results."""
        columns = self._columns(int(self.a["kv_of"][head]) // self.per)
        out = group(Stream(False, SUMS), vectors(4 * columns))
        acc = ACC(slot=head, first=False, half=1, product=False, lanes=columns, out=out)
        self._issue(mxm(2, Role.DRAIN), at, acc)
        spread = [
            self._lane(head) + value % self.dim if value // self.dim == head else None
            for value in range(first, first + LANES)
        ]
        turn = Permute(
            src=out, dst=group(Stream(False, TURNED), 4), item=4, lanes=columns, map=tuple(spread)
        )
        self._issue(sxm(1, 0), at + self.delay["ACC"].d_func + 1, turn)


def fits(a: Args, spec: ChipSpec) -> bool:
    """Tell whether a group's queries have slots, and all heads accumulator rows."""
    per, kv_of = kv_layout(a).heads_per_group, a["kv_of"]
    largest = max(sum(head // per == g for head in kv_of) for g in range(kv_layout(a).groups))
    return largest < spec.mxm_activation_slots and len(kv_of) <= spec.mxm_accumulator_rows


def attend16(a: Args, spec: ChipSpec) -> Template:
    """Attention over the whole bucket, fp16."""
    row, rows = _Row(a, spec), int(a["rows"])
    period = aligned(row.at)
    placed = [
        replace(block, start=block.start + r * period, n=1, row=r)
        for r in range(rows) for block in row.placed
    ]  # fmt: skip
    control = Control(spec, rows, period, row.fixed, row.fetches)
    width = len(a["kv_of"]) * int(a["head_dim"])
    steps = {
        "q": kv_layout(a).query_bytes(a["heads"]) // VECTOR_BYTES,
        "y": row_bytes(width, 2) // VECTOR_BYTES,
    }
    return Template(
        placed=tuple(placed), cycles=rows * period, row_vectors=steps, streams=(control,)
    )
