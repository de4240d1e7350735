"""The kernels' arithmetic in slow scalar loops, and odd views to run the kernels on."""

from __future__ import annotations

import numpy as np

from chip.kernels import vmath

f32, i8 = np.float32, np.int8


def up(n: int) -> int:
    return -(-n // 320) * 320


def even_kv_map(n_heads: int, n_kv_heads: int) -> list[int]:
    """The usual `kv_of`: query head j reads KV head j * n_kv_heads // n_heads."""
    return [j * n_kv_heads // n_heads for j in range(n_heads)]


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal to the bit, signs of zero included."""
    return a.dtype == b.dtype and np.ascontiguousarray(a).tobytes() == b.tobytes()


def strided(rows: int, lanes: int, dtype: type, fill: float = 77) -> np.ndarray:
    """A view whose rows lie apart, full of old bytes."""
    return np.full((rows, lanes + 32), fill, dtype)[:, 16 : 16 + lanes]


def floats(rng: np.random.Generator, *shape: int, spread: float = 3.0) -> np.ndarray:
    """Normal values of widely different sizes per row."""
    x = rng.standard_normal(shape) * 10 ** rng.uniform(-spread, spread, (*shape[:-1], 1))
    return x.astype(f32)


def slow_mix(z: int) -> int:
    """splitmix64's finaliser of one number."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def slow_quantise(x: np.ndarray) -> tuple[list[int], np.float32]:
    a = max((abs(v) for v in x), default=f32(0))
    if a < 2.0**-100:
        return [0] * len(x), f32(0)
    factor = f32(127) * vmath.recip(np.array([a]))[0]
    return [int(min(127, max(-127, np.rint(v * factor)))) for v in x], a * f32(1 / 127)


def slow_tile_dot(x: np.ndarray, w: np.ndarray) -> np.float32:
    p = [0.0] * 16
    for i in range(len(x)):
        p[i % 16] += float(x[i]) * float(w[i])
    for half in (8, 4, 2, 1):
        p = [p[i] + p[i + half] for i in range(half)]
    return f32(p[0])


def slow_dot(x: np.ndarray, w: np.ndarray) -> np.float32:
    total = f32(0)
    for at in range(0, len(x), 320):
        total = total + slow_tile_dot(x[at : at + 320], w[at : at + 320])
    return total


def check_quantised(q: np.ndarray, s: np.ndarray, values: np.ndarray) -> None:
    """q [R,Kp], s [R] are the quantised rows of values [R,n], zeros behind."""
    for r, row in enumerate(values):
        want, scale = slow_quantise(row)
        assert q[r].tolist() == want + [0] * (q.shape[1] - len(want))
        assert s[r] == scale


def slow_softmax(scores: list[np.float32]) -> np.ndarray:
    m = max(scores)
    e = vmath.exp(np.array([s - m for s in scores], f32))
    return e * vmath.recip(vmath.lane_sum(e[None]))
