"""A resolved program, bound to one chip's memory and ready to run step after step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from chip.errors import MachineError
from chip.floorplan import plane_of
from chip.isa.instructions import ACC, MEM, Alu, Instruction, Lanes, Read, Transpose, Write
from chip.isa.operands import At
from chip.machine.check import culprit
from chip.machine.collect import Burst
from chip.machine.crossings import Crossing, match
from chip.machine.data import Run
from chip.machine.live import LiveSlices
from chip.machine.order import Part, order
from chip.machine.planes import Planes
from chip.machine.resolve import Memory, Resolved
from chip.machine.tables import I64
from chip.machine.units import Units
from chip.spec import VECTOR_BYTES

U8 = NDArray[np.uint8]
_MEMORY_CHAIN, _PORT_CHAIN = 100, 200  # planes come first


@dataclass(slots=True)
class Action:
    """One thing to do in a step: data moves in `run`, or `rows` of the pool cross a port."""

    cycle: int
    run: Run | None = None
    crossing: Crossing | None = None
    rows: I64 | None = None


class Machine:
    """Runs one program on one chip's SRAM: `begin`, every action in order, `end`.

    sram: [vectors, 320] bytes in address order.
    """

    def __init__(
        self, resolved: Resolved, memory: Memory, sram: U8, crossings: Sequence[Crossing] = ()
    ) -> None:
        self.resolved, self.memory, self.sram = resolved, memory, sram
        bursts = resolved.bursts
        stored = np.zeros(resolved.values, np.bool_)
        maker = np.full(resolved.values + len(resolved.initial), -1, np.int64)
        for burst in bursts:
            own = slice(burst.base, burst.base + burst.count)
            maker[own] = burst.number
            read = isinstance(burst.issue.instruction, Read)
            late = burst.number in resolved.late_reads or burst.number in resolved.live
            stored[own] = not read or late
        words = len(resolved.initial)
        row = np.concatenate([np.cumsum(stored) - stored + words, np.arange(words)])
        self.pool: U8 = np.zeros((words + int(stored.sum()), VECTOR_BYTES), np.uint8)
        self.row = row
        self.units = Units(self.pool, resolved.source, row, maker, bursts)
        self.planes = Planes(resolved.spec, self.units, resolved.tiles, resolved.tile_of)
        self.live = LiveSlices(resolved, memory, sram, self.units)
        self.crossed = match(crossings, bursts, resolved.source)
        self.crossings = list(crossings)
        self.valid_rows = 0
        self._groups = self._run_time_writes()
        parts = order(self._parts(), self, len(self.pool))
        self.actions = [self._action(part) for part in parts]
        self.commits = resolved.commits[0], row[resolved.commits[1]]

    # -- a step

    def begin(self, positions: Sequence[int]) -> None:
        """Start a step whose rows stand at `positions`."""
        self.valid_rows = len(positions)
        standing = self.units.positions
        standing[:] = 0
        count = min(len(positions), len(standing))
        standing[:count] = positions[:count]
        np.take(
            self.sram, self.resolved.initial, axis=0, out=self.pool[: len(self.resolved.initial)]
        )
        self.live.begin()

    def end(self) -> None:
        """Leave in SRAM what the step wrote."""
        vectors, rows = self.commits
        self.sram[vectors] = self.pool[rows]

    def run(self, positions: Sequence[int] = (0,)) -> None:
        """Run a step of a program without crossings."""
        self.begin(positions)
        with np.errstate(all="ignore"):
            for action in self.actions:
                assert action.run is not None
                action.run()
        self.end()

    # -- parts (chip.machine.order.Flow)

    def _parts(self) -> list[Part]:
        parts = []
        for burst in self.resolved.bursts:
            issue = burst.issue
            part = Part(burst.number, 0, issue.n, issue.cycle, issue.d)
            instruction = issue.instruction
            if burst.number in self.resolved.live:
                parts += self.live.parts(burst)
            elif isinstance(instruction, ACC) and not self.planes.whole(burst, part):
                parts += [
                    Part(burst.number, i, i + 1, issue.cycle + i * issue.d, issue.d)
                    for i in range(issue.n)
                ]
            elif (
                isinstance(instruction, (Alu, Lanes, Transpose, ACC))
                or burst.number in self.resolved.late_reads
                or burst.number in self._groups
            ):
                parts.append(part)
        for number, crossing in enumerate(self.crossings):
            parts.append(Part(-1 - number, 0, 1, crossing.cycles[0]))
        return parts

    def _of(self, part: Part) -> tuple[Burst, Instruction]:
        burst = self.resolved.bursts[part.burst]
        return burst, burst.issue.instruction

    def needs(self, part: Part) -> I64:
        if part.burst < 0:
            crossing = self.crossings[-1 - part.burst]
            values = self.crossed[-1 - part.burst] if crossing.outward else np.empty(0, np.int64)
            return self.row[values]
        burst, instruction = self._of(part)
        bursts = self._groups.get(part.burst, [burst])
        used = [
            self.units.values(one, i, part).reshape(-1)
            for one in bursts
            for i in range(len(one.operands))
        ]
        if isinstance(instruction, ACC) and instruction.product:
            tile = self.planes.tile_values(self.planes.tile(burst, part))
            used.append(tile[tile >= 0])
        return self.row[np.concatenate(used)] if used else np.empty(0, np.int64)

    def makes(self, part: Part) -> I64:
        if part.burst < 0:
            crossing = self.crossings[-1 - part.burst]
            values = np.empty(0, np.int64) if crossing.outward else self.crossed[-1 - part.burst]
            return self.row[values]
        burst, instruction = self._of(part)
        if not burst.count:
            return np.empty(0, np.int64)
        first = int(self.row[burst.base])
        if isinstance(instruction, Transpose):
            return np.arange(first, first + burst.count)
        return np.arange(first + part.first * burst.per, first + part.last * burst.per)

    def chain(self, part: Part) -> int | None:
        if part.burst < 0:
            crossing = self.crossings[-1 - part.burst]
            return _PORT_CHAIN + 2 * crossing.port + crossing.outward
        burst, instruction = self._of(part)
        if isinstance(instruction, ACC):
            return plane_of(burst.issue.queue)[0]
        return _MEMORY_CHAIN if isinstance(instruction, MEM) else None

    # -- actions

    def _action(self, part: Part) -> Action:
        if part.burst < 0:
            number = -1 - part.burst
            rows = self.row[self.crossed[number]]
            return Action(part.cycle, crossing=self.crossings[number], rows=rows)
        burst, instruction = self._of(part)
        if isinstance(instruction, Alu):
            return Action(part.cycle, self.units.alu(burst, part))
        if isinstance(instruction, Lanes):
            return Action(part.cycle, self.units.lanes(burst, part))
        if isinstance(instruction, Transpose):
            return Action(part.cycle, self.units.transpose(burst, part))
        if isinstance(instruction, ACC):
            return Action(part.cycle, self.planes.acc(burst, part))
        if burst.number in self.resolved.live:
            return Action(part.cycle, self.live.bind(burst, part))
        if isinstance(instruction, Read):
            return Action(part.cycle, self._late_read(burst))
        return Action(part.cycle, self._late_write(self._groups[part.burst]))

    def _late_read(self, burst: Burst) -> Run:
        read, n = burst.issue.instruction, burst.issue.n
        assert isinstance(read, Read)
        if isinstance(read.address, At):
            return self._run_time_read(burst, read.address)
        queue, spec = burst.issue.queue, self.resolved.spec
        place = queue.hemisphere * (spec.slices // 2) + queue.number
        vectors = self.memory.vectors(place, read.address + read.step * np.arange(n))
        first = int(self.row[burst.base])
        into, sram = self.pool[first : first + n], self.sram
        return lambda: np.take(sram, vectors, axis=0, out=into)  # type: ignore[return-value]

    def _run_time_read(self, burst: Burst, at: At) -> Run:
        """Bind a read whose address comes with the step; zeros where another slice holds it."""
        queue, half = burst.issue.queue, self.resolved.spec.slices // 2
        place, slice_of = queue.hemisphere * half + queue.number, self.memory.slice_of
        first, n = int(self.row[burst.base]), burst.issue.n
        self._stand(at, n)

        def get() -> None:
            for i in range(n):
                vector = self._vector(at, i, burst)
                here = vector is not None and int(slice_of[vector]) == place
                self.pool[first + i] = self.sram[vector] if here else 0

        return get

    def _stand(self, at: At, n: int) -> None:
        """Make room for the positions of the rows that an address takes."""
        top = at.row + max(0, (n - 1) * at.step)
        if top >= len(self.units.positions):
            self.units.positions.resize(top + 1, refcheck=False)

    def _vector(self, at: At, i: int, burst: Burst) -> int | None:
        """Return the vector that issue i of a run-time address means, None without such a row."""
        row = at.row + i * at.step
        if row >= self.valid_rows:
            return None
        offset = int(self.units.positions[row]) * at.num // at.den
        if not 0 <= offset < at.limit:
            what = f"row {row}'s address: wanted a vector below {at.limit}, got {offset}"
            raise MachineError(what, culprit(burst.issue, i))
        return at.base + offset

    def _run_time_writes(self) -> dict[int, list[Burst]]:
        """Group the bursts that stand in many slices' queues for one write, by the first."""
        bursts = [self.resolved.bursts[number] for number in self.resolved.dynamic]
        bursts = [burst for burst in bursts if isinstance(burst.issue.instruction, Write)]

        def same(burst: Burst) -> tuple[object, ...]:
            write = burst.issue.instruction
            assert isinstance(write, Write)
            assert isinstance(write.address, At)
            at = write.address
            return (at.base, at.num, at.den, at.row, at.limit, at.step, burst.issue.n)

        groups: dict[int, list[Burst]] = {}
        for _, members in groupby(sorted(bursts, key=lambda b: (same(b), b.number)), key=same):
            group = list(members)
            groups[group[0].number] = group
        return groups

    def _late_write(self, group: list[Burst]) -> Run:
        """Bind a write whose address comes with the step: only the slice that holds it acts."""
        first = group[0].issue
        write, memory, sram, pool = first.instruction, self.memory, self.sram, self.pool
        assert isinstance(write, Write)
        assert isinstance(write.address, At)
        at, half = write.address, self.resolved.spec.slices // 2
        rows_of = {
            burst.issue.queue.hemisphere * half + burst.issue.queue.number: self.units.rows(
                burst, 0, Part(burst.number, 0, first.n, first.cycle)
            )[:, 0]
            for burst in group
        }

        def put() -> None:
            for i in range(first.n):
                vector = self._vector(at, i, group[0])
                if vector is None:
                    continue
                place = int(memory.slice_of[vector])
                if place not in rows_of:
                    what = f"no queue of the slice that holds vector {vector} has this write"
                    raise MachineError(what, culprit(first, i))
                sram[vector] = pool[rows_of[place][i]]

        self._stand(at, first.n)
        return put
