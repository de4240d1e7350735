"""Sequences driven back to back, in steps of as many rows as there may be: to measure wall speed.

The sequences are cut into groups of rows; each group's next step begins when its results are there,
so as many steps are under way as there are groups. (What serves requests is rack/run/sequences.py;
it has steps of several rows only where the pipeline needs them.) Each step begins as soon as the
intervals of those under way allow: the chips check that as ever.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from rack.run.completion import Completion
from rack.run.dispatch import Wanted
from rack.run.steps import Rack, StepOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """A step under way, and the slots that its rows are of."""

    name: str
    base: int
    end: int
    slots: Sequence[int]


class Rounds:
    """One completion a slot, all of them begun and ended together."""

    def __init__(self, rack: Rack, completions: Sequence[Completion]) -> None:
        assert len(completions) <= rack.compiled.sequences
        self._rack, self._completions = rack, completions
        self._begun: list[_Step] = []  # those that have not ended when the last one begins

    def fill(self) -> None:
        """Run the prompts, one after the other; their last tokens are for `decode`."""
        self._enter(reused=False)
        for slot, one in enumerate(self._completions):
            while not (wanted := one.wanted(slot, self._ready())).decode:
                self._begin([wanted])
                self._rack.finish()
                one.prefilled()

    def decode(self) -> float:
        """Run all completions to their end, in slots that hold the prompts; return wall seconds."""
        self._enter(reused=True)
        rows, slots = self._rack.compiled.decode_sizes[-1], range(len(self._completions))
        groups = [slots[first : first + rows] for first in slots[::rows]]
        started = time.perf_counter()
        under_way = deque(self._next_of(group, self._ready()) for group in groups)
        while under_way:
            step = under_way.popleft()
            for slot, result in zip(step.slots, self._rack.finish(), strict=True):
                self._completions[slot].take(result, step.end)
            going = [s for s in step.slots if self._completions[s].finish_reason is None]
            if going:
                under_way.append(self._next_of(going, step.end))
        return time.perf_counter() - started

    def _enter(self, *, reused: bool) -> None:
        """Begin an epoch."""
        self._rack.reset()
        self._begun.clear()
        for one in self._completions:
            one.enter(self._ready(), len(one.prompt_token_ids) - 1 if reused else 0)

    def _ready(self) -> int:
        """Return the cycle at which all chips have started."""
        return self._rack.compiled.network.start_cycles

    def _next_of(self, slots: Sequence[int], ready: int) -> _Step:
        return self._begin([self._completions[slot].wanted(slot, ready) for slot in slots])

    def _begin(self, parts: Sequence[Wanted]) -> _Step:
        """Begin a step as soon as those before it let it."""
        compiled, rows = self._rack.compiled, sum(one.rows for one in parts)
        step = compiled.step(rows, max(one.context for one in parts), decode=parts[0].decode)
        entries = [one.base + compiled.interval(one.name, step.name) for one in self._begun]
        base = max([*entries, *(one.ready for one in parts)])
        end = base + step.cycles
        row = [
            (one.slot, *pair)
            for one in parts for pair in self._completions[one.slot].begin(one, base, end)
        ]  # fmt: skip
        slots, positions, tokens = zip(*row, strict=True)
        order = StepOrder(
            name=step.name, base=base, slots=slots, positions=positions, tokens=tokens
        )
        self._rack.start(order)
        own = [one.slot for one in parts]
        begun = _Step(name=step.name, base=base, end=end, slots=own)
        self._begun = [*(one for one in self._begun if one.end > base), begun]
        return begun
