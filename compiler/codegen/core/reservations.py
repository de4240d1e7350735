"""What a block has taken, by cycle: ports, inward streams, ways to and from the SXMs.

A block that runs again over itself every `period` cycles takes a resource in every period at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Key = tuple[Any, ...]
"""(resource, ..., cycle)."""
ENDLESS = 1 << 20  # a block that long has no place for what it asks


@dataclass(slots=True)
class Claims:
    """Resources taken; `period` 0: the block runs by itself."""

    period: int = 0
    taken: set[Key] = field(default_factory=set)

    def again(self, key: Key) -> Key:
        """Return a resource with its cycle within the period."""
        return (*key[:-1], key[-1] % self.period) if self.period else key

    def meets(self, *keys: Key) -> bool:
        """Tell whether any of the resources is taken."""
        return any(self.again(key) in self.taken for key in keys)

    def hold(self, *keys: Key) -> None:
        """Take resources."""
        self.taken.update(map(self.again, keys))

    def seek(self, first: int, cycle: int, what: str) -> int:
        """Return the next cycle to try. Raises OverflowError where all of a period were tried."""
        if self.period and cycle - first > self.period:
            raise OverflowError(f"no cycle of {self.period} is left for {what}")
        assert cycle - first < ENDLESS, f"no cycle is left for {what}"
        return cycle + 1
