"""The fast executor: binds each scheduled operation to a kernel and views of SRAM, once at load.

The per-step loop then only makes the bound calls, with the step's valid rows and positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chip.kernels import Kernels
from chip.ops.attention import Attend, Rope
from chip.ops.experts import ExpertsEach, ExpertsSum, Route, expert_stride, scales_apart
from chip.ops.opcodes import Activation
from chip.ops.product import Activations, AddTo, Capped, Gated, Matmul, NormFirst
from chip.ops.program import Computation
from chip.ops.rows import gated_widths, row_bytes
from chip.ops.vector import Add, Apply, Gate, Gather, LayerNorm, Norm, TopK
from chip.ops.weights import weight_bytes
from chip.run.views import Views
from chip.spec import VECTOR_BYTES
from chip.sram import Sram


@dataclass(slots=True)
class StepState:
    """The state of a step: its valid rows, their positions and their sequence slots.

    `runs`: neighbouring rows of one slot, as (slot, rows).
    """

    rows: int = 0
    positions: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    slots: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    hash_shares: list[int] = field(default_factory=list)  # of each row's logits here, modulo 2^64
    saturated: int = 0  # fp16 roundings that saturated, since the chip was loaded
    runs: list[tuple[int, slice]] = field(init=False)

    def __post_init__(self) -> None:
        self.begin(self.positions, self.slots if len(self.slots) else (0,) * self.rows)

    def begin(self, positions: ArrayLike, slots: ArrayLike) -> None:
        """Begin a step whose rows stand at `positions` of the sequences in `slots`."""
        self.positions, self.slots = np.asarray(positions, np.int64), np.asarray(slots, np.int64)
        self.rows = len(self.positions)
        self.hash_shares = [0] * self.rows
        edges = (np.flatnonzero(np.diff(self.slots)) + 1).tolist()
        ends = zip([0, *edges], [*edges, self.rows], strict=True)
        self.runs = [(int(self.slots[a]), slice(a, b)) for a, b in ends if a < b]


Bound = Callable[[StepState], None]
Which = slice | NDArray[np.int64]  # a slice is a view: nothing is copied
ExpertProduct = Callable[[int, Which, NDArray[np.float32]], None]
"""Multiplies by an expert's weights the rows that go through it, into an output [rows, n]."""


