"""The definition of Convolve, in NumPy: exact sums in int32, then fp32 in a fixed order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

I8 = NDArray[np.int8]
F32 = NDArray[np.float32]


def convolve(
    x: I8, w: I8, scale: F32, bias: F32, padding: int, residual: tuple[I8, float] | None = None
) -> I8:  # fmt: skip
    """Return int8 of f32(x * w) * scale + bias (+ f32(r) * s): [H, W, outputs].

    x: [H, W, inputs]; w: [outputs, kernel, kernel, inputs]; scale, bias: [outputs];
    padding: what is beyond the image; residual: r [H, W, outputs] and s.
    """
    height, width, _ = x.shape
    kernel = w.shape[1]
    edge = kernel // 2
    padded = np.pad(x, ((edge, edge), (edge, edge), (0, 0)), constant_values=padding)
    sums = np.zeros((height * width, len(w)), np.int32)
    for dy in range(kernel):
        for dx in range(kernel):
            rows = padded[dy : dy + height, dx : dx + width].reshape(height * width, -1)
            for first in range(0, rows.shape[1], 1024):  # exact in fp32
                part = slice(first, first + 1024)
                product = rows[:, part].astype(np.float32) @ w[:, dy, dx, part].T.astype(np.float32)
                sums += product.astype(np.int32)
    y = sums.astype(np.float32) * scale + bias
    if residual is not None:
        r, s = residual
        y = y + r.reshape(y.shape).astype(np.float32) * np.float32(s)
    limit = np.float32(127)
    out: I8 = np.minimum(np.maximum(np.rint(y), -limit), limit).astype(np.int8)
    return out.reshape(height, width, len(w))
