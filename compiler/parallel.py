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


class Checks:
    """Checks that run in copies while this process goes on. Leaving the context runs the rest.

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
        self._copies: list[tuple[int, int]] = []  # (process, pipe of its answer)

    def __enter__(self) -> Checks:
        return self

    def add(self, check: Check) -> None:
        """Add a check; start the next one in a copy if a core is free."""
        self._checks.append(check)
        self._begin()

    def __exit__(self, failed: type[BaseException] | None, *rest: object) -> None:
        try:
            while failed is None and self._next < len(self._checks):
                self._tick()
                self._begin()
                if self._next < len(self._checks):
                    self._next += 1
                    self._failed |= _failures(self._checks, [self._next - 1])
            until = time.monotonic() + DEADLINE_SECONDS
            while failed is None and self._copies:
                self._collect(self._copies[0], until)
        finally:
            for copy in list(self._copies):
                self._end(copy)
        if self._failed and failed is None:
            raise self._failed[min(self._failed)]

    def _begin(self) -> None:
        """Start copies for waiting checks, as many as may run at once."""
        for copy in list(self._copies):
            if select.select([copy[1]], [], [], 0)[0]:
                self._collect(copy, time.monotonic() + DEADLINE_SECONDS)
        while self._next < len(self._checks) and len(self._copies) < self._most:
            self._next += 1
            self._copies.append(_fork(self._checks, [self._next - 1]))

    def _collect(self, copy: tuple[int, int], until: float) -> None:
        try:
            self._failed |= _answer(copy[1], until, self._tick)
        finally:
            self._end(copy)

    def _end(self, copy: tuple[int, int]) -> None:
        pid, pipe = copy
        self._copies.remove(copy)
        os.close(pipe)
        os.kill(pid, signal.SIGKILL)  # it has answered, or its answer is not wanted any more
        os.waitpid(pid, 0)


def _failures(checks: Sequence[Check], share: Sequence[int]) -> dict[int, Exception]:
    """Run a share of the checks until one fails; return its place and error."""
    for place in share:
        try:
            checks[place]()
        except Exception as error:
            return {place: error}
    return {}


def _fork(checks: Sequence[Check], share: Sequence[int]) -> tuple[int, int]:
    """Start a copy that runs a share; return its process and the pipe of its answer."""
    reads, writes = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the copy takes no locks of threads
        pid = os.fork()
    if pid:
        os.close(writes)
        return pid, reads
    try:
        os.closerange(3, writes)  # the copy must not keep a server's sockets open
        os.closerange(writes + 1, _MOST_DESCRIPTORS)
        answer = pickle.dumps(_failures(checks, share))
        with os.fdopen(writes, "wb") as pipe:
            pipe.write(answer)
    finally:
        os._exit(0)


def _answer(pipe: int, until: float, tick: Callable[[], None]) -> dict[int, Exception]:
    data = b""
    poller = select.poll()  # unlike select(), takes descriptors beyond 1024
    poller.register(pipe, select.POLLIN)
    while True:
        while not poller.poll(TICK_SECONDS * 1e3):
            tick()
            if time.monotonic() > until:
                raise CompilerError(
                    f"schedule check: wanted an answer within {DEADLINE_SECONDS} s, got none"
                )
        part = os.read(pipe, 1 << 16)
        if not part:
            break
        data += part
    if not data:
        raise CompilerError("schedule check: wanted an answer from its process, got none")
    failed: dict[int, Exception] = pickle.loads(data)
    return failed
