"""The timing executor: answers every step from its schedule, with no data and no chips.

Tokens are then drawn by the engine from a seeded generator, and every answer is marked as such.
"""

from __future__ import annotations

from collections.abc import Sequence

from compiler.pipeline import CompiledModel
from rack.driver import StepResult


class TimingRack:
    """A rack of any size in one process: cycles, no tokens."""

    transport = "none"
    executor = "timing"

    def __init__(self, compiled: CompiledModel) -> None:
        self.compiled = compiled

    def reset(self) -> None:
        """Start a request: nothing to forget."""

    def run_step(
        self, name: str, positions: Sequence[int], tokens: Sequence[int],
        following: str | None = None,
    ) -> StepResult:  # fmt: skip
        """Return the cycles of a step. Raises KeyError for a step that was not compiled."""
        return StepResult(cycles=self.compiled.cycles_until(name, following))

    def saturated(self) -> int:
        """No data, so nothing saturates."""
        return 0

    def times(self) -> dict[str, float]:
        """No chips, no time."""
        return {}

    def close(self) -> None:
        """Nothing to give back."""
