"""What attention is made of: pieces of work, and how keys, queries and values reach the planes.

See chip/templates/attend.py for the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from chip.floorplan import Role, alu, hops, mxm, sxm
from chip.isa import ABC, ACC, IW, LW, AluOp, Instruction, Transpose
from chip.issue import delays
from chip.kv import KvLayout
from chip.operand import In, Stream, group
from chip.operations import Args, kv_layout
from chip.spec import VECTOR_BYTES, ChipSpec, vectors
from chip.sram import RUN
from chip.templates.builder import LANES, Block, Load, Node, Pass, Ref
from chip.templates.columns import PLANE_OF_RUN, WINDOW
from chip.templates.rope import TO_CACHE as FEED
from chip.templates.vector import f32

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
