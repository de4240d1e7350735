"""Processes that others have started for us become our own children (Linux).

A process whose parent ends becomes the child of the nearest ancestor that adopts. So a process that
has imported everything can fork many like itself, each through one in between that ends at once,
and whoever asked for them watches and ends them like processes that it has started itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_LOOK_SECONDS = 0.005
_count_lock = threading.Lock()
_count = 0  # of those who adopt now: it is the process that does, whichever thread asked for it


def available() -> bool:
    """Say whether this system has such children."""
    return sys.platform == "linux"


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Adopt what loses its parent meanwhile. Raises OSError where the system does not allow it.

    Several threads may do so at a time: it goes on until the last of them has ended.
    """
    _count_adopters(1)
    try:
        yield
    finally:
        _count_adopters(-1)


def _count_adopters(more: int) -> None:
    global _count
    with _count_lock:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        if prctl(_PR_SET_CHILD_SUBREAPER, int(_count + more > 0), 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl: this process may not adopt others")
        _count += more


class Adopted:
    """A child that another process has forked: what `subprocess.Popen` is to one of our own."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or minus the signal that ended it; None while it runs.

        0, as `subprocess` has it, where the system keeps no codes (SIGCHLD is ignored).
        """
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                pid, status = self.pid, 0
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def kill(self) -> None:
        """End it by force; does nothing once it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float) -> int:
        """Return the exit code. Raises subprocess.TimeoutExpired."""
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired([str(self.pid)], timeout)
            time.sleep(_LOOK_SECONDS)
        return code


def forked(names: Sequence[str], tell: int) -> str:
    """Fork a process for each name but the last; return the name of the process that returns.

    Each is handed to whoever adopts, leads a process group, and is told as a line, "PID NAME", to
    the file `tell`, which is then closed. No thread may run yet.
    """
    *others, own = names
    for name in others:
        ours, theirs = os.pipe()
        between = os.fork()
        if not between:
            pid = os.fork()
            if pid:
                os.write(theirs, b"%d" % pid)
                os._exit(0)
            for file in (ours, theirs, tell):
                os.close(file)
            os.setpgid(0, 0)
            return name
        os.close(theirs)
        os.waitpid(between, 0)
        os.write(tell, b"%s %s\n" % (os.read(ours, 32), name.encode()))
        os.close(ours)
    os.close(tell)
    return own
