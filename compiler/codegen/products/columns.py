"""How a product's columns share the planes: blocks of 320, in groups of up to four."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from chip.ops.kv import WINDOW_VECTORS
from chip.spec import RUN
from compiler.codegen.core.parts import LANES

PLANE_OF_RUN = (0, 2, 1, 3)  # a window's runs of 16 vectors go west, east, west, east


@dataclass(frozen=True, slots=True)
class Columns:
    """One block: its first output column and width, and the vector its tiles start at."""

    first: int
    width: int
    vector: int

    @property
    def even(self) -> bool:
        """Whether every plane has the same columns in every tile."""
        return self.width % WINDOW_VECTORS == 0

    def windows(self, tile: int) -> range:
        """Windows of `WINDOW_VECTORS` that a tile lies in."""
        start = self.vector + tile * self.width
        return range(start // WINDOW_VECTORS, -(-(start + self.width) // WINDOW_VECTORS))

    def in_run(self, tile: int, window: int, run: int) -> range:
        """Vectors of a tile that lie in one run of a window: what one plane loads of it."""
        start, first = self.vector + tile * self.width, window * WINDOW_VECTORS + run * RUN
        return range(max(start, first), min(start + self.width, first + RUN))


def blocks_of(n: int, tiles: int) -> list[Columns]:
    """Cut n columns into blocks of 320."""
    return [Columns(first, min(LANES, n - first), first * tiles) for first in range(0, n, LANES)]


def groups_of(blocks: list[Columns]) -> list[tuple[Columns, ...]]:
    """Four full blocks to a group; what is left by itself, a narrow block alone."""
    full = [block for block in blocks if block.width == LANES]
    out = [tuple(full[at : at + 4]) for at in range(0, len(full), 4)]
    return out + [(block,) for block in blocks if block.width < LANES]


def row_groups(blocks: list[Columns]) -> list[tuple[Columns, ...]]:
    """Four full blocks first, so that two of their tiles fill the planes; then block by block.

    One row needs no more than its block's columns at a time, and small groups end early.
    """
    first = 4 if sum(block.width == LANES for block in blocks) >= 4 else 0
    return [tuple(blocks[:first])] * bool(first) + [(block,) for block in blocks[first:]]


def gated_groups(blocks: list[Columns], pairs: int) -> list[tuple[Columns, ...]]:
    """As `row_groups`, for `pairs` pairs of a gate and an up block, and blocks with a half of each.

    A pair stays together but for the last: its gate is worked on while the up columns are loaded.
    """
    first = 4 if pairs > 2 else 0
    last = max(first, 2 * pairs - 2)
    out = [tuple(blocks[:first])] * bool(first) + [(block,) for block in blocks[2 * pairs :]]
    out += [tuple(blocks[at : at + 2]) for at in range(first, last, 2)]
    return out + [(block,) for block in blocks[last : 2 * pairs]]


@lru_cache(maxsize=16)
def spread_of(run: int, j: int) -> tuple[int | None, ...]:
    """Lanes of block j's columns on a plane: window i is at 80 j + 16 i, for 64 i + 16 run."""
    spread: list[int | None] = [None] * LANES
    for lane in range(LANES // 4):
        spread[lane // RUN * WINDOW_VECTORS + run * RUN + lane % RUN] = LANES // 4 * j + lane
    return tuple(spread)
