"""Attention's second pass: exponentials of scores, and their sums over tokens.

A quad's columns follow one another without a gap. Columns in the same quarter of their 320 tokens
are added in order, in an ALU of their own. The four sums are added as the fixed tree of
chip/kernels/vmath.py does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chip.isa.instructions import AluOp
from chip.isa.issue import Issue
from chip.isa.operands import Held, In
from compiler.codegen.attention.quarters import keep, stored
from compiler.codegen.attention.resources import EXPONENTIALS
from compiler.codegen.attention.shape import Attention, Quad
from compiler.codegen.attention.wires import Ports, Wires, items
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.control import Bulk
from compiler.codegen.core.parts import f32

QUARTERS = 4
LEAST = 8  # cycles between quads


@dataclass(slots=True)
class Job:
    """A quad: when its maxima are read, its first column comes, and its sum leaves."""

    quad: Quad
    ports: list[int]
    start: int
    store: int


class Exponentials:
    """The pass: its jobs, and what comes of them."""

    def __init__(self, shape: Attention, clock: Clock) -> None:
        self.shape, self.clock = shape, clock
        of = clock.of
        self.pace = -(-of["ADD"] // QUARTERS)
        self.powered = of["SUB"] + of["EXP"]
        self.span = shape.columns * self.pace
        self.jobs: list[Job] = []

    @classmethod
    def lay_out(cls, shape: Attention, clock: Clock, ports: Ports, start: int) -> Exponentials:
        """Place quad after quad, from `start` on, as ports and registers come free."""
        found, port = cls(shape, clock), start
        for quad in shape.quads:
            if len(found.jobs) > 1:  # its register's maxima were another quad's
                port = max(port, found.jobs[-2].start + found.span - clock.fetch)
            job = found._job(quad, ports, port)
            found.jobs.append(job)
            port = job.ports[-1] + 1
        return found

    def _job(self, quad: Quad, ports: Ports, port: int) -> Job:
        """Place a quad whose maxima are read from a cycle of the ports on."""
        of, clock = self.clock.of, self.clock
        read = ports.take(port, 2)
        ready = read[-1] + clock.fetch + of["COPY"]
        if self.jobs:
            before = self.jobs[-1]
            kept = before.store - self.folded + self.pace + of["ADD"] + 1
            ready = max(ready, before.start + max(self.span, LEAST), kept)
        done = ready + self.folded
        away = of["COPY"] + clock.near
        store = ports.take_run(done + away, 2) - away
        return Job(quad, read, ready, store)

    @property
    def folded(self) -> int:
        """Cycles from the first column to the sum."""
        last = (self.shape.columns - 1) * self.pace + self.powered + self.clock.of["ADD"]
        levels = min(2, (self.shape.columns - 1).bit_length())
        return last + levels * self.clock.of["ADD"]

    @property
    def stored(self) -> list[int]:
        """When each quad's sums are in memory."""
        return [job.store + stored(self.clock) for job in self.jobs]

    @property
    def came(self) -> int:
        """When the last column arrives at the VXM."""
        return self.jobs[-1].start + self.span - self.pace

    def each(self, wires: Wires, first_row: int) -> Iterator[Iterator[Issue | Bulk]]:
        """Yield each job's instructions, for a batch whose first row is given."""
        for job in self.jobs:
            if first_row + job.quad.row < self.shape.rows:
                yield self._issues(job, wires)

    def _issues(self, job: Job, wires: Wires) -> Iterator[Issue | Bulk]:
        yield from self._columns(job, wires)
        fold, last = self._fold(job, wires)
        yield from fold
        yield from keep(wires, last, job.quad.number * self.shape.scratch.known, job.store)

    def _columns(self, job: Job, wires: Wires) -> Iterator[Issue | Bulk]:
        of, scratch, quad = self.clock.of, self.shape.scratch, job.quad.number
        top = EXPONENTIALS.maxima[quad % 2]
        first = quad * scratch.known
        vectors = range(first, first + 4)
        reads, taps = wires.fetched("stats", vectors, job.ports, vectors)
        yield from reads
        yield wires.alu(top, job.ports[0] + self.clock.fetch, AluOp.COPY, In(taps))
        scored, powers = self.shape.scored, self.shape.powers
        x, out = In(items(scored, inward=True)), items(powers, inward=False)
        for c in range(self.shape.columns):
            at = job.start + c * self.pace
            yield from wires.item(scratch.item(quad, c, scored), at, write=False)
            yield wires.alu(EXPONENTIALS.below, at, AluOp.SUB, x, Held(top))
            yield wires.alu(
                EXPONENTIALS.power, at + of["SUB"], AluOp.EXP, Held(EXPONENTIALS.below), out=out
            )
            at += self.powered
            yield from wires.item(scratch.item(quad, c, powers), at, write=True)
            total = EXPONENTIALS.totals[c % QUARTERS]
            before = Held(total) if c >= QUARTERS else f32(0.0)
            yield wires.alu(total, at, AluOp.ADD, Held(EXPONENTIALS.power), before)

    def _fold(self, job: Job, wires: Wires) -> tuple[list[Issue], int]:
        """Add the quarters' sums: (0 + 2) + (1 + 3); return also the ALU that has the sum."""
        add, columns = self.clock.of["ADD"], self.shape.columns
        ends = range(max(0, columns - QUARTERS), columns)
        done = [job.start + c * self.pace + self.powered + add for c in ends]
        totals = [Held(EXPONENTIALS.totals[c % QUARTERS]) for c in ends]
        one, two = EXPONENTIALS.fold
        if columns == 1:
            return [], EXPONENTIALS.totals[0]
        if columns == 2:
            return [wires.alu(one, done[1], AluOp.ADD, *totals)], one
        first = wires.alu(one, done[2], AluOp.ADD, totals[0], totals[2])
        if columns == 3:
            last = wires.alu(two, done[2] + add, AluOp.ADD, Held(one), totals[1])
            return [first, last], two
        second = wires.alu(two, done[3], AluOp.ADD, totals[1], totals[3])
        last = wires.alu(one, done[3] + add, AluOp.ADD, Held(one), Held(two))
        return [first, second, last], one
