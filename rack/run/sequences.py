"""The sequences in flight on one rack: each in a slot of the cache, their steps in the pipeline.

What begins when is the dispatcher's decision (rack/run/dispatch.py), in emulated time alone. Here
the rack is made to do it: steps are started, and their results given to the completions in the
order in which they end. Synchronous, and without I/O of its own. All cycles count from the making
on: while nothing is in flight, time stands still.

After a fault from which the rack has recovered, caches are filled again from the tokens that they
held, and the steps that were under way begin once more, as far apart as before. Meanwhile time
stands still for the sequences too: their tokens come at the cycles at which they would have come.
What the replay takes is in the `Recovery` alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from rack.errors import FaultError, RackError, RequestError
from rack.run.completion import Completion, TokenEvent
from rack.run.dispatch import Begin, Dispatcher, Times, Wanted
from rack.run.prefixes import Slots
from rack.run.rounds import Train
from rack.run.steps import Rack, Recovery, StepOrder, StepResult

MOST_FAULTS = 100
"""So many replays in a row may be lost to another fault before a step has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    """A token of one of the sequences, and the cycle at which its step ended.

    Or the error with which it ends: its request cannot be done after all.
    """

    completion: Completion
    token: TokenEvent | RequestError
    cycle: int


@dataclass(slots=True, kw_only=True)
class _Flight:
    """A step under way, and whose rows it has."""

    begin: Begin
    order: StepOrder
    decode: bool
    owners: tuple[Completion, ...]
    results: Sequence[StepResult] | None = field(default=None)


