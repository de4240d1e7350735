"""Steps driven back to back: to measure wall speed, and to fill caches again after a fault.

Each step begins as soon as the intervals of those under way allow: the chips check that as ever.
In `Rounds` they have as many rows as there may be. The sequences are cut into groups of rows; each
group's next step begins when its results are there, so as many steps are under way as there are
groups. (What serves requests is rack/run/sequences.py; it has steps of several rows only where the
pipeline needs them.)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from compiler.ir import StepSchedule
from compiler.pipeline import CompiledModel
from rack.run.completion import Completion
from rack.run.dispatch import Wanted
from rack.run.steps import Rack, StepOrder


class Entry:
    """The entry of a pipeline, whose steps follow each other as closely as they may."""

    def __init__(self, compiled: CompiledModel) -> None:
        self._compiled = compiled
        self._begun: list[tuple[str, int, int]] = []  # (step, base, end): those that may matter

    def take(self, step: StepSchedule, ready: int) -> int:
        """Return the cycle at which the next step begins: not before it is ready."""
        interval = self._compiled.interval
        base = max([ready, *(at + interval(name, step.name) for name, at, _ in self._begun)])
        self._begun = [one for one in self._begun if one[2] > base]
        self._begun.append((step.name, base, base + step.cycles))
        return base


class Train:
    """Steps that fill caches: prefill steps, of which nothing but their end matters."""

    def __init__(self, rack: Rack) -> None:
        """Begin an epoch."""
        rack.reset()
        self._rack, self._entry = rack, Entry(rack.compiled)
        self._ends: deque[int] = deque()  # of the steps under way
        self._reached = rack.compiled.network.start_cycles

    def fill(self, slot: int, tokens: Sequence[int]) -> None:
        """Write the keys and values of tokens into a slot, from its first position on."""
        compiled, chunk = self._rack.compiled, self._rack.compiled.prefill_chunk
        start = compiled.network.start_cycles
        for first in range(0, len(tokens), chunk):
            part = tuple(tokens[first : first + chunk])
            step = compiled.step(len(part), first + len(part), decode=False)
            base = self._entry.take(step, start)
            while self._ends and self._ends[0] <= base:
                self._finish()
            self._rack.start(StepOrder(
                name=step.name, base=base, slots=(slot,) * len(part),
                positions=tuple(range(first, first + len(part))), tokens=part,
            ))  # fmt: skip
            self._ends.append(base + step.cycles)

    def end(self) -> int:
        """Run what is under way; return the cycle at which all of it is over."""
        while self._ends:
            self._finish()
        return self._reached

    def _finish(self) -> None:
        self._rack.finish()
        self._reached = max(self._reached, self._ends.popleft())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """A step under way, and the slots that its rows are of."""

    end: int
    slots: Sequence[int]


class Rounds:
    """One completion a slot, all of them begun and ended together."""

    def __init__(self, rack: Rack, completions: Sequence[Completion]) -> None:
        assert len(completions) <= rack.compiled.sequences
        self._rack, self._completions = rack, completions
        self._entry = Entry(rack.compiled)

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
        self._entry = Entry(self._rack.compiled)
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
        base = self._entry.take(step, max(one.ready for one in parts))
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
        return _Step(end=end, slots=[one.slot for one in parts])
