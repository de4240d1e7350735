"""Orders the tasks of a program so that every value is made before it is used.

A task moves data: it is all issues of a burst together, or the vectors of a transfer that cross a
port. Where tasks need each other's results in turn (an ALU that accumulates, loops of ALUs) they
are split into single issues.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from chip.machine.events import I64


@dataclass(frozen=True, slots=True)
class IssueTask:
    """Issues [first, last) of a burst, done at once."""

    burst: int
    first: int
    last: int
    cycle: int  # of the first of them
    period: int = 1  # cycles between them

    @property
    def n(self) -> int:
        """Return how many issues these are."""
        return self.last - self.first

    def split(self) -> list[IssueTask]:
        """Return each issue as a task of its own."""
        return [
            IssueTask(self.burst, i, i + 1, self.cycle + (i - self.first) * self.period)
            for i in range(self.first, self.last)
        ]


@dataclass(frozen=True, slots=True)
class CrossingTask:
    """The vectors of one crossing leave or enter the chip."""

    number: int  # of the crossing
    cycle: int  # of the first vector


Task = IssueTask | CrossingTask


@dataclass(frozen=True, slots=True)
class PlaneState:
    """The accumulators of a plane."""

    plane: int


@dataclass(frozen=True, slots=True)
class SramState:
    """Words whose accesses are not resolved beforehand."""


@dataclass(frozen=True, slots=True)
class PortState:
    """One direction of a port."""

    port: int
    outward: bool


State = PlaneState | SramState | PortState
"""What tasks share besides rows; tasks of one state go by cycle."""


class Dataflow(Protocol):
    """What a task needs and makes, in rows of the pool."""

    def needs(self, task: Task) -> I64:
        """Return the rows that a task uses."""

    def makes(self, task: Task) -> I64:
        """Return the rows that a task makes."""

    def state(self, task: Task) -> State | None:
        """Return the state that the task uses or changes."""


def order(tasks: Sequence[Task], dataflow: Dataflow, rows: int) -> list[Task]:
    """Return the tasks, split where need be, so that every row is made before it is used.

    Ties go by cycle, then by place in the list.
    """
    while True:
        before, after = _edges(tasks, dataflow, rows)
        done = _sorted(tasks, before, after)
        if len(done) == len(tasks):
            return [tasks[i] for i in done]
        tasks = _split(tasks, before, after, set(done))


def _edges(
    tasks: Sequence[Task], dataflow: Dataflow, rows: int
) -> tuple[list[set[int]], list[set[int]]]:
    maker = np.full(rows, -1, np.int64)
    users: dict[State, list[int]] = {}
    for i, task in enumerate(tasks):
        maker[dataflow.makes(task)] = i
        if (state := dataflow.state(task)) is not None:
            users.setdefault(state, []).append(i)
    before = [set(np.unique(maker[dataflow.needs(task)]).tolist()) - {-1} for task in tasks]
    for of_state in users.values():
        of_state.sort(key=lambda i: tasks[i].cycle)
        for one, next_ in pairwise(of_state):
            before[next_].add(one)
    after: list[set[int]] = [set() for _ in tasks]
    for i, mine in enumerate(before):
        for other in mine:
            after[other].add(i)
    return before, after


def _sorted(tasks: Sequence[Task], before: list[set[int]], after: list[set[int]]) -> list[int]:
    left = [len(mine) for mine in before]
    ready = [(task.cycle, i) for i, task in enumerate(tasks) if not left[i]]
    heapq.heapify(ready)
    done = []
    while ready:
        _, i = heapq.heappop(ready)
        done.append(i)
        for other in after[i]:
            left[other] -= 1
            if not left[other]:
                heapq.heappush(ready, (tasks[other].cycle, other))
    return done


def _split(
    tasks: Sequence[Task], before: list[set[int]], after: list[set[int]], done: set[int]
) -> Sequence[Task]:
    """Split every task that may lie on a loop; what only follows a loop is left whole."""
    stuck = set(range(len(tasks))) - done
    leaves = [i for i in stuck if not after[i] & stuck]
    while leaves:
        i = leaves.pop()
        stuck.discard(i)
        leaves += [j for j in before[i] & stuck if not after[j] & stuck]
    looped = set[int]()
    for i in stuck:
        task = tasks[i]
        if isinstance(task, IssueTask) and task.n > 1:
            looped.add(i)
    assert looped, "single issues cannot need each other"
    out: list[Task] = []
    for i, task in enumerate(tasks):
        if i in looped and isinstance(task, IssueTask):
            out += task.split()
        else:
            out.append(task)
    return out