class Sequences:
    """Completions that run at the same time, at most as many as the rack has slots.

    A failure of the rack from which it does not recover passes through; nothing can go on after it.
    `on_recovery` is told of the others.
    """

    def __init__(
        self, rack: Rack, *, reuse: bool = False,
        on_recovery: Callable[[Recovery], None] = lambda recovery: None,
    ) -> None:  # fmt: skip
        self.rack, self.compiled, self._on_recovery = rack, rack.compiled, on_recovery
        self.slots = Slots(rack.compiled, reuse=reuse)
        self._running: dict[int, Completion] = {}
        self._wanted: dict[int, Wanted] = {}
        self._flights: list[_Flight] = []  # in the order in which they began
        self._times = Times(rack.compiled)
        self._dispatcher = Dispatcher(self._times)
        self._before = 0  # cycles of the epochs before
        self._faults = 0  # in a row: no step has ended in between
        self._behind = 0  # by how much the rack's cycles are behind those here, after a replay
        self._tokens: dict[int, list[int]] = {}  # slot -> those whose steps have begun, in order
        self._recovering: str | None = None

    @property
    def clock(self) -> int:
        """The cycle that has been reached: nothing that is yet to come happens before it."""
        return self._before + self._dispatcher.now

    @property
    def running(self) -> list[Completion]:
        """The completions in flight, by slot."""
        return [self._running[slot] for slot in sorted(self._running)]

    @property
    def full(self) -> bool:
        """Every slot is taken."""
        return len(self._running) == self.compiled.sequences

    def admit(self, completion: Completion, cycle: int | None = None) -> None:
        """Give a completion a slot, at a cycle not before `clock` (now, if not given).

        Raises RackError if no slot is free.
        """
        if self.full:
            raise RackError(f"slots: wanted a free one, got {self.compiled.sequences} in use")
        if not self._running:
            self._anew()
        at = max(self.clock, cycle or 0) - self._before
        slot, reused = self.slots.take(completion.prompt_token_ids)
        self._running[slot] = completion
        completion.schedule_hash = self.compiled.schedule_hash
        del self._tokens.setdefault(slot, [])[reused:]
        completion.enter(at, reused)
        self._want(slot, at + self.compiled.network.start_cycles)

    def leave(self, completion: Completion) -> None:
        """Give up a completion: nothing more is begun for it, and its slot is free."""
        for slot, one in self._running.items():
            if one is completion:
                self._free(slot)
                return

    def advance(self) -> list[Emitted]:
        """Begin a step, or end one, at the cycle `upcoming`; return the tokens that this gave."""
        dispatcher = self._dispatcher
        begin = dispatcher.begin()
        if begin is not None:
            while self._flights and self._flights[0].begin.end <= begin.base:
                self._end(self._flights[0])  # prompts', and those of who has left
            if dispatcher is self._dispatcher:  # else there is another schedule now
                self._start(begin)
            return []
        if not self._flights:
            return []
        return self._end(min(self._flights, key=lambda one: one.begin.end))

    def upcoming(self) -> int:
        """Return the cycle of what `advance` does next; a step that it ends has run by then.

        Who comes before it is to be admitted first. Something must be in flight.
        """
        base = self._dispatcher.peek()
        if base is None:
            ends = min(self._flights, key=lambda one: one.begin.end)
            if self._run(ends) is None:
                return self.upcoming()
            base = ends.begin.end
        return self._before + base

    def _anew(self) -> None:
        """Begin an epoch: frames that are still on their way are of no use to anybody.

        But to a slot whose tokens are reused: it counts as holding those of every step begun.
        """
        if self.slots.reuse and self._flights:
            self._run(self._flights[-1])
        self._before, self._behind = self.clock, 0
        self.rack.reset()
        self._flights.clear()
        self._dispatcher = Dispatcher(self._times)

    def _free(self, slot: int) -> None:
        completion = self._running.pop(slot)
        self._wanted.pop(slot, None)
        self._dispatcher.drop(slot)
        self.slots.give_back(slot, completion.cached)

    def _want(self, slot: int, ready: int) -> None:
        wanted = self._wanted[slot] = self._running[slot].wanted(slot, ready)
        self._dispatcher.want(wanted)

    def _start(self, begin: Begin) -> None:
        rows: list[tuple[int, int, int]] = []
        parts = [self._wanted.pop(slot) for slot in begin.slots]
        for wanted in parts:
            row = self._running[wanted.slot].begin(wanted, begin.base, begin.end)
            rows += [(wanted.slot, position, token) for position, token in row]
        slots, positions, tokens = zip(*rows, strict=True)
        order = StepOrder(
            name=begin.name, base=begin.base, slots=slots, positions=positions, tokens=tokens
        )
        for slot, position, token in rows:
            self._tokens[slot][position:] = [token]
        owners = tuple(self._running[slot] for slot in begin.slots)
        flight = _Flight(begin=begin, order=order, decode=parts[0].decode, owners=owners)
        self._flights.append(flight)
        self._send(flight)
        if not flight.decode:
            self._want_after(begin)

    def _want_after(self, begin: Begin) -> None:
        """Want what follows a chunk of a prompt: the next chunk may begin before this one's end."""
        (slot,) = begin.slots
        wanted, ready = self._running[slot].wanted(slot, begin.end), begin.end
        if not wanted.decode:
            following = self._times.of(wanted.rows, wanted.context, decode=False)
            ready = begin.base + self._times.interval(begin.name, following.name)
        self._want(slot, ready)

    def _end(self, flight: _Flight) -> list[Emitted]:
        """End a step, and give its results to those whose rows it had."""
        if (results := self._run(flight)) is None:
            return []
        self._flights.remove(flight)
        end, out = flight.begin.end, list[Emitted]()
        self._dispatcher.reach(end)
        for slot, owner, result in zip(flight.begin.slots, flight.owners, results, strict=True):
            if self._running.get(slot) is not owner:
                continue  # it has left
            if not flight.decode:
                owner.prefilled()
                continue
            token = self._token(owner, result, end)
            if owner.finish_reason is None and isinstance(token, TokenEvent):
                self._want(slot, end)
            else:
                self._free(slot)
            out.append(Emitted(completion=owner, token=token, cycle=self._before + end))
        return out

    def _run(self, flight: _Flight) -> Sequence[StepResult] | None:
        """Return a step's results; those that began before it give theirs first, and are kept.

        None where the step was lost, and will not be under way again (`_adopt`).
        """
        while flight.results is None:
            if flight not in self._flights:
                return None
            oldest = next(one for one in self._flights if one.results is None)
            try:
                oldest.results = self.rack.finish()
                self._faults = 0
            except FaultError as error:
                self._recover(error)
        return flight.results

    def _send(self, flight: _Flight) -> None:
        """Start a step on the rack."""
        self.rack.start(replace(flight.order, base=flight.order.base - self._behind))

    def check(self) -> None:
        """Look at a rack without work; recover from what it finds. Raises as `Rack.check`."""
        try:
            self.rack.check()
        except FaultError as error:
            self._recover(error)

    def condition(self) -> str | None:
        """Say what keeps the sequences from going on now, None if nothing. From any thread."""
        return self._recovering or self.rack.condition()

    def _recover(self, error: FaultError) -> None:
        """Bring the rack to where it was. Raises as `Rack.recover`."""
        self._recovering = f"recovering: {error}"
        try:
            recovery = self._recovered(error)
        finally:
            self._recovering = None
        for completion in self._running.values():
            completion.recoveries.append(recovery)
        self._on_recovery(recovery)

    def _recovered(self, error: FaultError) -> Recovery:
        """Recover and replay, and again where that is broken off. Raises as `_recover`."""
        started, parts = time.monotonic(), list[Recovery]()
        while self._faults < MOST_FAULTS:
            self._faults += 1
            parts.append(self.rack.recover(error))
            try:
                cycles = self._replay()
            except FaultError as another:
                error = another
                continue
            hashes = [part.schedule_hash for part in parts if part.schedule_hash is not None]
            return replace(
                parts[0], chips=tuple(sorted({chip for part in parts for chip in part.chips})),
                wall_seconds=time.monotonic() - started, replayed_cycles=cycles,
                schedule_hash=hashes[-1] if hashes else None,
            )  # fmt: skip
        raise RackError(f"{MOST_FAULTS} replays in a row did not come to their end: {error}")

    def _adopt(self) -> None:
        """Go over to the rack's new schedule: steps without results are wanted again.

        But those of prompts, of which only the keys and values matter, which are filled again.
        """
        self.compiled, now = self.rack.compiled, self._dispatcher.now
        self._times = Times(self.compiled)
        self._dispatcher = Dispatcher(self._times)
        self._dispatcher.reach(now)
        lost = [one for one in self._flights if one.results is None]
        self._flights = [one for one in self._flights if one.results is not None]
        for flight in lost:
            for slot, owner in zip(flight.begin.slots, flight.owners, strict=True):
                if self._running.get(slot) is not owner:
                    continue
                if flight.decode:
                    self._tokens[slot].pop()
                    self._want(slot, now)
                else:
                    owner.prefilled()
        for completion in self._running.values():
            completion.schedule_hash = self.compiled.schedule_hash
        for wanted in self._wanted.values():
            self._dispatcher.want(replace(wanted, ready=max(now, wanted.ready)))

    def _replay(self) -> int:
        """Fill the caches again, then begin the steps under way once more; return their cycles.

        Steps with results have left their keys and values; those without write theirs anew.
        """
        if self.rack.compiled is not self.compiled:
            self._adopt()
        under_way = [one for one in self._flights if one.results is None]
        written: dict[int, int] = {}  # slot -> the first position that is written anew
        for one in under_way:
            for slot, position in zip(one.order.slots, one.order.positions, strict=True):
                written.setdefault(slot, position)
        needed = {*self._running, *written, *(self._tokens if self.slots.reuse else ())}
        train = Train(self.rack)
        for slot in sorted(needed):
            train.fill(slot, self._tokens[slot][: written.get(slot)])
        end = train.end()
        first = under_way[0].order.base if under_way else self._dispatcher.now
        self._behind = first - end
        for flight in under_way:
            self._send(flight)
        return self._dispatcher.now - self._behind

    def _token(self, owner: Completion, result: StepResult, end: int) -> TokenEvent | RequestError:
        try:
            return owner.take(result, end)
        except RequestError as error:
            return error
