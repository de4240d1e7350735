"""What a chain of blocks finds in memory, and what it leaves there: vectors by slice and word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chip.isa.instructions import SUPERLANE, TILES
from chip.ops.convolve import ZERO, cut, whole
from chip.spec import VECTOR_BYTES
from chip.sram import places
from compiler.codegen.convolutions.lower import COLUMN_VECTORS, MAPS, column_word, map_word
from compiler.codegen.convolutions.passes import Chain, Tile
from compiler.codegen.convolutions.places import (
    COLUMN_SLICES,
    EAST,
    I64,
    WEST,
    Kind,
    Quarter,
    Spots,
    weight_place,
)

I8 = NDArray[np.int8]
F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Of one convolution: w [outputs, kernel, kernel, inputs], scale and bias [outputs]."""

    w: I8
    scale: F32
    bias: F32


class ChainMemory:
    """A chain's memory, [vectors, 320] bytes: everything put in place, and images taken out."""

    def __init__(self, chain: Chain, memory: NDArray[np.uint8]) -> None:
        self.chain, self.memory = chain, memory.reshape(-1, VECTOR_BYTES)
        spec = chain.spec
        slice_of, word_of = places(spec)
        self._vector = np.full((spec.slices, spec.banks * spec.words_per_bank), -1, np.int64)
        self._vector[slice_of, word_of] = np.arange(len(slice_of))
        self.valid = np.zeros(len(slice_of), np.bool_)

    def vectors(self, side: int, slice_: int | I64, word: int | I64) -> I64:
        """Return the vectors of words of slices."""
        per = self.chain.spec.slices // self.chain.spec.hemispheres
        found: I64 = self._vector[side * per + np.asarray(slice_), np.asarray(word)]
        return found

    def put(self, side: int, slice_: int | I64, word: int | I64, data: NDArray[np.uint8]) -> None:
        """Put vectors into words of slices."""
        there = self.vectors(side, slice_, word)
        self.memory[there] = data
        self.valid[there] = True

    def fill(self, image: I8, weights: Sequence[Weights]) -> None:
        """Put everything that a program needs in place."""
        for number, one in enumerate(weights):
            self._put_weights(number, one)
        self._put_borders()
        if self.chain.places.copies > 1:
            self._put_maps()
        for quarter, tile, spots, lanes in self._trunk(0):
            rows = np.zeros((quarter.pixels, VECTOR_BYTES), np.int8)
            flat = image.reshape(-1, image.shape[2])[quarter.first : quarter.stop]
            rows[:, : lanes.stop - lanes.start] = flat[:, lanes]
            self.put(EAST, *self._at(quarter, spots), rows.view(np.uint8))
            del tile

    def trunk(self, turn: int) -> I8:
        """Return the trunk's image of even (0) or odd (1) blocks: [H, W, channels]."""
        return self._image(self._trunk(turn), self.chain.places.inputs)

    def last(self, turn: int) -> I8:
        """Return the image before the last convolution of an even or odd block."""
        places, runs = self.chain.places, enumerate(cut(self.chain.places.middle))
        found = (
            (quarter, tile, places.plain(quarter, Kind.LAST, self._pixels(quarter), tile, turn),
             slice(first, first + n))
            for tile, (first, n) in runs for quarter in places.quarters
        )  # fmt: skip
        return self._image(found, places.middle)

    def middle(self, turn: int) -> I8:
        """Return the middle image of an even or odd block, as its own planes have it."""
        places, runs = self.chain.places, enumerate(cut(self.chain.places.middle))

        def spots(quarter: Quarter, tile: int) -> Spots:
            pixels = self._pixels(quarter)
            at = places.number(pixels // places.width, pixels % places.width)
            return places.bordered(quarter, at, tile, turn)

        found = (
            (quarter, tile, spots(quarter, tile), slice(first, first + n))
            for tile, (first, n) in runs for quarter in places.quarters
        )  # fmt: skip
        return self._image(found, places.middle)

    def _image(self, parts: Iterator[tuple[Quarter, int, Spots, slice]], channels: int) -> I8:
        places = self.chain.places
        out = np.zeros((places.height * places.width, channels), np.int8)
        for quarter, _, spots, lanes in parts:
            rows = self.memory[self.vectors(EAST, *self._at(quarter, spots))].view(np.int8)
            out[quarter.first : quarter.stop, lanes] = rows[:, : lanes.stop - lanes.start]
        return out.reshape(places.height, places.width, channels)

    def _at(self, quarter: Quarter, spots: Spots) -> tuple[I64, I64]:
        """Return slices and words of spots."""
        slices = np.array([quarter.slice(kind) for kind in spots.kind.tolist()])
        return slices, spots.word

    def _pixels(self, quarter: Quarter) -> I64:
        return np.arange(quarter.first, quarter.stop)

    def _trunk(self, turn: int) -> Iterator[tuple[Quarter, int, Spots, slice]]:
        places = self.chain.places
        for tile, (first, n) in enumerate(cut(places.inputs)):
            for quarter in places.quarters:
                spots = places.plain(quarter, Kind.TRUNK, self._pixels(quarter), tile, turn)
                yield quarter, tile, spots, slice(first, first + n)

    def _put_weights(self, number: int, one: Weights) -> None:
        chain = self.chain
        runs = cut(chain.ops[number].outputs)
        for block, ((first, n), (_, columns)) in enumerate(
            zip(runs, chain.blocks(number), strict=True)
        ):
            copies = chain.copies(number)
            outputs = np.full(columns, -1, np.int64)
            for copy in range(copies):
                outputs[copy * (columns // copies) :][:n] = first + np.arange(n)
            used = outputs >= 0
            for tile, word in chain.weights[number, block]:
                rows = np.zeros((columns, VECTOR_BYTES), np.int8)
                rows[used] = self._tile(one.w[outputs[used]], tile)
                column = np.arange(columns)
                index, at = weight_place(chain.spec, word, column)
                for side in range(2):
                    self.put(side, index, at, rows.view(np.uint8))
            for nth, values in enumerate((one.scale, one.bias)):
                wide = np.zeros(COLUMN_VECTORS * VECTOR_BYTES // 4, np.float32)
                wide[np.flatnonzero(used)] = values[outputs[used]]
                for pair in range(2):
                    slices = COLUMN_SLICES * pair + COLUMN_VECTORS * nth + np.arange(COLUMN_VECTORS)
                    words = column_word(chain, number, block)
                    self.put(WEST, slices, words, wide.view(np.uint8).reshape(COLUMN_VECTORS, -1))

    def _tile(self, w: I8, tile: Tile) -> I8:
        """Return a tile's weights: [columns, 320]."""
        first, n = tile.inputs
        apart = whole(self.chain.places.middle)
        rows = np.zeros((len(w), VECTOR_BYTES), np.int8)
        middle = w.shape[1] // 2
        for copy, (dy, dx) in enumerate(tile.taps):
            part = w[:, middle + dy, middle + dx, first : first + n]
            rows[:, copy * apart : copy * apart + n] = part
        return rows

    def _put_borders(self) -> None:
        places = self.chain.places
        border = np.full(VECTOR_BYTES, ZERO, np.int8).view(np.uint8)
        for quarter in places.quarters:
            for tile in range(len(cut(places.middle))):
                for turn in range(2):
                    spots = places.bordered(quarter, places.borders(quarter), tile, turn)
                    self.put(EAST, *self._at(quarter, spots), border)

    def _put_maps(self) -> None:
        """Put the words of each pixel and its right neighbours: a superlane's first two bytes."""
        chain, places = self.chain, self.chain.places
        lanes = whole(places.middle) // SUPERLANE  # superlanes of a copy
        for quarter in places.quarters:
            low, high = places.around(quarter)
            numbers = np.arange(low, high + 1)
            for turn in range(2):
                words = np.zeros((len(numbers), TILES), np.uint16)
                for superlane in range(TILES):
                    copy = superlane // lanes if superlane // lanes < places.copies else 0
                    beside = np.minimum(numbers + copy, high)
                    spots = places.bordered(quarter, beside, 0, turn)
                    words[:, superlane] = self._at(quarter, spots)[1]
                vectors = np.zeros((len(numbers), TILES, SUPERLANE // 2), np.uint16)
                vectors[:, :, 0] = words
                at = map_word(chain, quarter, numbers, turn)
                self.put(WEST, MAPS + quarter.plane, at,
                         vectors.view(np.uint8).reshape(len(numbers), -1))  # fmt: skip
