"""Weights as the MXM takes them: int8 per output column, tiled into rows of 320; fp16 rounding.

IEEE operations only (no libm), so every machine quantises a checkpoint to the same bits. A matrix
is [N, K], output column first, as Hugging Face stores it. Activations are quantised by the
kernels, with another rule (twin.py). Numerics: docs/design.md, section 6.

The NumPy code here is the definition. Native code, where it was built, gives the same bits.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from chip.kernels.arrays import F16, F32, I8, LANES
from chip.kernels.extension import BEST, INSTRUCTION_SETS
from chip.spec import pad_vector

F16_MAX = np.float32(65504.0)
MIN_ABSMAX = np.float32(2.0**-100)
"""A row whose max|x| is below this is quantised to zeros with scale 0: 127/max stays finite and
no scale is subnormal."""

T = TypeVar("T", bound=np.generic)


def tile_weights(w: NDArray[T]) -> NDArray[T]:
    """Lay [N, K] out as the kernels read it: flat [N * Kp], Kp = K rounded up to 320.

    Order: blocks of up to 320 output columns; in a block the K tiles of 320; in a tile the
    columns; in a column 320 lanes. K is zero-padded, N never. Raises ValueError unless w is 2-D.
    """
    if w.ndim != 2:
        raise ValueError(f"weights: wanted a matrix [N, K], got shape {w.shape}")
    n, k = w.shape
    kp = pad_vector(k)
    flat = np.empty(n * kp, w.dtype)
    for first in range(0, n, LANES):
        rows = w[first : first + LANES]
        block = flat[first * kp : (first + len(rows)) * kp].reshape(kp // LANES, len(rows), LANES)
        write_tiles(rows, block, 0)
    return flat


def write_tiles(w: NDArray[T], block: NDArray[T], at: int) -> None:
    """Write [n, K] into a block laid out as by `tile_weights`, from column `at` on, zero-padded.

    block is [ceil(K / 320), columns, 320]. Raises ValueError where it has no room.
    """
    tiles, columns = -(-w.shape[1] // LANES), at + len(w)
    room = block.ndim == 3 and block.shape[::2] == (tiles, LANES)
    if not room or not 0 <= at <= columns <= block.shape[1]:
        raise ValueError(
            f"tiled block: wanted {tiles} tiles of {LANES} with room for columns {at} to "
            f"{columns}, got shape {block.shape}"
        )
    for tile in range(tiles):
        part = w[:, tile * LANES : (tile + 1) * LANES]
        block[tile, at:columns, : part.shape[1]] = part
        block[tile, at:columns, part.shape[1] :] = 0


def untile_weights(flat: NDArray[T], n: int, k: int) -> NDArray[T]:
    """Undo `tile_weights`: flat [n * Kp] -> [n, k]. Raises ValueError on a wrong length."""
    kp = pad_vector(k)
    if flat.shape != (n * kp,):
        raise ValueError(f"tiled weights {n} x {k}: wanted shape ({n * kp},), got {flat.shape}")
    w = np.empty((n, kp), flat.dtype)
    for first in range(0, n, LANES):
        count = min(LANES, n - first)
        block = flat[first * kp : (first + count) * kp].reshape(kp // LANES, count, LANES)
        w[first : first + count] = block.transpose(1, 0, 2).reshape(count, kp)
    return w[:, :k]


def quantize_weight(w: NDArray[Any]) -> tuple[I8, F32]:
    """Quantise [N, K] fp32 to int8 in [-127, 127] and one fp32 scale per output column (row of w).

    scale = max|w| / 127, q = rint(w / scale), all in fp32; a column with max|w| < `MIN_ABSMAX`
    gives zeros and scale 0. Raises ValueError unless w is 2-D and finite.
    """
    if w.ndim != 2:
        raise ValueError(f"weights: wanted a matrix [N, K], got shape {w.shape}")
    n, k = w.shape
    q = np.zeros((n, k), np.int8)
    scales = np.zeros(n, np.float32)
    rows = max(1, (1 << 20) // max(k, 1))  # bounded scratch
    for first in range(0, n if k else 0, rows):
        some = slice(first, first + rows)
        part = np.ascontiguousarray(w[some], np.float32)
        bad = quantize_rows(part, q[some], scales[some], 127)
        if bad >= 0:
            raise ValueError(f"weights: output column {first + bad} is not finite")
    return q, scales


def quantize_rows(part: F32, q: I8, scales: F32, most: int) -> int:
    """Fill q, in [-most, most], and scales from part [rows, K]: max|part| / most a row.

    Returns the first row that is not finite, or -1.
    """
    quantize = _quantize_numpy if BEST is None else _quantize_native
    return quantize(part, q, scales, most)


def _quantize_native(part: F32, q: I8, scales: F32, most: int) -> int:
    from chip.kernels._native import quantize_rows as native

    return native(INSTRUCTION_SETS[BEST or ""], part, q, scales, most)


def _quantize_numpy(part: F32, q: I8, scales: F32, most: int) -> int:
    largest = np.float32(most)
    absmax = np.abs(part).max(axis=1)
    if not np.isfinite(absmax).all():
        return int(np.argmin(np.isfinite(absmax)))
    alive = absmax >= MIN_ABSMAX
    scales[:] = np.where(alive, absmax / largest, np.float32(0.0))
    part = np.divide(part, np.where(alive, scales, np.float32(1.0))[:, None], dtype=np.float32)
    q[:] = np.clip(np.rint(part), -largest, largest) * alive[:, None]
    return -1


def round_f16(x: F32) -> tuple[F16, int]:
    """Round fp32 to fp16, nearest even, saturating: (same shape fp16, how many |x| > 65504)."""
    saturated = int(np.count_nonzero(np.abs(x) > F16_MAX))
    if saturated:
        x = np.clip(x, -F16_MAX, F16_MAX)
    return x.astype(np.float16), saturated
