"""The fast executor: binds each scheduled operation to a kernel and views of SRAM, once at load.

The per-step loop then only calls what is bound, with the step's valid rows and positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.errors import ProgramError
from chip.kernels.interface import Kernels
from chip.ops.operations import (
    Opcode,
    gated_widths,
    row_bytes,
)
from chip.ops.program import Operation
from chip.run.views import Views
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


class Binder(Views):
    """Makes bound operations for one chip."""

    def __init__(self, sram: Sram, kernels: Kernels) -> None:
        super().__init__(sram)
        self.kernels = kernels

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

    # -- operations

    def _norm(self, a: Any) -> Bound:
        x, gamma = self.f32(a["x"], a["rows"], a["hidden"]), self.vector(a["gamma"], a["hidden"])
        y, eps, kernels = self.activation(a, "q", a["hidden"]), a["eps"], self.kernels
        if a["dtype"] == "int8":
            s = self.vector(a["s"], a["rows"])

            def run(state: StepState) -> None:
                n = state.rows
                kernels.norm_i8(x[:n], gamma, eps, y[:n], s[:n])

            return run

        def run_f16(state: StepState) -> None:
            n = state.rows
            state.saturated += kernels.norm_f16(x[:n], gamma, eps, y[:n])

        return run_f16

    def _gather(self, a: Any) -> Bound:
        segments, kernels = self.segments(a), self.kernels
        y = self.activation(a, "q", sum(a["shares"]))
        if a["dtype"] == "int8":
            s = self.vector(a["s"], a["rows"])

            def run(state: StepState) -> None:
                n = state.rows
                kernels.gather_i8([segment[:n] for segment in segments], y[:n], s[:n])

            return run

        def run_f16(state: StepState) -> None:
            n = state.rows
            kernels.gather_f16([segment[:n] for segment in segments], y[:n])

        return run_f16

    def _matmul(self, a: Any) -> Bound:
        before, (y, after) = self._prologue(a), self._epilogue(a)
        names = ("x", "s") if before is None else ("q", "qs")
        x, kernels, n_cols = self.activation(a, names[0], a["k"]), self.kernels, a["n"]
        size = n_cols * pad_vector(a["k"])
        product: Callable[[int], int]
        if a["dtype"] == "int8":
            w = self.sram.view(a["w"], np.int8, (size,), (1,))
            sw, s = self.vector(a["sw"], n_cols), self.vector(a[names[1]], a["rows"])

            def product(n: int) -> int:
                return kernels.matmul_i8(x[:n], s[:n], w, sw, y[:n])

        else:
            w16 = self.sram.view(a["w"], np.float16, (size,), (2,))

            def product(n: int) -> int:
                return kernels.matmul_f16(x[:n], w16, y[:n])

        first_column = a.get("first_column")

        def run(state: StepState) -> None:
            if before is not None:
                before(state)
            state.saturated += product(state.rows)
            if after is not None:
                after(state)
            if first_column is not None:  # logits: this chip's share of data_hash (law 5)
                state.hash_share = kernels.logit_hash(y[0], first_column)

        return run

    def _prologue(self, a: Any) -> Bound | None:
        """What makes a product's activations, where that is a part of it."""
        if a.get("prologue") == "norm":
            return self._norm({**a, "x": a["src"], "hidden": a["k"], "s": a["qs"]})
        return self._gather({**a, "s": a["qs"]}) if a.get("prologue") == "gather" else None

    def _epilogue(self, a: Any) -> tuple[NDArray[Any], Bound | None]:
        """Return where a product goes [rows, n], and what follows it as a part of it."""
        shape, kernels = (a["rows"], a["n"]), self.kernels
        if a.get("epilogue") == "add":
            delta, total = np.empty(shape, np.float16), self.f32(a["r"], *shape)
            return delta, lambda state: kernels.add(total[: state.rows], [delta[: state.rows]])
        if a.get("epilogue") == "silu":
            gate_up = np.empty(shape, np.float32)
            return gate_up, self._gated(gate_up, self.f16(a["y"], a["rows"], a["n"] // 2))
        return (self.f32 if a["out"] == "f32" else self.f16)(a["y"], *shape), None

    def _rope(self, a: Any) -> Bound:
        kernels, dim = self.kernels, a["head_dim"]
        qkv = self.f32(a["qkv"], a["rows"], (a["heads"] + 2 * a["kv_heads"]) * dim)
        stride = row_bytes(dim, 4)
        shape, strides = (a["rows"], 2, dim // 2), (stride, dim * 2, 4)
        rope = self.sram.view(a["rope"], np.float32, shape, strides)
        packed = self.queries(a)
        q = packed.heads
        k, ks = self.cache(a, a["context"], value=False)
        v, vs = self.cache(a, a["context"], value=True)
        if a["dtype"] == "int8":
            packed_scales = self.query_scales(a)
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
        kernels, kv_of, packed = self.kernels, a["kv_of"], self.queries(a)
        q = packed.heads
        out = self.f16(a["y"], a["rows"], a["heads"] * a["head_dim"])
        k, ks = self.cache(a, a["bucket"], value=False)
        v, vs = self.cache(a, a["bucket"], value=True)
        if a["dtype"] == "int8":
            packed_scales = self.query_scales(a)
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
        x, kernels = self.f32(a["x"], a["rows"], sum(a["shares"])), self.kernels
        segments = self.segments(a)

        def run(state: StepState) -> None:
            n = state.rows
            kernels.add(x[:n], [segment[:n] for segment in segments])

        return run

    def _silu(self, a: Any) -> Bound:
        gate_up = self.f32(a["x"], a["rows"], 2 * a["n"])
        return self._gated(gate_up, self.f16(a["y"], a["rows"], a["n"]))

    def _gated(self, gate_up: NDArray[np.float32], out: NDArray[np.float16]) -> Bound:
        """Gate [rows, 2n], whose columns alternate as `gated_widths` says, to [rows, n]."""
        kernels, at, blocks, narrow = self.kernels, 0, 0, []
        for width in gated_widths(out.shape[1]):
            if width == VECTOR_BYTES:
                blocks += 1
            else:
                pair = slice(2 * at, 2 * (at + width))
                narrow.append((gate_up[:, pair], out[:, at : at + width]))
            at += width
        end = blocks * VECTOR_BYTES
        wide = [
            (row[: 2 * end].reshape(blocks, -1), to[:end].reshape(blocks, -1))
            for row, to in zip(gate_up, out, strict=True) if blocks
        ]  # fmt: skip

        def run(state: StepState) -> None:
            n = state.rows
            for row, to in wide[:n]:
                state.saturated += kernels.silu(row, to)
            for pair, to in narrow:
                state.saturated += kernels.silu(pair[:n], to[:n])

        return run

    def _topk(self, a: Any) -> Bound:
        logits, kernels, k = self.vector(a["x"], a["n"]), self.kernels, a["k"]
        ids = self.sram.view(a["y"], np.uint32, (k,), (4,))
        values = self.sram.view(a["y"] + 4 * k, np.float32, (k,), (4,))
        first = a["first_column"]

        def run(state: StepState) -> None:
            best, best_values = kernels.top_k(logits, k)
            ids[:] = best + first
            values[:] = best_values

        return run
