"""Run independent checks on the other cores, in forked copies of this process.

A schedule of 300 chips is gigabytes of objects: too large to be sent, but a fork shares it. A copy
returns only the error that it met. This process goes on meanwhile.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import select
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from compiler.errors import CompilerError

Check = Callable[[], None]
DEADLINE_SECONDS = 1800.0
TICK_SECONDS = 0.2
_MOST_DESCRIPTORS = 1 << 20


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Turn the cycle collector off. It would walk millions of objects that all stay alive, which
    takes a fifth of the time of a large compilation."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class Copy(NamedTuple):
    """A copy of this process that runs a check."""

    pid: int
    pipe: int  # of its answer
    until: float  # when it has to have answered


class Checks:
    """Checks that run in copies while this process goes on. Leaving the context waits for them all.

    Leaving raises the error of the first check that fails, in the order of `add`. It raises
    CompilerError for a copy that ends without an answer or takes over half an hour. Without
    `forked`, or if the system cannot fork, all checks run in this process. `tick` is called while
    this process waits; an error that it raises ends the copies.
    """

    def __init__(self, *, forked: bool, tick: Callable[[], None] = lambda: None) -> None:
        self._tick = tick
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        self._most = cores - 1 if forked else 0  # copies at once: this process has work of its own
        self._checks: list[Check] = []
        self._next = 0  # checks before it have begun
        self._failed: dict[int, Exception] = {}
        self._copies: list[Copy] = []

    def __enter__(self) -> Checks:
        return self

    def add(self, check: Check) -> None:
        """Add a check; start the next one in a copy if a core is free."""
        self._checks.append(check)
        self._begin()

    def __exit__(self, failed: type[BaseException] | None, *rest: object) -> None:
        try:
            if failed is None:
                self._finish()
        finally:
            for copy in list(self._copies):
                self._end(copy)
        if self._failed and failed is None:
            raise self._failed[min(self._failed)]

    def _finish(self) -> None:
        """Run what is left: in copies, for which this process leaves them its core, or here."""
        self._most += self._most > 0
        while self._next < len(self._checks) or self._copies:
            self._tick()
            if not self._most:
                self._next += 1
                self._failed |= _failures(self._checks, [self._next - 1])
                continue
            self._begin()
            if self._copies and not self._answered(TICK_SECONDS):
                self._refuse_late()

    def _begin(self) -> None:
        """Start copies for waiting checks, as many as may run at once."""
        for copy in self._answered(0.0):
            self._collect(copy)
        while self._next < len(self._checks) and len(self._copies) < self._most:
            self._next += 1
            self._copies.append(_fork(self._checks, [self._next - 1]))

    def _answered(self, seconds: float) -> list[Copy]:
        """Return the copies that have begun to answer, or none after so many seconds."""
        poller = select.poll()  # unlike select(), takes descriptors beyond 1024
        for copy in self._copies:
            poller.register(copy.pipe, select.POLLIN)
        ready = {pipe for pipe, _ in poller.poll(seconds * 1e3)} if self._copies else set()
        return [copy for copy in self._copies if copy.pipe in ready]

    def _refuse_late(self) -> None:
        if time.monotonic() > min(copy.until for copy in self._copies):
            raise CompilerError(
                f"schedule check: wanted an answer within {DEADLINE_SECONDS} s, got none"
            )

    def _collect(self, copy: Copy) -> None:
        try:
            self._failed |= _answer(copy.pipe)
        finally:
            self._end(copy)

    def _end(self, copy: Copy) -> None:
        self._copies.remove(copy)
        os.close(copy.pipe)
        os.kill(copy.pid, signal.SIGKILL)  # it has answered, or its answer is not wanted any more
        os.waitpid(copy.pid, 0)


def _failures(checks: Sequence[Check], share: Sequence[int]) -> dict[int, Exception]:
    """Run a share of the checks until one fails; return its place and error."""
    for place in share:
        try:
            checks[place]()
        except Exception as error:
            return {place: error}
    return {}


def _fork(checks: Sequence[Check], share: Sequence[int]) -> Copy:
    """Start a copy that runs a share."""
    reads, writes = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the copy takes no locks of threads
        pid = os.fork()
    if pid:
        os.close(writes)
        return Copy(pid, reads, time.monotonic() + DEADLINE_SECONDS)
    try:
        os.closerange(3, writes)  # the copy must not keep a server's sockets open
        os.closerange(writes + 1, _MOST_DESCRIPTORS)
        answer = pickle.dumps(_failures(checks, share))
        with os.fdopen(writes, "wb") as pipe:
            pipe.write(answer)
    finally:
        os._exit(0)


def _answer(pipe: int) -> dict[int, Exception]:
    """Read a copy's answer, which it writes at once and as its last work."""
    data = b""
    while part := os.read(pipe, 1 << 16):
        data += part
    if not data:
        raise CompilerError("schedule check: wanted an answer from its process, got none")
    failed: dict[int, Exception] = pickle.loads(data)
    return failed
