"""The fast executor: binds each scheduled operation to a kernel and views of SRAM, once at load.

The per-step loop then only calls what is bound, with the step's valid rows and positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from chip.errors import ProgramError
from chip.kernels.interface import Kernels
from chip.operations import Opcode, item_bytes, kv_layout, row_bytes, segment_offsets
from chip.program import Operation
from chip.spec import VECTOR_BYTES, pad_vector
from chip.sram import Sram


@dataclass(slots=True)
class StepState:
    """What changes from step to step: how many rows are valid, and where they stand."""

    rows: int = 0
    positions: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    hash_share: int = 0  # of this chip's logits, modulo 2^64
    saturated: int = 0  # fp16 roundings that saturated, since the chip was loaded


Bound = Callable[[StepState], None]


class _Packed(NamedTuple):
    """Heads as the kernels want them, and as they are packed in memory: (heads, view) by group."""

    heads: NDArray[Any]  # [rows, heads, width]
    parts: list[tuple[slice, NDArray[Any]]]

    def store(self, rows: int) -> None:
        for heads, view in self.parts:
            view[:rows] = self.heads[:rows, heads]

    def load(self, rows: int) -> None:
        for heads, view in self.parts:
            self.heads[:rows, heads] = view[:rows]


class Binder:
    """Makes bound operations for one chip."""

    def __init__(self, sram: Sram, kernels: Kernels) -> None:
        self.sram, self.kernels = sram, kernels

    def bind(self, operation: Operation) -> Bound:
        """Return the operation as a call. Raises ProgramError for one that computes nothing."""
        binders: dict[Opcode, Callable[[Any], Bound]] = {
            Opcode.NORM: self._norm,
            Opcode.GATHER: self._gather,
            Opcode.MATMUL: self._matmul,
            Opcode.ROPE: self._rope,
            Opcode.ATTEND: self._attend,
            Opcode.ADD: self._add,
            Opcode.SILU: self._silu,
            Opcode.TOPK: self._topk,
        }
        if operation.opcode not in binders:
            raise ProgramError(f"{operation.name}: {operation.opcode} is not a computation")
        return binders[operation.opcode](operation.args)

    # -- views

    def _f32(self, address: int, rows: int, n: int) -> NDArray[np.float32]:
        return self.sram.rows(address, np.float32, rows, n, row_bytes(n, 4))

    def _f16(self, address: int, rows: int, n: int) -> NDArray[np.float16]:
        return self.sram.rows(address, np.float16, rows, n, row_bytes(n, 2))

    def _vector(self, address: int, n: int) -> NDArray[np.float32]:
        return self._f32(address, 1, n).reshape(n)

    def _activation(self, a: Any, name: str, k: int) -> NDArray[Any]:
        padded, item = pad_vector(k), item_bytes(a["dtype"])
        dtype = np.int8 if item == 1 else np.float16
        return self.sram.rows(a[name], dtype, a["rows"], padded, row_bytes(padded, item))

    def _segments(self, a: Any) -> list[NDArray[np.float16]]:
        offsets = segment_offsets(a["shares"], a["rows"])
        return [
            self._f16(a["src"] + offset, a["rows"], share)
            for offset, share in zip(offsets, a["shares"], strict=False)
        ]

    def _queries(self, a: Any) -> _Packed:
        layout, heads, width = kv_layout(a), a["heads"], a["head_dim"]
        dtype = np.int8 if layout.item_bytes == 1 else np.float16
        row, item, per = layout.query_bytes(heads), layout.item_bytes, layout.heads_per_group
        parts = []
        for first in range(0, heads, per):
            n, at = min(per, heads - first), a["q"] + first // per * layout.row_bytes
            shape, strides = (a["rows"], n, width), (row, layout.head_bytes, item)
            parts.append((slice(first, first + n), self.sram.view(at, dtype, shape, strides)))
        return _Packed(np.zeros((a["rows"], heads, width), dtype), parts)

    def _query_scales(self, a: Any) -> _Packed:
        heads, row = a["heads"], kv_layout(a).query_scale_bytes(a["heads"])
        shape, strides = (a["rows"], heads, 1), (row, VECTOR_BYTES, 4)
        view = self.sram.view(a["sq"], np.float32, shape, strides)
        return _Packed(np.zeros(shape, np.float32), [(slice(heads), view)])

    def _cache(self, a: Any, tokens: int, *, value: bool) -> tuple[list[Any], list[Any]]:
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

    # -- operations

    def _norm(self, a: Any) -> Bound:
        x, gamma = self._f32(a["x"], a["rows"], a["hidden"]), self._vector(a["gamma"], a["hidden"])
        y, eps, kernels = self._activation(a, "q", a["hidden"]), a["eps"], self.kernels
        if a["dtype"] == "int8":
            s = self._vector(a["s"], a["rows"])

            def run(state: StepState) -> None:
                n = state.rows
                kernels.norm_i8(x[:n], gamma, eps, y[:n], s[:n])

            return run

        def run_f16(state: StepState) -> None:
            n = state.rows
            state.saturated += kernels.norm_f16(x[:n], gamma, eps, y[:n])

        return run_f16

    def _gather(self, a: Any) -> Bound:
        segments, kernels = self._segments(a), self.kernels
        y = self._activation(a, "q", sum(a["shares"]))
        if a["dtype"] == "int8":
            s = self._vector(a["s"], a["rows"])

            def run(state: StepState) -> None:
                n = state.rows
                kernels.gather_i8([segment[:n] for segment in segments], y[:n], s[:n])

            return run

        def run_f16(state: StepState) -> None:
            n = state.rows
            kernels.gather_f16([segment[:n] for segment in segments], y[:n])

        return run_f16

    def _matmul(self, a: Any) -> Bound:
        x, kernels, n_cols = self._activation(a, "x", a["k"]), self.kernels, a["n"]
        size = n_cols * pad_vector(a["k"])
        out = self._f32 if a["out"] == "f32" else self._f16
        y: NDArray[Any] = out(a["y"], a["rows"], n_cols)
        product: Callable[[int], int]
        if a["dtype"] == "int8":
            w = self.sram.view(a["w"], np.int8, (size,), (1,))
            sw, s = self._vector(a["sw"], n_cols), self._vector(a["s"], a["rows"])

            def product(n: int) -> int:
                return kernels.matmul_i8(x[:n], s[:n], w, sw, y[:n])

        else:
            w16 = self.sram.view(a["w"], np.float16, (size,), (2,))

            def product(n: int) -> int:
                return kernels.matmul_f16(x[:n], w16, y[:n])

        first_column = a.get("first_column")

        def run(state: StepState) -> None:
            state.saturated += product(state.rows)
            if first_column is not None:  # logits: this chip's share of data_hash (law 5)
                state.hash_share = kernels.logit_hash(y[0], first_column)

        return run

    def _rope(self, a: Any) -> Bound:
        kernels, dim = self.kernels, a["head_dim"]
        qkv = self._f32(a["qkv"], a["rows"], (a["heads"] + 2 * a["kv_heads"]) * dim)
        stride = row_bytes(dim, 4)
        shape, strides = (a["rows"], 2, dim // 2), (stride, dim * 2, 4)
        rope = self.sram.view(a["rope"], np.float32, shape, strides)
        packed = self._queries(a)
        q = packed.heads
        k, ks = self._cache(a, a["context"], value=False)
        v, vs = self._cache(a, a["context"], value=True)
        if a["dtype"] == "int8":
            packed_scales = self._query_scales(a)
            sq = packed_scales.heads[:, :, 0]

            def run(state: StepState) -> None:
                n = state.rows
                kernels.rope_cache_i8(
                    qkv[:n], rope[:n], state.positions, q[:n], sq[:n], k, ks, v, vs
                )
                packed.store(n)
                packed_scales.store(n)

            return run

        def run_f16(state: StepState) -> None:
            n = state.rows
            state.saturated += kernels.rope_cache_f16(
                qkv[:n], rope[:n], state.positions, q[:n], k, v
            )
            packed.store(n)

        return run_f16

    def _attend(self, a: Any) -> Bound:
        kernels, kv_of, packed = self.kernels, a["kv_of"], self._queries(a)
        q = packed.heads
        out = self._f16(a["y"], a["rows"], a["heads"] * a["head_dim"])
        k, ks = self._cache(a, a["bucket"], value=False)
        v, vs = self._cache(a, a["bucket"], value=True)
        if a["dtype"] == "int8":
            packed_scales = self._query_scales(a)
            sq = packed_scales.heads[:, :, 0]

            def run(state: StepState) -> None:
                n = state.rows
                packed.load(n)
                packed_scales.load(n)
                state.saturated += kernels.attention_i8(
                    q[:n], sq[:n], k, ks, v, vs, kv_of, state.positions, out[:n]
                )

            return run
        scale = float(np.float32(a["head_dim"] ** -0.5))

        def run_f16(state: StepState) -> None:
            n = state.rows
            packed.load(n)
            state.saturated += kernels.attention_f16(
                q[:n], k, v, kv_of, state.positions, scale, out[:n]
            )

        return run_f16

    def _add(self, a: Any) -> Bound:
        x, kernels = self._f32(a["x"], a["rows"], sum(a["shares"])), self.kernels
        segments = self._segments(a)

        def run(state: StepState) -> None:
            n = state.rows
            kernels.add(x[:n], [segment[:n] for segment in segments])

        return run

    def _silu(self, a: Any) -> Bound:
        gate_up, kernels = self._f32(a["x"], a["rows"], 2 * a["n"]), self.kernels
        out = self._f16(a["y"], a["rows"], a["n"])

        def run(state: StepState) -> None:
            n = state.rows
            state.saturated += kernels.silu(gate_up[:n], out[:n])

        return run

    def _topk(self, a: Any) -> Bound:
        logits, kernels, k = self._vector(a["x"], a["n"]), self.kernels, a["k"]
        ids = self.sram.view(a["y"], np.uint32, (k,), (4,))
        values = self.sram.view(a["y"] + 4 * k, np.float32, (k,), (4,))
        first = a["first_column"]

        def run(state: StepState) -> None:
            best, best_values = kernels.top_k(logits, k)
            ids[:] = best + first
            values[:] = best_values

        return run
