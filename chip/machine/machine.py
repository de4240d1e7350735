"""A resolved program, bound to one chip's memory, that runs step after step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from chip.errors import IssueError
from chip.floorplan import alu, hops, plane_of
from chip.isa.instructions import (
    ACC,
    MEM,
    Alu,
    Index,
    Instruction,
    Lanes,
    Read,
    Transpose,
    Write,
)  # fmt: skip
from chip.isa.issue import culprit
from chip.isa.operands import At, Chosen, integers_of
from chip.machine.accumulators import Accumulators
from chip.machine.collect import Burst, leads, slice_of
from chip.machine.crossings import Crossing, match
from chip.machine.data import BoundCall
from chip.machine.events import I64
from chip.machine.live import LiveSlices
from chip.machine.memory import MemoryMap, block_vectors
from chip.machine.order import (
    CrossingTask,
    IssueTask,
    PlaneState,
    PortState,
    SramState,
    State,
    Task,
    order,
)
from chip.machine.resolve import Resolved
from chip.machine.units import Units
from chip.spec import VECTOR_BYTES

U8 = NDArray[np.uint8]
_NO_ROWS = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class DataAction:
    """Data moves within the chip."""

    cycle: int
    run: BoundCall


@dataclass(frozen=True, slots=True)
class CrossingAction:
    """Rows of the pool cross a port: whoever drives the machine takes or fills them."""

    cycle: int
    number: int  # of the crossing
    crossing: Crossing
    rows: I64


Action = DataAction | CrossingAction
"""One thing to do in a step."""


class Machine:
    """Runs one program on one chip's SRAM: `begin`, every action in order, `end`.

    sram: [vectors, 320] bytes in address order.
    """

    def __init__(
        self, resolved: Resolved, memory: MemoryMap, sram: U8, crossings: Sequence[Crossing] = ()
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
        self._accumulators = Accumulators(
            resolved.spec, self.units, resolved.tiles, resolved.tile_of
        )
        self._live = LiveSlices(resolved, memory, sram, self.units)
        self._crossed = [row[values] for values in match(crossings, bursts, resolved.source)]
        self.crossings = list(crossings)
        self._valid_rows = 0
        self._groups = self._run_time_writes() | self._chosen_reads()
        tasks = order(list(self._tasks()), self, len(self.pool))
        self.actions = [self._action(task) for task in tasks]
        self.commits = resolved.commits.vectors, row[resolved.commits.values]

    # -- a step

    def begin(self, positions: Sequence[int]) -> None:
        """Start a step whose rows stand at `positions`."""
        self._valid_rows = len(positions)
        standing = self.units.positions
        standing[:] = 0
        count = min(len(positions), len(standing))
        standing[:count] = positions[:count]
        np.take(
            self.sram, self.resolved.initial, axis=0, out=self.pool[: len(self.resolved.initial)]
        )
        self._live.begin()

    def end(self) -> None:
        """Leave in SRAM what the step wrote."""
        vectors, rows = self.commits
        self.sram[vectors] = self.pool[rows]

    def run(self, positions: Sequence[int] = (0,)) -> None:
        """Run a step of a program without crossings."""
        self.begin(positions)
        with np.errstate(all="ignore"):
            for action in self.actions:
                assert isinstance(action, DataAction), "no program with crossings"
                action.run()
        self.end()

    # -- tasks (chip.machine.order.Dataflow)

    def _tasks(self) -> Iterator[Task]:
        """Yield what is to be done; other instructions only say where values come from."""
        for burst in self.resolved.bursts:
            issue, instruction = burst.issue, burst.issue.instruction
            task = IssueTask(burst.number, 0, issue.n, issue.cycle, issue.d)
            if burst.number in self.resolved.live:
                yield from self._live.tasks(burst)
            elif isinstance(instruction, ACC) and not self._accumulators.whole(burst, task):
                yield from task.split()
            elif (
                isinstance(instruction, (Alu, Lanes, Transpose, ACC, Index))
                or burst.number in self.resolved.late_reads
                or burst.number in self._groups
            ):
                yield task
        for number, crossing in enumerate(self.crossings):
            yield CrossingTask(number, crossing.cycles[0])

    def _of(self, task: IssueTask) -> tuple[Burst, Instruction]:
        burst = self.resolved.bursts[task.burst]
        return burst, burst.issue.instruction

    def needs(self, task: Task) -> I64:
        if isinstance(task, CrossingTask):
            outward = self.crossings[task.number].outward
            return self._crossed[task.number] if outward else _NO_ROWS
        burst, instruction = self._of(task)
        used = [
            self.units.values(one, i, task).reshape(-1)
            for one in self._groups.get(task.burst, [burst])
            for i in range(len(one.operands))
        ]
        if isinstance(instruction, ACC) and instruction.product:
            weights = self._accumulators.weights(burst, task)
            used.append(weights[weights >= 0])
        return self.row[np.concatenate(used)] if used else _NO_ROWS

    def makes(self, task: Task) -> I64:
        if isinstance(task, CrossingTask):
            outward = self.crossings[task.number].outward
            return _NO_ROWS if outward else self._crossed[task.number]
        burst, instruction = self._of(task)
        if not burst.count:
            return _NO_ROWS
        first = int(self.row[burst.base])
        if isinstance(instruction, Transpose):
            return np.arange(first, first + burst.count)
        return np.arange(first + task.first * burst.per, first + task.last * burst.per)

    def state(self, task: Task) -> State | None:
        if isinstance(task, CrossingTask):
            crossing = self.crossings[task.number]
            return PortState(crossing.port, crossing.outward)
        burst, instruction = self._of(task)
        if isinstance(instruction, ACC):
            return PlaneState(plane_of(burst.issue.queue)[0])
        return SramState() if isinstance(instruction, MEM) else None

    # -- actions

    def _action(self, task: Task) -> Action:
        if isinstance(task, CrossingTask):
            number = task.number
            rows = self._crossed[number]
            return CrossingAction(task.cycle, number, self.crossings[number], rows)
        return DataAction(task.cycle, self._call(task))

    def _call(self, task: IssueTask) -> BoundCall:
        burst, instruction = self._of(task)
        if isinstance(instruction, Alu):
            return self.units.alu(burst, task)
        if isinstance(instruction, Index):
            return self._index(burst, instruction, task)
        if isinstance(instruction, Lanes):
            return self.units.lanes(burst, task)
        if isinstance(instruction, Transpose):
            return self.units.transpose(burst, task)
        if isinstance(instruction, ACC):
            return self._accumulators.acc(burst, task)
        if burst.number in self.resolved.live:
            return self._live.bind(burst, task)
        if isinstance(instruction, Read):
            return self._late_read(burst)
        return self._late_write(self._groups[task.burst])

    def _late_read(self, burst: Burst) -> BoundCall:
        read, n = burst.issue.instruction, burst.issue.n
        assert isinstance(read, Read)
        if isinstance(read.address, At):
            return self._run_time_read(burst, read.address)
        if isinstance(read.address, Chosen):
            return self._chosen_read(burst, read.address)
        slice_ = slice_of(burst.issue, self.resolved.spec)
        vectors = self.memory.vectors(slice_, read.address + read.step * np.arange(n))
        first = int(self.row[burst.base])
        into, sram = self.pool[first : first + n], self.sram
        return lambda: np.take(sram, vectors, axis=0, out=into)  # type: ignore[return-value]

    def _run_time_read(self, burst: Burst, at: At) -> BoundCall:
        """Bind a read whose address comes with the step; zeros where another slice holds it."""
        slice_, held_by = slice_of(burst.issue, self.resolved.spec), self.memory.slice_of
        first, n = int(self.row[burst.base]), burst.issue.n
        self._stand(at, n)

        def get() -> None:
            for i in range(n):
                vector = self._vector(at, i, burst)
                here = vector is not None and int(held_by[vector]) == slice_
                self.pool[first + i] = self.sram[vector] if here else 0

        return get

    def _index(self, burst: Burst, index: Index, task: IssueTask) -> BoundCall:
        """Bind the taking of an index: it is kept as the first bytes of a row."""
        rows, pool = self.units.rows(burst, 0, task)[:, 0], self.pool
        made = self.row[burst.base] + np.arange(task.first, task.last)
        first = 4 * index.lane

        def take() -> None:
            pool[made, :2] = pool[rows, first : first + 2]

        return take

    def _chosen_reads(self) -> dict[int, list[Burst]]:
        """Group the bursts that stand in many slices' queues for one read, by the one that leads.

        They meet the values of one diagonal of their stream.
        """
        spec = self.resolved.spec
        groups: dict[object, list[Burst]] = {}
        for number in self.resolved.chosen:
            burst = self.resolved.bursts[number]
            issue, read = burst.issue, burst.issue.instruction
            assert isinstance(read, Read)
            alone = issue.queue.number < spec.near_slices
            ahead = hops(issue.queue, alu(0), spec)
            outward = read.stream.eastward == (issue.queue.hemisphere == 1)
            key = (
                issue.queue.hemisphere, issue.cycle - (ahead if outward else -ahead), read,
                number if alone else None,
            )  # fmt: skip
            groups.setdefault(key, []).append(burst)
        out = {}
        for group in groups.values():
            leading = [burst for burst in group if leads(burst.issue, spec)]
            if not leading:
                what = "a read of a chosen block that no slice on the stream's way leads"
                raise IssueError(what, culprit(group[0].issue))
            out[leading[0].number] = group
        return out

    def _chosen_read(self, burst: Burst, block: Chosen) -> BoundCall:
        """Bind a read of the block that the slices' indices say: each slice reads what it holds."""
        spec, pool, sram, held_by = self.resolved.spec, self.pool, self.sram, self.memory.slice_of
        own = np.array([block.base])
        if burst.issue.queue.number >= spec.near_slices:
            own = block_vectors(block, spec)
        into = int(self.row[burst.base])
        members = [
            (one.issue, int(self.units.rows(one, 0, IssueTask(one.number, 0, 1, 0))[0, 0]),
             slice_of(one.issue, spec))
            for one in self._groups[burst.number]
        ]  # fmt: skip

        def get() -> None:
            found = np.zeros(len(own), np.bool_)
            for issue, row, slice_ in members:
                number = int(pool[row, 0]) | int(pool[row, 1]) << 8
                if number >= block.choices:
                    what = f"the slice's index: wanted 0 to {block.choices - 1}, got {number}"
                    raise IssueError(what, culprit(issue))
                vectors = own + number * block.apart
                mine = np.flatnonzero(held_by[vectors] == slice_)
                pool[into + mine] = sram[vectors[mine]]
                found[mine] = True
            if not found.all():
                lane = int(np.argmin(found))
                what = f"no slice that has this read holds vector {lane} of the chosen block"
                raise IssueError(what, culprit(burst.issue))

        return get

    def _stand(self, at: At, n: int) -> None:
        """Make room for the positions of the rows that an address takes."""
        top = at.row + max(0, (n - 1) * at.step)
        if top >= len(self.units.positions):
            self.units.positions.resize(top + 1, refcheck=False)

    def _vector(self, at: At, i: int, burst: Burst) -> int | None:
        """Return the vector that issue i of a run-time address means, None without such a row."""
        row = at.row + i * at.step
        if row >= self._valid_rows:
            return None
        position = int(self.units.positions[row])
        offset = (position % at.modulus if at.modulus else position) * at.num // at.den
        if not 0 <= offset < at.limit:
            what = f"row {row}'s address: wanted a vector below {at.limit}, got {offset}"
            raise IssueError(what, culprit(burst.issue, i))
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
            return (*integers_of(at), burst.issue.n)

        groups: dict[int, list[Burst]] = {}
        for _, members in groupby(sorted(bursts, key=lambda b: (same(b), b.number)), key=same):
            group = list(members)
            groups[group[0].number] = group
        return groups

    def _late_write(self, group: list[Burst]) -> BoundCall:
        """Bind a write whose address comes with the step: only the slice that holds it acts."""
        first = group[0].issue
        write, memory, sram, pool = first.instruction, self.memory, self.sram, self.pool
        assert isinstance(write, Write)
        assert isinstance(write.address, At)
        at, spec = write.address, self.resolved.spec
        rows_of = {
            slice_of(burst.issue, spec): self.units.rows(
                burst, 0, IssueTask(burst.number, 0, first.n, first.cycle)
            )[:, 0]
            for burst in group
        }

        def put() -> None:
            for i in range(first.n):
                vector = self._vector(at, i, group[0])
                if vector is None:
                    continue
                slice_ = int(memory.slice_of[vector])
                if slice_ not in rows_of:
                    what = f"no queue of the slice that holds vector {vector} has this write"
                    raise IssueError(what, culprit(first, i))
                sram[vector] = pool[rows_of[slice_][i]]

        self._stand(at, first.n)
        return put
