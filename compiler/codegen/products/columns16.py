"""How an fp16 product's columns share the pairs of planes: blocks of 320, up to two to a group.

A column of a tile of 320 x 320 is two neighbouring vectors of 160 values. Vectors change hemisphere
every 8 columns. All tiles of a column must be multiplied in one pair of planes, which keeps the
fp32 sum. If a block's width is a multiple of 16, each pair has half of its columns, wherever its
tiles begin; any other block is the eastern pair's alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from chip.spec import VECTOR_BYTES

LANES = VECTOR_BYTES
RUN_COLUMNS = 8  # columns of a run of 16 vectors


@dataclass(frozen=True, slots=True)
class Columns:
    """One block of columns in a group."""

    first: int  # output column
    width: int
    vector: int  # of the weight, at which its tiles start
    at: int  # its first lane in the planes

    @property
    def even(self) -> bool:
        """Whether both pairs of planes share it."""
        return self.width % (2 * RUN_COLUMNS) == 0

    @property
    def lanes(self) -> int:
        """Lanes of a pair that it takes."""
        return self.width // 2 if self.even else self.width

    def column(self, pair: int, lane: int) -> int:
        """Return the column of the block in one lane of a pair, counted from `at`."""
        run, place = divmod(lane, RUN_COLUMNS)
        return RUN_COLUMNS * (2 * run + pair) + place if self.even else lane


@dataclass(frozen=True, slots=True)
class ColumnGroup:
    """Blocks that are in the planes together."""

    blocks: tuple[Columns, ...]
    rate: int  # columns that a pair loads in a cycle
    load: int  # cycles that a half tile's load takes
    interval: int  # initiation interval of half tiles
    start: int  # when half 0 of tile 0 begins to arrive
    slot: int  # its first accumulator row
    drain: int  # when row 0's sums leave the accumulators
    pace: int  # cycles between rows that leave

    def loaded(self, half: int) -> int:
        """Return when a half tile has arrived."""
        return self.start + half * self.interval + self.load

    @property
    def lanes(self) -> int:
        """Lanes of a pair in use."""
        return sum(block.lanes for block in self.blocks)

    @property
    def pairs(self) -> range:
        """Pairs of planes in use."""
        return range(0 if self.blocks[0].even else 1, 2)


def groups_of(n: int, tiles: int, *, alike: bool = False) -> list[tuple[Columns, ...]]:
    """Cut n columns into blocks of 320, two to a group; an uneven block stays alone.

    `alike`: a narrow block that would be alone has the last whole one beside it.
    """
    out: list[tuple[Columns, ...]] = []
    whole, narrow = divmod(n, LANES)
    left_alone = whole - 2 if alike and narrow and whole and whole % 2 == 0 else None
    for first in range(0, n, LANES):
        block = Columns(first, min(LANES, n - first), 2 * first * tiles, 0)
        if first - LANES == LANES * (left_alone if left_alone is not None else n):
            out.append((block,))
        elif out and len(out[-1]) == 1 and out[-1][0].even and block.even:
            (left,) = out[-1]
            out[-1] = (left, Columns(first, block.width, block.vector, left.lanes))
        else:
            out.append((block,))
    return out


@lru_cache(maxsize=64)
def lanes_of(block: Columns, pair: int) -> tuple[int | None, ...]:
    """Return, for each column of a block, its lane in a pair of planes, None for the other's."""
    out: list[int | None] = [None] * block.width
    for lane in range(block.lanes):
        out[block.column(pair, lane)] = block.at + lane
    return tuple(out)
