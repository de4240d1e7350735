"""What is taken of a chip and when: cycles as bits of one integer for each thing."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from chip.errors import TemplateError

AHEAD = 64  # the earliest cycle, before a pass's start, at which it takes anything
Wanted = Mapping[Hashable, int]
"""Thing -> bits: bit n is taken `n - AHEAD` cycles after a start."""


@dataclass(slots=True)
class Reservations:
    """Bits of each thing: bit n is cycle n - AHEAD."""

    taken: dict[Hashable, int] = field(default_factory=dict)

    def first(self, wanted: Wanted, least: int) -> int:
        """Return the first start from `least` on at which all that is wanted is free."""
        at = least
        while any(self.taken.get(thing, 0) >> at & bits for thing, bits in wanted.items()):
            at += 1
        return at

    def take(self, wanted: Wanted, at: int) -> None:
        for thing, bits in wanted.items():
            self.taken[thing] = self.taken.get(thing, 0) | bits << at


@dataclass(slots=True)
class Wish:
    """What a pass wants, as it is put together."""

    bits: dict[Hashable, int] = field(default_factory=dict)

    def add(self, thing: Hashable, cycles: Iterable[int]) -> None:
        """Want a thing at cycles after the start. Raises TemplateError for one twice."""
        found = self.bits.get(thing, 0)
        for cycle in cycles:
            assert cycle + AHEAD >= 0, f"a pass wants {thing} more than {AHEAD} cycles ahead"
            bit = 1 << cycle + AHEAD
            if found & bit:
                raise TemplateError(f"convolutions: a pass wants {thing} twice in cycle {cycle}")
            found |= bit
        self.bits[thing] = found
