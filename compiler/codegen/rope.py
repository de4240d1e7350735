"""ROPE: rotate queries and keys, quantise per head, write the KV cache. One block a row.

Without tables nothing is rotated. With norms of heads values are read three times: what is summed,
then what is normed and rotated, each half of a head with the other's weights beside its own.

Heads are packed as in the cache (chip/ops/kv.py), `pitch` lanes apart, so that all heads of a
vector are rotated and scaled together. A row's key and value vectors leave in both directions; each
is written by the one slice that holds the row's position. Scales are read, changed in one lane, and
written back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from chip.floorplan import Queue, alu, hops, mem
from chip.isa.instructions import AluOp, Read, Write
from chip.isa.issue import Issue, delays
from chip.isa.operands import At, In, Lane, Position, Source, Stream, Tap, group
from chip.kernels.vmath import inverse_sqrt_scale
from chip.ops.attention import Rope
from chip.ops.kv import KvLayout
from chip.ops.rows import row_bytes
from chip.spec import VECTOR_BYTES, ChipSpec, vectors
from chip.sram import bulk_place
from compiler.codegen.core.builder import (
    LANES,
    Block,
    Load,
    Node,
    NodeSource,
    Ref,
)
from compiler.codegen.core.parts import f32
from compiler.codegen.core.reductions import lane_max, segment_sum
from compiler.codegen.core.template import MANY, Template, by_rows, row_block
from compiler.codegen.core.traffic import BLOCKS
from compiler.codegen.resources import CACHE_ROWS
from compiler.codegen.vector import scale_factor

KEPT = 6  # parts of a row whose values can wait in registers
WEIGHED = 4  # cycles that a value, or its weights, are begun before they are multiplied
AHEAD = 8  # cycles that a rematerialised value begins before its factor is known, less a MUL
PER_VECTOR = VECTOR_BYTES // 4
Lanes = Sequence[int | None]


@dataclass(frozen=True, slots=True)
class Packed:
    """Heads that share a vector: `first` is their first value in the row of q, k and v."""

    kind: str  # "q", "k" or "v"
    group: int
    first: int
    heads: int


@dataclass(slots=True)
class Update:
    """Accesses of one row whose addresses come with the step, at cycles of the block."""

    rows: list[tuple[int, int]]  # (cycle on the streams, cache vector offset)
    reads: list[tuple[int, int]]  # (cycle at the VXM, scale vector offset)
    writes: list[tuple[int, int]]  # (cycle on the streams, scale vector offset)


def spread(b: Block, operand: str, lanes: Lanes, after: int = 0) -> Node:
    """Bring values of an fp32 row to lanes: result lane l is value lanes[l], zero for None."""
    wanted = [index for index in lanes if index is not None]
    total: Node | None = None
    first = min(wanted) // PER_VECTOR
    while first * PER_VECTOR <= max(wanted):
        count = min(4, max(wanted) // PER_VECTOR + 1 - first)
        low, high = first * PER_VECTOR, (first + count) * PER_VECTOR
        here = tuple(i - low if i is not None and low <= i < high else None for i in lanes)
        at, part = b.through_sxm(Ref(operand, first, count), here, 4, count * PER_VECTOR, after)
        node = b.alu(AluOp.COPY, part, at=at)
        total = node if total is None else b.alu(AluOp.OR, total, node)
        first += count
    assert total is not None
    return total


def _padded(lanes: list[int | None]) -> tuple[int | None, ...]:
    return tuple(lanes + [None] * (LANES - len(lanes)))


class _Row:
    """Builds one row's block."""

    def __init__(
        self, op: Rope, spec: ChipSpec, pace: int, interval: int, *, turning: bool = False
    ) -> None:  # fmt: skip
        self.op, self.layout, self.half = op, op.layout, op.head_dim // 2
        self.pace = pace
        self.remade = len(list(packed(op))) > KEPT
        self.b = Block(spec, interval=interval, turning=turning)
        self.update = Update([], [], [])

    def lanes(self, heads: int, index: Callable[[int, int], int | None]) -> tuple[int | None, ...]:
        """Return `index(head, dimension)` in the lanes of packed heads."""
        pitch, dim = self.layout.pitch, self.op.head_dim
        return _padded(
            [index(p, d) if d < dim else None for p in range(heads) for d in range(pitch)]
        )

    def build(self) -> Block:
        tables = None if self.op.rope is None else self._tables()
        for number, part in enumerate(packed(self.op)):
            self._part(part, tables, number * self.pace)
        return self.b

    def _tables(self) -> tuple[Node, Node]:
        """Return the row's cosines and sines in every head's lanes, sines of first halves < 0."""
        b, half, per = self.b, self.half, self.layout.heads_per_group
        dim = self.op.head_dim
        table = b.alu(AluOp.COPY, Load(Ref("rope", 0, vectors(dim * 4)), "f32"), lanes=dim)
        other = b.alu(AluOp.NEG, table)
        cosine = self.lanes(per, lambda p, d: d % half)
        high = self.lanes(per, lambda p, d: d if d >= half else None)
        low = self.lanes(per, lambda p, d: d + half if d < half else None)
        (at, cos), (_, above) = b.copies(table, [cosine, high])
        cos_node, above_node = (b.alu(AluOp.COPY, v, at=at) for v in (cos, above))
        ((at, below),) = b.copies(other, [low])
        below_node = b.alu(AluOp.COPY, below, at=at)
        return cos_node, b.alu(AluOp.OR, above_node, below_node)

    def _value(
        self, part: Packed, tables: tuple[Node, Node] | None, after: int, root: Node | None
    ) -> Node:  # fmt: skip
        """Bring heads to their lanes, normed where there is a root; turn queries and keys."""
        b, half = self.b, self.half
        y = self._heads(part, 0, after, root)
        if part.kind == "v" or tables is None:
            return y
        cos, sin = tables
        other = self._heads(part, half, after, root)
        return b.alu(AluOp.ADD, b.alu(AluOp.MUL, y, cos), b.alu(AluOp.MUL, other, sin))

    def _heads(self, part: Packed, turn: int, after: int, root: Node | None) -> Node:
        """Bring heads to their lanes, so many lanes turned, times their roots and weights."""
        b, dim = self.b, self.op.head_dim
        lanes = self.lanes(part.heads, lambda p, d: part.first + p * dim + (d + turn) % dim)
        y = spread(b, "qkv", lanes, after)
        if root is None:
            return y
        weights = self.lanes(part.heads, lambda p, d: (d + turn) % dim)
        y = b.alu(AluOp.MUL, y, root)
        gamma = spread(b, f"g{part.kind}", weights, y.done - WEIGHED)
        return b.alu(AluOp.MUL, y, gamma)

    def _root(self, part: Packed, after: int) -> Node | None:
        """Return 1 / sqrt(mean square + eps) of each head; None where heads are not normed."""
        b, dim, eps = self.b, self.op.head_dim, self.op.eps
        if part.kind == "v" or eps is None:
            return None
        y = self._heads(part, 0, after, None)
        total = segment_sum(b, b.alu(AluOp.MUL, y, y), self.layout.pitch, dim)
        mean = b.alu(AluOp.MUL, total, f32(1.0 / dim))
        return b.alu(AluOp.RSQRT, b.alu(AluOp.ADD, mean, f32(eps)))

    def _part(self, part: Packed, tables: tuple[Node, Node] | None, after: int) -> None:
        b, dim = self.b, self.op.head_dim
        root = self._root(part, after)
        y = self._value(part, tables, after if root is None else root.done - WEIGHED, root)
        if self.op.dtype == "fp16":
            self._store16(part, y)
            return
        peak = lane_max(b, b.alu(AluOp.ABS, y), self.layout.pitch)
        factor, scale = scale_factor(b, peak)
        if b.turning:
            y = b.kept(y, factor.done)
        elif self.remade and root is None:
            # registers are few: rematerialised, rather than kept for its factor
            y = self._value(part, tables, factor.done - b.delay["MUL"].d_func - AHEAD, None)
        scaled = b.alu(AluOp.MUL, y, factor)
        if part.kind == "q":
            b.alu(AluOp.CVT_I8, scaled, out=Ref("q", part.group, 1))
            of_scores = self.op.scale
            if of_scores is None:
                of_scores = float(inverse_sqrt_scale(dim))
            self._query_scales(part, b.alu(AluOp.MUL, scale, f32(of_scores)))
            return
        self._cache(part, scaled, scale)

    def _query_scales(self, part: Packed, scales: Node) -> None:
        """Write each head's scale as a vector of its own: four heads leave the VXM at once."""
        b, first = self.b, part.group * self.layout.heads_per_group
        per, pitch = VECTOR_BYTES // 4, self.layout.pitch
        fours = [range(at, min(at + 4, part.heads)) for at in range(0, part.heads, 4)]
        maps = [_padded([place * pitch for place in four for _ in range(per)]) for four in fours]
        if b.turning:
            turned = (b.turned(scales, [four], AluOp.COPY) for four in maps)
            copies: list[tuple[int, Source]] = [(at, copy) for at, (copy,) in turned]
        else:
            copies = b.copies(scales, maps)
        for four, (at, copy) in zip(fours, copies, strict=True):
            own, n = b.alu(AluOp.COPY, copy, at=at), len(four)
            b.alu(AluOp.COPY, own, lanes=n * per, out=Ref("sq", first + four[0], n))

    def _store16(self, part: Packed, y: Node) -> None:
        """Round to fp16, once: what saturates is counted."""
        b, lanes = self.b, part.heads * self.layout.pitch
        if part.kind == "q":
            b.alu(AluOp.CVT_F16, y, lanes=lanes, out=Ref("q", part.group, 1))
            return
        self._row(part, AluOp.COPY, b.alu(AluOp.CVT_F16, y, lanes=lanes), lanes)

    def _row(self, part: Packed, op: AluOp, value: Node, lanes: int = LANES) -> None:
        """Let a vector for the cache leave the VXM both ways."""
        late = self.b.delay[op].d_func
        cycle = self.b.between_reads(value.done + late)
        for eastward in (True, False):
            out = group(Stream(eastward, CACHE_ROWS.stream), 1)
            self.b.alu(op, value, lanes=lanes, out=out, at=cycle - late)
        head = part.group * self.layout.heads_per_group
        offset = self.layout.head_offset(head, value=part.kind == "v")
        self.update.rows.append((cycle, offset // VECTOR_BYTES))

    def _cache(self, part: Packed, scaled: Node, scale: Node) -> None:
        b, layout, value = self.b, self.layout, part.kind == "v"
        self._row(part, AluOp.CVT_I8, scaled)
        head = part.group * layout.heads_per_group
        maps: list[tuple[int | None, ...]] = [
            (place * layout.pitch,) * LANES for place in range(part.heads)
        ]
        if b.turning:
            for place, spread in enumerate(maps):
                offset = layout.scale_offset(head + place, value=value) // VECTOR_BYTES
                self._scale_turned(scale, spread, offset)
            return
        for place, (at, copy) in enumerate(b.copies(scale, maps)):
            own = b.alu(AluOp.COPY, copy, at=at)
            offset = layout.scale_offset(head + place, value=value) // VECTOR_BYTES
            self._scale(own, offset)

    def _scale(self, scale: Node, offset: int) -> None:
        """Change one lane of a vector of scales; slices that do not hold it read zeros."""
        b, ref = self.b, Ref("kvs", 0, 1)
        at = b.accessible(False, ref, scale.done)
        old = self._old_scales(at)
        mask = b.alu(AluOp.EQ, Lane(), Position(0, modulus=PER_VECTOR), after=at)
        late = b.delay["CHOOSE"].d_func
        cycle = b.accessible(True, ref, max(old.done, mask.done) + late) - late
        self._new_scale(at, cycle, offset, (mask, scale, old))

    def _old_scales(self, at: int) -> Node:
        """Take a vector of scales at a cycle from whichever slice has it."""
        b, halves = self.b, list[Node]()
        for number in range(b.spec.work_slices):
            sides = [In((Tap(Stream(e, BLOCKS.to_vxm + number)),)) for e in (True, False)]
            halves.append(b.alu(AluOp.OR, *sides, at=at, lanes=PER_VECTOR))
        old, *others = halves
        for half in others:
            old = b.alu(AluOp.OR, old, half, lanes=PER_VECTOR)
        return old

    def _scale_turned(self, scale: Node, spread: tuple[int | None, ...], offset: int) -> None:
        """Do the same with a scale that comes back from an SXM just as it is needed."""
        b, ref = self.b, Ref("kvs", 0, 1)
        late, equal = b.delay["CHOOSE"].d_func, b.delay["EQ"].d_func
        lag = b.delay["OR"].d_func * b.spec.work_slices  # from the old vector to the new one
        trip = b.trip_cycles
        first = at = scale.done + trip - lag
        while not (
            b.all_free([b.access(False, ref, at), b.access(True, ref, at + lag + late)])
            and (copy := b.turned_at(scale, [spread], at + lag - trip, PER_VECTOR))
        ):
            at = b.later(first, at, "a scale")
        b.accessible(False, ref, at)
        b.accessible(True, ref, at + lag + late)
        old = self._old_scales(at)
        mask = b.alu(AluOp.EQ, Lane(), Position(0, modulus=PER_VECTOR), at=at + lag - equal)
        self._new_scale(at, at + lag, offset, (mask, copy[0], old))

    def _new_scale(
        self, at: int, cycle: int, offset: int, choice: tuple[Node, NodeSource, Node]
    ) -> None:  # fmt: skip
        """Let the vector that was read at `at` leave at `cycle` with one lane changed."""
        b, late = self.b, self.b.delay["CHOOSE"].d_func
        # one hop each way, and a read sees what was written a cycle before
        written = cycle + late + 1 + b.delay["WRITE"].d_func + 1
        if b.interval and written > at - 1 - b.delay["READ"].d_func + b.interval:
            raise OverflowError(f"the next row reads a scale {b.interval} cycles on")
        out = group(Stream(True, BLOCKS.from_vxm), 1)  # passes all slices of a side
        new = b.alu(AluOp.CHOOSE, *choice, at=cycle, lanes=PER_VECTOR, out=out)
        back = group(Stream(False, BLOCKS.from_vxm), 1)
        b.alu(AluOp.CHOOSE, *choice, at=cycle, lanes=PER_VECTOR, out=back)
        self.update.reads.append((at, offset))
        self.update.writes.append((new.done, offset))


@dataclass(frozen=True, slots=True)
class CacheWrites:
    """Accesses of the cache, for every row of a ROPE."""

    spec: ChipSpec
    layout: KvLayout
    rows: int
    interval: int
    start: int
    update: Update
    ring: int | None

    @property
    def end(self) -> int:
        """Cycle at which the farthest slice has the last row."""
        far = hops(alu(0), mem(1, self.spec.slices // 2 - 1), self.spec)
        last = self.start + (self.rows - 1) * self.interval + max(c for c, _ in self.update.rows)
        return last + far + delays(self.spec)["WRITE"].d_func + 1

    def issues(self, base: Callable[[str], int]) -> Iterator[Issue]:
        """Yield Reads and Writes in the queues of every slice that may hold their vectors."""
        read = delays(self.spec)["READ"].d_func
        work = [mem(side, number) for side in (0, 1) for number in range(self.spec.work_slices)]
        for row in range(self.rows):
            now = self.start + row * self.interval
            for cycle, offset in self.update.rows:
                at = self._at(base(f"kv:{row}") + offset, 1, row, self.layout.context)
                for queue in self._slices(at):
                    stream = Stream(queue.hemisphere == 1, CACHE_ROWS.stream)
                    arrive = now + cycle + hops(alu(0), queue, self.spec)
                    yield Issue(queue, arrive, Write(address=at, stream=stream))
            limit = self.layout.scale_bytes // VECTOR_BYTES
            for cycle, offset in self.update.reads:
                at = self._at(base(f"kvs:{row}") + offset, PER_VECTOR, row, limit)
                for queue in work:
                    stream = Stream(queue.hemisphere == 0, BLOCKS.to_vxm + queue.number)
                    issue = now + cycle - read - hops(queue, alu(0), self.spec)
                    yield Issue(queue, issue, Read(address=at, stream=stream))
            for cycle, offset in self.update.writes:
                at = self._at(base(f"kvs:{row}") + offset, PER_VECTOR, row, limit)
                for queue in work:
                    stream = Stream(queue.hemisphere == 1, BLOCKS.from_vxm)
                    arrive = now + cycle + hops(alu(0), queue, self.spec)
                    yield Issue(queue, arrive, Write(address=at, stream=stream))

    def _at(self, base: int, per: int, row: int, limit: int) -> At:
        """Return where a row's slot is, of which a vector has so many."""
        return At(base, 1, per, row, limit, modulus=self.ring or 0)

    def _slices(self, at: At) -> list[Queue]:
        places = {bulk_place(self.spec, at.base + n)[:2] for n in range(at.limit)}
        return [mem(side, number) for side, number in sorted(places)]


def packed(op: Rope) -> Iterator[Packed]:
    """Yield the vectors of a row's queries, keys and values."""
    first, per, kv_heads = 0, op.layout.heads_per_group, op.kv_heads
    for kind, heads in (("q", op.heads), ("k", kv_heads), ("v", kv_heads)):
        for head in range(0, heads, per):
            start = first + head * op.head_dim
            yield Packed(kind, head // per, start, min(per, heads - head))
        first += heads * op.head_dim


def turned(op: Rope) -> bool:
    """Tell whether also a single row's heads are reduced by turns: the norms of many."""
    return op.eps is not None and len(list(packed(op))) > KEPT


def rope(op: Rope, spec: ChipSpec) -> Template:
    """Rotate, quantise or round, write the cache."""
    layout = op.layout
    if layout.row_bytes != VECTOR_BYTES:
        got = f"{op.head_dim} {op.dtype}"
        raise ValueError(f"ROPE: wanted heads of at most {VECTOR_BYTES} bytes, got {got}")
    made: dict[int, Update] = {}

    def build(runs: int, pace: int, interval: int) -> Block:
        row = _Row(op, spec, pace, interval, turning=runs >= MANY or turned(op))
        block = row.build()
        made[id(block)] = row.update
        kept.append(block)  # so that no other has its id
        return block

    kept: list[Block] = []
    n = (op.heads + 2 * op.kv_heads) * op.head_dim
    steps = {
        "qkv": vectors(n * 4), "rope": row_bytes(op.head_dim, 4) // VECTOR_BYTES,
        "q": layout.query_bytes(op.heads) // VECTOR_BYTES,
        "sq": layout.query_scale_bytes(op.heads) // VECTOR_BYTES, "gq": 0, "gk": 0,
    }  # fmt: skip
    out = by_rows(lambda runs: row_block(partial(build, runs), runs), op.rows, steps)
    (placed,) = out.placed
    update = made[id(placed.block)]
    writes = CacheWrites(spec, layout, op.rows, placed.interval, placed.start, update,
                        op.ring)  # fmt: skip
    return replace(out, cycles=max(out.cycles, writes.end), streams=(writes,))
