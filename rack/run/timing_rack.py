"""The timing executor: answers every step from its schedule, with no data and no chips.

The engine then draws tokens from a seeded generator, and every answer says so. If the machine's
clocks drift, every step also runs on drifting clocks (rack/run/drift.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from compiler.pipeline import CompiledModel
from rack.errors import FaultError
from rack.run.drift import DriftingClocks
from rack.run.flagged import Corrected
from rack.run.steps import Recovery, StepOrder, StepResult, Turns


class TimingRack:
    """A rack of any size in one process: cycles, no tokens."""

    transport = "none"
    executor = "timing"
    spares = 0

    def __init__(self, compiled: CompiledModel, drifts: Mapping[int, int] | None = None) -> None:
        self.compiled = compiled
        strays = compiled.network.clock.strays
        self._clocks = DriftingClocks(compiled, drifts) if strays else None
        self.turns = Turns(compiled)
        self._under_way: deque[StepOrder] = deque()

    def reset(self) -> None:
        """Begin anew: no step is under way."""
        self._under_way.clear()
        self.turns.reset()

    def start(self, order: StepOrder) -> None:
        """Start a step. Raises KeyError if it was not compiled, or as `DriftingClocks.run`."""
        self._run(order.name, order.base, 1)
        self._under_way.append(order)
        self.turns.began(order)

    def finish(self) -> list[StepResult]:
        """Return the cycles of the oldest step under way."""
        order = self._under_way.popleft()
        step = self.compiled.steps[order.name]
        rows = len(order.positions) if step.kind.decode else 1
        return [StepResult(cycles=step.cycles)] * rows

    def run_step(
        self, name: str, positions: Sequence[int], tokens: Sequence[int],
        following: str | None = None,
    ) -> StepResult:  # fmt: skip
        """Return the cycles of a step run in turn (`Turns`)."""
        self.start(self.turns.order(name, positions, tokens))
        return self.turns.ended(name, self.finish()[0], following)

    def run_steps(self, name: str, count: int) -> int:
        """Run a step `count` times; return the cycles of all. Raises as `DriftingClocks.run`."""
        cycles = count * self.compiled.steps[name].cycles
        self._run(name, self.turns.base, count)
        self.turns.base += cycles
        return cycles

    def _run(self, name: str, base: int, count: int) -> None:
        step = self.compiled.steps[name]
        if self._clocks is not None:
            self._clocks.run(step, base, count)

    def saturated(self) -> int:
        """Return 0: without data nothing saturates."""
        return 0

    def corrected_vectors(self) -> Corrected:
        """Return none: without data nothing is corrected."""
        return {}

    def times(self) -> dict[str, float]:
        """Return no parts: there are no chips."""
        return {}

    def check(self) -> None:
        """Do nothing: there are no chips that could be dead."""

    def recover(self, error: FaultError) -> Recovery:
        """Raise the error: there is nothing that could have broken."""
        raise error

    def condition(self) -> str | None:
        """Return None: it always runs."""
        return None

    def close(self) -> None:
        """Do nothing: there is nothing to free."""
