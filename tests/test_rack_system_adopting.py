"""Processes that another one has forked: known, watched and ended like our own."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from rack.system.adopting import Adopted, adopting, available

pytestmark = pytest.mark.skipif(not available(), reason="needs Linux")

ROOT = Path(__file__).parent.parent
CODE = """
import os, signal, sys
from rack.system.adopting import forked
signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # as rack.run.worker
name = forked(sys.argv[2:], int(sys.argv[1]))
assert os.getpgid(0) == os.getpid() or name == sys.argv[-1]
os.read(0, 1)
os._exit(int(name[1:]))
"""


def start(*names: str) -> tuple[subprocess.Popen[bytes], dict[str, Adopted], int]:
    """Start them; return the process that was started, the others, and what ends all."""
    told, tell = os.pipe()
    life, ending = os.pipe()
    with adopting(), open(told, encoding="utf-8") as lines:
        first = subprocess.Popen(
            [sys.executable, "-c", CODE, str(tell), *names], stdin=life, pass_fds=(tell,), cwd=ROOT
        )
        os.close(tell)
        os.close(life)
        found = {}
        for line in lines:
            pid, name = line.split()
            found[name] = Adopted(int(pid))
    return first, found, ending


def test_who_is_first_to_end_adopting_does_not_end_it_for_others() -> None:
    """Racks of a server start at the same time, each in a thread."""
    with adopting():
        start_of_another = adopting()
        with start_of_another:
            pass
        told, tell = os.pipe()
        life, ending = os.pipe()
        with open(told, encoding="utf-8") as lines:
            words = [sys.executable, "-c", CODE, str(tell), "n3", "n4"]
            first = subprocess.Popen(words, stdin=life, pass_fds=(tell,), cwd=ROOT)
            os.close(tell)
            os.close(life)
            (line,) = lines
    other = Adopted(int(line.split()[0]))
    assert other.poll() is None
    os.close(ending)
    assert [other.wait(30), first.wait(30)] == [3, 4]


def test_where_the_system_keeps_no_exit_codes_an_end_is_still_seen() -> None:
    """A supervisor may have started us with SIGCHLD ignored, which is inherited."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        first, others, ending = start("n3", "n4")
        assert others["n3"].poll() is None
        os.close(ending)
        assert others["n3"].wait(30) == 0
        first.wait(30)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_forked_processes_are_children_with_their_own_ends() -> None:
    first, others, ending = start("n3", "n4", "n5", "n6")
    assert list(others) == ["n3", "n4", "n5"]
    mine = {child.pid for child in psutil.Process().children()}
    assert {first.pid, *(one.pid for one in others.values())} <= mine
    assert all(one.poll() is None for one in others.values())
    with pytest.raises(subprocess.TimeoutExpired):
        others["n3"].wait(0.0)
    others["n4"].kill()
    assert others["n4"].wait(30) == -signal.SIGKILL
    others["n4"].kill()  # it has ended, and its number may be another's
    os.close(ending)
    assert [others["n3"].wait(30), others["n5"].wait(30), first.wait(30)] == [3, 5, 6]
    assert others["n3"].poll() == 3
    assert (
        not {child.pid for child in psutil.Process().children()}
        & mine
        & {one.pid for one in others.values()}
    )


def test_one_name_forks_nothing() -> None:
    first, others, ending = start("n9")
    assert others == {}
    os.close(ending)
    assert first.wait(30) == 9


def test_a_system_that_does_not_allow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = SimpleNamespace(prctl=lambda *_: -1)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: refusing)
    with pytest.raises(OSError, match="prctl: this process may not adopt others"), adopting():
        pass
