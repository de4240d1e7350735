"""ATTEND of many rows, int8: at the machine's throughput, where attend.py works at its latency.

A quad is a head of four rows, and is worked on from scores to results in one go. Quads follow each
other in a modulo schedule (compiler/codegen/attention/pattern.py); keys and values stay in the
planes over all rows. Numerics: chip/kernels/twin.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from chip.errors import TemplateError
from chip.floorplan import Role, mem, mxm, sxm
from chip.isa.instructions import ABC, ACC, AluOp, Permute, Read
from chip.isa.issue import Issue
from chip.isa.operands import Group, Held, Immediate, In, Lane, Position, Source, Stream, Tap, group
from chip.ops.attention import Attend
from chip.ops.scratch import COLUMN, PER_WINDOW, QUAD
from chip.spec import VECTOR_BYTES, ChipSpec, vectors
from chip.sram import near_place
from compiler.codegen.attention.modulo import EAST, WEST
from compiler.codegen.attention.pattern import Pattern, pattern
from compiler.codegen.attention.quads import Access, Fetched, Kept
from compiler.codegen.attention.quads import Part as QuadPart
from compiler.codegen.attention.resources import LOOP, WHOLE
from compiler.codegen.attention.seats import (
    SLOTS,
    Fill,
    Join,
    Round,
    Rounded,
    Seat,
    result_vectors,
)
from compiler.codegen.attention.shape import Attention, Piece, Tile
from compiler.codegen.attention.tiles import load_issues
from compiler.codegen.attention.weights import WORD, WORDS, words
from compiler.codegen.attention.wires import VxmOnly, Wires
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.control import Alike, Bulk, Part
from compiler.codegen.core.parts import LANES, Load, Node, NodeSource
from compiler.codegen.core.template import Template, even_stream
from compiler.codegen.core.uses import Uses, of_issues, together

LEAST_ROWS = 8
COLUMNS = 2  # of 80 tokens, at most


@dataclass(frozen=True, slots=True)
class Ring:
    """Where columns wait in bulk memory: `ahead` quads have room, each with so many columns."""

    first: tuple[int, int]  # item of a side
    ahead: int

    @classmethod
    def all_of(cls, found: Pattern, columns: int) -> tuple[dict[Kept, Ring], int]:
        """Return every ring, and the items that both sides must have room for."""
        ends, out = [0, 0], {}
        for kept in Kept:
            ahead = found.ring(kept)
            out[kept] = cls((ends[0], ends[1]), ahead)
            for side in (0, 1):
                written = {
                    a.column for unit in found.units for a in unit.accesses
                    if a.kept is kept and a.side == side
                }  # fmt: skip
                ends[side] += ahead * len(written)
        return out, max(ends)


@dataclass(frozen=True, slots=True)
class Many:
    """All instructions of an ATTEND of many rows."""

    shape: Attention
    clock: Clock
    pattern: Pattern
    rounds: tuple[Round, ...]
    rings: dict[Kept, Ring]

    @property
    def tile(self) -> Tile:
        """All tokens of a group."""
        return Tile(0, 0, 0, self.shape.scratch.bucket)

    def issues(self, base: Callable[[str], int]) -> Iterator[Issue | Bulk]:
        """Yield reads, writes and instructions at operands' addresses."""
        wires = Wires(self.clock, base)
        yield from self._once(wires)
        for one in self.rounds:
            for seat in one.seats:
                for issue in self._seat(seat, wires):
                    yield issue.moved(seat.start)

    def parts(self, base: Callable[[str], int]) -> Iterator[Part]:
        """Yield what happens beside the quads; then quads that differ in memory alone."""
        wires = Wires(self.clock, base)
        yield Part((0,), self._once(wires))
        alike: Alike[Seat] = Alike()
        for one in self.rounds:
            for seat in one.seats:
                alike.add((id(seat.unit), seat.number % SLOTS), seat.start, seat)
        for starts, seat in alike.every():
            yield Part([start + seat.start for start in starts], self._seat(seat, wires))

    # -- beside the quads

    def _once(self, wires: Wires) -> Iterator[Issue | Bulk]:
        for load in (load for one in self.rounds for load in one.loads):
            yield from load_issues(load, self.shape, self.clock)
        yield from self.pinned(wires)
        for one in self.rounds:
            for fill in one.fills:
                yield from self._fill(fill, wires)

    def pinned(self, wires: Wires) -> Iterator[Issue]:
        """Yield instructions of ALUs that the quads leave alone."""
        if self.shape.horizon is not None:
            yield from self._sees(0, 0, wires)
        for one in self.rounds:
            for row, at in one.seen:
                yield from self._sees(row, at, wires)
            whole = {id(result.join): result.side for result in one.results}
            for join in one.joins:
                yield self._join(join, whole.get(id(join)), wires)
            for result in one.results:
                yield from self._rounded(result, wires)

    def _sees(self, row: int, at: int, wires: Wires) -> Iterator[Issue]:
        """The last lane that each quarter's row sees, of the first column."""
        of, rows = self.clock.of, self.shape.rows
        seen = [
            Position(self.shape.seen_by(min(row + i, rows - 1)), 0, COLUMN * i) for i in range(QUAD)
        ]
        yield wires.alu(LOOP.visible, at + of["GE"] - 1, AluOp.COPY, seen[0])
        for i in range(1, QUAD):
            edge = Immediate(COLUMN * i, "i32")
            yield wires.alu(LOOP.rounded, at + i - 1, AluOp.GE, Lane(), edge)
            due = at + i - 1 + of["GE"]
            beyond, below = Held(LOOP.rounded), Held(LOOP.visible)
            yield wires.alu(LOOP.visible, due, AluOp.CHOOSE, beyond, seen[i], below)

    def _fill(self, fill: Fill, wires: Wires) -> Iterator[Issue]:
        """Queries from work memory to both SXMs at once, and into the buffers of their planes."""
        spec, clock = self.clock.spec, self.clock
        step = self.shape.layout.query_bytes(len(self.shape.kv_of)) // VECTOR_BYTES
        vector = wires.base("q") + fill.row * step + fill.vector
        own, index, word = near_place(spec, vector)
        for side in self.tile.sides():
            src = Stream(side == 1, LOOP.query)
            port = fill.port + (2 * clock.near if side == own else 0)
            yield Issue(mem(own, index), port, Read(address=word, stream=src))
            for head, queue, slot, at in fill.heads:
                late = at - (clock.to_mxm - clock.to_sxm) - clock.of["PERMUTE"] - fill.there
                fed = Stream(side == 1, LOOP.fed_queries)
                turn = Permute(
                    src=(Tap(src),), dst=(Tap(fed, late),), item=1,
                    map=self.shape.queries[head][1],
                )  # fmt: skip
                yield Issue(sxm(side, queue), fill.there, turn)
                yield Issue(mxm(self.tile.plane(side), Role.FEED), at, ABC(stream=fed, slot=slot))

    def _join(self, join: Join, side: int | None, wires: Wires) -> Issue:
        """A row's copy of a piece joins the register, in which the piece's lanes are zero.

        `side`: where the whole vector goes.
        """
        register, joined = LOOP.joined[join.row], join.part.joined[join.row]
        copy = In(group(Stream(join.part.sent.side == WEST, joined.way), 4))
        out = () if side is None else _whole(join.row, side)
        if join.first:
            return wires.alu(register, join.cycle, AluOp.COPY, copy, out=out)
        return wires.alu(register, join.cycle, AluOp.OR, copy, Held(register), out=out)

    def _rounded(self, result: Rounded, wires: Wires) -> Iterator[Issue]:
        n = len(self.shape.kv_of) * self.shape.dim
        side, inward = result.side, result.side == WEST
        lanes = min(LANES, n - result.number * LANES)
        back = group(Stream(inward, result.way), vectors(4 * lanes))
        dst = tuple(Tap(tap.stream, result.late) for tap in back)
        src = _whole(result.join.row, side)
        as_it_is = Permute(src=src, dst=dst, item=4, out_lanes=lanes, map=tuple(range(lanes)))
        yield Issue(sxm(side, result.queue), result.there, as_it_is)
        count = result_vectors(self.shape, result.number)
        first = result.row * vectors(2 * n) + 2 * result.number
        left = result.cycle + self.clock.of["CVT_F16"]
        writes, taps = wires.store("y", first, count, left)
        yield wires.alu(LOOP.rounded, result.cycle, AluOp.CVT_F16, In(back), lanes=lanes, out=taps)
        yield from writes

    # -- a quad, from its interval's start

    def _seat(self, seat: Seat, wires: Wires) -> Iterator[Issue | Bulk]:
        unit = seat.unit
        yield from self._sums(seat)
        for fetched in unit.fetched:
            found = self._found(fetched, seat)
            yield from wires.fetch(found[0], found[1], fetched.port)
        index = self.pattern.units.index(unit)
        unsent = [id(part.scaled) for part in self._unsent(seat)]
        for node in self.pattern.nodes[index]:
            yield self._alu(node, seat, wires, sent=id(node) not in unsent)
        for turn in self.pattern.turns[index]:
            yield Issue(sxm(turn.side, turn.queue), turn.cycle, turn.permute)
        for access in unit.accesses:
            yield from wires.item(self._item(access, seat), access.cycle, write=access.write)
        yield from self._weighed(seat)
        yield from self._products(seat)

    def _found(self, fetched: Fetched, seat: Seat) -> tuple[str, list[int]]:
        """Return the operand and vectors of a read."""
        if fetched.operand == "sq":
            rows = (min(seat.row + i, self.shape.rows - 1) for i in fetched.vectors)
            return "sq", [row * len(self.shape.kv_of) + seat.head for row in rows]
        kv = self.shape.kv_of[seat.head]
        first = self.shape.layout.scale_offset(kv, value=fetched.operand == "vs") // VECTOR_BYTES
        return "kvs", [first + column for column in fetched.vectors]

    def _unsent(self, seat: Seat) -> list[QuadPart]:
        """Return parts that the seat's head does not have: it has fewer pieces than others."""
        return seat.unit.parts[len(self.shape.pieces(seat.head)) :]

    def _alu(self, node: Node, seat: Seat, wires: Wires, *, sent: bool) -> Issue:
        assert node.alu is not None
        sources = [self._source(source, seat, wires) for source in node.sources]
        out = (node.out or ()) if sent else ()
        assert isinstance(out, tuple)
        return wires.alu(node.alu, node.cycle, node.op, *sources, out=out, lanes=node.lanes)

    def _source(self, source: NodeSource, seat: Seat, wires: Wires) -> Source:
        if isinstance(source, Node):
            assert source.alu is not None
            return Held(source.alu)
        if not isinstance(source, Load):
            assert isinstance(source, Source)
            return source
        ref = source.ref
        if ref.operand == "sq":
            every = [one for one in seat.unit.fetched if one.operand == "sq"]
            taps = tuple(
                wires.tap("sq", self._found(one, seat)[1][0], one.port - every[0].port)
                for one in every
            )
            return In(taps, source.dtype)
        name, (vector,) = self._found(Fetched(ref.operand, (ref.vector,), 0), seat)
        return In((wires.tap(name, vector),) * QUAD, source.dtype)

    def _item(self, access: Access, seat: Seat) -> int:
        """Return the first vector of a column that waits."""
        ring = self.rings[access.kept]
        columns = sorted({
            a.column for a in seat.unit.accesses
            if a.kept is access.kept and a.side == access.side
        })  # fmt: skip
        place = seat.number % ring.ahead * len(columns) + columns.index(access.column)
        return self.shape.scratch.item(0, ring.first[access.side] + place, access.side)

    def _sums(self, seat: Seat) -> Iterator[Issue]:
        """Queries through the planes of keys; sums through the SXMs, where tokens come in order."""
        unit, of, tile = seat.unit, self.clock.of, self.tile
        there = unit.drained + of["ACC"] + self.clock.to_mxm - self.clock.to_sxm
        for side in tile.sides():
            plane, width = tile.plane(side), tile.width(side)
            src = group(Stream(side == 0, LOOP.score_parts), vectors(4 * width))
            abc = ABC(slot=seat.fed, step=1)
            yield Issue(mxm(plane, Role.FEED), unit.drained - of["ABC"], abc, QUAD)
            acc = ACC(slot=0, first=True, lanes=width, out=src)
            yield Issue(mxm(plane, Role.DRAIN), unit.drained, acc, QUAD)
            for vector in tile.vectors:
                if side not in tile.sides(vector):
                    continue
                late = [unit.columns[c] - unit.columns[0] for c in tile.columns_of(vector)]
                for i in range(QUAD):
                    dst = tuple(Tap(Stream(side == 0, LOOP.sums + i), beat) for beat in late)
                    turn = Permute(
                        src=src, dst=dst, item=4, lanes=width, out_lanes=COLUMN * len(late),
                        map=tile.spread(vector, side),
                    )  # fmt: skip
                    yield Issue(sxm(side, LOOP.turn_sums + vector), there + i, turn)

    def _weighed(self, seat: Seat) -> Iterator[Issue]:
        """Weights through the SXMs, which give each row its vector, and the planes of values."""
        unit, clock, tile = seat.unit, self.clock, self.tile
        onward = clock.of["PERMUTE"] + clock.to_mxm - clock.to_sxm
        for turned in unit.turned:
            first, last = turned.cycles[0], turned.cycles[-1]
            for side in tile.sides(turned.vector):
                src = tuple(
                    Tap(Stream(side == 1, LOOP.rounded_weights), at - first) for at in turned.cycles
                )
                late = turned.fed - last - clock.to_sxm - onward
                fed = Stream(side == 1, LOOP.fed_weights)
                turn = Permute(
                    src=src, dst=tuple(Tap(fed, late + i) for i in range(QUAD)), item=WORD,
                    lanes=WORDS * len(src), out_lanes=WORDS * QUAD,
                    map=words(tile, turned.vector, side, QUAD),
                )  # fmt: skip
                queue = sxm(side, LOOP.turn_weights + turned.vector)
                yield Issue(queue, first + clock.to_sxm, turn)
                plane = 2 * side + 1
                yield Issue(mxm(plane, Role.FEED), turned.fed, ABC(stream=fed), QUAD)
                acc = ACC(slot=_slot(seat), first=turned.vector == 0, step=1)
                yield Issue(mxm(plane, Role.DRAIN), turned.fed + clock.of["ABC"], acc, QUAD)

    def _products(self, seat: Seat) -> Iterator[Issue]:
        """Sums of P.V out of the accumulators; results to the registers of their rows."""
        width, clock = self.shape.width(seat.group), self.clock
        pieces = self.shape.pieces(seat.head)
        for part in seat.unit.parts:
            piece = pieces[part.number] if part.number < len(pieces) else None
            for side in self.tile.sides():
                src = group(Stream(side == 0, LOOP.product_parts), vectors(4 * width))
                acc = ACC(
                    slot=_slot(seat), first=False, lanes=width, out=src, product=False, step=1
                )  # fmt: skip
                yield Issue(mxm(2 * side + 1, Role.DRAIN), part.drained, acc, QUAD)
                there = part.drained + clock.of["ACC"] + clock.to_mxm - clock.to_sxm
                for row in range(QUAD):
                    turn = Permute(
                        src=src, dst=(Tap(Stream(side == 0, LOOP.products + row)),), item=4,
                        lanes=width, out_lanes=COLUMN,
                        map=piece.taken if piece else (None,) * COLUMN,
                    )  # fmt: skip
                    yield Issue(sxm(side, LOOP.turn_products), there + row, turn)
            if piece is not None:
                yield from self._copies(part, piece, self.shape.rows - seat.row)

    @staticmethod
    def _copies(part: QuadPart, piece: Piece, rows: int) -> Iterator[Issue]:
        """A piece of results, to each row's register."""
        sent = part.sent
        src = group(Stream(sent.side == EAST, LOOP.sent), 4)
        for row, joined in enumerate(part.joined[:rows]):
            late = joined.cycle - sent.arrival
            inward = sent.side == WEST
            dst = tuple(Tap(Stream(inward, joined.way + n), late) for n in range(4))
            turn = Permute(src=src, dst=dst, item=4, map=piece.spread(row))
            yield Issue(sxm(sent.side, joined.queue), sent.cycle, turn)


