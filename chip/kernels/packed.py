"""int4 weights as the chip holds them: two output columns a byte, one fp32 scale a group of K.

A group is `group` rows of K of one output column: a whole tile of 320, or a part of it that vectors
of every machine can be cut into (`chip.spec.INT4_GROUPS`). A weight is -7 to 7. Numerics:
docs/decisions/0016-int4-weights.md.

Columns come in blocks of up to 640. In a block the K tiles of 320 follow one another; a tile has a
vector for two columns: vector j has the block's column j (low four bits, two's complement) and the
column half a block further on (high four bits), lane by lane. So vectors lie as those of int8
columns do, and the weight path makes two columns of one. If a block's columns are odd, the last
vector has zeros for the one that is missing. Scales are [groups, N].

The NumPy code here is the definition. Native code, where it was built, gives the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.kernels.arrays import F32, I8, LANES
from chip.kernels.extension import BEST, INSTRUCTION_SETS
from chip.kernels.quant import quantize_rows
from chip.spec import pad_vector

MOST = 7  # the largest weight
BLOCK = 2 * LANES  # columns


def packed_vectors(columns: int) -> int:
    """Vectors that hold a tile of so many columns."""
    return -(-columns // 2)


def groups_of(k: int, group: int) -> int:
    """Count a column's scales: those of K rounded up to 320."""
    return pad_vector(k) // group


def quantize_groups(w: NDArray[Any], group: int) -> tuple[I8, F32]:
    """Quantise [N, K] fp32 to [N, K] in [-7, 7] and scales [groups, N].

    scale = max|w| / 7 over a group, q = rint(w / scale), else as `quant.quantize_weight`. Raises
    ValueError unless w is 2-D and finite.
    """
    if w.ndim != 2:
        raise ValueError(f"weights: wanted a matrix [N, K], got shape {w.shape}")
    n, k = w.shape
    kp, count = pad_vector(k), groups_of(k, group)
    q, scales = np.empty((n, k), np.int8), np.empty((count, n), np.float32)
    step = max(1, (1 << 20) // max(kp, 1))  # bounded scratch
    wide, made = np.zeros((step, kp), np.float32), np.empty((step, kp), np.int8)
    of_rows = np.empty(step * count, np.float32)
    for first in range(0, n if k else 0, step):
        last = min(first + step, n)
        rows, size = last - first, (last - first) * count
        wide[:rows, :k] = w[first:last]
        bad = quantize_rows(
            wide[:rows].reshape(size, group), made[:rows].reshape(size, group),
            of_rows[:size], MOST,
        )  # fmt: skip
        if bad >= 0:
            raise ValueError(f"weights: output column {first + bad // count} is not finite")
        q[first:last], scales[:, first:last] = made[:rows, :k], of_rows[:size].reshape(-1, count).T
    return q, scales


def write_packed(q: I8, block: I8, at: int) -> None:
    """Write [n, K] into a packed block, from column `at` on, zero-padded along K.

    block is [ceil(K / 320), vectors, 320]. Of each value the low four bits count, and -8 becomes 0.
    Columns beside them are left as they are. Raises ValueError where the block has no room.
    """
    tiles, columns = -(-q.shape[1] // LANES), at + len(q)
    room = block.ndim == 3 and block.shape[::2] == (tiles, LANES)
    if not room or not 0 <= at <= columns <= 2 * block.shape[1]:
        raise ValueError(
            f"packed block: wanted {tiles} tiles of {LANES} with room for columns {at} to "
            f"{columns}, got shape {block.shape}"
        )
    if BEST is not None and len(q):
        from chip.kernels._native import write_packed as native

        native(INSTRUCTION_SETS[BEST], np.ascontiguousarray(q), block, at)
        return
    half = block.shape[1]
    low, high = q[: max(0, half - at)], q[max(0, half - at) :]
    for values, vector, shift, kept in ((low, at, 0, -16), (high, max(0, at - half), 4, 15)):
        for tile in range(tiles):
            part = np.zeros((len(values), LANES), np.int8)
            cut = values[:, tile * LANES : (tile + 1) * LANES] & np.int8(15)
            part[:, : cut.shape[1]] = np.where(cut == 8, np.int8(0), cut)
            to = block[tile, vector : vector + len(values)]
            to[...] = (to & np.int8(kept)) | (part << np.int8(shift))


def pack_weights(q: I8) -> I8:
    """Lay [N, K] out as the kernels read it: flat, ceil(N / 2) times K rounded up to 320."""
    n, k = q.shape
    kp = pad_vector(k)
    flat = np.zeros(packed_vectors(n) * kp, np.int8)
    for first in range(0, n, BLOCK):
        rows = q[first : first + BLOCK]
        vectors = packed_vectors(len(rows))
        block = flat[first // 2 * kp : (first // 2 + vectors) * kp]
        write_packed(rows, block.reshape(kp // LANES, vectors, LANES), 0)
    return flat


def unpack(packed: I8, columns: int) -> I8:
    """Return the columns of packed vectors [..., vectors, 320]: [..., columns, 320] int8."""
    low, high = (packed << np.int8(4)) >> np.int8(4), packed >> np.int8(4)
    return np.concatenate([low, high], axis=-2)[..., :columns, :]
