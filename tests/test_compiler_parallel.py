"""Checks on all cores: the first error in order, and copies that die or hang."""

from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from compiler import parallel
from compiler.errors import CompilerError, ScheduleError
from compiler.parallel import Check, Checks, collector_off


@pytest.fixture(autouse=True)
def three_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)


def run_checks(checks: Sequence[Check], *, forked: bool) -> None:
    with Checks(forked=forked) as running:
        for check in checks:
            running.add(check)


def passes() -> None:
    pass


def fails(what: str) -> Callable[[], None]:
    def check() -> None:
        raise ScheduleError(what)

    return check


@pytest.mark.parametrize("forked", [False, True])
def test_the_first_error_in_order(forked: bool) -> None:
    run_checks([passes] * 7, forked=forked)
    run_checks([], forked=forked)
    checks = [passes, passes, fails("third"), passes, fails("fifth"), fails("sixth")]
    with pytest.raises(ScheduleError, match="third"):
        run_checks(checks, forked=forked)


def test_the_collector_is_off_and_on_again() -> None:
    for was in (True, False):
        (gc.enable if was else gc.disable)()
        with collector_off():
            assert not gc.isenabled()
        assert gc.isenabled() is was
    gc.enable()


def test_copies_work_while_this_process_goes_on(tmp_path: Path) -> None:
    here, way = os.getpid(), tmp_path / "way"
    os.mkfifo(way)

    def elsewhere() -> None:
        assert os.getpid() != here
        way.write_bytes(b"done")

    with Checks(forked=True) as checks:
        checks.add(elsewhere)
        assert way.read_bytes() == b"done"
        for _ in range(5):
            checks.add(passes)


def test_copies_keep_no_socket_open() -> None:
    """A client of a server that compiles sees its connection end when the server ends it."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(60)

    def work() -> None:
        with Checks(forked=True) as checks:
            checks.add(lambda: time.sleep(60))
            ours.close()
            assert theirs.recv(1) == b""
            raise ValueError("seen")

    with pytest.raises(ValueError, match="seen"):
        work()
    theirs.close()


def test_what_waiting_tells_may_end_the_copies() -> None:
    told: list[int] = []

    def tick() -> None:
        told.append(1)
        if len(told) == 3:
            raise ValueError("enough")

    def work() -> None:
        with Checks(forked=True, tick=tick) as checks:
            checks.add(lambda: time.sleep(60))
            checks.add(lambda: time.sleep(60))

    with pytest.raises(ValueError, match="enough"):
        work()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_an_error_of_ones_own_comes_first_and_ends_the_copies() -> None:
    def work() -> None:
        with Checks(forked=True) as checks:
            checks.add(lambda: time.sleep(60))
            checks.add(fails("theirs"))
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        work()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_copy_that_dies_or_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CompilerError, match="wanted an answer from its process, got none"):
        run_checks([passes, lambda: os._exit(3)], forked=True)
    monkeypatch.setattr(parallel, "DEADLINE_SECONDS", 0.05)
    with pytest.raises(CompilerError, match=r"wanted an answer within 0\.05 s, got none"):
        run_checks([passes, lambda: time.sleep(60)], forked=True)
