"""Views of a chip's SRAM for the kernels: rows, segments, packed heads, caches."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chip.ops.attention import Attend, Rope, cache_of
from chip.ops.experts import ExpertsEach, ExpertsSum
from chip.ops.product import Matmul
from chip.ops.rows import item_bytes, row_bytes, segment_offsets
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


class Cache(NamedTuple):
    """One slot's cache of a layer: keys, their scales, values, their scales, by KV head."""

    k: list[Any]
    ks: list[Any]
    v: list[Any]
    vs: list[Any]


class Views:
    """Makes views of one chip's memory."""

    def __init__(self, sram: Sram) -> None:
        self.sram = sram
        self._caches: dict[tuple[object, ...], list[Cache]] = {}

    def f32(self, address: int, rows: int, n: int) -> NDArray[np.float32]:
        return self.sram.rows(address, np.float32, rows, n, row_bytes(n, 4))

    def f16(self, address: int, rows: int, n: int) -> NDArray[np.float16]:
        return self.sram.rows(address, np.float16, rows, n, row_bytes(n, 2))

    def vector(self, address: int, n: int) -> NDArray[np.float32]:
        return self.f32(address, 1, n).reshape(n)

    def weight_scales(
        self, address: int, op: Matmul | ExpertsEach | ExpertsSum
    ) -> NDArray[np.float32]:  # fmt: skip
        """Return the scales of a product's weights: [n], or of int4 ones [groups, n]."""
        if op.group is None:
            return self.vector(address, op.n)
        return self.f32(address, pad_vector(op.k) // op.group, op.n)

    def activation(self, address: int, rows: int, k: int, dtype: str) -> NDArray[Any]:
        padded, item = pad_vector(k), item_bytes(dtype)
        kind = np.int8 if item == 1 else np.float16
        return self.sram.rows(address, kind, rows, padded, row_bytes(padded, item))

    def segments(
        self, src: int, shares: tuple[int, ...], rows: int
    ) -> list[NDArray[np.float16]]:  # fmt: skip
        offsets = segment_offsets(shares, rows)
        return [
            self.f16(src + offset, rows, share)
            for offset, share in zip(offsets, shares, strict=False)
        ]

    def queries(self, a: Rope | Attend) -> Packed:
        layout = a.layout
        dtype = np.int8 if layout.item_bytes == 1 else np.float16
        row, item, per = layout.query_bytes(a.heads), layout.item_bytes, layout.heads_per_group
        parts = []
        for first in range(0, a.heads, per):
            n, at = min(per, a.heads - first), a.q + first // per * layout.row_bytes
            shape, strides = (a.rows, n, a.head_dim), (row, layout.head_bytes, item)
            parts.append((slice(first, first + n), self.sram.view(at, dtype, shape, strides)))
        return Packed(np.zeros((a.rows, a.heads, a.head_dim), dtype), parts)

    def query_scales(self, a: Rope | Attend) -> Packed:
        assert a.sq is not None
        row = a.layout.query_scale_bytes(a.heads)
        shape, strides = (a.rows, a.heads, VECTOR_BYTES // 4), (row, VECTOR_BYTES, 4)
        view = self.sram.view(a.sq, np.float32, shape, strides)
        return Packed(np.zeros((a.rows, a.heads, 1), np.float32), [(slice(a.heads), view)])

    def cache(
        self, a: Rope | Attend, tokens: int, slot: int, *, value: bool
    ) -> tuple[list[Any], list[Any]]:  # fmt: skip
        """Views of each KV head's keys or values [tokens, head_dim], and its scales [tokens]."""
        layout, (kv, kvs) = a.layout, cache_of(a, slot)
        dtype = np.int8 if layout.item_bytes == 1 else np.float16
        heads, scales = [], []
        for head in range(a.kv_heads):
            at = kv + layout.head_offset(head, value=value)
            heads.append(self.sram.rows(at, dtype, tokens, a.head_dim, layout.row_bytes))
            if kvs is not None:
                scale_at = kvs + layout.scale_offset(head, value=value)
                scales.append(self.sram.view(scale_at, np.float32, (tokens,), (4,)))
        return heads, scales

    def caches(self, a: Rope | Attend, tokens: int) -> list[Cache]:
        """Return every slot's cache."""
        key = (a.layout, a.slots, tokens, *cache_of(a, 0), *cache_of(a, 1))
        if key not in self._caches:  # operations of many steps share a layer's
            self._caches[key] = [
                Cache(
                    *self.cache(a, tokens, slot, value=False),
                    *self.cache(a, tokens, slot, value=True),
                )
                for slot in range(a.slots or 1)
            ]
        return self._caches[key]
