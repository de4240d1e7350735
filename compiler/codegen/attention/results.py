"""Attention's last pass: sums of P.V leave the accumulators, are scaled and rounded to fp16.

Heads come one after another. The SXMs put each in its lanes of a vector of 320 results; a head that
lies in two such vectors comes twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from chip.floorplan import Role, mxm, sxm
from chip.isa.instructions import ACC, AluOp, Permute
from chip.isa.issue import Issue
from chip.isa.operands import Group, Held, Immediate, In, Source, Stream, group
from chip.ops.scratch import QUAD
from chip.spec import vectors
from compiler.codegen.attention.resources import RESULTS, RESULTS_WAY
from compiler.codegen.attention.shape import Attention, Map, Quad, Tile
from compiler.codegen.attention.weights import Feeds
from compiler.codegen.attention.wires import Ports, Wires
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.control import Bulk
from compiler.codegen.core.parts import LANES

SCALE = 2  # what is known of the heads: behind maximum or sum reciprocal, and factor


@dataclass(slots=True)
class Part:
    """A head's part of a vector of results: `time` when it comes."""

    quad: Quad
    place: int  # of the head in its quad
    number: int  # of the vector
    spread: Map
    time: int
    first: bool = False  # of the vector
    last: bool = False


class Results:
    """The pass: heads' parts, row by row."""

    def __init__(self, shape: Attention, clock: Clock, ports: Ports, feeds: Feeds) -> None:
        self.shape, self.clock, self.ports, self.feeds = shape, clock, ports, feeds
        of = clock.of
        self.back = of["ACC"] + clock.to_mxm + of["PERMUTE"]
        self.planes = {
            group: [
                (side, tile.number % 2) for tile in self._tiles(group)[:2] for side in tile.sides()
            ]
            for group in {tile.group for tile in shape.tiles}
        }
        self.levels = 2 if max(map(len, self.planes.values())) > 2 else 1
        self.added = self.levels * of["ADD"]
        self.scaled = self.added + of["CVT_F32"] + of["MUL"]
        self.pace = max(1, of["COPY"], of["OR"])  # cycles between parts: each joins those before
        self.joined = self.scaled + self.pace
        self.left = self.joined + of["CVT_F16"]
        self.to_port = self.added + of["CVT_F32"] - clock.fetch
        self.parts: list[Part] = []

    @classmethod
    def lay_out(cls, shape: Attention, clock: Clock, ports: Ports, feeds: Feeds) -> Results:
        """Place part after part, as sums are done and ports come free."""
        results, at = cls(shape, clock, ports, feeds), feeds.end
        for part in results._in_order():
            at = max(at, feeds.summed[part.quad.number] + results.back)
            while not results._free(part, at):
                at += 1
            part.time = at
            ports.taken.add(at + results.to_port)
            if part.last:
                ports.taken.add(results._away(at))
            results.parts.append(part)
            at += results.pace
        return results

    @property
    def end(self) -> int:
        """Cycle after the last results' port."""
        return self._away(self.parts[-1].time) + 1

    def _away(self, time: int) -> int:
        """Port's cycle at which results leave, whose last part comes at `time`."""
        return time + self.left + self.clock.near

    def _free(self, part: Part, time: int) -> bool:
        """Tell whether a part may come: its sums' queues and the ports are free."""
        planes = self.planes[part.quad.group]
        if any((parity, time - self.back) in self.feeds.sums for _, parity in planes):
            return False
        away = not part.last or self.ports.free(self._away(time))
        return away and self.ports.free(time + self.to_port)

    def _tiles(self, group: int) -> list[Tile]:
        return [tile for tile in self.shape.tiles if tile.group == group]

    def _in_order(self) -> Iterator[Part]:
        """Yield parts row by row in the order of the results."""
        where = {
            (quad.row, head): (quad, place)
            for quad in self.shape.quads for place, head in enumerate(quad.heads)
        }  # fmt: skip
        for row in range(self.shape.scratch.batch):
            parts = [
                Part(*where[row, head], number, spread, 0)
                for head in range(len(self.shape.kv_of))
                for number, spread in self.shape.outputs(head)
            ]
            for i, part in enumerate(parts):
                part.first = i == 0 or parts[i - 1].number < part.number
                part.last = i + 1 == len(parts) or parts[i + 1].number > part.number
            yield from parts

    def ready(self) -> Iterator[tuple[int, int]]:
        """Yield (row, when it may be read) of each vector of results, in their order."""
        n = len(self.shape.kv_of) * self.shape.dim
        for part in self.parts:
            if part.last:
                for _ in range(vectors(2 * min(LANES, n - part.number * LANES))):
                    yield part.quad.row, self._away(part.time) + 1

    def each(self, wires: Wires, first_row: int) -> Iterator[Iterator[Issue | Bulk]]:
        """Yield each row's instructions, for a batch whose first row is given."""
        for within, parts in groupby(self.parts, key=lambda part: part.quad.row):
            if first_row + within < self.shape.rows:
                yield self._issues(list(parts), first_row + within, wires)

    def _issues(self, parts: Iterable[Part], row: int, wires: Wires) -> Iterator[Issue]:
        for part in parts:
            yield from self._leave(part)
            yield from self._part(part, wires)
            if part.last:
                yield from self._round(part, row, wires)

    def _leave(self, part: Part) -> Iterator[Issue]:
        """Accumulators, SXMs."""
        width = self.shape.width(part.quad.group)
        slot, at = QUAD * part.quad.number + part.place, part.time - self.back
        for side, parity in self.planes[part.quad.group]:
            src = group(Stream(side == 0, RESULTS_WAY.parts + 4 * parity), vectors(4 * width))
            acc = ACC(slot=slot, first=False, lanes=width, out=src, product=False)
            yield Issue(mxm(2 * side + parity, Role.DRAIN), at, acc)
            turn = Permute(
                src=src, dst=self._inward(side, parity), item=4, lanes=width, map=part.spread
            )
            there = at + self.clock.of["ACC"] + self.clock.to_mxm - self.clock.to_sxm
            yield Issue(sxm(side, RESULTS_WAY.turn + parity), there, turn)

    @staticmethod
    def _inward(side: int, parity: int) -> Group:
        return group(Stream(side == 0, RESULTS_WAY.sums + 4 * parity), 4)

    def _part(self, part: Part, wires: Wires) -> Iterator[Issue]:
        """Add the planes, scale, join with the heads before."""
        of, at = self.clock.of, part.time
        terms: list[Source] = [
            In(self._inward(*plane), "i32") for plane in self.planes[part.quad.group]
        ]
        adders = iter(RESULTS.adders)
        for level in range(self.levels):
            terms += [Immediate(0, "i32")] * (len(terms) % 2)
            pairs, terms = [terms[i : i + 2] for i in range(0, len(terms), 2)], []
            for pair in pairs:
                terms.append(Held(number := next(adders)))
                yield wires.alu(number, at + level * of["ADD"], AluOp.ADD, *pair)
        (total,) = terms
        yield wires.alu(RESULTS.convert, at + self.added, AluOp.CVT_F32, total)
        known = part.quad.number * self.shape.scratch.known
        scale = known + 4 * SCALE + part.place
        port = at + self.to_port
        yield from wires.fetch("stats", [scale], port)
        operand = In((wires.tap("stats", scale),) * 4)
        at += self.added + of["CVT_F32"]
        yield wires.alu(RESULTS.scaled, at, AluOp.MUL, Held(RESULTS.convert), operand)
        at += of["MUL"]
        if part.first:
            yield wires.alu(RESULTS.joined, at, AluOp.COPY, Held(RESULTS.scaled))
        else:
            yield wires.alu(
                RESULTS.joined, at, AluOp.OR, Held(RESULTS.scaled), Held(RESULTS.joined)
            )

    def _round(self, part: Part, row: int, wires: Wires) -> Iterator[Issue]:
        n = len(self.shape.kv_of) * self.shape.dim
        lanes = min(LANES, n - part.number * LANES)
        first, count = row * vectors(2 * n) + 2 * part.number, vectors(2 * lanes)
        writes, taps = wires.store("y", first, count, part.time + self.left)
        at = part.time + self.joined
        yield wires.alu(
            RESULTS.round, at, AluOp.CVT_F16, Held(RESULTS.joined), lanes=lanes, out=taps
        )
        yield from writes
