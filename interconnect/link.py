"""One link's occupancy: the cycles at which vectors arrive, given what the link already carries.

Sans-I/O: cycles in, cycles out. A link sends one vector at a time. A vector's slot starts when
both the vector and the link are ready. The vector arrives one latency after its slot's end.
Nothing is dropped or reordered, and nothing pushes back (ISCA 2022: no flow control).
"""

from __future__ import annotations

from dataclasses import dataclass

from interconnect.errors import LinkError


@dataclass(frozen=True, slots=True)
class Arrival:
    """The cycles at which the first and the last vector of a transfer are at the far end."""

    first_cycle: int
    last_cycle: int


class LinkModel:
    """One directed link. Raises LinkError for numbers that are not whole cycles."""

    __slots__ = ("_busy_until", "_carried", "latency_cycles", "slot_cycles")

    def __init__(self, slot_cycles: int, latency_cycles: int) -> None:
        self.slot_cycles = _whole("slot_cycles", slot_cycles, 1)
        self.latency_cycles = _whole("latency_cycles", latency_cycles, 1)
        self._busy_until = 0
        self._carried = 0

    @property
    def busy_until(self) -> int:
        """The cycle from which the link is free."""
        return self._busy_until

    @property
    def carried_vectors(self) -> int:
        """Vectors carried so far."""
        return self._carried

    def carry(self, depart_cycle: int, vectors: int) -> Arrival:
        """Take `vectors` handed over at `depart_cycle`; they queue behind what is on the link."""
        depart = _whole("depart_cycle", depart_cycle, 0)
        count = _whole("vectors", vectors, 1)
        start = max(depart, self._busy_until)
        # Handed over together, the vectors fill consecutive slots: no gap can open between them.
        self._busy_until = start + count * self.slot_cycles
        self._carried += count
        return Arrival(
            start + self.slot_cycles + self.latency_cycles,
            self._busy_until + self.latency_cycles,
        )


def _whole(field: str, value: object, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise LinkError(field=field, wanted=f"an integer >= {least}", got=value)
    return value
