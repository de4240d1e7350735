"""How a tile's rows follow each other into the planes, and what they leave to others.

While sums of the group before leave, rows keep out of cycles that come again: there the
accumulators, the streams at the VXM and, where rows lie in work slices, the ports are the sums'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from chip.ops.cost import C2C_TURN
from chip.spec import ChipSpec


class Burst(NamedTuple):
    """Rows from `row` on that are `apart` each other, the first `late` cycles after row 0."""

    row: int
    late: int
    rows: int
    apart: int


@dataclass(frozen=True, slots=True)
class Pace:
    """`burst` rows in every `turn` cycles, `skipped` fewer in the first.

    Row 0 arrives on a multiple of `aligned`, counted from a cycle that the layout chooses, behind
    those that are skipped.
    """

    burst: int
    turn: int
    aligned: int
    skipped: int = 0

    def first(self, at: int, phase: int) -> int:
        """Return the first cycle from `at` on at which row 0 may arrive."""
        return at + (phase + self.skipped - at) % self.aligned

    def offset(self, row: int) -> int:
        """Return the cycles from row 0 to a row."""
        turns, place = divmod(row + self.skipped, self.burst)
        return turns * self.turn + place - self.skipped

    def cycles(self, rows: int) -> int:
        """Return the cycles from row 0 to the one behind the last row."""
        return self.offset(rows - 1) + 1

    def lanes(self, rows: int) -> Iterator[Burst]:
        """Yield rows by their place in a turn: each lane's are `burst` rows and a turn apart."""
        for row in range(min(self.burst, rows)):
            yield Burst(row, self.offset(row), len(range(row, rows, self.burst)), self.turn)

    def bursts(self, rows: int) -> Iterator[Burst]:
        """Yield neighbouring rows: all of them, where a turn has one."""
        if self.burst == 1:
            yield Burst(0, 0, rows, self.turn)
            return
        for end in range(self.burst - self.skipped, rows + self.burst, self.burst):
            row = max(0, end - self.burst)
            yield Burst(row, self.offset(row), min(end, rows) - row, 1)


@dataclass(frozen=True, slots=True)
class Paces:
    """The paces of one chip: `shared` beside sums that leave, `alone` otherwise.

    `between`: of the last tile, if few rows leave room for the first sums alone.
    """

    shared: tuple[Pace, ...]
    alone: tuple[Pace, ...]
    between: Pace

    @property
    def turn(self) -> int:
        """Cycles of which one is the sums'."""
        return self.shared[0].turn


def soonest(paces: Sequence[Pace], at: int, phase: int, rows: int, load: int) -> Tile:
    """Return the tile, from a cycle on, behind which another can be first."""
    tiles = [Tile(pace.first(at, phase), pace) for pace in paces]
    return min(tiles, key=lambda tile: tile.next(rows, load))


class Tile(NamedTuple):
    """When row 0 of a tile arrives at the planes, behind the tile's IW, and the others."""

    fed: int
    pace: Pace

    def next(self, rows: int, load: int) -> int:
        """Return when row 0 of another tile may arrive: it is loaded and installed behind this."""
        return max(self.fed + load, self.fed + self.pace.cycles(rows) + 1)


BESIDE_PORTS = Paces(
    shared=(Pace(1, 2, 2),), alone=(Pace(1, 2, 1), Pace(C2C_TURN - 1, C2C_TURN, C2C_TURN)),
    between=Pace(1, 2, 2),
)  # fmt: skip
"""Rows lie in work slices: sums have every second cycle of the ports, links one of a turn."""
BESIDE_STREAMS = Paces(
    shared=tuple(Pace(3, 4, 4, skipped) for skipped in range(3)), alone=(Pace(1, 1, 1),),
    between=Pace(1, 2, 1),
)  # fmt: skip
"""Rows lie in feed slices, which have ports of their own."""


def paces_of(spec: ChipSpec) -> Paces:
    return BESIDE_STREAMS if spec.feed_slices else BESIDE_PORTS
