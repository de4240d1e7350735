"""Weights in SRAM: their bytes, and those of their scales.

Of int4 two output columns share a byte, and each has a scale for every group of K (layout:
chip/kernels/packed.py). Other weights are those of `Matmul.dtype`; int8 has a scale a column.
"""

from __future__ import annotations

from chip.ops.rows import item_bytes, row_bytes
from chip.spec import pad_vector


def weight_bytes(k: int, n: int, dtype: str, group: int | None) -> int:
    """Bytes of weights [k, n]: k padded to the MXM's 320 rows. With `group` they are int4."""
    if group is None:
        return n * row_bytes(pad_vector(k), item_bytes(dtype))
    return -(-n // 2) * pad_vector(k)


def weight_scale_bytes(k: int, n: int, group: int | None) -> int:
    """Bytes of the scales: a row of n fp32 values, one for each group of K if there are groups."""
    return (1 if group is None else pad_vector(k) // group) * row_bytes(n, 4)
