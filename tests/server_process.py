"""Start `python -m rack.serve` as a process, for tests of the real thing."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_SECONDS = 60.0
CHILDREN_SECONDS = 20.0  # Ray's agents, left alone, stay for 60
TINY = ("tiny", "--transport", "local", "--layout", "1x1")


@dataclass
class ServerProcess:
    """A running server."""

    process: subprocess.Popen[str]
    url: str
    lines: queue.Queue[str]  # of its stderr; an empty one is the last

    def end(self, how: signal.Signals) -> int:
        """Send a signal; return the exit code. Nothing of the server may be left."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(how)
        try:
            code = self.process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # faulthandler tells where it stands
            said = []
            with contextlib.suppress(queue.Empty):
                while line := self.lines.get(timeout=CHILDREN_SECONDS):
                    said.append(line)
            raise AssertionError(f"{how.name} did not end it: {''.join(said)}") from None
        assert not psutil.wait_procs(children, CHILDREN_SECONDS)[1]
        return code


@contextlib.contextmanager
def server(*arguments: str, start_seconds: float = DEADLINE_SECONDS) -> Iterator[ServerProcess]:
    command = [sys.executable, "-m", "rack.serve", *arguments, "--port", "0"]
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as process:
        lines: queue.Queue[str] = queue.Queue()
        assert process.stderr is not None
        reader = threading.Thread(target=lambda: [*map(lines.put, process.stderr), lines.put("")])
        reader.start()
        try:
            seen = []
            while not (line := lines.get(timeout=start_seconds)).startswith("ready:"):
                seen.append(line)
                assert line, f"the server ended: {seen}"
            yield ServerProcess(process, line.split()[-1], lines)
        finally:
            if process.poll() is None:
                process.kill()
            reader.join(DEADLINE_SECONDS)