class Binder:
    """Makes bound operations for one chip."""

    def __init__(self, sram: Sram, kernels: Kernels) -> None:
        self.sram, self.views, self.kernels = sram, Views(sram), kernels

    def bind(self, op: Computation) -> Bound:
        """Return the operation as a call."""
        if isinstance(op, Norm):
            return self._norm(op)
        if isinstance(op, LayerNorm):
            return self._layer_norm(op)
        if isinstance(op, Gather):
            return self._gather(op)
        if isinstance(op, Matmul):
            return self._matmul(op)
        if isinstance(op, Rope):
            return self._rope(op)
        if isinstance(op, Attend):
            return self._attend(op)
        if isinstance(op, Add):
            return self._add(op)
        if isinstance(op, Apply):
            return self._apply(op)
        if isinstance(op, Route):
            return self._route(op)
        if isinstance(op, ExpertsEach):
            return self._experts_each(op)
        if isinstance(op, ExpertsSum):
            return self._experts_sum(op)
        return self._gate(op) if isinstance(op, Gate) else self._topk(op)

    # -- operations

    def _norm(self, op: Norm) -> Bound:
        x, gamma = self.views.f32(op.x, op.rows, op.hidden), self.views.vector(op.gamma, op.hidden)
        y, eps, kernels = self._quantised(op.q, op, op.hidden), op.eps, self.kernels
        if op.s is not None:
            s = self.views.vector(op.s, op.rows)

            def run(state: StepState) -> None:
                n = state.rows
                kernels.norm_i8(x[:n], gamma, eps, y[:n], s[:n])

            return run

        def run_f16(state: StepState) -> None:
            n = state.rows
            state.saturated += kernels.norm_f16(x[:n], gamma, eps, y[:n])

        return run_f16

    def _layer_norm(self, op: LayerNorm) -> Bound:
        x, kernels, eps = self.views.f32(op.x, op.rows, op.hidden), self.kernels, op.eps
        gamma, beta = (self.views.vector(at, op.hidden) for at in (op.gamma, op.beta))
        after = None if op.q is None else self._rounded(x, op.q, op.s, op)

        def run(state: StepState) -> None:
            kernels.layer_norm(x[: state.rows], gamma, beta, eps)
            if after is not None:
                after(state)

        return run

    def _rounded(
        self, x: NDArray[np.float32], q: int, s: int | None, op: LayerNorm
    ) -> Bound:  # fmt: skip
        """Return what makes quantised rows of x: int8 with scales, or fp16."""
        y, kernels = self._quantised(q, op, op.hidden), self.kernels
        if s is not None:
            scales = self.views.vector(s, op.rows)

            def run(state: StepState) -> None:
                n = state.rows
                kernels.quantise_i8(x[:n], y[:n], scales[:n])

            return run

        def run_f16(state: StepState) -> None:
            n = state.rows
            state.saturated += kernels.round_f16(x[:n], y[:n])

        return run_f16

    def _quantised(
        self, address: int, op: Norm | LayerNorm | Gather | Matmul | ExpertsEach | ExpertsSum,
        k: int, rows: int | None = None,
    ) -> NDArray[Any]:  # fmt: skip
        return self.views.activation(address, op.rows if rows is None else rows, k, op.dtype)

    def _gather(self, op: Gather) -> Bound:
        segments, kernels = self.views.segments(op.src, op.shares, op.rows), self.kernels
        y, each = self._quantised(op.q, op, sum(op.shares)), op.each or 1
        if op.s is not None:
            s = self.views.vector(op.s, op.rows)

            def run(state: StepState) -> None:
                n = state.rows * each
                kernels.gather_i8([segment[:n] for segment in segments], y[:n], s[:n])

            return run

        def run_f16(state: StepState) -> None:
            n = state.rows * each
            kernels.gather_f16([segment[:n] for segment in segments], y[:n])

        return run_f16

    def _matmul(self, op: Matmul) -> Bound:
        before, at, scale_at = self._prologue(op)
        made, after = self._epilogue(op)
        y, bias = (made, None) if op.b is None else self._biased(op, op.b, made)
        x, kernels = self._quantised(at, op, op.k), self.kernels
        product: Callable[[int], int]
        if op.sw is not None:
            assert scale_at is not None
            w = self.sram.view(op.w, np.int8, (op.weight_bytes,), (1,))
            sw, s = self.views.weight_scales(op.sw, op), self.views.vector(scale_at, op.rows)
            multiply = kernels.matmul_i8 if op.group is None else kernels.matmul_i4

            def product(n: int) -> int:
                return multiply(x[:n], s[:n], w, sw, y[:n])

        else:
            w16 = self.sram.view(op.w, np.float16, (op.weight_bytes // 2,), (2,))

            def product(n: int) -> int:
                return kernels.matmul_f16(x[:n], w16, y[:n])

        first_column = op.first_column

        def run(state: StepState) -> None:
            if before is not None:
                before(state)
            state.saturated += product(state.rows)
            if bias is not None:
                bias(state)
            if after is not None:
                after(state)
            if first_column is not None:  # logits: this chip's share of data_hash (law 5)
                shares = [kernels.logit_hash(row, first_column) for row in y[: state.rows]]
                state.hash_shares = shares

        return run

    def _biased(
        self, op: Matmul, at: int, made: NDArray[Any]
    ) -> tuple[NDArray[Any], Bound | None]:  # fmt: skip
        """Return where a product goes [rows, n] before its bias is added, and what adds it.

        Both in fp32; the sum is rounded where it is `made`.
        """
        b, kernels = self.views.vector(at, op.n), self.kernels
        y = made if op.out == "f32" else np.empty((op.rows, op.n), np.float32)

        def run(state: StepState) -> None:
            n = state.rows
            state.saturated += kernels.add_bias(y[:n], b, made[:n])

        return y, run

    def _prologue(self, op: Matmul) -> tuple[Bound | None, int, int | None]:
        """Return the call that makes a product's activations, their address and their scales'."""
        made = op.source
        if isinstance(made, Activations):
            return None, made.x, made.s
        if isinstance(made, NormFirst):
            norm = Norm(
                rows=op.rows, hidden=op.k, eps=made.eps, dtype=op.dtype, x=made.src,
                gamma=made.gamma, q=made.q, s=made.qs,
            )  # fmt: skip
            return self._norm(norm), made.q, made.qs
        gather = Gather(
            rows=op.rows, dtype=op.dtype, shares=made.shares, src=made.src, q=made.q, s=made.qs
        )
        return self._gather(gather), made.q, made.qs

    def _epilogue(self, op: Matmul) -> tuple[NDArray[Any], Bound | None]:
        """Return a product's output [rows, n], and the call that is its epilogue."""
        shape, kernels, result = (op.rows, op.n), self.kernels, op.result
        if isinstance(result, AddTo):
            delta, total = np.empty(shape, np.float16), self.views.f32(result.r, *shape)
            return delta, lambda state: kernels.add(total[: state.rows], [delta[: state.rows]])
        if isinstance(result, Gated):
            gate_up = np.empty(shape, np.float32)
            return gate_up, self._gated(
                result.activation, gate_up, self.views.f16(result.y, op.rows, op.n // 2)
            )
        if isinstance(result, Capped):
            y, cap = self.views.f32(result.y, *shape), result.cap
            return y, lambda state: kernels.cap(y[: state.rows], cap)
        return (self.views.f32 if op.out == "f32" else self.views.f16)(result.y, *shape), None

    def _rope(self, op: Rope) -> Bound:
        kernels, dim = self.kernels, op.head_dim
        made = self.views.f32(op.qkv, op.rows, (op.heads + 2 * op.kv_heads) * dim)
        qkv, norm = self._normed_heads(op, made)
        rope = self._tables(op)
        packed = self.views.queries(op)
        q = packed.heads
        caches, kept_at = self.views.caches(op, op.layout.context), _kept_at(op)
        if op.dtype == "int8":
            packed_scales = self.views.query_scales(op)
            sq = packed_scales.heads[:, :, 0]
            scale = dim**-0.5 if op.scale is None else op.scale

            def run(state: StepState) -> None:
                n = state.rows
                if norm is not None:
                    norm(state)
                at = kept_at(state)
                for slot, own in state.runs:
                    kernels.scaled_rope_cache_i8(
                        qkv[own], rope[own], at[own], q[own], sq[own], *caches[slot], scale
                    )
                packed.store(n)
                packed_scales.store(n)

            return run

        def run_f16(state: StepState) -> None:
            n = state.rows
            if norm is not None:
                norm(state)
            at = kept_at(state)
            for slot, own in state.runs:
                k, v = caches[slot].k, caches[slot].v
                state.saturated += kernels.rope_cache_f16(
                    qkv[own], rope[own], at[own], q[own], k, v
                )
            packed.store(n)

        return run_f16

    def _normed_heads(
        self, op: Rope, made: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], Bound | None]:  # fmt: skip
        """Return queries, keys and values as they are rotated, and what norms the former two."""
        if op.gq is None or op.gk is None or op.eps is None:
            return made, None
        qkv, kernels, eps = np.empty(made.shape, np.float32), self.kernels, op.eps
        ends = op.heads * op.head_dim, (op.heads + op.kv_heads) * op.head_dim
        gq, gk = (self.views.vector(at, op.head_dim) for at in (op.gq, op.gk))
        queries, keys, values = slice(0, ends[0]), slice(*ends), slice(ends[1], None)

        def run(state: StepState) -> None:
            n = state.rows
            kernels.head_norm(made[:n, queries], gq, eps, qkv[:n, queries])
            kernels.head_norm(made[:n, keys], gk, eps, qkv[:n, keys])
            qkv[:n, values] = made[:n, values]

        return qkv, run

    def _tables(self, op: Rope) -> NDArray[np.float32]:
        """Return each row's cosines and sines [rows, 2, head_dim / 2], or none [rows, 2, 0]."""
        if op.rope is None:
            return np.empty((op.rows, 2, 0), np.float32)
        dim = op.head_dim
        shape, strides = (op.rows, 2, dim // 2), (row_bytes(dim, 4), dim * 2, 4)
        return self.sram.view(op.rope, np.float32, shape, strides)

    def _attend(self, op: Attend) -> Bound:
        kernels, kv_of, packed = self.kernels, op.kv_of, self.views.queries(op)
        q = packed.heads
        out = self.views.f16(op.y, op.rows, op.heads * op.head_dim)
        caches, row = self.views.caches(op, op.bucket), op.row
        last = _last_seen(op)
        sinks = None if op.sinks is None else self.views.vector(op.sinks, op.heads)
        mask = (op.window, op.bucket == op.ring, op.cap, sinks)
        if op.dtype == "int8":
            packed_scales = self.views.query_scales(op)
            sq = packed_scales.heads[:, :, 0]

            def run(state: StepState) -> None:
                n, cache = state.rows if row is None else 1, caches[int(state.slots[row or 0])]
                packed.load(n)
                packed_scales.load(n)
                state.saturated += kernels.masked_attention_i8(
                    q[:n], sq[:n], *cache, kv_of, last(state), *mask, out[:n]
                )

            return _of_row(row, run)
        scale = op.head_dim**-0.5 if op.scale is None else op.scale

        def run_f16(state: StepState) -> None:
            n, cache = state.rows if row is None else 1, caches[int(state.slots[row or 0])]
            packed.load(n)
            state.saturated += kernels.masked_attention_f16(
                q[:n], cache.k, cache.v, kv_of, last(state), scale, *mask, out[:n]
            )

        return _of_row(row, run_f16)

    def _add(self, op: Add) -> Bound:
        x, kernels = self.views.f32(op.x, op.rows, sum(op.shares)), self.kernels
        segments = self.views.segments(op.src, op.shares, op.rows)
        if op.post is not None and op.eps is not None:
            gamma, eps = self.views.vector(op.post, x.shape[1]), op.eps

            def run_norm(state: StepState) -> None:
                n = state.rows
                kernels.add_norm(x[:n], [segment[:n] for segment in segments], gamma, eps)

            return run_norm

        def run(state: StepState) -> None:
            n = state.rows
            kernels.add(x[:n], [segment[:n] for segment in segments])

        return run

    def _gate(self, op: Gate) -> Bound:
        gate_up = self.views.f32(op.x, op.rows, 2 * op.n)
        out = self.views.f16(op.y, op.rows, op.n)
        return self._gated(op.activation, gate_up, out, op.each or 1)

    def _gated(
        self, activation: Activation, gate_up: NDArray[np.float32], out: NDArray[np.float16],
        each: int = 1,
    ) -> Bound:  # fmt: skip
        """Gate [rows, 2n], whose columns alternate as `gated_widths` says, to [rows, n]."""
        at, blocks, narrow = 0, 0, []
        kernel: Callable[..., int] = getattr(self.kernels, activation)  # each has one of its name
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
            n = state.rows * each
            for row, to in wide[:n]:
                state.saturated += kernel(row, to)
            for pair, to in narrow:
                state.saturated += kernel(pair[:n], to[:n])

        return run

    def _apply(self, op: Apply) -> Bound:
        x, out = self.views.f32(op.x, op.rows, op.n), self.views.f16(op.y, op.rows, op.n)
        kernel: Callable[..., int] = getattr(self.kernels, op.function)  # each has one of its name

        def run(state: StepState) -> None:
            n = state.rows
            state.saturated += kernel(x[:n], out[:n])

        return run

    def _route(self, op: Route) -> Bound:
        x, kernels, after = self.views.f32(op.x, op.rows, op.experts), self.kernels, op.after
        e, g = self._chosen(op.e, op), self.views.f32(op.g, op.rows, op.chosen)

        def run(state: StepState) -> None:
            n = state.rows
            kernels.route(x[:n], e[:n], g[:n], after)

        return run

    def _chosen(self, address: int, op: Route | ExpertsEach | ExpertsSum) -> NDArray[np.int32]:
        stride = row_bytes(op.chosen, 4)
        return self.sram.rows(address, np.int32, op.rows, op.chosen, stride)

    def _experts(self, op: ExpertsEach | ExpertsSum, rows: int) -> ExpertProduct:
        """Return what multiplies rows by one expert's weights, and adds its bias.

        `rows`: how many there are at most.
        """
        x, kernels, numbers = self._quantised(op.x, op, op.k, rows), self.kernels, range(op.experts)
        kind, item = x.dtype.type, x.dtype.itemsize  # weights are of the rows' type, or packed
        stride = expert_stride(op.k, op.n, op.dtype, op.group)
        shape = (weight_bytes(op.k, op.n, op.dtype, op.group) // item,)
        weights = [self.sram.view(op.w + e * stride, kind, shape, (item,)) for e in numbers]
        scales = biases = None
        if op.sw is not None:
            apart = scales_apart(op)
            scales = [self.views.weight_scales(op.sw + e * apart, op) for e in numbers]
        if op.b is not None:
            biases = [self.views.vector(op.b + e * op.apart, op.n) for e in numbers]
        multiply = kernels.matmul_i8 if op.group is None else kernels.matmul_i4
        s = None if op.s is None else self.views.vector(op.s, rows)

        def product(e: int, which: Which, y: NDArray[np.float32]) -> None:
            if s is not None and scales is not None:
                multiply(x[which], s[which], weights[e], scales[e], y)
            else:
                kernels.matmul_f16(x[which], weights[e], y)
            if biases is not None:
                kernels.add_bias(y, biases[e], y)

        return product

    def _experts_each(self, op: ExpertsEach) -> Bound:
        chosen, product = self._chosen(op.e, op), self._experts(op, op.rows)
        y = self.views.f32(op.y, op.rows * op.chosen, op.n)
        one, to = slice(0, 1), _each_row(y[: op.chosen])

        def run(state: StepState) -> None:
            if state.rows == 1:
                for e, row in zip(chosen[0].tolist(), to, strict=True):
                    product(e, one, row)
                return
            for e, rows, slots in _by_expert(chosen[: state.rows]):
                part = np.empty((len(rows), op.n), np.float32)
                product(e, rows, part)
                y[rows * op.chosen + slots] = part

        return run

    def _experts_sum(self, op: ExpertsSum) -> Bound:
        chosen, product = self._chosen(op.e, op), self._experts(op, op.rows * op.chosen)
        g, out = self.views.f32(op.g, op.rows, op.chosen), self.views.f16(op.y, op.rows, op.n)
        parts, kernels = np.empty((op.rows, op.chosen, op.n), np.float32), self.kernels
        to = _each_row(parts[0])

        def run(state: StepState) -> None:
            n = state.rows
            if n == 1:
                for slot, (e, row) in enumerate(zip(chosen[0].tolist(), to, strict=True)):
                    product(e, slice(slot, slot + 1), row)
            else:
                for e, rows, slots in _by_expert(chosen[:n]):
                    part = np.empty((len(rows), op.n), np.float32)
                    product(e, rows * op.chosen + slots, part)
                    parts[rows, slots] = part
            state.saturated += kernels.weighted_sum(parts[:n], g[:n], out[:n])

        return run

    def _topk(self, op: TopK) -> Bound:
        logits, kernels, k = self.views.vector(op.x, op.n), self.kernels, op.k
        ids = self.sram.view(op.y, np.uint32, (k,), (4,))
        values = self.sram.view(op.y + 4 * k, np.float32, (k,), (4,))
        first = op.first_column

        def run(state: StepState) -> None:
            best, best_values = kernels.top_k(logits, k)
            ids[:] = best + first
            values[:] = best_values

        return _of_row(op.row, run)


def _each_row(y: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return views of the rows of y, each [1, n]."""
    return [y[i : i + 1] for i in range(len(y))]


def _by_expert(
    chosen: NDArray[np.int32],
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """Yield each expert that is chosen, in order, with the rows and slots that it is chosen in."""
    for e in np.unique(chosen):
        rows, slots = np.nonzero(chosen == e)
        yield int(e), rows, slots


def _kept_at(op: Rope) -> Callable[[StepState], NDArray[np.int64]]:
    """Return what gives the place in the cache that each row's token is written to."""
    if op.ring is None:
        return lambda state: state.positions
    ring, context = op.ring, op.context

    def places(state: StepState) -> NDArray[np.int64]:
        if state.positions.max() >= context:  # a ring would take it
            raise ValueError(f"positions: wanted less than {context}, got {state.positions.max()}")
        return state.positions % ring

    return places


def _last_seen(op: Attend) -> Callable[[StepState], NDArray[np.int64]]:
    """Return what gives the last position that each row sees: its own, or the horizon's."""
    row, horizon = op.row, op.horizon
    if row is not None:
        return lambda state: state.positions[row : row + 1]
    if horizon is None:
        return lambda state: state.positions
    return lambda state: np.full(state.rows, state.positions[horizon])


def _of_row(row: int | None, run: Bound) -> Bound:
    """Return what does nothing in a step without this row."""
    if row is None:
        return run

    def run_if_there(state: StepState) -> None:
        if row < state.rows:
            run(state)

    return run_if_there
