"""The timing executor: answers every step from its schedule, with no data and no chips.

The engine then draws tokens from a seeded generator, and every answer says so. If the machine's
clocks drift, every step also runs on drifting clocks (rack/run/drift.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compiler.pipeline import CompiledModel
from rack.run.drift import DriftingClocks
from rack.run.driver import StepResult


class TimingRack:
    """A rack of any size in one process: cycles, no tokens."""

    transport = "none"
    executor = "timing"

    def __init__(self, compiled: CompiledModel, drifts: Mapping[int, int] | None = None) -> None:
        self.compiled = compiled
        strays = compiled.network.clock.strays
        self._clocks = DriftingClocks(compiled, drifts) if strays else None
        self.now = self._starting = 0  # where the next step begins

    def reset(self) -> None:
        """Start a request: at cycle 0, or as soon as all chips have started."""
        self.now = self._starting = self.compiled.network.start_cycles

    def run_step(
        self, name: str, positions: Sequence[int], tokens: Sequence[int],
        following: str | None = None,
    ) -> StepResult:  # fmt: skip
        """Return the cycles of a step. Raises KeyError if it was not compiled."""
        cycles = self.compiled.cycles_until(name, following)
        self._run(name, 1, cycles)
        cycles, self._starting = cycles + self._starting, 0
        return StepResult(cycles=cycles)

    def run_encode(
        self, name: str, positions: Sequence[int], tokens: Sequence[int], types: Sequence[int]
    ) -> StepResult:  # fmt: skip
        """Return the cycles of an encoder's step, as `run_step`."""
        return self.run_step(name, positions, tokens)

    def run_steps(self, name: str, count: int) -> int:
        """Run a step `count` times; return the cycles of all. Raises as `DriftingClocks.run`."""
        cycles = count * self.compiled.steps[name].cycles
        self._run(name, count, cycles)
        return cycles

    def _run(self, name: str, count: int, cycles: int) -> None:
        begin, self.now = self.now, self.now + cycles
        if self._clocks is not None:
            self._clocks.run(self.compiled.steps[name], begin, count)

    def saturated(self) -> int:
        """Return 0: without data nothing saturates."""
        return 0

    def times(self) -> dict[str, float]:
        """Return no parts: there are no chips."""
        return {}

    def check(self) -> None:
        """Do nothing: there are no chips that could be dead."""

    def close(self) -> None:
        """Do nothing: there is nothing to free."""
