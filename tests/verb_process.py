"""A verb as a process, and all that it starts, for tests of how processes live and end."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import psutil

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_SECONDS = 150.0  # the agents of a Ray whose driver was killed stay for a minute or so
MARK = "LPU_TEST_MARK"


class Verb:
    """A verb as a process, with a folder for its files; its processes are known by a mark."""

    def __init__(
        self, folder: Path, *words: str, cwd: Path = ROOT, **environment: str
    ) -> None:  # fmt: skip
        self.folder, self.mark = folder, uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, *words], cwd=cwd, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(folder), MARK: self.mark, **environment},
        )  # fmt: skip

        self._lines: queue.Queue[str] = queue.Queue()
        self._reader: threading.Thread | None = None

    def said(self, word: str) -> str:
        """Give the next line on standard error that has a word in it."""
        if self._reader is None:
            self._reader = threading.Thread(target=self._read)
            self._reader.start()
        seen = []
        while word not in (line := self._lines.get(timeout=DEADLINE_SECONDS)):
            seen.append(line)
            assert line, f"it ended: {seen}"
        return line

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")

    def others(self) -> list[psutil.Process]:
        """Every process that this one has started and that has not ended."""
        found = []
        for process in psutil.process_iter():
            try:
                own = process.environ().get(MARK) == self.mark
                if own and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return [process for process in found if process.pid != self.process.pid]

    def until(self, true: Callable[[], object]) -> None:
        wait_for(lambda: true() or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.communicate()

    def maps(self, library: str) -> bool:
        return library in Path(f"/proc/{self.process.pid}/maps").read_text()

    def end(self, how: signal.Signals) -> tuple[int, str]:
        """Send a signal; give the exit code and what was said on standard error."""
        self.process.send_signal(how)
        _, said = self.process.communicate(timeout=DEADLINE_SECONDS)
        return self.process.returncode, said

    def kill(self) -> None:
        """End it with all that it started, at the end of a test."""
        self.process.kill()
        self.process.wait()
        for other in self.others():
            other.kill()
        if self._reader is not None:
            self._reader.join(DEADLINE_SECONDS)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    def nothing_is_left(self) -> None:
        wait_for(lambda: not self.others())
        assert list(self.folder.glob("lpu-*")) == []


def wait_for(true: Callable[[], object]) -> None:
    until = time.monotonic() + DEADLINE_SECONDS
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)
