"""Chips as plain processes of this host: ZeroMQ without Ray.

A process is `python -m rack.run.worker JOB`. JOB is a pickle in the rack's private folder; the chip
removes it when it has read it. The parent's `__main__` is not needed.

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
from collections.abc import Sequence
from pathlib import Path

from rack.run.launcher import Post
from rack.run.worker import one_blas_thread
from rack.system.own_code import command, environment

JOIN_SECONDS = 5.0


class ProcessLauncher:
    """Implements `rack.run.launcher.Launcher`."""

    name = "process"

    def __init__(self) -> None:
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self._folder = ""
        self._life: int | None = None  # the end of the pipe that nobody writes to

    def bind(self, node: int, folder: str) -> str:
        """See `Launcher.bind`."""
        self._folder = folder
        return f"ipc://{os.path.join(folder, str(node))}"

    def start(self, posts: Sequence[Post]) -> None:
        """See `Launcher.start`."""
        one_blas_thread()
        life, self._life = os.pipe()  # neither is inherited, but as a standard input
        try:
            for post in posts:
                file = Path(self._folder) / f"job-{post.seat.process}"
                file.write_bytes(pickle.dumps((post.job, post.seat)))
                self.processes[post.seat.process] = subprocess.Popen(
                    command("rack.run.worker", str(file)),
                    stdin=life,
                    env=environment(),
                    process_group=0,
                )
        finally:
            os.close(life)

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
