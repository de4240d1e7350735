"""Tasks in parallel: rows come in the order of the tasks, families stay together, workers end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import pytest

from rack.errors import ConfigError, RackError
from rack.run.config import RunConfig
from rack.sweeps.grid import Run
from rack.sweeps.lanes import AHEAD, Processes, in_order
from rack.sweeps.task import Task

ROOT = Path(__file__).resolve().parent.parent


def task(number: int, layout: str = "1x1", **point: Any) -> Task:
    return Task(
        run=Run.PLAN, point={"context": number, **point},
        config=RunConfig(model="tiny", layout=layout), counts=(("context", number),),
    )  # fmt: skip


def context_of(one: Task) -> dict[str, Any]:
    """Work that needs a process of its own."""
    if one.point.get("dies"):
        os._exit(3)
    if one.point.get("fails"):
        raise ConfigError("no such point")
    return {"context": one.point["context"], "process": os.getpid()}


class Scripted:
    """Lanes whose tasks end when they are told to; what a lane has begun is written down."""

    def __init__(self, count: int, *, ends: str) -> None:
        self.count, self.ends = count, ends
        self.begun: list[tuple[int, int]] = []
        self.open: list[tuple[Future[dict[str, Any]], Task]] = []

    def submit(self, lane: int, one: Task) -> Future[dict[str, Any]]:
        self.begun.append((lane, one.point["context"]))
        future: Future[dict[str, Any]] = Future()
        self.open.append((future, one))
        if self.ends == "at once" or len(self.open) == self.count:
            for found, done in reversed(self.open):
                found.set_result({"context": done.point["context"]})
            self.open.clear()
        return future


@pytest.mark.parametrize("ends", ["at once", "in turns"])
@pytest.mark.parametrize(("count", "tasks"), [(1, 5), (2, 6), (3, 9)])
def test_rows_come_in_order(ends: str, count: int, tasks: int) -> None:
    lanes = Scripted(count, ends=ends)
    found = [row["context"] for row in in_order(lanes, [task(n) for n in range(tasks)])]
    assert found == list(range(tasks))
    assert sorted(number for _, number in lanes.begun) == list(range(tasks))


def test_a_family_has_a_lane_of_its_own() -> None:
    layouts = ["1x1", "1x2", "2x1", "2x2", "3x1", "3x2"]
    tasks = [task(number, layout) for number, layout in enumerate(layouts)]
    assert tasks[0].family == tasks[2].family != tasks[1].family
    lanes = Scripted(2, ends="in turns")
    assert len(list(in_order(lanes, tasks))) == 6
    assert {lane for lane, number in lanes.begun if number % 2} == {1}
    assert {lane for lane, number in lanes.begun if not number % 2} == {0}


def test_a_free_lane_helps_another_family() -> None:
    lanes = Scripted(2, ends="in turns")
    assert len(list(in_order(lanes, [task(number) for number in range(6)]))) == 6
    assert {lane for lane, _ in lanes.begun} == {0, 1}


def test_no_lane_runs_far_ahead_of_a_row_that_is_not_there() -> None:
    first: Future[dict[str, Any]] = Future()

    class Slow:
        count = 2
        begun = 0

        def submit(self, lane: int, one: Task) -> Future[dict[str, Any]]:
            self.begun += 1
            if one.point["context"] == 0:
                return first
            future: Future[dict[str, Any]] = Future()
            future.set_result({})
            if self.begun == 2 * AHEAD:
                first.set_result({})
            return future

    lanes = Slow()
    assert len(list(in_order(lanes, [task(number) for number in range(3 * AHEAD)]))) == 3 * AHEAD
    assert first.done()


def test_processes_of_their_own_that_end() -> None:
    with Processes(context_of, 2) as lanes:
        rows = list(in_order(lanes, [task(number) for number in range(6)]))
    assert [row["context"] for row in rows] == list(range(6))
    assert os.getpid() not in {row["process"] for row in rows}
    assert not any(psutil.pid_exists(row["process"]) for row in rows)


def test_a_process_that_died() -> None:
    with pytest.raises(RackError) as caught, Processes(context_of, 1) as lanes:
        list(in_order(lanes, [task(1, dies=True)]))
    assert str(caught.value) == (
        "point {'context': 1, 'dies': True}: its process died; the system may have had no memory "
        "left: use fewer (--jobs), and start again: rows that are there are kept"
    )


def test_an_error_of_the_work_itself_ends_the_others() -> None:
    with pytest.raises(ConfigError, match=r"^no such point$"), Processes(context_of, 2) as lanes:
        list(in_order(lanes, [task(1, fails=True), *(task(number) for number in range(2, 40))]))


def test_processes_end_with_their_parent() -> None:
    """However it ends: it is killed here while they have nothing to do."""
    code = (
        "import sys, time\n"
        "sys.path.insert(0, 'tests')\n"
        "from test_rack_sweeps_lanes import Processes, context_of, task\n"
        "if __name__ == '__main__':\n"
        "    with Processes(context_of, 1) as lanes:\n"
        "        print(lanes.submit(0, task(1)).result()['process'], flush=True)\n"
        "        sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.01)


def test_keys_are_of_what_a_row_is_of() -> None:
    assert task(1).key == task(1, more=2).key
    assert len({task(1).key, task(2).key, task(1, "2x1").key}) == 3
    assert len(task(1).key) == 16
