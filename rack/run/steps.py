"""What the engine and a rack say to each other: steps to run, and what they gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from compiler.pipeline import CompiledModel
from rack.errors import FaultError
from rack.run.flagged import Corrected

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOrder:
    """Run step `name` from cycle `base` on: a row each for `tokens`, at `positions` in `slots`.

    `types`: the tokens' kinds, of an encoder.
    """

    name: str
    base: int
    slots: tuple[int, ...]
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    types: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step gave for one of its rows: logits of every vocabulary column, or (ids, values) of
    the largest; of an encoder's, hidden states. A prefill step gives nothing but its cycles."""

    cycles: int  # of the step; of one run in turn (`Turns`) up to the next one's base
    logits: F32 | None = None  # [vocab]
    top: tuple[NDArray[np.int64], F32] | None = None
    hash_share: int = 0  # sum over the vocabulary, modulo 2^64
    hidden: F32 | None = None  # [rows, hidden] of an encoder, in the order of the rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """A fault after which a rack went on: in which step, and what it took.

    `chips` were replaced by spares, also those that were lost during the replay; none where nothing
    had to be. `replayed_cycles` of emulated time were run for a second time, and are in no account
    of a request. `schedule_hash` is that of the schedule from then on, where it is another one,
    with other cycles, because the spares' cables are.
    """

    chips: tuple[int, ...]
    step: str
    what: str
    detected_seconds: float  # from the last sign of life to the error
    wall_seconds: float
    replayed_cycles: int = 0
    schedule_hash: str | None = None

    @property
    def told(self) -> str:
        """The line that tells a user of it."""
        return (
            f"went on after a fault: {self.what}; replayed {self.replayed_cycles} cycles, "
            f"recovered in {self.wall_seconds:.2f} s"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what an answer says of it; `chip` is the first one."""
        return {
            "chip": self.chips[0] if self.chips else None,
            "chips": list(self.chips),
            "step": self.step,
            "detected_seconds": round(self.detected_seconds, 6),
            "replayed_cycles": self.replayed_cycles,
            "wall_seconds": round(self.wall_seconds, 6),
            "schedule_hash": self.schedule_hash,
        }


class Turns:
    """Steps of one sequence, each to its end before the next: their orders and cycles."""

    def __init__(self, compiled: CompiledModel) -> None:
        self._compiled = compiled
        self.base = self._starting = 0

    def reset(self) -> None:
        """Begin anew: the first step waits until all chips have started."""
        self.base = self._starting = self._compiled.network.start_cycles

    def order(
        self, name: str, positions: Sequence[int], tokens: Sequence[int]
    ) -> StepOrder:  # fmt: skip
        """Return the order of the next step."""
        return StepOrder(
            name=name, base=self.base, slots=(0,) * len(positions), positions=tuple(positions),
            tokens=tuple(tokens),
        )  # fmt: skip

    def began(self, order: StepOrder) -> None:
        """Take note of a step that was started: the next one in turn comes behind it."""
        end = order.base + self._compiled.steps[order.name].cycles
        self.base = max(self.base, end)

    def ended(self, name: str, result: StepResult, following: str | None) -> StepResult:
        """Return the result with the cycles to the base of the next step.

        `following` may begin before this step has ended (`CompiledModel.cycles_until`). The first
        one's cycles have its start too.
        """
        cycles = self._compiled.cycles_until(name, following)
        self.base += cycles - self._compiled.steps[name].cycles
        cycles, self._starting = cycles + self._starting, 0
        return replace(result, cycles=cycles)


class Rack(Protocol):
    """Something that runs compiled steps: LocalRack, ProcessRack, RayRack or TimingRack.

    Several steps may be under way. They begin, and give their results, in one order. After a
    FaultError `recover` makes the rack run again, if it can; it raises the error otherwise. Then
    nothing is under way, and caches are to be filled again, after a `reset`.
    """

    compiled: CompiledModel
    transport: str
    executor: str

    @property
    def spares(self) -> int: ...  # how many chips can still be replaced

    def reset(self) -> None: ...  # nothing is under way any more; the next step begins anew
    def start(self, order: StepOrder) -> None: ...
    def finish(self) -> list[StepResult]: ...  # of the oldest step under way: one for each row
    def saturated(self) -> int: ...
    def corrected_vectors(self) -> Corrected: ...  # of links that make errors
    def times(self) -> dict[str, float]: ...
    def check(self) -> None: ...  # raises where a chip has died since the last step
    def recover(self, error: FaultError) -> Recovery: ...
    def condition(self) -> str | None: ...  # what keeps it from running now; from any thread
    def close(self) -> None: ...
