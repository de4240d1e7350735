"""Which step begins next, and at which cycle: a pure function of emulated arrivals and completions.

A step begins as soon as the intervals of the steps before it allow (`CompiledModel.interval`): the
*entry* of the pipeline is then free. What is ready is of two kinds. A *starting* sequence wants a
chunk of its prompt, or its first step, if that is a decode step. A *running* one has its prompt in
the cache, and wants its next decode step when the step before has ended.

1. Running sequences go by when they are ready, ties by slot.
2. A starting sequence goes in a gap: where it would hold up no running one. While it waits, each
   running sequence may go before it once. Then it goes. Several go by when they are ready.
3. A decode step has one row while the pipeline has room for all running sequences, one after
   another; else as few rows as there must be (at most the batch). Rows are those that are ready.

So a running sequence waits only while another step holds the entry, and then for no more than a
turn of each of the others. A starting one waits until each of the others has gone once as what it
was: with a chunk, with its first token, or running. A step is decided as late as can be: not before
the result of every step that ends until it begins.

Of a compiled model's steps only names and times matter; they are looked up once, and stay known
from epoch to epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from compiler.ir import StepSchedule


class Steps(Protocol):
    """The steps of a compiled model, as far as their times go (`CompiledModel`)."""

    @property
    def max_model_len(self) -> int: ...
    @property
    def decode_sizes(self) -> tuple[int, ...]: ...
    def step(self, rows: int, context: int, *, decode: bool) -> StepSchedule: ...
    def interval(self, first: str, then: str) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The next step of the sequence in `slot`: so many rows, the last at position context - 1."""

    slot: int
    ready: int  # the cycle from which on it may begin
    rows: int
    context: int
    decode: bool
    starting: bool  # a chunk of a prompt, or the sequence's first step


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """Begin a step at a cycle, with rows of these slots; a prefill step has one slot's rows."""

    name: str
    base: int
    end: int
    slots: tuple[int, ...]


class Times:
    """What is known of the steps: which are for so many rows, and their intervals."""

    def __init__(self, compiled: Steps) -> None:
        self._compiled = compiled
        self.interval = compiled.interval
        self._sizes = compiled.decode_sizes
        self._steps: dict[tuple[int, int, bool], StepTimes] = {}

    def of(self, rows: int, context: int, *, decode: bool) -> StepTimes:
        """Return the step for so many rows, the last at position context - 1."""
        key = rows, context, decode
        if (found := self._steps.get(key)) is None:
            step = self._compiled.step(rows, context, decode=decode)
            turns = step.cycles // self.interval(step.name, step.name)
            found = StepTimes(name=step.name, cycles=step.cycles, turns=turns)
            self._steps[key] = found
        return found

    def after(self, context: int) -> int:
        """Return the context of the next decode step."""
        return min(context + 1, self._compiled.max_model_len)

    def rows(self, sequences: int, context: int) -> int:
        """Return the fewest rows of a step with which the pipeline has room for all sequences."""
        rows = 1
        for rows in self._sizes:
            if rows * self.of(rows, context, decode=True).turns >= sequences:
                break
        return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """A step: how long it takes, and how many of its kind are in the pipeline when it is full."""

    name: str
    cycles: int
    turns: int


