"""Views of a chip's SRAM as the kernels want them: rows, segments, packed heads, caches."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chip.ops.operations import item_bytes, kv_layout, row_bytes, segment_offsets
from chip.spec import VECTOR_BYTES, pad_vector
from chip.sram import Sram


class Packed(NamedTuple):
    """Heads as the kernels want them, and as they are packed in memory: (heads, view) by group."""

    heads: NDArray[Any]  # [rows, heads, width]
    parts: list[tuple[slice, NDArray[Any]]]

    def store(self, rows: int) -> None:
        for heads, view in self.parts:
            view[:rows] = self.heads[:rows, heads]

    def load(self, rows: int) -> None:
        for heads, view in self.parts:
            self.heads[:rows, heads] = view[:rows, :, : self.heads.shape[2]]


class Views:
    """Makes views of one chip's memory; `a` are an operation's arguments."""

    def __init__(self, sram: Sram) -> None:
        self.sram = sram

    def f32(self, address: int, rows: int, n: int) -> NDArray[np.float32]:
        return self.sram.rows(address, np.float32, rows, n, row_bytes(n, 4))

    def f16(self, address: int, rows: int, n: int) -> NDArray[np.float16]:
        return self.sram.rows(address, np.float16, rows, n, row_bytes(n, 2))

    def vector(self, address: int, n: int) -> NDArray[np.float32]:
        return self.f32(address, 1, n).reshape(n)

    def activation(self, a: Any, name: str, k: int) -> NDArray[Any]:
        padded, item = pad_vector(k), item_bytes(a["dtype"])
        dtype = np.int8 if item == 1 else np.float16
        return self.sram.rows(a[name], dtype, a["rows"], padded, row_bytes(padded, item))

    def segments(self, a: Any) -> list[NDArray[np.float16]]:
        offsets = segment_offsets(a["shares"], a["rows"])
        return [
            self.f16(a["src"] + offset, a["rows"], share)
            for offset, share in zip(offsets, a["shares"], strict=False)
        ]

    def queries(self, a: Any) -> Packed:
        layout, heads, width = kv_layout(a), a["heads"], a["head_dim"]
        dtype = np.int8 if layout.item_bytes == 1 else np.float16
        row, item, per = layout.query_bytes(heads), layout.item_bytes, layout.heads_per_group
        parts = []
        for first in range(0, heads, per):
            n, at = min(per, heads - first), a["q"] + first // per * layout.row_bytes
            shape, strides = (a["rows"], n, width), (row, layout.head_bytes, item)
            parts.append((slice(first, first + n), self.sram.view(at, dtype, shape, strides)))
        return Packed(np.zeros((a["rows"], heads, width), dtype), parts)

    def query_scales(self, a: Any) -> Packed:
        heads, row = a["heads"], kv_layout(a).query_scale_bytes(a["heads"])
        shape, strides = (a["rows"], heads, VECTOR_BYTES // 4), (row, VECTOR_BYTES, 4)
        view = self.sram.view(a["sq"], np.float32, shape, strides)
        return Packed(np.zeros((a["rows"], heads, 1), np.float32), [(slice(heads), view)])

    def cache(self, a: Any, tokens: int, *, value: bool) -> tuple[list[Any], list[Any]]:
        """Views of each KV head's keys or values [tokens, head_dim], and its scales [tokens]."""
        layout = kv_layout(a)
        dtype = np.int8 if layout.item_bytes == 1 else np.float16
        heads, scales = [], []
        for head in range(a["kv_heads"]):
            at = a["kv"] + layout.head_offset(head, value=value)
            heads.append(self.sram.rows(at, dtype, tokens, a["head_dim"], layout.row_bytes))
            if a["dtype"] == "int8":
                scale_at = a["kvs"] + layout.scale_offset(head, value=value)
                scales.append(self.sram.view(scale_at, np.float32, (tokens,), (4,)))
        return heads, scales
