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
import os, sys
from rack.system.adopting import forked
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