class Dispatcher:
    """The steps that are wanted, and those under way, in the emulated time of one rack."""

    def __init__(self, times: Times) -> None:
        self._times = times
        self.now = 0  # the cycle up to which everything is decided
        self._under_way: list[Begin] = []
        self._entries: dict[str, int] = {}  # step -> from when on those under way let it begin
        self._wanted: dict[int, Wanted] = {}
        self._expected: dict[int, Wanted] = {}  # what may follow decode steps under way
        self._went_before: dict[int, set[int]] = {}  # slot that starts -> those that ran meanwhile
        self._decision: tuple[Begin | None] | None = None  # the last one, while it holds

    @property
    def idle(self) -> bool:
        """Nothing is wanted, and no decode step is under way."""
        return not self._wanted and not self._expected

    def reach(self, cycle: int) -> None:
        """Take note that what happened up to a cycle is known: nothing begins before it."""
        if cycle > self.now:
            self.now, self._decision = cycle, None

    def want(self, wanted: Wanted) -> None:
        """Take a sequence's next step. With it, the step that it had under way is over."""
        self._decision = None
        self._expected.pop(wanted.slot, None)
        self._wanted[wanted.slot] = wanted
        if wanted.starting:
            self._went_before[wanted.slot] = set()

    def drop(self, slot: int) -> None:
        """Forget a sequence that has ended, or was given up."""
        self._decision = None
        self._wanted.pop(slot, None)
        self._expected.pop(slot, None)
        self._went_before.pop(slot, None)

    def begin(self) -> Begin | None:
        """Return the step that begins next, which is then under way; None as `peek` does."""
        if (found := self._decided()) is not None:
            self._take(found)
        return found

    def peek(self) -> int | None:
        """Return the cycle at which the next step begins.

        None if that depends on a step under way, or nothing is wanted.
        """
        found = self._decided()
        return None if found is None else found.base

    def state(self) -> tuple[object, ...]:
        """Return all that decides what begins next, seen from `now`, but for how long contexts are.

        Equal states lead to equal steps, as long as contexts stay in their buckets.
        """
        now = self.now
        return (
            tuple((one.slot, one.ready - now, one.starting) for one in self._wanted.values()),
            tuple((one.slot, one.ready - now) for one in self._expected.values()),
            tuple((one.name, one.base - now) for one in self._under_way),
            tuple((slot, frozenset(went)) for slot, went in self._went_before.items()),
        )

    def leap(self, cycles: int, tokens: Mapping[int, int]) -> None:
        """Pass over so many cycles, in which the sequences of these slots take so many tokens.

        It is for who knows that the state at their end is that of now.
        """
        self.now, self._decision = self.now + cycles, None
        self._under_way = [later(one, cycles) for one in self._under_way]
        self._entries = {name: entry + cycles for name, entry in self._entries.items()}
        for kept in (self._wanted, self._expected):
            for slot, one in kept.items():
                context = one.context + tokens[slot]
                kept[slot] = replace(one, ready=one.ready + cycles, context=context)

    def _decided(self) -> Begin | None:
        if self._decision is None:
            found = self._next()
            if found is not None and any(
                one.ready <= found.base for one in self._expected.values()
            ):
                found = None
            self._decision = (found,)
        return self._decision[0]

    def _next(self) -> Begin | None:
        """Return what goes next of all that is wanted; None if one must be waited for."""
        running, starts = list[Wanted](), list[Wanted]()
        for one in self._wanted.values():
            (starts if one.starting else running).append(one)
        choices = []
        if starts:
            start = self._placed((min(starts, key=_turn),))
            if not self._holds_up(start, running):
                choices.append(start)
        if running:
            choices.append(self._decode(running))
        return min(choices, key=lambda one: one.base, default=None)

    def _decode(self, running: Sequence[Wanted]) -> Begin:
        """Return the next step of running sequences."""
        first = min(running, key=_turn)
        alone = self._placed((first,))
        most = self._times.rows(len(running) + len(self._expected), first.context)
        ready = [one for one in running if one.ready <= alone.base]
        if min(most, len(ready)) < 2:
            return alone
        return self._placed(sorted(ready, key=_turn)[:most])

    def _placed(self, parts: Sequence[Wanted]) -> Begin:
        """Return the step of these, as soon as it may begin."""
        rows, context, base = 0, 0, self.now
        for one in parts:
            rows += one.rows
            context = max(context, one.context)
            base = max(base, one.ready)
        step = self._times.of(rows, context, decode=parts[0].decode)
        base, slots = max(base, self._entry(step.name)), tuple([one.slot for one in parts])
        return Begin(name=step.name, base=base, end=base + step.cycles, slots=slots)

    def _entry(self, name: str) -> int:
        """Return the cycle from which on the steps under way let one of this name begin."""
        if name not in self._entries:
            interval = self._times.interval
            self._entries[name] = max(
                (one.base + interval(one.name, name) for one in self._under_way), default=0
            )
        return self._entries[name]

    def _holds_up(self, start: Begin, running: Iterable[Wanted]) -> bool:
        """Tell whether a running sequence that has not gone before it would wait for a start.

        Of a sequence whose step is under way the next one counts as wanted.
        """
        (slot,) = start.slots
        went, of, interval = self._went_before[slot], self._times.of, self._times.interval
        for other in (*running, *self._expected.values()):
            if other.slot not in went:
                name = of(other.rows, other.context, decode=True).name
                alone = max(self.now, other.ready, self._entry(name))
                if alone < start.base + interval(start.name, name):
                    return True
        return False

    def _take(self, begin: Begin) -> None:
        """Put a step under way."""
        self.now, self._decision = begin.base, None
        self._under_way = [one for one in self._under_way if one.end > self.now]
        self._under_way.append(begin)
        interval = self._times.interval
        for name, entry in self._entries.items():
            self._entries[name] = max(entry, begin.base + interval(begin.name, name))
        for slot in begin.slots:
            wanted = self._wanted.pop(slot)
            self._went_before.pop(slot, None)
            if wanted.decode:
                self._expected[slot] = replace(
                    wanted, ready=begin.end, context=self._times.after(wanted.context),
                    starting=False,
                )  # fmt: skip
            if not wanted.starting:
                for went in self._went_before.values():
                    went.add(slot)


def later(begin: Begin, cycles: int) -> Begin:
    """Return a step that begins so many cycles later."""
    return replace(begin, base=begin.base + cycles, end=begin.end + cycles)


def _turn(wanted: Wanted) -> tuple[int, int]:
    """Return the order of those that wait."""
    return wanted.ready, wanted.slot
