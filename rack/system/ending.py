"""How a verb ends on a signal: Ctrl-C, TERM (a supervisor) and HUP (a closed terminal) alike.

Before the verb's `main` is there, nothing has been started: the process ends at once. Later the
signal is a KeyboardInterrupt, so that everything that was started is ended on the way out. Either
way it is one line and exit code 1. A signal that whoever started us has had ignored (nohup) stays
ignored. rack.serve has handlers of its own while it serves.

Imports nothing that takes time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_quietly() -> None:
    """Let signals end this process as the module says."""
    for one in SIGNALS:
        if signal.getsignal(one) != signal.SIG_IGN:
            signal.signal(one, _end)


def leave_to_parent() -> None:
    """Ignore these signals: a whole process group gets them, and our parent ends us."""
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)


def _end(number: int, frame: FrameType | None) -> None:
    if hasattr(sys.modules["__main__"], "main"):
        raise KeyboardInterrupt
    with contextlib.suppress(OSError):  # nobody reads it
        os.write(2, b"interrupted\n")
    os._exit(1)
