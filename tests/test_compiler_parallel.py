"""Checks on all cores: the first error in order, and copies that die or hang."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable

import pytest

from compiler import parallel
from compiler.errors import CompilerError, ScheduleError
from compiler.parallel import collector_off, run_checks


@pytest.fixture(autouse=True)
def three_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)


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


def test_copies_do_the_work() -> None:
    here = os.getpid()

    def elsewhere() -> None:
        assert os.getpid() != here

    run_checks([passes, elsewhere, elsewhere, passes, elsewhere], forked=True)


def test_a_copy_that_dies_or_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CompilerError, match="ended without a word"):
        run_checks([passes, lambda: os._exit(3)], forked=True)
    monkeypatch.setattr(parallel, "DEADLINE_SECONDS", 0.05)
    with pytest.raises(CompilerError, match=r"was not done within 0\.05 s"):
        run_checks([passes, lambda: time.sleep(60)], forked=True)
