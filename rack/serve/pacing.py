"""Real-time pacing: by the wall clock, a rack's steps end no earlier than in emulated time.

Due times are absolute: a request's start plus all of its cycles so far. So errors of single waits
do not add up. They are kept by sleeping, never by spinning: a spinning thread would hold the
interpreter's lock against the event loop that sends the tokens. This is the one place where
emulated time turns into wall time; no emulated figure depends on it.

Where this computer cannot keep up, the client is told how much time was lost (`Slip`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

SLIP_SECONDS = 0.05
"""A step later than this moves the schedule: the executor is slower than the rack it emulates.
What is less late is caught up, as jitter."""


class Slip:
    """How much later than its emulated time says a request's tokens were given out, in seconds."""

    __slots__ = ("total_seconds", "worst_seconds")

    def __init__(self) -> None:
        self.worst_seconds = 0.0  # of any token
        self.total_seconds = 0.0  # of the last one: of the answer as a whole

    def take(self, late_seconds: float) -> None:
        """Take a token."""
        self.total_seconds = max(0.0, late_seconds)
        self.worst_seconds = max(self.worst_seconds, late_seconds)

    @classmethod
    def of(cls, slips: Sequence[Slip]) -> Slip | None:
        """Return that of a request of several prompts, which ran apart; None where not paced."""
        if not slips:
            return None
        out = cls()
        out.worst_seconds = max(slip.worst_seconds for slip in slips)
        out.total_seconds = sum(slip.total_seconds for slip in slips)
        return out

    def to_dict(self) -> dict[str, float]:
        """Return what an answer says of it."""
        return {"worst": round(self.worst_seconds, 6), "total": round(self.total_seconds, 6)}


class Unpaced:
    """As fast as the executor goes: the interface of a pacer that never waits."""

    promised_seconds: float | None = None
    """When the request's steps so far end by its emulated time, whatever was lost on the way."""

    @property
    def due_seconds(self) -> float:
        """When the steps accounted so far end, by the wall clock; 0 where nothing says."""
        return 0.0

    def begin(self, arrived_seconds: float) -> None:
        """Start with a request that arrived then, by `time.perf_counter`."""

    def advance(self, cycles: int) -> None:
        """Account a step that takes so many emulated cycles."""

    def wait(self) -> None:
        """Return when the steps accounted so far have ended in emulated time."""

    def stand_still(self, seconds: float) -> None:
        """Move the schedule: for so long emulated time has stood still."""

    def cycles_at(self, seconds: float) -> int:
        """Return how many cycles after `begin` a moment lies; 0 where nothing says."""
        return 0

    @property
    def moved_seconds(self) -> float:
        """How much the schedule has moved since `begin`."""
        return 0.0


class Pacer(Unpaced):
    """The wall clock of one rack whose chips run at `clock_hz`; not for several threads.

    `late` is told, at the end of each wait, by how many seconds it ended after it was due.
    """

    def __init__(
        self, clock_hz: float, *, late: Callable[[float], None] = lambda seconds: None,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self.clock_hz = clock_hz
        self.slipped_seconds = 0.0
        self._late, self._clock, self._sleep = late, clock, sleep
        self._start_seconds = self._begun_seconds = clock()
        self._cycles = 0
        self._waited = True

    @property
    def due_seconds(self) -> float:
        """When the steps accounted so far end, by the wall clock."""
        return self._start_seconds + self._cycles / self.clock_hz

    def begin(self, arrived_seconds: float) -> None:
        """Start when a request arrived, or when the rack is free if that is later."""
        self._start_seconds, self._cycles = max(arrived_seconds, self.due_seconds), 0
        self._begun_seconds = self.promised_seconds = self._start_seconds

    def stand_still(self, seconds: float) -> None:
        self._start_seconds += seconds
        self.slipped_seconds += seconds

    def cycles_at(self, seconds: float) -> int:
        return max(0, int((seconds - self._start_seconds) * self.clock_hz))

    @property
    def moved_seconds(self) -> float:
        return self._start_seconds - self._begun_seconds

    def advance(self, cycles: int) -> None:
        self._cycles += cycles
        self.promised_seconds = self._begun_seconds + self._cycles / self.clock_hz
        self._waited = False

    def wait(self) -> None:
        if self._waited:
            return
        due = self.due_seconds
        while (remaining := due - self._clock()) > 0:
            self._sleep(remaining)
        if -remaining > SLIP_SECONDS:
            self.stand_still(-remaining)
        self._waited = True
        self._late(-remaining)
