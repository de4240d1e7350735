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
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate

import numpy as np

from chip.floorplan import Role, alu, hops, mem, mxm, sxm
from chip.isa import ABC, ACC, IW, LARGE_ALUS, LARGE_OPS, LW, AluOp, Instruction, Read, Transpose
from chip.issue import Issue, delays
from chip.kv import KvLayout
from chip.operand import In, Lane, Position, Stream, group
from chip.operations import Args, kv_layout
from chip.spec import VECTOR_BYTES, ChipSpec, vectors
from chip.sram import RUN, bulk_place
from chip.templates.builder import LANES, Block, Load, Node, Pass, Ref
from chip.templates.columns import PLANE_OF_RUN, WINDOW, spread_of
from chip.templates.reductions import lane_max, lane_sum
from chip.templates.rope import TO_CACHE as FEED
from chip.templates.template import Placed, Template, aligned
from chip.templates.vector import f32, scale_factor

KEYS = 4 * LANES  # tokens whose keys the four planes hold
TURNED = 29  # outward stream of activations behind the SXM
SUMS = 4  # first inward stream of accumulators: four for each plane of a side
VALUES_IN, VALUES_OUT = 12, 12  # outward streams of values before and behind the SXM
BLOCK_QUEUE = 13  # SXM queue that turns values
WEIGHED = 16  # first accumulator rows, of weighted values: heads take turns; scores follow
OUT = (3, 4)  # ALUs whose registers collect results
TWIN = 12  # ALU that sends a query the other way
PINNED = frozenset({*OUT, TWIN})
NEVER = f32(float("-inf"))
TURN = 8  # cycles of a turn of the work ports
COMMITTED = 16  # cycles after a result's last ALU at which memory has it
Map = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Timed:
    """An MXM, SXM or MEM instruction at a cycle of a block; a cache read is bound when issued."""

    cycle: int
    instruction: Instruction
    plane: int = 0
    role: Role | None = None  # None: the SXM that turns values
    n: int = 1


@dataclass(frozen=True, slots=True)
class CacheRun:
    """`count` cache vectors from `vector` on neighbouring streams, at SXM or MXM at `cycle`."""

    cycle: int
    vector: int
    count: int
    lane: int
    to_sxm: bool


@dataclass(slots=True)
class Piece:
    """A block of VXM work with what the matrix units and the cache do beside it."""

    block: Block
    timed: list[Timed] = field(default_factory=list)
    runs: list[CacheRun] = field(default_factory=list)

    def uses(self) -> set[tuple[tuple[object, ...], int]]:
        """Return what the piece takes for itself: (resource, cycle)."""
        out = self.block.uses()
        for timed in self.timed:
            for i in range(timed.n):
                out.add((("queue", timed.plane, timed.role), timed.cycle + i))
                if isinstance(timed.instruction, ABC):
                    out.add((("feed",), timed.cycle + i))
        return out

    def collected(self) -> tuple[int, int]:
        """Return when the registers of results are first read or written, and last written."""
        nodes = [node for node in self.block.nodes if node.alu in OUT]
        return min(node.cycle for node in nodes), max(node.done for node in nodes)

    @property
    def end(self) -> int:
        """Cycles until everything in it is over."""
        last = [t.cycle + t.n + 64 for t in self.timed]
        return max([self.block.end, *last])


@dataclass(frozen=True, slots=True)
class Part:
    """The heads that share one vector of the cache."""

    number: int
    heads: tuple[int, ...]


