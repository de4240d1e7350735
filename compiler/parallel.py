"""Independent checks on all cores: each core but one gets a forked copy of this process.

What is checked is too large to be sent (a schedule of 300 chips is gigabytes as objects), and a
fork shares it. A copy gives back nothing but the error it met.
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


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Keep the cycle collector from walking millions of objects that all stay (a fifth of the time
    of a large compilation)."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def run_checks(checks: Sequence[Check], *, forked: bool) -> None:
    """Run `checks`; raises the error of the first, in their order, that fails.

    With `forked` on as many cores as there are (where the system can fork), else one by one.
    Raises CompilerError for a copy that ended without a word, or not within half an hour.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    shares = [range(first, len(checks), cores) for first in range(min(cores, len(checks)))]
    if not forked or len(shares) < 2:
        shares = [range(len(checks))]
    copies = [_fork(checks, share) for share in shares[1:]]
    failed = {}
    try:
        failed = _failures(checks, shares[0])
        until = time.monotonic() + DEADLINE_SECONDS
        for _, pipe in copies:
            failed |= _answer(pipe, until)
    finally:
        for pid, pipe in copies:
            os.close(pipe)
            os.kill(pid, signal.SIGKILL)  # it has answered, or nobody listens any more
            os.waitpid(pid, 0)
    if failed:
        raise failed[min(failed)]


def _failures(checks: Sequence[Check], share: Sequence[int]) -> dict[int, Exception]:
    """Run a share until a check fails: its place and error."""
    for place in share:
        try:
            checks[place]()
        except Exception as error:
            return {place: error}
    return {}


def _fork(checks: Sequence[Check], share: Sequence[int]) -> tuple[int, int]:
    """Start a copy that runs a share; returns its process and the pipe of its answer."""
    reads, writes = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the copy takes no locks of threads
        pid = os.fork()
    if pid:
        os.close(writes)
        return pid, reads
    try:
        answer = pickle.dumps(_failures(checks, share))
        with os.fdopen(writes, "wb") as pipe:
            pipe.write(answer)
    finally:
        os._exit(0)


def _answer(pipe: int, until: float) -> dict[int, Exception]:
    data = b""
    poller = select.poll()  # unlike select(), takes descriptors beyond 1024
    poller.register(pipe, select.POLLIN)
    while True:
        if not poller.poll(max(0.0, until - time.monotonic()) * 1e3):
            raise CompilerError(f"a check was not done within {DEADLINE_SECONDS} s")
        part = os.read(pipe, 1 << 16)
        if not part:
            break
        data += part
    if not data:
        raise CompilerError("a process that checked schedules ended without a word")
    failed: dict[int, Exception] = pickle.loads(data)
    return failed
