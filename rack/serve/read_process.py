"""The process that `reader` starts: reads requests, within bounds of memory, until its parent ends.

`python -m rack.serve.read_process FD`: FD is a connection, over which pickles go both ways.
"""

from __future__ import annotations

import os
import pickle
import resource
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from rack.errors import RackError
from rack.serve.reading import Desk, attempt
from rack.system.ending import leave_to_parent

WATCH_SECONDS = 1.0


def main(argv: Sequence[str]) -> int:
    """Entry point."""
    leave_to_parent()
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    with Connection(int(argv[0])) as connection:
        try:
            desk, memory = pickle.loads(connection.recv_bytes())
            _limit(memory)
            connection.send_bytes(b"ready")
            while True:
                connection.send_bytes(_answer(desk, connection.recv_bytes()))
        except (EOFError, BrokenPipeError):
            return 0


def _watch(parent: int) -> None:
    """End when the parent has: in the middle of a long task nobody reads the connection."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def _limit(more_bytes: int) -> None:
    """Allow no more than so many bytes beyond what is mapped now, where the system can say."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        mapped = int(statm.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + more_bytes,) * 2)


def _answer(desk: Desk, task: bytes) -> bytes:
    """Do a task; return its result and its error, of which one is None."""
    try:
        function, body, args = pickle.loads(task)
        return pickle.dumps((attempt(function, desk, body, *args), None))
    except MemoryError:
        os._exit(1)
    except RackError as error:
        return pickle.dumps((None, error))
    except Exception as error:  # a bug of ours, which perhaps cannot be pickled
        return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