class Attention:
    """Builds the pieces of one row."""

    def __init__(self, a: Args, spec: ChipSpec) -> None:
        self.a, self.spec, self.delay = a, spec, delays(spec)
        self.layout: KvLayout = kv_layout(a)
        self.bucket, self.kv_of = int(a["bucket"]), tuple(a["kv_of"])
        self.tokens = [min(LANES, self.bucket - t) for t in range(0, self.bucket, LANES)]
        self.to_sxm = hops(alu(0), sxm(0, 0), spec)
        self.to_mxm = hops(alu(0), mxm(0, Role.FEED), spec)
        self.pace = 4  # cycles between vectors of tokens
        self.once = len(self.tokens) <= 2  # values of all tokens are in the planes together
        per = self.layout.heads_per_group
        self.parts = [
            Part(g, tuple(h for h, kv in enumerate(self.kv_of) if kv // per == g))
            for g in range(self.layout.groups)
        ]

    # -- what is where

    def planes(self, vector: int) -> list[int]:
        """Planes that hold keys of a vector of tokens."""
        first = vector * LANES
        runs = {t % WINDOW // RUN for t in range(first, first + self.tokens[vector], RUN)}
        return sorted(PLANE_OF_RUN[run] for run in runs)

    def value_planes(self, vector: int) -> list[tuple[int, int]]:
        """(side, plane) that hold values of a vector of tokens."""
        sides = 1 if self.tokens[vector] <= RUN else 2
        return [(side, 2 * side + vector % 2) for side in range(sides)]

    def place(self, head: int) -> int:
        """First lane of a query head's KV head in the packed vector."""
        return int(self.kv_of[head]) % self.layout.heads_per_group * self.layout.pitch

    # -- keys

    def scores(self, part: Part) -> Piece:
        """Load a part's keys, and let every head's query meet them."""
        piece = Piece(Block(self.spec, pinned=PINNED))
        base = self.layout.head_offset(part.number * self.layout.heads_per_group, value=False)
        now = 2 * COMMITTED + self.to_mxm
        for number, first in enumerate(range(0, self.bucket, KEYS)):
            count = min(KEYS, self.bucket - first)
            planes: dict[int, int] = {}
            for window in range(-(-count // WINDOW)):
                for run, plane in enumerate(PLANE_OF_RUN):
                    start = window * WINDOW + run * RUN
                    n = min(RUN, count - start)
                    if n <= 0:
                        continue
                    lane, stream = RUN * (plane % 2), Stream(plane >= 2, RUN * (plane % 2))
                    vector = base // VECTOR_BYTES + first + start
                    piece.runs.append(CacheRun(now + window, vector, n, lane, False))
                    load = LW(stream=stream, count=n, column=RUN * window)
                    piece.timed.append(Timed(now + window, load, plane, Role.LOAD))
                    planes[plane] = planes.get(plane, 0) + n
            now += -(-count // WINDOW)
            for plane, columns in planes.items():
                piece.timed.append(Timed(now, IW(columns=columns), plane, Role.FEED))
            behind = now + self.delay["PERMUTE"].d_func + 2  # keys no longer pass the queries' way
            now = self._queries(piece, part, number, sorted(planes), behind) + 2
        piece.block.finish()
        return piece

    def _queries(self, piece: Piece, part: Part, number: int, planes: list[int], now: int) -> int:
        """Feed a part's queries from cycle `now` on; return when the last is in."""
        many = -(-self.bucket // KEYS)
        per, pitch = self.layout.heads_per_group, self.layout.pitch
        for i, head in enumerate(part.heads):
            place, source = self.place(head), head % per * pitch
            turn: list[int | None] = [None] * LANES
            for d in range(self.a["head_dim"]):
                turn[place + d] = source + d
            back = self.to_mxm + self.delay["PERMUTE"].d_func + self.delay["COPY"].d_func
            query = Load(Ref("q", head // per, 1), "i8")
            at = self.feed(piece, AluOp.COPY, query, dict.fromkeys((0, 1), tuple(turn)), now - back)
            slot = WEIGHED + i * many + number
            for plane in planes:
                out = Stream(plane >= 2, TURNED)
                piece.timed.append(Timed(at, ABC(stream=out), plane, Role.FEED))
                acc = ACC(slot=slot, first=True)
                piece.timed.append(Timed(at + self.delay["ABC"].d_func, acc, plane, Role.DRAIN))
            now = at + 1
        return now

    def feed(
        self, piece: Piece, op: AluOp, source: Load | Node, turns: dict[int, Map], after: int
    ) -> int:
        """Send a vector to both sides' planes, through the SXMs; return when it is there."""
        b = piece.block
        east, west = (group(Stream(eastward, FEED), 1) for eastward in (True, False))
        sent = b.alu(op, source, out=east, after=after)
        if isinstance(source, Load):
            b.twin(sent, TWIN, west)
        else:
            b.alu(op, source, out=west, at=sent.cycle)
        at_sxm = sent.done + self.to_sxm
        for side, turn in turns.items():
            src, dst = (group(Stream(side == 1, s), 1) for s in (FEED, TURNED))
            queue = b.queue(side, at_sxm)
            b.passes.append(Pass(at_sxm, side, queue, turn, 1, LANES, src, dst))
        return at_sxm + self.delay["PERMUTE"].d_func + self.to_mxm - self.to_sxm

    # -- values

    def values(self, piece: Piece, part: Part, chosen: range, now: int) -> int:
        """Turn and load the values of `chosen` vectors of tokens; return when they may be used."""
        layout = self.layout
        base = layout.head_offset(part.number * layout.heads_per_group, value=True) // VECTOR_BYTES
        heads = min(layout.heads_per_group, layout.kv_heads - part.number * layout.heads_per_group)
        groups = -(-heads * layout.pitch // RUN)
        for vector in chosen:
            for side, plane in self.value_planes(vector):
                starts = range(side * RUN, self.tokens[vector], 2 * RUN)
                outward = side == 1
                for i, start in enumerate(starts):
                    token = vector * LANES + start
                    piece.runs.append(CacheRun(now + i, base + token, RUN, VALUES_IN, True))
                turn = Transpose(
                    src=Stream(outward, VALUES_IN), dst=Stream(outward, VALUES_OUT), groups=groups
                )
                piece.timed.append(Timed(now, turn, plane, None, len(starts)))
                at = now + self.delay["TRANSPOSE"].d_func + self.to_mxm - self.to_sxm
                load = LW(stream=Stream(outward, VALUES_OUT), count=RUN, column=0, step=RUN)
                piece.timed.append(Timed(at, load, plane, Role.LOAD, groups))
                done = at + groups
                piece.timed.append(Timed(done, IW(columns=RUN * groups), plane, Role.FEED))
            now += max(groups, len(starts)) + 1
        return done + 1

    # -- one head

    def head(self, part: Part, head: int) -> Piece:
        """Build one head's piece at the fastest pace at which the ALUs suffice."""
        for self.pace in range(4, 200, 4):
            try:
                return self._head(part, head)
            except OverflowError:
                continue
        raise AssertionError("no pace leaves enough ALUs")

    def _head(self, part: Part, head: int) -> Piece:
        """Softmax of one head's scores, its weights times the values, its result."""
        piece = Piece(Block(self.spec, pinned=PINNED))
        b = piece.block
        peak = self._masked(piece, part, head)
        top = lane_max(b, peak)
        total: Node | None = None
        for v in range(len(self.tokens)):
            low = b.alu(AluOp.SUB, self.scratch(head, v), top, after=top.done + self.pace * v)
            e = b.alu(AluOp.EXP, low, out=self.scratch(head, v).ref)
            total = e if total is None else b.alu(AluOp.ADD, total, e)
        assert total is not None
        root = b.alu(AluOp.RSQRT, lane_sum(b, total))
        share = b.alu(AluOp.MUL, root, root)
        scale, factor = self._weigh(b, head, share)
        fed = self._weights(piece, part, head, factor)
        self._result(piece, part, head, scale, fed)
        b.finish()
        return piece

    def scratch(self, head: int, vector: int) -> Load:
        """Where a head keeps a vector of weights between passes."""
        return Load(Ref("scratch", 4 * (head * len(self.tokens) + vector), 4), "f32")

    def _seen(self, b: Block, vector: int, after: int) -> Node:
        """Mask of the tokens that the row may see; made again where it is needed."""
        return b.alu(AluOp.LE, Lane(vector * LANES), Position(0), after=after)

    def _scales(self, head: int, vector: int, *, value: bool) -> Load:
        first = self.layout.scale_offset(self.kv_of[head], value=value) // VECTOR_BYTES
        count = vectors(self.tokens[vector] * 4)
        return Load(Ref("kvs", first + 4 * vector, count), "f32")

    def _masked(self, piece: Piece, part: Part, head: int) -> Node:
        """Scale and mask the scores into scratch memory; return their maximum."""
        b, many = piece.block, -(-self.bucket // KEYS)
        scale_ref = Ref("sq", 4 * (head // self.layout.heads_per_group), 4)
        lane = head % self.layout.heads_per_group * self.layout.pitch
        at, operand = b.through_sxm(scale_ref, (lane,) * LANES, 4, LANES)
        scale = b.alu(AluOp.COPY, operand, at=at)
        slot = WEIGHED + part.heads.index(head) * many
        peak: Node | None = None
        for number in range(many):
            vectors_here = range(4 * number, min(4 * number + 4, len(self.tokens)))
            planes = sorted({p for v in vectors_here for p in self.planes(v)})
            first = min(LANES, 80 * len(vectors_here))
            arrive = self.drain(piece, planes, slot + number, first, scale.done + 8, [
                (4 * j, {p: spread_of(PLANE_OF_RUN.index(p), j) for p in self.planes(v)}, LANES)
                for j, v in enumerate(vectors_here)
            ])  # fmt: skip
            for j, v in enumerate(vectors_here):
                total = self.sum(b, self.planes(v), 4 * j, LANES, arrive)
                n = self.tokens[v]
                mask = self._seen(b, v, arrive + j * self.pace)
                keys = self._scales(head, v, value=False)
                known = b.alu(AluOp.CHOOSE, mask, keys, f32(0.0), lanes=n)
                factor = b.alu(AluOp.MUL, scale, known)
                score = b.alu(AluOp.MUL, b.alu(AluOp.CVT_F32, total), factor)
                out = self.scratch(head, v).ref
                x = b.alu(AluOp.CHOOSE, self._seen(b, v, factor.cycle), score, NEVER, out=out)
                peak = x if peak is None else b.alu(AluOp.MAX, peak, x)
        assert peak is not None
        return peak

    def _weigh(self, b: Block, head: int, share: Node) -> tuple[Node, Node]:
        """Share out, times the values' scales, into scratch memory; return (scale, factor)."""
        peak: Node | None = None
        for v, n in enumerate(self.tokens):
            p = b.alu(AluOp.MUL, self.scratch(head, v), share, after=share.done + self.pace * v)
            scales = self._scales(head, v, value=True)
            known = b.alu(
                AluOp.CHOOSE,
                self._seen(b, v, p.cycle - 4),
                scales,
                f32(0.0),
                lanes=n,
                after=p.cycle,
            )
            w = b.alu(AluOp.MUL, p, known, out=self.scratch(head, v).ref)
            size = b.alu(AluOp.ABS, w)
            peak = size if peak is None else b.alu(AluOp.MAX, peak, size)
        assert peak is not None
        factor, scale = scale_factor(b, lane_max(b, peak))
        return scale, factor

    def _weights(self, piece: Piece, part: Part, head: int, factor: Node) -> int:
        """Quantise the weights and feed them; return when the last sum is in its row."""
        b, ready, summed = piece.block, 0, 0
        for v in range(len(self.tokens)):
            if not self.once and v % 2 == 0:
                start = max(COMMITTED + self.to_mxm, summed - 8)
                ready = self.values(piece, part, range(v, min(v + 2, len(self.tokens))), start)
            turns = {side: self._order(v, side) for side, _ in self.value_planes(v)}
            after = max(factor.done + self.pace * v, ready - self.to_mxm)
            weight = b.alu(AluOp.MUL, self.scratch(head, v), factor, after=after)
            at = self.feed(piece, AluOp.CVT_I8, weight, turns, weight.done)
            for side, plane in self.value_planes(v):
                stream = Stream(side == 1, TURNED)
                piece.timed.append(Timed(at, ABC(stream=stream), plane, Role.FEED))
                acc = ACC(slot=head % WEIGHED, first=v < 2)
                piece.timed.append(Timed(at + self.delay["ABC"].d_func, acc, plane, Role.DRAIN))
            summed = at + self.delay["ABC"].d_func
        return summed + 1

    def _order(self, vector: int, side: int) -> Map:
        """Lanes of a side's tokens: its runs follow one another."""
        turn: list[int | None] = [None] * LANES
        for lane in range(LANES // 2):
            token = lane // RUN * 2 * RUN + side * RUN + lane % RUN
            if token < self.tokens[vector]:
                turn[lane] = token
        return tuple(turn)

    def _result(self, piece: Piece, part: Part, head: int, scale: Node, after: int) -> None:
        """Scale a head's result into its lanes; store the groups of 320 that are complete."""
        b, dim, heads = piece.block, self.a["head_dim"], self.a["heads"]
        first, place = head * dim, self.place(head)
        planes = sorted({p for v in range(len(self.tokens)) for _, p in self.value_planes(v)})
        lanes = self.layout.heads_per_group * self.layout.pitch
        outs = range(first // LANES, (first + dim - 1) // LANES + 1)
        spreads = []
        for j, number in enumerate(outs):
            turn: list[int | None] = [None] * LANES
            for d in range(dim):
                if (first + d) // LANES == number:
                    turn[(first + d) % LANES] = place + d
            spreads.append((4 * j, dict.fromkeys(planes, tuple(turn)), LANES))
        arrive = self.drain(piece, planes, head % WEIGHED, lanes, after, spreads)
        for j, number in enumerate(outs):
            total = self.sum(b, planes, 4 * j, LANES, arrive)
            y = b.alu(AluOp.MUL, b.alu(AluOp.CVT_F32, total), scale)
            register = OUT[number % 2]
            if first > number * LANES:
                y = b.alu(AluOp.OR, b.register(register), y, on=register)
            else:
                y = b.alu(AluOp.COPY, y, on=register)
            stop = min((number + 1) * LANES, heads * dim)
            if first + dim >= stop:
                n = stop - number * LANES
                b.alu(AluOp.CVT_F16, y, lanes=n, out=Ref("y", 2 * number, vectors(2 * n)))

    # -- accumulators to the VXM

    def drain(
        self, piece: Piece, planes: list[int], slot: int, lanes: int, after: int,
        spreads: list[tuple[int, dict[int, Map], int]],
    ) -> int:  # fmt: skip
        """Let an accumulator row of the planes come to the VXM; return when.

        `spreads`: (first stream of 16 a plane, the lane map of each plane, lanes).
        """
        b = piece.block
        to_sxm = self.delay["ACC"].d_func + self.to_mxm - self.to_sxm
        back = self.delay["PERMUTE"].d_func + self.to_sxm
        arrive = max(after, 0) + to_sxm + back
        while not b.may_arrive(arrive):
            arrive += 1
        b.reserve_inward(arrive)
        for plane in planes:
            inward = plane < 2
            src = group(Stream(inward, SUMS + 4 * (plane % 2)), vectors(lanes * 4))
            acc = ACC(slot=slot, first=False, lanes=lanes, out=src, product=False)
            piece.timed.append(Timed(arrive - back - to_sxm, acc, plane, Role.DRAIN))
            for first, turns, out_lanes in spreads:
                if plane not in turns:
                    continue
                dst = group(Stream(inward, 16 * (plane % 2) + first), vectors(out_lanes * 4))
                at = arrive - back
                queue = b.queue(plane // 2, at)
                b.passes.append(
                    Pass(at, plane // 2, queue, turns[plane], 4, lanes, src, dst, out_lanes)
                )
        return arrive

    @staticmethod
    def sum(b: Block, planes: list[int], first: int, lanes: int, at: int) -> Node:
        """Add the planes' parts, which arrive together."""
        parts = [
            In(group(Stream(plane < 2, 16 * (plane % 2) + first), vectors(lanes * 4)), "i32")
            for plane in planes
        ]
        nodes = [
            b.alu(AluOp.ADD, *parts[i : i + 2], at=at)
            if i + 1 < len(parts)
            else b.alu(AluOp.COPY, parts[i], at=at)
            for i in range(0, len(parts), 2)
        ]
        return nodes[0] if len(nodes) == 1 else b.alu(AluOp.ADD, *nodes)


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


def one_by_one(pieces: list[Piece]) -> list[int]:
    """Return the pieces' starts when each waits for the one before."""
    ends = accumulate(aligned(piece.end) for piece in pieces)
    return [0, *ends][: len(pieces)]


class _Alus:
    """Which ALUs are taken when, by pieces that run beside each other."""

    def __init__(self, count: int, horizon: int) -> None:
        self.issued = np.zeros((count, horizon), np.bool_)
        self.held = np.zeros((count, horizon), np.bool_)

    def assign(self, block: Block, start: int) -> bool:
        """Give a block's nodes ALUs beside all others'; False where there is none."""
        chosen: list[tuple[Node, int]] = []
        issued, held = self.issued.copy(), self.held.copy()
        for node in sorted(block.nodes, key=lambda n: (n.alu not in OUT, n.cycle, n.done)):
            at, span = start + node.cycle, slice(start + node.done, start + node.last_use + 1)
            for number in (node.alu,) if node.alu in OUT else _able(node.op):
                if not issued[number, at] and not held[number, span].any():
                    break
            else:
                return False
            issued[number, at] = held[number, span] = True
            chosen.append((node, int(number or 0)))
        for node, number in chosen:
            node.alu = number
        self.issued, self.held = issued, held
        return True


@cache
def _able(op: AluOp) -> tuple[int, ...]:
    """ALUs that a node may take: the small ones first, where they do."""
    numbers = [n for n in range(16) if n not in PINNED]
    large = [n for n in numbers if n in LARGE_ALUS]
    return tuple(large if op in LARGE_OPS else [n for n in numbers if n not in large] + large)


def side_by_side(pieces: list[Piece], alus: int) -> list[int]:
    """Return the pieces' earliest starts, in turns of the work ports, with none in another's way.

    Results are collected in registers, so they keep the pieces' order.
    """
    numbers: dict[tuple[object, ...], int] = {}
    taken = np.empty(0, np.int64)
    table = _Alus(alus, sum(aligned(piece.end) for piece in pieces) + TURN)
    starts: list[int] = []
    collected = start = step = 0
    for piece in pieces:
        uses = piece.uses()
        own = np.array([(numbers.setdefault(what, len(numbers)) << 24) + at for what, at in uses])
        first, last = piece.collected()
        start += max(step - 2 * TURN, TURN) if starts else 0
        while (
            start + first < collected
            or np.isin(own + start, taken).any()
            or not table.assign(piece.block, start)
        ):
            start += TURN
        step = start - starts[-1] if starts else 0
        taken = np.union1d(taken, own + start)
        starts.append(start)
        collected = start + last
    return starts


def attend(a: Args, spec: ChipSpec) -> Template:
    """Attention over the bucket, one head after another; int8."""
    layout = kv_layout(a)
    if a["dtype"] != "int8" or layout.row_bytes != VECTOR_BYTES:
        got = f"{a['head_dim']} {a['dtype']}"
        raise ValueError(f"ATTEND: wanted int8 heads of at most {LANES}, got {got}")
    attention = Attention(a, spec)
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
