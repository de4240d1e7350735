"""Work on tasks in parallel and give their rows back in the order of the tasks.

A lane works on one task at a time: a process of this computer, or a task of a Ray cluster. Tasks of
one family go to one lane while there are others, because its process has their templates already.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol

from rack.errors import RackError
from rack.sweeps.task import Task

Row = dict[str, Any]
Work = Callable[[Task], Row]
AHEAD = 64  # tasks a lane may be beyond the first row that is not there yet
COLLECT_EVERY = 32  # tasks between two runs of the cycle collector


class Lanes(Protocol):
    """Where tasks are worked on."""

    count: int

    def submit(self, lane: int, task: Task) -> Future[Row]:
        """Begin a task in a lane that has none."""


class Processes(AbstractContextManager["Processes"]):
    """Processes of this computer, each with one task at a time. They end with this process."""

    def __init__(self, work: Work, count: int) -> None:
        self.count, self._work = count, work
        self._stack = ExitStack()
        self._pools: list[ProcessPoolExecutor] = []

    def __enter__(self) -> Processes:
        spawn = multiprocessing.get_context("spawn")
        for _ in range(self.count):
            pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=_begin)
            self._pools.append(pool)
            self._stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # nobody wants what they are at
            for pool in self._pools:
                for process in list((pool._processes or {}).values()):
                    process.kill()
        self._stack.close()

    def submit(self, lane: int, task: Task) -> Future[Row]:
        """See `Lanes.submit`."""
        return self._pools[lane].submit(_one, self._work, task)


def _begin() -> None:
    """End this process when its parent has ended; the terminal's signals are for the parent."""
    os.setpgid(0, 0)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    gc.disable()


_done = 0


def _one(work: Work, task: Task) -> Row:
    global _done
    _done += 1
    if _done % COLLECT_EVERY == 0:
        gc.collect()
    return work(task)


def in_order(lanes: Lanes, tasks: Sequence[Task]) -> Iterator[Row]:
    """Yield the rows of tasks in their order. Raises RackError for a process that died."""
    waiting: dict[int, object] = {number: task.family for number, task in enumerate(tasks)}
    owners: dict[object, int] = {}
    running: dict[Future[Row], tuple[int, int]] = {}  # -> (lane, number of the task)
    free, done, first = list(range(lanes.count)), dict[int, Row](), 0
    while first < len(tasks):
        for lane in list(free):
            number = _next(waiting, owners, lane, first + AHEAD * lanes.count)
            if number is None:
                break
            owners.setdefault(waiting.pop(number), lane)
            free.remove(lane)
            running[lanes.submit(lane, tasks[number])] = lane, number
        ended, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in ended:
            lane, number = running.pop(future)
            free.append(lane)
            done[number] = _result(future, tasks[number])
        while first in done:
            yield done.pop(first)
            first += 1


def _next(
    waiting: dict[int, object], owners: dict[object, int], lane: int, before: int
) -> int | None:  # fmt: skip
    """Choose a lane's next task: one of a family of its own, or of nobody's; else the first."""
    near = list(itertools.takewhile(lambda number: number < before, waiting))
    own = (number for number in near if owners.get(waiting[number], lane) == lane)
    return next(own, near[0] if near else None)


def _result(future: Future[Row], task: Task) -> Row:
    try:
        return future.result()
    except BrokenProcessPool:
        raise RackError(
            f"point {dict(task.point)}: its process died; the system may have had no memory left: "
            "use fewer (--jobs), and start again: rows that are there are kept"
        ) from None
