"""Attention's first pass: Q.K, scaled and masked, and the maxima of the scores.

A job is a quad and a tile of keys. Its heads' sums come to the VXM column by column
(compiler/codegen/attention/queries.py). The scales are read from work memory just in time.
"""

from __future__ import annotations

from collections.abc import Iterator

from chip.isa.instructions import AluOp
from chip.isa.issue import Issue
from chip.isa.operands import Group, Held, Immediate, In, Stream, Tap
from compiler.codegen.attention.quarters import (
    keep,
    mask,
    running_best,
    stored,
)
from compiler.codegen.attention.queries import Job, feed, through_planes, to_sums
from compiler.codegen.attention.resources import MASKS, MAXIMUM, QUERIES, SCORES
from compiler.codegen.attention.shape import EAST, Attention, Quad, Tile
from compiler.codegen.attention.tiles import AHEAD, Load, Planes
from compiler.codegen.attention.wires import Ports, Wires, items, paired
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.control import Bulk
from compiler.codegen.core.parts import f32

PATIENCE = 24  # cycles that a query may wait in the SXMs, or a scale in its register
NEVER = f32(float("-inf"))


class Scores:
    """The pass: its jobs and loads, and what comes of them."""

    def __init__(self, shape: Attention, clock: Clock, ports: Ports, planes: Planes) -> None:
        self.shape, self.clock, self.ports, self.planes = shape, clock, ports, planes
        of = clock.of
        # from a job's column at the VXM: its product with the scales, the masked score
        self.converted = of["ADD"] + of["CVT_F32"]
        self.scored = self.converted + of["MUL"]
        self.masked = self.scored + of["CHOOSE"]
        self.best = self.masked + 2 * of["MAX"]
        self.pace = max(2, of["MAX"])  # cycles between pairs of columns
        # from the planes' activations to sums at the SXMs; from a query's port to the planes
        self.to_sums = to_sums(clock)
        self.to_planes = clock.fetch + of["COPY"] + clock.to_mxm + of["PERMUTE"]
        self.back = of["PERMUTE"] + clock.to_sxm
        self.slots: set[int] = set()  # at which something leaves outwards in the east
        self.jobs: list[Job] = []
        self.loads: list[Load] = []

    @classmethod
    def lay_out(cls, shape: Attention, clock: Clock, ports: Ports, planes: Planes) -> Scores:
        """Load tile after tile, `AHEAD` of those at work; place every quad's job of each."""
        scores, waiting = cls(shape, clock, ports, planes), list(shape.tiles)
        for _ in range(AHEAD):
            scores._load(waiting)
        for load in scores.loads:
            for quad in shape.of(load.tile):
                scores.jobs.append(scores._job(load, quad))
            scores._load(waiting)
        return scores

    def _load(self, waiting: list[Tile]) -> None:
        if waiting:
            self.loads.append(self.planes.keys(waiting.pop(0), self.slots, 0))

    # -- when

    def _job(self, load: Load, quad: Quad) -> Job:
        job = Job(len(self.jobs), load.tile, quad)
        installed = self.planes.install(load) + self.clock.of["IW"]
        earliest = self._came(installed, job)
        if self.jobs:
            before = self.jobs[-1]
            earliest = max(
                earliest, self._came(before.fed + len(before.quad.heads), job),
                before.times[-1] + self.pace, before.last + 1 + job.skew - before.skew,
                before.store - self.best,
            )  # fmt: skip
        while not self._try(job, earliest):
            earliest += 1
        self.planes.used[load.tile.number % 2] = job.fed + job.skew
        done = job.times[-1] + 1 + self.best
        away = self.clock.of["COPY"] + self.clock.near
        job.store = self.ports.take_run(done + away, 2) - away
        return job

    def _came(self, fed: int, job: Job) -> int:
        """Return the time of a job's first column when its first head is fed at a cycle."""
        return fed + self.to_sums + self.back + job.skew

    def _try(self, job: Job, earliest: int) -> bool:
        """Find ports and slots for a job that comes no earlier; take them if all are there."""
        self._keys(job, earliest)
        job.fed = job.times[0] - self._came(0, job)
        taken = [port for ports in job.key_ports for port in ports]
        self.ports.taken.update(taken)
        scales = self._scale_ports(job)
        self.ports.taken.update(scales)
        queries = self._queries(job) if scales else None
        if queries is None:
            self.ports.taken.difference_update(taken, scales)
            return False
        job.scale_ports, job.queries = scales, queries
        self.slots.update(job.time(c) + self.masked for c in range(job.tile.columns))
        return True

    def _keys(self, job: Job, earliest: int) -> None:
        """Find when the keys' scales are read, and so the times of the columns."""
        to_time = self.clock.fetch + self.clock.of["MUL"] - self.converted
        times, key_ports, at, port = list[int](), list[tuple[int, ...]](), earliest, 0
        for column in range(0, job.tile.columns, 2):
            many = len(self.shape.scales(job.quad, job.tile.column + column, value=False))
            port = max(port, at - to_time - many + 1)
            while True:
                port += port % 2 if many == 1 else 0  # pairs that do not meet the C2C's turns
                found = self.ports.seek(port, many)
                time = found[-1] + to_time
                here = range(time, time + min(2, job.tile.columns - column))
                if time >= at and not any(t + self.masked in self.slots for t in here):
                    break
                port += 1
            times.append(time)
            key_ports.append(tuple(found))
            at, port = time + self.pace, found[-1] + 1
        job.times, job.key_ports = tuple(times), tuple(key_ports)

    def _scale_ports(self, job: Job) -> tuple[int, ...]:
        """Find cycles to read the queries' scales, whose register was the last job but one's.

        Empty where there are none in time.
        """
        due = job.key_ports[0][0]
        first = max(0, due - PATIENCE)
        if len(self.jobs) > 1:
            first = max(first, self.jobs[-2].key_ports[-1][-1] + 1)
        found = self.ports.seek(first, len(paired(job.quad.heads)))
        return tuple(found) if found[-1] + self.clock.of["COPY"] <= due else ()

    def _queries(self, job: Job) -> tuple[tuple[tuple[int, ...], int], ...] | None:
        """Take cycles to read the packed queries of a job's heads; None where there are none."""
        first: dict[int, int] = {}
        for i, head in enumerate(job.quad.heads):
            first.setdefault(self.shape.queries[head][0], i)
        out: list[tuple[tuple[int, ...], int]] = []
        for pair in paired(list(first)):
            due = job.fed + min(first[vector] for vector in pair) - self.to_planes
            ports = range(due, due - PATIENCE, -1)
            port = next((p for p in ports if self.ports.free(p)), None)
            if port is None:
                self.ports.taken.difference_update(port for _, port in out)
                return None
            self.ports.taken.add(port)
            out.append((tuple(pair), port))
        return tuple(out)

    @property
    def stored(self) -> list[int]:
        """When each quad's maxima of all tiles are in memory."""
        last = {job.quad.number: job.store + stored(self.clock) for job in self.jobs}
        return [last[quad.number] for quad in self.shape.quads]

    @property
    def came(self) -> int:
        """When the last column arrives at the VXM."""
        return self.jobs[-1].last

    @property
    def left(self) -> int:
        """When the last masked score has left."""
        return self.came + self.masked + 1

    # -- what

    def each(self, wires: Wires, first_row: int) -> Iterator[Iterator[Issue | Bulk]]:
        """Yield each job's instructions, for a batch whose first row is given."""
        for job in self.jobs:
            row = first_row + job.quad.row
            if row < self.shape.rows:
                yield self._issues(job, row, wires)

    def _issues(self, job: Job, row: int, wires: Wires) -> Iterator[Issue | Bulk]:
        yield from feed(job, row, self.shape, wires)
        yield from through_planes(job, self.clock)
        yield from self._scales(job, row, wires)
        yield from self._columns(job, row, wires)
        yield from self._peak(job, wires)

    def _scales(self, job: Job, row: int, wires: Wires) -> Iterator[Issue]:
        """Scales of queries, kept for a job; times those of keys, a pair of columns at a time."""
        quad = job.quad
        first = row * len(self.shape.kv_of)
        reads, taps = wires.fetched(
            "sq",
            [first + h for h in quad.heads],
            job.scale_ports,
            [first + h for h in quad.quarters],
        )
        yield from reads
        register = SCORES.scales[job.number % 2]
        yield wires.alu(register, job.scale_ports[0] + self.clock.fetch, AluOp.COPY, In(taps))
        for pair, ports in enumerate(job.key_ports):
            scales = self.shape.scales(quad, job.tile.column + 2 * pair, value=False)
            for known, port in zip(scales.values(), ports, strict=True):
                yield from wires.fetch("kvs", known, port)
            at = dict(zip(scales, ports, strict=True))
            for i in range(min(2, job.tile.columns - 2 * pair)):
                kvs = [self.shape.kv_of[head] for head in quad.quarters]
                taps = tuple(wires.tap("kvs", scales[kv][i], at[kv] - ports[0]) for kv in kvs)
                issue = ports[0] + self.clock.fetch
                factor = SCORES.factors[i]
                yield wires.alu(factor, issue, AluOp.MUL, Held(register), In(taps))

    def _columns(self, job: Job, row: int, wires: Wires) -> Iterator[Issue | Bulk]:
        """Add the sides, scale, mask, keep in scratch memory."""
        of, scratch = self.clock.of, self.shape.scratch
        for c in range(job.tile.columns):
            at = job.time(c)
            sides = [In(taps, "i32") for taps in self._arrivals(job, c)]
            other = sides[1] if len(sides) > 1 else Immediate(0, "i32")
            yield wires.alu(SCORES.sum, at - job.skew, AluOp.ADD, sides[0], other)
            yield wires.alu(SCORES.convert, at + of["ADD"], AluOp.CVT_F32, Held(SCORES.sum))
            factor = Held(SCORES.factors[c % 2])
            yield wires.alu(
                SCORES.score, at + self.converted, AluOp.MUL, Held(SCORES.convert), factor
            )
            yield mask(wires, self.shape.seen_by(row), job.tile.column + c, at + self.scored)
            chosen, out = MASKS.chosen[c % 2], items(EAST, inward=False)
            score = Held(SCORES.score)
            yield wires.alu(
                chosen, at + self.scored, AluOp.CHOOSE, Held(MASKS.mask), score, NEVER, out=out
            )
            place = scratch.item(job.quad.number, job.tile.column + c, EAST)
            yield from wires.item(place, at + self.masked, write=True)

    def _arrivals(self, job: Job, column: int) -> list[Group]:
        """Streams of each side's part of a column: a head a stream, a cycle after one another."""
        heads = [min(i, job.skew) for i in range(4)]
        return [
            tuple(Tap(Stream(side == 0, QUERIES.sums + i), i) for i in heads)
            for side in job.tile.sides(column // 4)
        ]

    def _peak(self, job: Job, wires: Wires) -> Iterator[Issue]:
        times = [t + self.masked for t in job.times]
        yield from running_best(wires, times, job.tile.columns)
        first = job.quad.number * self.shape.scratch.known + 4 * (
            job.tile.number % self.shape.scratch.tiles
        )
        yield from keep(wires, MAXIMUM.best, first, job.store)
