"""Attention's pass over scores that are capped, or of which a row sees a window.

It follows the first pass, and leaves what that would: the scores of tokens that a row sees, on the
other side of the scratch memory, and their maxima. Columns follow one another without a gap;
those of a quad's four maxima are in turn.

A mask is made of lanes' numbers and the row's position, before the score comes. With a ring a slot
up to the row's own is of the last lap and seen from `own - window` on, another is of the lap before
and seen from a whole ring later on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chip.isa.instructions import AluOp
from chip.isa.issue import Issue
from chip.isa.operands import Held, Immediate, In, Position, Source
from chip.ops.scratch import COLUMN
from compiler.codegen.attention.quarters import keep, stored
from compiler.codegen.attention.resources import BENDS, LANE_NUMBERS
from compiler.codegen.attention.scores import NEVER
from compiler.codegen.attention.shape import EAST, WEST, Attention, Quad
from compiler.codegen.attention.wires import Ports, Wires, items
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.control import Bulk
from compiler.codegen.core.parts import f32


@dataclass(slots=True)
class Job:
    """A quad: when its first column comes, and its maxima leave."""

    quad: Quad
    start: int
    store: int


class Bends:
    """The pass: its jobs, and what comes of them."""

    def __init__(self, shape: Attention, clock: Clock) -> None:
        self.shape, self.clock = shape, clock
        of = clock.of
        # from a column's score to the masked score; to its part in the maximum
        self.lag = 0 if shape.cap is None else 2 * of["MUL"] + of["TANH"]
        self.masked = self.lag + of["CHOOSE"]
        self.best = self.masked + of["MAX"]
        # from the first instruction of a mask to the score that it meets
        self.ahead = max(0, of["LE"] + 3 * of["CHOOSE"] - self.lag)
        self.jobs: list[Job] = []

    @classmethod
    def lay_out(cls, shape: Attention, clock: Clock, ports: Ports, start: int) -> Bends:
        """Place quad after quad, from `start` on, as ports and registers come free."""
        found = cls(shape, clock)
        at, away = start + found.ahead, clock.of["COPY"] + clock.near
        for quad in shape.quads:
            done = at + shape.columns - 1 + found.best + found._folds * clock.of["MAX"]
            store = ports.take_run(done + away, 2) - away
            found.jobs.append(Job(quad, at, store))
            at = store + 1 - found.masked  # its maxima are the next quad's registers
            at = max(at, found.jobs[-1].start + shape.columns)
        return found

    @property
    def _folds(self) -> int:
        return len(self._registers) - 1

    @property
    def _registers(self) -> tuple[int, ...]:
        return BENDS.best[: self.shape.columns]

    @property
    def stored(self) -> list[int]:
        """When each quad's maxima are in memory."""
        return [job.store + stored(self.clock) for job in self.jobs]

    @property
    def came(self) -> int:
        """When the last column arrives at the VXM."""
        return self.jobs[-1].start + self.shape.columns - 1

    @property
    def left(self) -> int:
        """When the last masked score has left."""
        return self.came + self.masked + 1

    def each(self, wires: Wires, first_row: int) -> Iterator[Iterator[Issue | Bulk]]:
        """Yield each job's instructions, for a batch whose first row is given."""
        for job in self.jobs:
            row = first_row + job.quad.row
            if row < self.shape.rows:
                yield self._issues(job, row, wires)

    def _issues(self, job: Job, row: int, wires: Wires) -> Iterator[Issue | Bulk]:
        scratch, quad = self.shape.scratch, job.quad.number
        for c in range(self.shape.columns):
            at = job.start + c
            yield from wires.item(scratch.item(quad, c, EAST), at, write=False)
            score: Source = In(items(EAST, inward=True))
            if self.shape.cap is not None:
                yield from self._capped(score, self.shape.cap, at, wires)
                score = Held(BENDS.capped)
            at += self.lag
            yield from self._mask(row, c, at, wires)
            out = items(WEST, inward=False)
            seen = Held(BENDS.seen)
            yield wires.alu(BENDS.chosen, at, AluOp.CHOOSE, seen, score, NEVER, out=out)
            at = job.start + c + self.masked
            yield from wires.item(scratch.item(quad, c, WEST), at, write=True)
            best = BENDS.best[c % len(BENDS.best)]
            before = Held(best) if c >= len(BENDS.best) else NEVER
            yield wires.alu(best, at, AluOp.MAX, Held(BENDS.chosen), before)
        first, *others = self._registers
        at = job.start + self.shape.columns - 1 + self.best
        for n, other in enumerate(others):
            late = n * self.clock.of["MAX"]
            yield wires.alu(first, at + late, AluOp.MAX, Held(first), Held(other))
        yield from keep(wires, first, quad * scratch.known, job.store)

    def _capped(self, score: Source, cap: float, at: int, wires: Wires) -> Iterator[Issue]:
        """cap * tanh(score / cap)."""
        of = self.clock.of
        yield wires.alu(BENDS.scaled, at, AluOp.MUL, score, f32(1.0 / cap))
        at += of["MUL"]
        yield wires.alu(BENDS.bent, at, AluOp.TANH, Held(BENDS.scaled))
        at += of["TANH"]
        yield wires.alu(BENDS.capped, at, AluOp.MUL, Held(BENDS.bent), f32(cap))

    def _mask(self, row: int, column: int, due: int, wires: Wires) -> Iterator[Issue]:
        """Yield the mask of a column's tokens that a row sees."""
        of, lane, window = self.clock.of, Held(LANE_NUMBERS.lane), self.shape.window
        own = Position(self.shape.seen_by(row), 0, -COLUMN * column)
        if window is None:
            yield wires.alu(BENDS.seen, due - of["LE"], AluOp.LE, lane, own)
            return
        due -= of["CHOOSE"]
        none = Immediate(0, "i32")
        early, written = Held(BENDS.early), Held(BENDS.written)
        yield wires.alu(BENDS.seen, due, AluOp.CHOOSE, written, early, none)
        yield wires.alu(BENDS.written, due - of["LE"], AluOp.LE, lane, own)
        due -= of["GE"]
        yield from self._early(row, column, window, due, wires)

    def _early(
        self, row: int, column: int, window: int, due: int, wires: Wires
    ) -> Iterator[Issue]:  # fmt: skip
        """Yield the mask of a column's tokens that are no older than a window."""
        lane, first = Held(LANE_NUMBERS.lane), 1 - window - COLUMN * column
        own, ring = self.shape.seen_by(row), self.shape.ring
        edge: Source = Position(own, 0, first)
        if ring is not None:
            edge = Held(BENDS.edge)
            laps = Position(own, 0, first, ring), Position(own, 0, first + ring, ring)
            at = due - self.clock.of["CHOOSE"]
            yield wires.alu(BENDS.edge, at, AluOp.CHOOSE, Held(BENDS.late), *laps)
            at -= self.clock.of["LE"]
            last = Position(own, 0, -COLUMN * column, ring)
            yield wires.alu(BENDS.late, at, AluOp.LE, lane, last)
        yield wires.alu(BENDS.early, due, AluOp.GE, lane, edge)
