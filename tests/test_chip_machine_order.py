"""Tasks that share a state go by cycle, even where dependences alone would let them pass.

An ALU issues twice, far apart. Its second issue waits for a late value, and the task is both issues
at once, so whatever takes its first result comes late in the order; what reads the place in which
that result is kept must come later still.
"""

from __future__ import annotations

import numpy as np
from machine_kit import CHIP, DELAYS, LOADED, SLICES, blank, bound, issue

from chip.floorplan import Queue, Role, alu, hops, mem, mxm
from chip.isa.instructions import ABC, ACC, Alu, AluOp, Gather, Instruction, Read, Write
from chip.isa.issue import Issue
from chip.isa.operands import Held, Immediate, Stream, group
from chip.machine.order import CrossingTask, IssueTask, State, Task, order

E1, E2, E3, W1 = Stream(True, 1), Stream(True, 2), Stream(True, 3), Stream(False, 1)
FIRST, LATE = 40, 900  # cycles of the ALU's issues, and of the value that the second one takes
COPY, CVT = DELAYS["COPY"].d_func, DELAYS["CVT_I8"].d_func


def twice(out: Stream) -> list[Issue]:
    """1 and then 2, as int8, leave ALU 2 at FIRST + d_func and long after."""
    return [
        issue(alu(1), 0, Alu(op=AluOp.COPY, a=Immediate(1.0))),
        issue(alu(1), LATE, Alu(op=AluOp.COPY, a=Immediate(2.0))),
        issue(alu(2), FIRST, Alu(op=AluOp.CVT_I8, a=Held(1), out=group(out, 1)), 2, LATE),
    ]


def reaching(queue: Queue, at: int, to: Queue, instruction: Instruction) -> Issue:
    """An instruction that takes what leaves a unit in a cycle."""
    return issue(to, at + hops(queue, to, CHIP), instruction)


def test_a_read_waits_for_the_write_before_it() -> None:
    """In a slice with addresses from streams, where no access is resolved beforehand."""
    kept, away = mem(1, 5), mem(1, 9)
    leaves = FIRST + CVT
    sram = blank()
    gathered = 200 + DELAYS["READ"].d_func + hops(mem(0, 5), kept, CHIP)
    bound(
        *twice(E1),
        reaching(alu(2), leaves, kept, Write(address=2, stream=E1)),
        issue(kept, 500, Read(address=2, stream=E2)),
        reaching(kept, 500 + DELAYS["READ"].d_func, away, Write(address=3, stream=E2)),
        issue(mem(0, 5), 200, Read(address=0, stream=E3)),  # which makes the slice a live one
        issue(kept, gathered, Gather(map=E3, stream=W1)),
        sram=sram,
    ).run()
    assert (sram[3 * SLICES + SLICES // 2 + 9].view(np.int8) == 1).all()


def test_sums_are_put_out_as_they_were_then() -> None:
    """A row's sum leaves before the product that comes long after."""
    feed, drain, kept = mxm(0, Role.FEED), mxm(0, Role.DRAIN), mem(0, 3)
    fed = FIRST + CVT + hops(alu(2), feed, CHIP)
    sram = blank()
    sram[0] = 1  # the weights: column 0 is all ones
    put = 500 + DELAYS["ACC"].d_func
    bound(
        *LOADED,
        *twice(W1),
        issue(feed, fed, ABC(stream=W1), 2, LATE),
        issue(drain, fed + DELAYS["ABC"].d_func, ACC(slot=0, first=True), 2, LATE),
        issue(drain, 500, ACC(slot=0, first=False, product=False, lanes=80, out=group(E1, 1))),
        reaching(drain, put, kept, Write(address=2, stream=E1)),
        sram=sram,
    ).run()
    assert sram[2 * SLICES + 3].view(np.int32)[0] == 320


class Lines:
    """A dataflow given by hand: (needs, makes) of each task by its number."""

    def __init__(self, rows: dict[int, tuple[list[int], list[int]]]) -> None:
        self.rows = rows

    def _rows(self, task: Task, side: int) -> np.ndarray:
        number = task.number if isinstance(task, CrossingTask) else task.burst
        rows = self.rows[number][side]
        if isinstance(task, IssueTask) and len(rows) > 1:
            rows = rows[task.first : task.last]
        return np.array(rows, np.int64)

    def needs(self, task: Task) -> np.ndarray:
        return self._rows(task, 0)

    def makes(self, task: Task) -> np.ndarray:
        return self._rows(task, 1)

    def state(self, task: Task) -> State | None:
        return None


def test_ties_go_by_cycle_then_by_place() -> None:
    tasks: list[Task] = [
        IssueTask(0, 0, 1, 9), IssueTask(1, 0, 1, 5), CrossingTask(2, 5), IssueTask(3, 0, 1, 1),
    ]  # fmt: skip
    rows = {0: ([], [0]), 1: ([], [1]), 2: ([], [2]), 3: ([0], [3])}
    done = order(tasks, Lines(rows), 4)
    assert done == [tasks[1], tasks[2], tasks[0], tasks[3]]


def test_only_tasks_on_a_loop_are_split() -> None:
    """Two ALUs that take each other's results in turn; a third only follows."""
    tasks: list[Task] = [
        IssueTask(0, 0, 2, 0, 4), IssueTask(1, 0, 2, 2, 4), IssueTask(2, 0, 2, 9, 4),
    ]  # fmt: skip
    rows = {0: ([6, 2], [0, 1]), 1: ([0, 1], [2, 3]), 2: ([2, 3], [4, 5])}
    done = order(tasks, Lines(rows), 7)
    assert done == [
        IssueTask(0, 0, 1, 0), IssueTask(1, 0, 1, 2), IssueTask(0, 1, 2, 4),
        IssueTask(1, 1, 2, 6), tasks[2],
    ]  # fmt: skip
