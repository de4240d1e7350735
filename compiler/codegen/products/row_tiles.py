"""When each tile of a one-row product loads, is installed and multiplied."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from compiler.codegen.core.builder import C2C_TURN
from compiler.codegen.core.clock import Clock
from compiler.codegen.products.columns import Columns
from compiler.codegen.products.gaps import Gaps, link_turns


class TileTimes(NamedTuple):
    """When a tile's windows arrive at the planes, it is installed, and multiplied.

    `filled`: when its activation comes, where it shares a slot; else it has come before.
    """

    windows: Sequence[int]
    filled: int | None
    install: int
    use: int


@dataclass(slots=True, kw_only=True)
class TileCursor:
    """Times one tile after another, each as early as what else is at the planes lets it.

    `at`: the cycle from which the next window may arrive. `filled`: when the activations of tiles
    with a slot of their own come.
    """

    clock: Clock
    at: int
    filled: Sequence[int]
    gaps: Gaps
    taken: set[int]  # cycles at which the streams at the planes are another's
    _drained: set[int] = field(default_factory=set)  # at which sums are put out by themselves
    _used: int = 0  # when the latest tile is multiplied

    def take(self, cycles: Iterable[int]) -> None:
        """Keep the streams at the planes for others."""
        self.taken.update(cycles)

    def wait_for(self, cycle: int) -> None:
        """Let no further window arrive before a cycle."""
        self.at = max(self.at, cycle)

    def drain(self, earliest: int) -> int:
        """Return when the sums leave whose last product is added up now, no sooner than asked."""
        summed = self._used + self.clock.of["ABC"]
        drain = max(summed, earliest)
        if drain > summed:
            self._drained.add(drain)
        return drain

    def tile(self, blocks: Collection[Columns], tile: int) -> TileTimes:
        """Time a tile of a group's blocks."""
        windows, at = [], self.at
        for _ in range(sum(len(block.windows(tile)) for block in blocks)):
            while self._is_another(at):
                at += 1
            windows.append(at)
            at += 1
        shared = tile >= len(self.filled)
        if shared:
            while self._is_another(at) or at <= self._used or self._in_turn(at):
                at += 1
            self.taken.add(at)
            at += 1
        filled = at - 1 if shared else self.filled[tile]
        install = max(at, self._used + 1)
        while install in self.taken:
            install += 1
        use = max(install, filled) + 1
        while use in self.taken or use + self.clock.of["ABC"] in self._drained:
            use += 1
        self._used, self.at = use, max(at, install)
        return TileTimes(windows, filled if shared else None, install, use)

    def _is_another(self, cycle: int) -> bool:
        return cycle in self.taken or self.gaps.has(cycle)

    def _in_turn(self, cycle: int) -> bool:
        """Tell whether an activation that arrives at a cycle is read in a link's turn."""
        return (cycle - self.clock.feed) % C2C_TURN in link_turns(self.clock)