def _whole(row: int, side: int) -> Group:
    """Return the streams of a row's results to an SXM."""
    return group(Stream(side == EAST, WHOLE.sent[row]), 4)


def _slot(seat: Seat) -> int:
    """Return the accumulator row of a quad's first row."""
    return seat.number % SLOTS * QUAD


def fits(op: Attend, spec: ChipSpec) -> bool:
    """Tell whether a shape may be laid out so: few columns, and vectors of results in a group."""
    shape = Attention(op, spec)
    if op.dtype != "int8" or op.rows < LEAST_ROWS or shape.columns > COLUMNS:
        return False
    per = op.layout.heads_per_group
    groups = [kv // per for kv in op.kv_of]
    edges = [i for i in range(1, len(groups)) if groups[i] != groups[i - 1]]
    return groups == sorted(groups) and all(i * op.head_dim % LANES == 0 for i in edges)


def attend_many(op: Attend, spec: ChipSpec) -> Template:
    """Attention of many rows; int8. Raises TemplateError where it cannot be laid out."""
    shape, clock = Attention(op, spec), Clock(spec)
    parts = max(len(shape.pieces(head)) for head in range(len(op.kv_of)))
    found = pattern(op.bucket, parts, shape.horizon is None, spec)
    rings, items = Ring.all_of(found, shape.columns)
    room = shape.scratch.bytes // VECTOR_BYTES // 64 * PER_WINDOW
    if items > room:
        raise TemplateError(f"ATTEND: {items} columns wait where {room} have room")
    groups = sorted({kv // op.layout.heads_per_group for kv in op.kv_of})
    rounds, number, start = list[Round](), 0, 0
    for first in range(0, len(groups), 2):
        one = Round.lay_out(shape, found, clock, groups[first : first + 2], number, start)
        rounds.append(one)
        number, start = number + len(one.seats), one.quiet
    many = Many(shape, clock, found, tuple(rounds), rings)
    ready = sorted(
        (result.row, result.number, result.cycle + clock.of["CVT_F16"] + clock.near + 1)
        for one in rounds for result in one.results
    )  # fmt: skip
    end = max(at for _, _, at in ready)
    every = [at for _, number, at in ready for _ in range(result_vectors(shape, number))]
    return Template(
        placed=(), cycles=end, stream_cycles=even_stream(every, end), streams=(many,),
        uses=tuple(_uses(many)),
    )  # fmt: skip


def _uses(many: Many) -> Iterator[Uses]:
    """Yield what quads ask of the ALUs, and what happens beside them."""
    for unit, uses in zip(many.pattern.units, many.pattern.uses, strict=True):
        starts = [seat.start for one in many.rounds for seat in one.seats if seat.unit is unit]
        if starts:
            yield replace(uses, starts=np.array(starts))
    spec = many.clock.spec
    wires = VxmOnly(many.clock)
    others = set(range(spec.vxm_alus)) - LOOP.pinned
    yield together("results", of_issues("results", many.pinned(wires), spec, others))
