"""Activations in SRAM: rows of whole vectors, and gather buffers of segments.

A row of n elements takes `row_bytes(n, item)`. A gather buffer is one segment per chip of the
group, [segment][row][share], each on a vector boundary, so that one segment is one transfer.
"""

from __future__ import annotations

from collections.abc import Sequence

from chip.spec import VECTOR_BYTES, pad_vector


def item_bytes(dtype: str) -> int:
    """Bytes of one activation or weight element."""
    return {"int8": 1, "fp16": 2}[dtype]


def row_bytes(n: int, item: int) -> int:
    """Bytes of one row of `n` elements, in whole vectors."""
    return pad_vector(n * item)


def activation_bytes(rows: int, k: int, dtype: str) -> int:
    """Bytes of quantised rows: k padded to the MXM's 320 rows."""
    return rows * row_bytes(pad_vector(k), item_bytes(dtype))


def segment_offsets(shares: Sequence[int], rows: int) -> list[int]:
    """Byte offset of each fp16 segment of a gather buffer, and its total size last."""
    offsets = [0]
    for share in shares:
        offsets.append(offsets[-1] + rows * row_bytes(share, 2))
    return offsets


def gated_widths(n: int) -> list[int]:
    """Cut the n columns of a gate: columns of gate and up projection alternate in these widths.

    Whole column blocks, then a pair within a block each: so a gate meets its up in the VXM.
    """
    blocks, rest = divmod(n, VECTOR_BYTES)
    half = VECTOR_BYTES // 2
    return [VECTOR_BYTES] * blocks + [w for w in (min(rest, half), rest - half) if w > 0]
