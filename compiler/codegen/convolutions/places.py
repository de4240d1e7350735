"""Where pixels, weights and columns' scales lie: in which slices, at which words.

Every plane has eight slices of its own in the east, so that no two planes read one slice:

- `TRUNK` (two): images that blocks take and leave. A residual is read from there.
- `OWN` (two): the middle image of a block, its borders with it. What other quarters have of a
  plane's surroundings is written to its `ABOVE` and `BELOW` too as it is made.
- `LAST` (two): the image before a block's last convolution.

A pixel of an image without borders has the place of its number in the quarter; one with borders
that of its number in the image with borders. Of two slices, one has even places and one odd: a
slice does one thing in a cycle, and so an image can be read while the end of it is written. At a
row's end as well, since the next row's first place is three on. Images of blocks that follow each
other lie in different words.

The west has scales and biases of columns, a set of slices for each pair. Weights lie in the outer
slices of both hemispheres, for the planes of that side.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from chip.errors import TemplateError
from chip.ops.convolve import cut, whole
from chip.spec import VECTOR_BYTES, ChipSpec

I64 = NDArray[np.int64]
Flags = NDArray[np.bool_]
QUARTERS = 4
WEST, EAST = 0, 1


class Kind(IntEnum):
    """A plane's slices in the east; of TRUNK, OWN and LAST the next is that of odd places."""

    TRUNK = 0
    LAST = 2
    OWN = 4
    ABOVE = 6
    BELOW = 7


KINDS, GROUP = 8, 4
LOADED = 12  # columns of weights that a plane loads in a cycle: slices that hold them
COLUMN_SLICES = 8  # of a pair: four vectors of scales, four of biases


