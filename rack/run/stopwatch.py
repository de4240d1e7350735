"""Where a chip's wall time goes: kernels, exchange, waiting, and the rest, which is Python.

Wraps a chip's actions at load (`chip.run.chip.Watch`); costs two clock readings per operation.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from chip.ops.opcodes import Opcode
from chip.ops.program import MOVES


class Stopwatch:
    """Adds up seconds by part since it was made."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seconds = {"kernels": 0.0, "exchange": 0.0, "waiting": 0.0}

    def watch(self, opcode: Opcode, action: Callable[[], bool]) -> Callable[[], bool]:
        """Return the action with its time added up."""
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
        """Return seconds by part; what is left of the time passed is Python."""
        passed = time.perf_counter() - self.started
        return {**self.seconds, "python": passed - sum(self.seconds.values())}
