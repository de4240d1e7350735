"""The shell around every verb: whatever can go wrong outside ends in one line and an exit code.

    0   done; also where the reader of standard output, `head` perhaps, has seen enough
    1   refused, failed or interrupted: one line on standard error
    2   bad usage (argparse)

What is none of these is a fault of ours and keeps its traceback. Results go to standard output
through `put`, everything else to standard error through `say` (rack/system/progress.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import sys
from collections.abc import Callable
from functools import wraps
from typing import Literal, ParamSpec, TextIO

from rack.errors import KNOWN_ERRORS
from rack.system.progress import say, silence

P = ParamSpec("P")

_ADVICE = {
    errno.ENOSPC: "free some space there or name another place",
    errno.EDQUOT: "this user's quota is used up: free some space or name another place",
    errno.EROFS: "name another place",
    errno.EBADF: "it is closed: give it a file, a pipe or /dev/null",
    errno.EACCES: "change its permissions or name another",
    errno.EPERM: "change its permissions or name another",
}
_LIMITS = {
    errno.EMFILE: ("open files", resource.RLIMIT_NOFILE, "ulimit -n"),
    errno.EFBIG: ("size of a file", resource.RLIMIT_FSIZE, "ulimit -f"),
    errno.EAGAIN: ("processes and threads of this user", resource.RLIMIT_NPROC, "ulimit -u"),
    errno.ENOMEM: ("address space", resource.RLIMIT_AS, "ulimit -v"),
}
_NO_THREAD = "can't start new thread"  # a RuntimeError of its own; nothing else tells it apart


def verb(work: Callable[P, int]) -> Callable[P, int]:
    """Make the main function of a verb: run `work`, return its exit code or say why there is none.

    The one place where a verb's errors are caught; SystemExit of argparse passes.
    """

    @wraps(work)
    def main(*args: P.args, **kwargs: P.kwargs) -> int:
        open_streams()
        try:
            try:
                return work(*args, **kwargs)
            finally:
                flush()
        except BrokenPipeError:
            return 0
        except KeyboardInterrupt:
            say("interrupted")
        except Exception as error:
            line = line_of(error)
            if line is None:
                raise
            say("error: " + " ".join(line.splitlines()))
        return 1

    return main


def line_of(error: BaseException) -> str | None:
    """Return what to tell the user of an error, or None for one that is a fault of ours."""
    if isinstance(error, KNOWN_ERRORS):
        return str(error)
    if isinstance(error, OSError):
        return os_line(error)
    if isinstance(error, MemoryError):
        return f"out of memory{': ' if str(error) else ''}{error}; {_memory_advice()}"
    if isinstance(error, RecursionError):
        return f"nested too deeply: {error}; give a file or a text with fewer levels"
    if isinstance(error, RuntimeError) and str(error) == _NO_THREAD:
        return f"{error}; {_limit(errno.EAGAIN)}"
    return None


def os_line(error: OSError) -> str:
    """Return an error of the system as one line: the thing, what is wrong, the way out."""
    given = [name for name in (error.filename, error.filename2) if name is not None]
    named = [os.fsdecode(name) if isinstance(name, bytes) else str(name) for name in given]
    text = ": ".join([" and ".join(named), error.strerror or str(error)]).removeprefix(": ")
    if error.errno == errno.ENOMEM:
        return f"{text}; {_memory_advice()}"
    if error.errno in _LIMITS:
        return f"{text}; {_limit(error.errno)}"
    advice = _ADVICE.get(error.errno or 0)
    if "usable temporary directory" in text:  # of the tempfile module
        advice = "set TMPDIR to a folder that can be written"
    return f"{text}; {advice}" if advice else text


def _limit(code: int) -> str:
    what, limit, command = _LIMITS[code]
    now = resource.getrlimit(limit)[0]
    shown = "unlimited" if now == resource.RLIM_INFINITY else f"{now:,}"
    return f"the limit on {what} is {shown}: raise it ({command})"


def _memory_advice() -> str:
    advice = "choose a smaller model or context, or --executor timing"
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        return advice
    return f"{advice}; {_limit(errno.ENOMEM)}"


def put(text: str, end: str = "\n") -> None:
    """Write a result to standard output, at once. Raises OSError, which names standard output."""
    _named(lambda: print(text, end=end, flush=True))


def flush() -> None:
    """Write out what standard output still holds. Raises OSError, which names it."""
    _named(sys.stdout.flush)


def _named(write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        silence(sys.stdout)  # else the interpreter tries again at its end, and complains
        if not isinstance(error, BrokenPipeError):
            error.filename = "standard output"
        raise


def open_streams() -> None:
    """Give a process that was started without standard streams (`>&-`) some that are harmless.

    Their descriptors would be taken by the next files opened, which prints would then end up in;
    and Python sends prints for a missing standard error to standard output. A missing standard
    output refuses what is written to it. No character is an error to print, whatever the locale.
    """
    if sys.stdin is None:
        sys.stdin = _stand_in(os.O_RDONLY, "r")
    if sys.stdout is None:
        sys.stdout = _stand_in(os.O_RDONLY, "w")
    if sys.stderr is None:
        sys.stderr = _stand_in(os.O_WRONLY, "w")
    with contextlib.suppress(AttributeError):  # of a stream that someone put in its place
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _stand_in(flags: int, mode: Literal["r", "w"]) -> TextIO:
    descriptor = os.open(os.devnull, flags)  # the lowest free number, so the missing one
    if descriptor <= 2:
        os.set_inheritable(descriptor, True)  # as standard streams are
    return open(descriptor, mode, encoding="utf-8", closefd=False)
