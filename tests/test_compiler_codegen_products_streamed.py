"""Products of many rows: bits as the fast executor's, on the machine; and the planes' use."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from one_operation import CHIP, both, placed

from chip.kernels.quant import tile_weights
from chip.ops.opcodes import Opcode

WIDE = {
    "int8": replace(CHIP, work_slices=2, feed_slices=2),
    "fp16": replace(CHIP, work_slices=2, feed_slices=1),
}


def product(rows: int, k: int, n: int, dtype: str, out: str) -> dict[str, Any]:
    names = "x s w sw y" if dtype == "int8" else "x w y"
    shape = {"rows": rows, "k": k, "n": n, "out": out, "dtype": dtype}
    return placed(Opcode.MATMUL, shape | dict.fromkeys(names.split(), True), 0, WIDE[dtype])


@pytest.mark.parametrize("out", ["f16", "f32"])
@pytest.mark.parametrize(
    ("rows", "k", "n"), [(2, 64, 64), (5, 700, 1300), (16, 1000, 100), (130, 400, 330)]
)
@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_bits(dtype: str, rows: int, k: int, n: int, out: str) -> None:
    a = product(rows, k, n, dtype, out)
    rng = np.random.default_rng(rows)
    wide = -(-k // 320) * 320
    x = np.zeros((rows, wide), np.int8 if dtype == "int8" else np.float16)
    w = rng.normal(size=(n, k)) * 30
    x[:, :k] = rng.normal(size=(rows, k)) * 30
    data = {"x": x, "w": tile_weights(w.astype(x.dtype))}
    if dtype == "int8":
        data |= {"s": rng.random(rows, np.float32), "sw": 0.01 * rng.random(n, np.float32)}
    both(Opcode.MATMUL, a, data, tuple(range(rows)), WIDE[dtype])
