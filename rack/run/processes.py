"""Chips as plain processes of this host: ZeroMQ without Ray.

A process is `python -m rack.run.worker JOB`. JOB is a pickle in the rack's private folder; the chip
removes it when it has read it. The parent's `__main__` is not needed. Of many chips, one process is
started; it imports everything, forks the others, which this one adopts, and is the last chip
itself. So imports take their time and their memory once.

The standard input of every chip is a pipe that only this process can write to. However this process
ends, and however far a chip is in its start, the chip reads the end of the pipe and ends too. Chips
are in process groups of their own, so a signal from the terminal reaches this process alone. If it
dies of the signal, the system wakes even stopped chips.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from rack.run.launcher import Post
from rack.run.worker import TELL, one_blas_thread
from rack.system.adopting import Adopted, adopting, available
from rack.system.own_code import command, environment

JOIN_SECONDS = 5.0


class Process(Protocol):
    """A chip's process, as `subprocess.Popen` has it."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def kill(self) -> None: ...
    def wait(self, timeout: float) -> int: ...


def _started(life: int, *words: str, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Start a process of chips, whose standard input is the end of the pipe `life`."""
    return subprocess.Popen(
        command("rack.run.worker", *words), stdin=life, env=environment(), process_group=0,
        pass_fds=pass_fds,
    )  # fmt: skip


class ProcessLauncher:
    """Implements `rack.run.launcher.Launcher`."""

    name = "process"

    def __init__(self) -> None:
        self.processes: dict[int, Process] = {}
        self._folder = ""
        self._life: int | None = None  # the end of the pipe that nobody writes to

    def bind(self, node: int, folder: str) -> str:
        """See `Launcher.bind`."""
        self._folder = folder
        return f"ipc://{os.path.join(folder, str(node))}"

    def start(self, posts: Sequence[Post]) -> None:
        """See `Launcher.start`; returns when all are there, before any has loaded."""
        one_blas_thread()
        files = {}
        for post in posts:
            files[post.seat.process] = str(Path(self._folder) / f"job-{post.seat.process}")
            Path(files[post.seat.process]).write_bytes(pickle.dumps((post.job, post.seat)))
        life, self._life = os.pipe()  # neither is inherited, but as a standard input
        try:
            if len(posts) > 1 and available():
                with adopting():
                    self._start_together(files, life)
            else:
                for number, file in files.items():
                    self.processes[number] = _started(life, file)
        finally:
            os.close(life)

    def _start_together(self, files: Mapping[int, str], life: int) -> None:
        """Start one process, which forks the others; know them all."""
        told, tell = os.pipe()
        numbers = {file: number for number, file in files.items()}
        with open(told, encoding="utf-8") as lines:
            try:
                last = _started(life, f"{TELL}{tell}", *files.values(), pass_fds=(tell,))
                self.processes[list(files)[-1]] = last
            finally:
                os.close(tell)
            for line in lines:
                pid, file = line.rstrip("\n").split(" ", 1)
                self.processes[numbers[file]] = Adopted(int(pid))

    def dead(self) -> dict[int, str]:
        """See `Launcher.dead`."""
        codes = {number: process.poll() for number, process in self.processes.items()}
        return {number: f"exit code {code}" for number, code in codes.items() if code is not None}

    def end(self, process: int) -> None:
        """See `Launcher.end`; waits until the process is gone."""
        ended = self.processes.pop(process)
        ended.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            ended.wait(JOIN_SECONDS)

    def stop(self) -> None:
        """See `Launcher.stop`."""
        for process in self.processes.values():
            process.kill()  # a chip has nothing to save, and a stalled one does not listen
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(JOIN_SECONDS)
        self.processes.clear()
        if self._life is not None:
            os.close(self._life)
            self._life = None
