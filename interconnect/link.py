"""One link's occupancy: the cycles at which vectors arrive, given what the link already carries.

Sans-I/O: cycles in, cycles out. A link sends one vector at a time. A vector's slot starts when
both the vector and the link are ready. The vector arrives one latency after its slot's end.
Nothing is dropped or reordered, and nothing pushes back (ISCA 2022: no flow control).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from interconnect.errors import LinkError

LATEST = (1 << 64) - 1
"""Of busy_until, so that it is one word: no frame departs later."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """The cycles at which the first and the last vector of a transfer are at the far end."""

    first_cycle: int
    last_cycle: int


class Words(Protocol):
    """Whole numbers by their place: a list's, or a view's of memory."""

    def __getitem__(self, place: int, /) -> int: ...

    def __setitem__(self, place: int, value: int, /) -> None: ...


class LinkModel:
    """One directed link. Raises LinkError for numbers that are not whole cycles.

    Its two `words`, busy_until and carried_vectors, may be in memory that native code works on, too
    (interconnect/native/moves.c).
    """

    __slots__ = ("_words", "latency_cycles", "slot_cycles")

    def __init__(self, slot_cycles: int, latency_cycles: int, words: Words | None = None) -> None:
        self.slot_cycles = _whole("slot_cycles", slot_cycles, 1)
        self.latency_cycles = _whole("latency_cycles", latency_cycles, 1)
        self._words: Words = [0, 0] if words is None else words

    @property
    def busy_until(self) -> int:
        """The cycle from which the link is free."""
        return self._words[0]

    @property
    def carried_vectors(self) -> int:
        """Vectors carried so far."""
        return self._words[1]

    def carry(self, depart_cycle: int, vectors: int) -> Arrival:
        """Take `vectors` handed over at `depart_cycle`; they queue behind what is on the link."""
        depart = _whole("depart_cycle", depart_cycle, 0)
        count = _whole("vectors", vectors, 1)
        start = max(depart, self._words[0])
        # Handed over together, the vectors fill consecutive slots: no gap can open between them.
        end = start + count * self.slot_cycles
        self._words[0] = min(end, LATEST)
        self._words[1] += count
        return Arrival(start + self.slot_cycles + self.latency_cycles, end + self.latency_cycles)


def _whole(field: str, value: object, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise LinkError(field=field, wanted=f"an integer >= {least}", got=value)
    return value
