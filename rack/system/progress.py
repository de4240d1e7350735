"""Progress and notices on standard error: bars on a terminal, plain lines otherwise."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TimeElapsedColumn
from rich.progress import Progress as Bars

Progress = Callable[[str, int, int], None]
"""(stage, done, total), as a rack starts."""


def say(text: str) -> None:
    """Print a line for the person at the terminal; standard output stays clean for results.

    Where nobody can read it (a full disk, a reader that left), work goes on without.
    """
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """Let a standard stream that cannot be written any more end nowhere."""
    with contextlib.suppress(OSError):  # one without a descriptor
        number = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


class StartProgress:
    """Shows the stages of a start-up as they are reported: (stage, done, total).

    With `tell` each line goes there instead, as (stage, done, total), and there are no bars.
    """

    def __init__(self, tell: Progress | None = None) -> None:
        self._tell = tell or _say_stage
        console = Console(stderr=True)
        self._bar = (
            Bars(
                "{task.description}",
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=console,
            )
            if console.is_terminal and tell is None
            else None
        )
        self._tasks: dict[str, TaskID] = {}
        self._seen: set[str] = set()
        self._complete: set[str] = set()

    def __enter__(self) -> StartProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.stop()

    def report(self, stage: str, done: int, total: int) -> None:
        """Take a stage's state; a plain line is printed when it starts and when it is complete."""
        if self._bar:
            task = self._tasks.get(stage)
            if task is None:
                task = self._tasks[stage] = self._bar.add_task(stage, total=total)
            self._bar.update(task, completed=done)
        elif stage not in self._seen or (done == total and stage not in self._complete):
            self._tell(stage, done, total)
        self._seen.add(stage)
        (self._complete.add if done == total else self._complete.discard)(stage)

    def stop(self) -> None:
        """Take the bars away."""
        if self._bar:
            self._bar.stop()
            self._bar = None


def _say_stage(stage: str, done: int, total: int) -> None:
    say(f"{stage}: {done}/{total}")


def start_progress() -> StartProgress:
    """Return a progress display to be used as a context manager."""
    return StartProgress()