@dataclass(frozen=True, slots=True)
class Quarter:
    """Pixels `first` to `stop` of an image; pair and side of the plane that has them."""

    number: int
    first: int
    stop: int

    @property
    def pixels(self) -> int:
        return self.stop - self.first

    @property
    def pair(self) -> int:
        return self.number % 2

    @property
    def side(self) -> int:
        return self.number // 2

    @property
    def plane(self) -> int:
        return 2 * self.side + self.pair

    def slice(self, kind: int) -> int:
        """Return the number of one of the plane's slices in the east.

        Four share a stream register: an image's slices, those of its borders too, are equally far.
        """
        return (kind // GROUP * QUARTERS + self.number) * GROUP + kind % GROUP


@dataclass(frozen=True, slots=True)
class Spots:
    """Words of pixels in slices of one quarter's plane: which of its slices, and the word."""

    kind: I64
    word: I64


@dataclass(frozen=True, slots=True)
class Places:
    """Places of a chain of blocks over images of height x width pixels.

    Raises TemplateError where a chip cannot hold an image's quarter so.
    """

    spec: ChipSpec
    height: int
    width: int
    inputs: int  # channels of the trunk
    middle: int  # channels between the convolutions of a block

    def __post_init__(self) -> None:
        least = min(quarter.pixels for quarter in self.quarters)
        if least < self.width + 2:
            raise TemplateError(
                f"convolutions: wanted at least {self.width + 2} pixels a quarter of an image of "
                f"{self.height} x {self.width}, so that borders lie in the next, got {least}"
            )
        most = max(quarter.pixels for quarter in self.quarters)
        own = max(self.own_words(quarter) for quarter in self.quarters)
        needed = max(len(cut(self.inputs)) * (most // 2 + 1), len(cut(self.middle)) * own)
        if needed > self.turn_words:
            raise TemplateError(
                f"convolutions: wanted at most {self.turn_words} words of a slice for a quarter of "
                f"an image of {self.height} x {self.width}, got {needed}"
            )

    @property
    def quarters(self) -> tuple[Quarter, ...]:
        pixels = self.height * self.width
        edges = [pixels * n // QUARTERS for n in range(QUARTERS + 1)]
        return tuple(Quarter(n, edges[n], edges[n + 1]) for n in range(QUARTERS))

    # -- numbers in the image with borders

    def number(self, y: I64, x: I64) -> I64:
        """Return a pixel's number in the image with borders; y and x may lie in these."""
        found: I64 = (y + 1) * (self.width + 2) + x + 1
        return found

    def _numbers(self, pixels: I64) -> I64:
        return self.number(pixels // self.width, pixels % self.width)

    def span(self, quarter: Quarter) -> tuple[int, int]:
        """Return the first and last number that OWN has: with the borders beside whole rows."""
        first, last = self._numbers(np.array([quarter.first, quarter.stop - 1]))
        beside = self.copies > 1
        return int(first) - beside, int(last) + beside

    def around(self, quarter: Quarter) -> tuple[int, int]:
        """Return the first and last number that a quarter's taps reach."""
        first, last = self._numbers(np.array([quarter.first, quarter.stop - 1]))
        return int(first) - self.width - 3, int(last) + self.width + 3

    # -- spots

    @property
    def turn_words(self) -> int:
        """Words of a slice for blocks of one turn."""
        return self.spec.banks * self.spec.words_per_bank // 2

    def own_words(self, quarter: Quarter) -> int:
        """Words of a slice that a run of channels takes in OWN, ABOVE or BELOW."""
        first, last = self.span(quarter)
        return max(last + 1 - first if self.copies > 1 else (last - first) // 2 + 1, self.width + 4)

    def plain(self, quarter: Quarter, kind: int, pixels: I64, tile: int, turn: int) -> Spots:
        """Return the spots of pixels in an image without borders; `turn`: the block is odd."""
        at, words = pixels - quarter.first, quarter.pixels // 2 + 1
        return Spots(kind + at % 2, turn * self.turn_words + tile * words + at // 2)

    def bordered(self, quarter: Quarter, numbers: I64, tile: int, turn: int) -> Spots:
        """Return the spots, in a quarter's middle image, of numbers that lie around it.

        Several pixels are taken in one cycle from one slice alone: then OWN is one.
        """
        first, last = self.span(quarter)
        low, _ = self.around(quarter)
        base = turn * self.turn_words + tile * self.own_words(quarter)
        own = numbers - first
        odd, place = (0 * own, own) if self.copies > 1 else (own % 2, own // 2)
        above, below = numbers < first, numbers > last
        kind = np.where(above, Kind.ABOVE, np.where(below, Kind.BELOW, Kind.OWN + odd))
        place = np.where(above, numbers - low, np.where(below, numbers - last - 1, place))
        return Spots(kind, base + place)

    def reached(self, quarter: Quarter, pixels: I64) -> Flags:
        """Tell which pixels lie around a quarter, its own among them."""
        low, high = self.around(quarter)
        numbers = self._numbers(pixels)
        found: Flags = (numbers >= low) & (numbers <= high)
        return found

    def borders(self, quarter: Quarter) -> I64:
        """Return the numbers around a quarter that are no pixels of the image."""
        low, high = self.around(quarter)
        numbers = np.arange(low, high + 1)
        y, x = numbers // (self.width + 2) - 1, numbers % (self.width + 2) - 1
        inside = (y >= 0) & (y < self.height) & (x >= 0) & (x < self.width)
        return numbers[~inside]

    @property
    def copies(self) -> int:
        """How often a pixel of the middle image stands in its vector, side by side.

        Each copy is read from a pixel of its own (Gather), so that one pass has several taps of a
        kernel's row. Only where quarters are whole rows: then such pixels lie in one slice.
        """
        rows = all(quarter.first % self.width == 0 for quarter in self.quarters)
        return min(3, VECTOR_BYTES // whole(self.middle)) if rows else 1


def weight_place(spec: ChipSpec, first: int, column: I64) -> tuple[I64, I64]:
    """Return slices and words of a tile's columns; `first`: the tile's first word."""
    return spec.slices // spec.hemispheres - LOADED + column % LOADED, first + column // LOADED


def tile_words(columns: int) -> int:
    """Words of each weight slice that a tile takes."""
    return -(-columns // LOADED)
