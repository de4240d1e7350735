"""A chip's memory: one buffer of exactly `sram_bytes`, addressed in bytes on 320-byte vectors.

Pages are committed by the operating system when first touched, so memory that a layout leaves
free costs nothing. A buffer may begin as the bytes of a file: pages that the chip does not write
are then the file's own, in memory once for all chips. Everything a chip holds is a view of this
buffer.
"""

from __future__ import annotations

import mmap
import os
from functools import lru_cache
from math import lcm
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from chip.errors import SramError
from chip.spec import RUN, VECTOR_BYTES, ChipSpec

_PRIVATE = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)


NONE = frozenset[str]()


class Location(NamedTuple):
    """Where a vector lies on the die."""

    hemisphere: int
    slice: int  # within the hemisphere, from the VXM outwards
    bank: int
    word: int  # within the bank


def work_start(spec: ChipSpec) -> int:
    """Return the byte address at which the work slices begin.

    The slices beside the VXM in each hemisphere are work slices: buffers, scales and norms live
    there, and nothing else, so that vector programs never meet a weight or cache read.
    """
    return spec.sram_bytes // spec.slices * (spec.slices - spec.hemispheres * spec.work_slices)


def work_turn(spec: ChipSpec) -> int:
    """Return the bytes after which a vector of work memory lies in the same slice again."""
    return spec.hemispheres * spec.work_slices * VECTOR_BYTES


def bulk_turn(spec: ChipSpec) -> int:
    """Return the same of bulk memory: as many runs of both hemispheres."""
    bulk = spec.slices // spec.hemispheres - spec.near_slices
    return spec.hemispheres * lcm(RUN, bulk) * VECTOR_BYTES


def feed_start(spec: ChipSpec) -> int:
    """Return the byte address at which the feed slices begin; they end where work slices begin.

    They lie behind the work slices and hold rows on their way to the MXM, so that products read
    rows while the VXM reads and writes buffers.
    """
    return spec.sram_bytes // spec.slices * (spec.slices - spec.hemispheres * spec.near_slices)


def near_place(spec: ChipSpec, vector: int) -> tuple[int, int, int]:
    """Return (hemisphere, slice, word of the slice) of a vector of the work or feed slices.

    Sides take turns; a side's vectors take turns between the slices of its kind.
    """
    at, first, count = vector - work_start(spec) // VECTOR_BYTES, 0, spec.work_slices
    if at < 0:
        at = vector - feed_start(spec) // VECTOR_BYTES
        first, count = spec.work_slices, spec.feed_slices
    turn, hemisphere = divmod(at, spec.hemispheres)
    word, index = divmod(turn, count)
    return hemisphere, first + index, word


def bulk_place(spec: ChipSpec, vector: int) -> tuple[int, int, int]:
    """Return (hemisphere, slice, word of the slice) of a weight or cache vector.

    Runs of 16 take turns between the hemispheres, and a hemisphere's vectors between its slices:
    any aligned 64 vectors lie in 64 different slices, a quarter for each plane.
    """
    run, place = divmod(vector, RUN)
    turn, hemisphere = divmod(run, spec.hemispheres)
    bulk = spec.slices // spec.hemispheres - spec.near_slices
    word, index = divmod(turn * RUN + place, bulk)
    return hemisphere, index + spec.near_slices, word


