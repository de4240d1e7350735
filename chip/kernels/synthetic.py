"""Synthetic weights: each element depends on (seed, tensor name, row, column) alone.

So every chip fills its own SRAM with its own share, and the values do not depend on the layout.
Eight consecutive columns share one output of splitmix64: byte j, the lowest first, is column j.
Rows are output columns of the matrix. Only integers and exact or IEEE fp32 steps are used, so the
bits are the same everywhere. Not a model of trained weights: only their size (standard deviation
about 1/sqrt(k)) is right.

The NumPy code here is the definition. Native code, where it was built, gives the same bits.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

from chip.kernels.arrays import F32, F64, I8, LANES, U64
from chip.kernels.extension import BEST, INSTRUCTION_SETS
from chip.kernels.packed import groups_of
from chip.kernels.quant import write_tiles
from chip.kernels.splitmix import draw

_WORDS_AT_ONCE = 1 << 14  # hashes in flight: 128 KB, so that the passes stay in L2
_Q_STD = math.sqrt(2 * sum(q * q for q in range(1, 128)) / 256)  # of a byte, with -128 made 0
_Q4_STD = math.sqrt(2 * sum(q * q for q in range(1, 8)) / 16)  # of four bits, with -8 made 0
_MAX_INDEX = 1 << 32


def tensor_key(seed: int, name: str) -> np.uint64:
    """Return the tensor's 64-bit key: the first 8 bytes, little-endian, of SHA-256("seed:name")."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.uint64(int.from_bytes(digest[:8], "little"))


def _hashes(key: np.uint64, rows: U64, words: U64) -> U64:
    """Return splitmix64 output number (row << 32 | word) of stream `key`: [rows, words]."""
    index = (rows[:, None] << np.uint64(32)) | words
    draw(key, index)
    return index


def _check(first_row: int, n_rows: int, k: int) -> None:
    if first_row < 0 or n_rows < 0 or k < 1 or max(first_row + n_rows, k) > _MAX_INDEX:
        raise ValueError(
            f"synthetic weights: wanted rows and columns below 2^32, got {n_rows} rows of {k} "
            f"from row {first_row}"
        )


def int8_rows(seed: int, name: str, first_row: int, n_rows: int, k: int) -> I8:
    """Return rows [n_rows, k] int8 in [-127, 127], uniform but for 0, which is twice as likely.

    Raises ValueError unless rows and columns are below 2^32.
    """
    _check(first_row, n_rows, k)
    out = np.empty((n_rows, k), np.int8)
    _fill(tensor_key(seed, name), first_row, out)
    return out


def fill_tiled(
    seed: int, name: str, first_row: int, n_rows: int, k: int, block: I8, at: int
) -> None:
    """Write rows as `int8_rows` gives them into a block of `quant.tile_weights`' layout.

    block is [ceil(k / 320), columns, 320]; the rows become its columns from `at` on, zero-padded.
    Raises ValueError unless rows and columns are below 2^32 and the block has room.
    """
    _check(first_row, n_rows, k)
    tiles = -(-k // LANES)
    columns = block.shape[1] if block.ndim == 3 else at + n_rows
    if block.shape != (tiles, columns, LANES) or not 0 <= at <= columns - n_rows:
        raise ValueError(
            f"tiled block: wanted shape {(tiles, columns, LANES)} with room for columns "
            f"{at} to {at + n_rows}, got {block.shape}"
        )
    if BEST is not None:
        from chip.kernels._native import synthetic_tiled

        key, isa = int(tensor_key(seed, name)), INSTRUCTION_SETS[BEST]
        synthetic_tiled(isa, key, first_row, n_rows, k, block, at)
        return
    write_tiles(int8_rows(seed, name, first_row, n_rows, k), block, at)


def _fill(key: np.uint64, first_row: int, out: I8) -> None:
    if BEST is None:
        _fill_numpy(key, first_row, out)
        return
    from chip.kernels._native import synthetic_rows

    synthetic_rows(INSTRUCTION_SETS[BEST], int(key), first_row, out)


def _fill_numpy(key: np.uint64, first_row: int, out: I8) -> None:
    n_rows, k = out.shape
    n_words = -(-k // 8)
    row_step = max(1, _WORDS_AT_ONCE // n_words)
    for row in range(0, n_rows, row_step):
        stop = min(row + row_step, n_rows)
        rows = np.arange(first_row + row, first_row + stop, dtype=np.uint64)
        for word in range(0, n_words, _WORDS_AT_ONCE):
            words = np.arange(word, min(word + _WORDS_AT_ONCE, n_words), dtype=np.uint64)
            z = _hashes(key, rows, words)
            values = z.astype("<u8", copy=False).view(np.int8)[:, : k - 8 * word]
            part = out[row:stop, 8 * word : 8 * word + values.shape[1]]
            np.multiply(values, values != np.int8(-128), out=part)


def _unit(seed: int, name: str, first: int, n: int) -> F64:
    """Return n multiples of 2^-24 in [-0.5, 0.5), element i from (seed, name, i) alone."""
    rows = np.arange(first, first + n, dtype=np.uint64)
    bits = _hashes(tensor_key(seed, name), rows, np.zeros(1, np.uint64))[:, 0]
    return (bits >> np.uint64(40)).astype(np.float64) * 2.0**-24 - 0.5


def scales(seed: int, name: str, first_row: int, n_rows: int, k: int) -> F32:
    """Return the rows' scales [n_rows] fp32: weights q * scale have std (1 +- 1/8) / sqrt(k)."""
    _check(first_row, n_rows, k)
    spread = 1.0 + 0.25 * _unit(seed, name + ":scales", first_row, n_rows)
    return (spread * (1.0 / (_Q_STD * math.sqrt(k)))).astype(np.float32)


def int4_rows(seed: int, name: str, first_row: int, n_rows: int, k: int) -> I8:
    """Return rows [n_rows, k] int8 in [-7, 7]: the low four bits of `int8_rows`, -8 made 0."""
    low = int8_rows(seed, name, first_row, n_rows, k) << np.int8(4)
    return np.where(low == np.int8(-128), np.int8(0), low >> np.int8(4))


def int4_scales(seed: int, name: str, first_row: int, n_rows: int, k: int, group: int) -> F32:
    """Return the scales [groups, n_rows] fp32 of `int4_rows`: as `scales`, one for each group."""
    _check(first_row, n_rows, k)
    rows = np.arange(first_row, first_row + n_rows, dtype=np.uint64)
    groups = np.arange(groups_of(k, group), dtype=np.uint64)
    bits = _hashes(tensor_key(seed, name + ":scales4"), rows, groups)
    spread = 1.0 + 0.25 * ((bits >> np.uint64(40)).astype(np.float64) * 2.0**-24 - 0.5)
    made = (spread * (1.0 / (_Q4_STD * math.sqrt(k)))).astype(np.float32)
    return np.ascontiguousarray(made.T)


def f32_rows(seed: int, name: str, first_row: int, n_rows: int, k: int) -> F32:
    """Return rows [n_rows, k] fp32: `int8_rows` times `scales`."""
    q = int8_rows(seed, name, first_row, n_rows, k).astype(np.float32)
    q *= scales(seed, name, first_row, n_rows, k)[:, None]
    return q


def vector(seed: int, name: str, n: int) -> F32:
    """Return a norm weight [n] fp32 in [0.875, 1.125)."""
    return (1.0 + 0.25 * _unit(seed, name, 0, n)).astype(np.float32)
