"""Building blocks of the NumPy twin: quantisation, exact integer dots, wide fp16 dots, checks.

Exactness by float32 BLAS: a sum of up to 1024 products of int8 stays below 2^24, so every partial
sum is an exact fp32 integer, in any order, with or without fused multiply-add.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chip.kernels import vmath
from chip.kernels.arrays import F16, F32, F64, I8, I32, LANES, Float
from chip.kernels.quant import MIN_ABSMAX, round_f16

PARTIALS = 16
EXACT_TERMS = 1024  # 1024 * 128 * 128 = 2^24
EXACT_TILES = EXACT_TERMS // LANES
MAX_TERMS = 131072  # * 127 * 127 < 2^31

_127 = np.float32(127.0)
_PER_127 = np.float32(1.0 / 127.0)


def require(ok: bool, message: str) -> None:
    """Raise ValueError(message) unless ok."""
    if not ok:
        raise ValueError(message)


def quantise(x: F32) -> tuple[F32, F32]:
    """Quantise each row of [..., n] fp32: integral fp32 in [-127, 127] and scales [...].

    The rule is in the head of chip/kernels/twin.py.
    """
    a: F32 = np.abs(x).max(axis=-1, initial=np.float32(0.0))
    alive = a >= MIN_ABSMAX
    factor = _127 * vmath.recip(np.where(alive, a, np.float32(1.0)))
    q = np.minimum(np.maximum(np.rint(x * factor[..., None]), -_127), _127)
    zero = np.float32(0.0)
    return np.where(alive[..., None], q, zero), np.where(alive, a * _PER_127, zero)


def store(values: F32, out: Float) -> int:
    """Write values into out of the same shape, fp32 or fp16; return how many saturated."""
    require(out.shape == values.shape, f"output: wanted shape {values.shape}, got {out.shape}")
    if out.dtype == np.float32:
        out[...] = values
        return 0
    require(out.dtype == np.float16, f"output: wanted float32 or float16, got {out.dtype}")
    out[...], saturated = round_f16(values)
    return saturated


def store_padded(values: Float, out: NDArray[np.generic]) -> None:
    """Write [R,n] into the first lanes of out[R,Kp], zeros behind."""
    rows, n = values.shape
    require(
        out.ndim == 2 and out.shape[0] == rows and n <= out.shape[1] and not out.shape[1] % LANES,
        f"padded output of {rows} x {n}: got shape {out.shape}",
    )
    out[:, :n] = values
    out[:, n:] = 0


def join(segments: list[F16] | tuple[F16, ...], rows: int) -> F32:
    """Put fp16 segments [R,n_t] side by side: [R,n] fp32."""
    for segment in segments:
        require(
            segment.ndim == 2 and segment.shape[0] == rows,
            f"segment: wanted {rows} rows, got shape {segment.shape}",
        )
    parts = [np.zeros((rows, 0), np.float32), *(s.astype(np.float32) for s in segments)]
    return np.concatenate(parts, axis=1)


def block_accumulate(x: I8, block: I8) -> I32:
    """Multiply x [tiles, R, 320] int8 by one column block [tiles, columns, 320] int8.

    Returns [R, columns] int32, exact. Scratch: three tiles of each as fp32.
    """
    tiles, columns, _ = block.shape
    total = np.zeros((x.shape[1], columns), np.int32)
    scratch = np.empty((min(tiles, EXACT_TILES), columns, LANES), np.float32)
    for first in range(0, tiles, EXACT_TILES):
        part = block[first : first + EXACT_TILES]
        wide = scratch[: len(part)]
        np.copyto(wide, part)
        lanes = x[first : first + EXACT_TILES].astype(np.float32)
        total += np.matmul(lanes, wide.transpose(0, 2, 1)).sum(axis=0).astype(np.int32)
    return total


def query_key(q: F32, k: I8) -> F32:
    """Return fp32 of the int32 dots of q [n, hd] integral fp32 with k [T, hd]: [n, T]."""
    require(q.shape[1] <= EXACT_TERMS, f"head: wanted at most {EXACT_TERMS}, got {q.shape[1]}")
    scores = np.empty((len(q), len(k)), np.float32)
    for first in range(0, len(k), EXACT_TERMS):
        part = k[first : first + EXACT_TERMS].astype(np.float32)
        np.matmul(q, part.T, out=scores[:, first : first + EXACT_TERMS])
    return scores


def p_times_v(p: F32, v: I8) -> I32:
    """Return p [n, T] integral fp32 times v [T, hd] int8: [n, hd] int32, exact."""
    total = np.zeros((len(p), v.shape[1]), np.int32)
    for first in range(0, len(v), EXACT_TERMS):
        part = v[first : first + EXACT_TERMS].astype(np.float32)
        total += np.matmul(p[:, first : first + EXACT_TERMS], part).astype(np.int32)
    return total


def spread(m: F16) -> F64:
    """Arrange [M, K] fp16 for `tile_dot`: [K/16, M, 16] fp64, K zero-padded to 16."""
    count, k = m.shape
    steps = -(-k // PARTIALS)
    if k % PARTIALS:
        wide = np.zeros((count, steps * PARTIALS), np.float16)
        wide[:, :k] = m
        m = wide
    return m.reshape(count, steps, PARTIALS).transpose(1, 0, 2).astype(np.float64)


def tile_dot(x: F64, m: F64) -> F32:
    """Dot one spread vector [steps, 1, 16] with spread rows [steps, M, 16]: [M] fp32.

    Lane i goes into partial i mod 16 in order of i, from +0; then a tree by halves; rounded once.
    """
    p: F64 = np.zeros(m.shape[1:], np.float64)
    add_partials(p, x, m)
    return sum_partials(p)


def add_partials(p: F64, x: F64, m: F64) -> None:
    """Add the products of spread lanes [steps, ..., 16] to partials p [..., 16], in order."""
    for lanes, weights in zip(x, m, strict=True):
        p += lanes * weights


def sum_partials(p: F64) -> F32:
    """Sum partials [..., 16] by halves, rounded once: [...] fp32."""
    width = PARTIALS
    while width > 1:
        width //= 2
        p = p[..., :width] + p[..., width:]
    return p[..., 0].astype(np.float32)


def softmax(scores: F32, visible: NDArray[np.bool_], sinks: F32 | None = None) -> F32:
    """Two-pass softmax of [n, T] over the visible tokens, exactly +0 elsewhere.

    `sinks` [n]: a score of no token, added to each row's sum last.
    """
    hidden = np.float32(-np.inf)
    scores = np.where(visible, scores, hidden)
    most = scores.max(axis=1)
    if sinks is not None:
        most = np.maximum(most, sinks)
    e = vmath.exp(scores - most[:, None])
    total = vmath.lane_sum(e)
    if sinks is not None:
        total = total + vmath.exp(sinks - most)
    p: F32 = e * vmath.recip(total)[:, None]
    return p


def rotate(heads: F32, rope: F32) -> F32:
    """Rotate [R, n, hd] by rope [R, 2, hd/2], Hugging Face's half-split convention."""
    half = heads.shape[2] // 2
    a, b = heads[:, :, :half], heads[:, :, half:]
    cos, sin = rope[:, None, 0], rope[:, None, 1]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=2)