def locate(spec: ChipSpec, address: int) -> Location:
    """Map a byte address on a vector boundary to its place on the die.

    Raises SramError outside the memory or off a vector.
    """
    if address % VECTOR_BYTES or not 0 <= address < spec.sram_bytes:
        raise SramError(
            f"address {address}: wanted a multiple of {VECTOR_BYTES} below {spec.sram_bytes}"
        )
    place = near_place if address >= feed_start(spec) else bulk_place
    hemisphere, index, at = place(spec, address // VECTOR_BYTES)
    bank, word = divmod(at, spec.words_per_bank)
    return Location(hemisphere, index, bank, word)


@lru_cache(maxsize=4)
def places(spec: ChipSpec) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each vector's slice and word: slice = hemisphere x slices of one + its number there.

    As `locate`, for all vectors of the memory in address order.
    """
    per = spec.slices // spec.hemispheres
    vectors = np.arange(spec.sram_bytes // VECTOR_BYTES)
    run, place = np.divmod(vectors, RUN)
    turn, side = np.divmod(run, spec.hemispheres)
    word, index = np.divmod(turn * RUN + place, per - spec.near_slices)
    index += spec.near_slices
    regions = ((feed_start(spec), spec.work_slices, spec.feed_slices),
               (work_start(spec), 0, spec.work_slices))  # fmt: skip
    for start, first, count in regions:
        if count:
            near = np.arange(len(vectors) - start // VECTOR_BYTES)
            turn, side[-len(near) :] = np.divmod(near, spec.hemispheres)
            word[-len(near) :], own = np.divmod(turn, count)
            index[-len(near) :] = first + own
    return (side * per + index).astype(np.int64), word.astype(np.int64)


def _map(size: int) -> mmap.mmap:
    """Return zeros."""
    anonymous = mmap.mmap(-1, size, flags=_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        anonymous.madvise(mmap.MADV_HUGEPAGE)  # a hint: fewer TLB misses as weights stream by
    return anonymous


def _map_image(size: int, image: str) -> mmap.mmap:
    """Return a file's bytes, to be written without changing the file. Raises SramError."""
    try:
        with open(image, "rb") as file:
            if (got := os.fstat(file.fileno()).st_size) != size:
                raise SramError(f"{image}: wanted an image of {size} bytes, got {got}")
            access = mmap.PROT_READ | mmap.PROT_WRITE
            return mmap.mmap(file.fileno(), size, flags=_PRIVATE, prot=access)
    except OSError as error:
        raise SramError(f"{image}: wanted an image of {size} bytes, got {error.strerror}") from None


class Sram:
    """The buffer, its views, and the names of what is loaded in it."""

    def __init__(self, size: int, image: str | None = None) -> None:
        """Make `size` bytes: zeros, or those of the file `image`, which is never written."""
        if size < VECTOR_BYTES or size % VECTOR_BYTES:
            raise SramError(f"size {size}: wanted whole vectors of {VECTOR_BYTES} bytes")
        self.size = size
        self._map = _map(size) if image is None else _map_image(size, image)
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)
        self._tensors: dict[str, tuple[int, int]] = {}

    def reserve(self, name: str, address: int, size: int, among: frozenset[str] = NONE) -> None:
        """Name a region. Raises SramError where it is outside or overlaps a named one.

        Those `among` which it lies in turns it may overlap.
        """
        self._check(name, address, size)
        for other, (start, length) in self._tensors.items():
            if address < start + length and start < address + size and other not in among:
                raise SramError(
                    f"{name} at [{address}, {address + size}) overlaps {other} at "
                    f"[{start}, {start + length})"
                )
        self._tensors[name] = (address, size)

    def reserved(self) -> list[tuple[int, int]]:
        """Return (first byte, bytes) of every named region."""
        return list(self._tensors.values())

    def tensor(self, name: str) -> NDArray[np.uint8]:
        """Return the bytes of a named region. Raises SramError for an unknown name."""
        if name not in self._tensors:
            raise SramError(f"{name}: no such tensor; this chip holds {sorted(self._tensors)}")
        address, size = self._tensors[name]
        return self.bytes[address : address + size]

    def memory(self, address: int, size: int) -> memoryview:
        """Return bytes as a buffer, to be sent from or received into."""
        self._check("memory", address, size)
        return memoryview(self._map)[address : address + size]

    def view(
        self, address: int, dtype: DTypeLike, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> NDArray[Any]:
        """Return a view: `strides` in bytes. Raises SramError where it leaves the memory."""
        item = np.dtype(dtype).itemsize
        extent = sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + item
        if 0 in shape:
            extent = 0
        self._check("view", address, extent)
        flat = self.bytes[address : address + extent].view(dtype) if extent else np.empty(0, dtype)
        return np.lib.stride_tricks.as_strided(flat, shape, strides)

    def rows(
        self, address: int, dtype: DTypeLike, rows: int, n: int, row_bytes: int
    ) -> NDArray[Any]:
        """Return [rows, n] elements with `row_bytes` between rows."""
        return self.view(address, dtype, (rows, n), (row_bytes, np.dtype(dtype).itemsize))

    def _check(self, name: str, address: int, size: int) -> None:
        if address < 0 or (address % VECTOR_BYTES and name != "view") or address + size > self.size:
            raise SramError(
                f"{name}: [{address}, {address + size}) is outside {self.size} bytes of SRAM "
                f"or not on a vector"
            )

    def close(self) -> None:
        """Drop the buffer; views that are still held keep their pages until they go."""
        self.bytes = np.empty(0, np.uint8)
        self._tensors.clear()
