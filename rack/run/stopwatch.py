"""Measure a chip's wall time by part: kernels, exchange, waiting, and the rest, which is Python.

A stopwatch wraps a chip's actions at load (`chip.run.chip.Watch`). It costs two clock readings per
operation.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from chip.ops.opcodes import Opcode
from chip.ops.program import MOVES


class Stopwatch:
    """Adds up seconds by part, from its making on."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seconds = {"kernels": 0.0, "exchange": 0.0, "waiting": 0.0}

    def watch(self, opcode: Opcode, action: Callable[[], bool]) -> Callable[[], bool]:
        """Return the action, wrapped so that its time is added up."""
        part, seconds, clock = "exchange" if opcode in MOVES else "kernels", self.seconds, time

        def timed() -> bool:
            started = clock.perf_counter()
            done = action()
            seconds[part] += clock.perf_counter() - started
            return done

        return timed

    def waited(self, seconds: float) -> None:
        """Add time spent waiting for messages."""
        self.seconds["waiting"] += seconds

    def parts(self) -> dict[str, float]:
        """Return seconds by part; the rest of the elapsed time is Python."""
        passed = time.perf_counter() - self.started
        return {**self.seconds, "python": passed - sum(self.seconds.values())}
