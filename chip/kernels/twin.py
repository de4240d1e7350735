"""`Kernels`: what the VXM and MXM compute, on views of SRAM given by the caller.

The contract of every kernel and its definition in NumPy: the twin of the native code
(native.py), which gives the same bits. Fast enough to run a whole model: int8 products go through
float32 BLAS in cache-sized blocks. Rules that hold for every method:

- R = rows (tokens of the step). 2-D and 3-D views may be strided between rows and heads; lanes
  are contiguous. Kp = K rounded up to 320; the lanes of an output beyond K are written as 0.
- A result of type int counts the values that were saturated: rounded to fp16 from |x| > 65504.
- Quantisation, per row: a = max|x|; s = a * fp32(1/127); q = clamp(rint(x * (127 * recip(a))),
  -127, 127), fp32 throughout; a < 2^-100 gives zeros and s = 0. rint is to nearest even.
- Values must be finite, except in cache rows a token may not see, which may hold any bytes.
- A row's result never depends on other rows, nor attention's on the length of the cache views.
- Nothing allocates more than a few MB of scratch. Wrong shapes raise ValueError.

Numerics: docs/design.md, section 6; functions: vmath.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from chip.kernels import splitmix, vmath
from chip.kernels.arrays import F16, F32, I8, I32, I64, LANES, Float
from chip.kernels.packed import BLOCK, packed_vectors, unpack
from chip.kernels.quant import round_f16
from chip.kernels.twin_math import (
    MAX_TERMS,
    block_accumulate,
    join,
    p_times_v,
    quantise,
    query_key,
    require,
    rotate,
    softmax,
    spread,
    store,
    store_padded,
    tile_dot,
)
from chip.spec import INT4_GROUPS

_LIMIT = np.float32(7.0)  # of a clamped gate's columns
MOST_TOKENS = (1 << 63) - 1  # what a ring takes: any position
SCORES_AT_ONCE = 1 << 19  # fp32 scores held by attention_i8 at a time


class Kernels:
    """The arithmetic of one chip, in NumPy; `chip.kernels.load` may return a faster one."""

    name: str = "numpy"

    def norm_i8(self, x: F32, gamma: F32, eps: float, q: I8, s: F32, /) -> None:
        """RMSNorm of x[R,H], then quantise: q[R,Kp], s[R].

        mean = lane_sum(x*x) * fp32(1/H); y = (x * rsqrt(mean + fp32(eps))) * gamma[H].
        """
        values, s[...] = quantise(_norm(x, gamma, eps))
        store_padded(values, q)

    def norm_f16(self, x: F32, gamma: F32, eps: float, y: F16, /) -> int:
        """RMSNorm of x[R,H] as in `norm_i8`, rounded to y[R,Kp]."""
        values, saturated = round_f16(_norm(x, gamma, eps))
        store_padded(values, y)
        return saturated

    def head_norm(self, x: F32, gamma: F32, eps: float, y: F32, /) -> None:
        """RMSNorm, as in `norm_i8`, of each head of x[R,n*hd]: y[R,n*hd]; gamma[hd]."""
        hd = len(gamma)
        require(
            hd > 0 and not x.shape[1] % hd,
            f"head_norm: wanted heads of {hd}, got {x.shape[1]} columns",
        )
        store(_norm(x.reshape(-1, hd), gamma, eps).reshape(x.shape), y)

    def layer_norm(self, x: F32, gamma: F32, beta: F32, eps: float, /) -> None:
        """LayerNorm of x[R,H], in place.

        mean = lane_sum(x) * fp32(1/H); d = x - mean; variance = lane_sum(d*d) * fp32(1/H);
        x = (d * rsqrt(variance + fp32(eps))) * gamma[H] + beta[H].
        """
        width = x.shape[1]
        _check_weights(gamma, width)
        _check_weights(beta, width)
        per = np.float32(1.0 / width)
        d = x - (vmath.lane_sum(x) * per)[:, None]
        variance = vmath.lane_sum(d * d) * per
        x[...] = (d * vmath.rsqrt(variance + np.float32(eps))[:, None]) * gamma + beta

    def quantise_i8(self, x: F32, q: I8, s: F32, /) -> None:
        """Quantise each row of x[R,H]: q[R,Kp], s[R]."""
        values, s[...] = quantise(x)
        store_padded(values, q)

    def round_f16(self, x: F32, y: F16, /) -> int:
        """Round x[R,H] to y[R,Kp]."""
        values, saturated = round_f16(x)
        store_padded(values, y)
        return saturated

    def gather_i8(self, segments: Sequence[F16], q: I8, s: F32, /) -> None:
        """Concatenate segments [R,n_t] (n_t may be 0) and quantise each row: q[R,Kp], s[R]."""
        values, s[...] = quantise(join(tuple(segments), len(q)))
        store_padded(values, q)

    def gather_f16(self, segments: Sequence[F16], y: F16, /) -> None:
        """Concatenate segments [R,n_t] into y[R,Kp]."""
        store_padded(join(tuple(segments), len(y)), y)

    def matmul_i8(self, x: I8, sx: F32, w: I8, sw: F32, y: Float, /) -> int:
        """Multiply in int8: y[R,N] = (fp32(x . w) * sx[R]) * sw[N], y fp32 or fp16.

        x[R,Kp]; w[N*Kp] as `chip.kernels.quant.tile_weights` lays it out. x . w is exact in int32,
        for Kp <= 131072.
        """
        rows, kp = x.shape
        columns = len(sw)
        _tiled_shape(x.shape, w.size, columns)
        tiles = kp // LANES
        x_tiles = x.reshape(rows, tiles, LANES).transpose(1, 0, 2)
        saturated = 0
        for first in range(0, columns, LANES):
            last = min(first + LANES, columns)
            block = w[first * kp : last * kp].reshape(tiles, last - first, LANES)
            acc = block_accumulate(x_tiles, block).astype(np.float32)
            with np.errstate(over="ignore"):  # fp32 overflow saturates like any other
                values = (acc * sx[:, None]) * sw[first:last]
            saturated += store(values, y[:, first:last])
        return saturated

    def matmul_i4(self, x: I8, sx: F32, w: I8, sw: F32, y: Float, /) -> int:
        """Multiply by int4 weights: y[R,N], fp32 or fp16; x[R,Kp], scales sw[groups,N].

        w has ceil(N / 2) * Kp bytes as `chip.kernels.packed` lays them out; a group is Kp / groups
        rows of K. For each group in order of K, from +0: y += fp32(x . w, exact) * sw, in fp32;
        then y * sx[R].
        """
        rows, kp = x.shape
        count, columns = sw.shape
        group = _packed_shape(x.shape, w.size, sw.shape)
        saturated = 0
        for first in range(0, columns, BLOCK):
            last = min(first + BLOCK, columns)
            vectors = packed_vectors(last - first)
            at = first // 2 * kp
            packed = w[at : at + vectors * kp].reshape(kp // LANES, vectors, LANES)
            total = np.zeros((rows, last - first), np.float32)
            with np.errstate(over="ignore"):  # fp32 overflow saturates like any other
                for g in range(count):
                    tile, lane = divmod(g * group, LANES)
                    block = unpack(packed[tile, :, lane : lane + group], last - first)
                    acc = x[:, g * group : (g + 1) * group].astype(np.float32)
                    total += (acc @ block.astype(np.float32).T) * sw[g, first:last]
                values = total * sx[:, None]
            saturated += store(values, y[:, first:last])
        return saturated

    def matmul_f16(self, x: F16, w: F16, y: Float, /) -> int:
        """Multiply in fp16: y[R,N] = x[R,Kp] . w[N*Kp], w tiled as for `matmul_i8`, y fp32 or fp16.

        A 320-long K tile is a dot in fp64: lane i into partial i mod 16 in order of i, from +0,
        then a tree by halves (p[i]+p[i+8], +4, +2, +1), rounded once to fp32; tiles are added in
        fp32 in order, from +0. Products are exact in fp64, so a fused multiply-add is the same.
        """
        rows, kp = x.shape
        columns = y.shape[1]
        _tiled_shape(x.shape, w.size, columns)
        tiles = kp // LANES
        wide = [[spread(x[r : r + 1, t * LANES : (t + 1) * LANES]) for r in range(rows)]
                for t in range(tiles)]  # fmt: skip
        saturated = 0
        for first in range(0, columns, LANES):
            last = min(first + LANES, columns)
            block = w[first * kp : last * kp].reshape(tiles, last - first, LANES)
            total = np.zeros((rows, last - first), np.float32)
            for t in range(tiles):
                lanes = spread(block[t])
                for r in range(rows):
                    total[r] += tile_dot(wide[t][r], lanes)
            saturated += store(total, y[:, first:last])
        return saturated

    def add_bias(self, x: F32, bias: F32, y: Float, /) -> int:
        """y[R,N] = x[R,N] + bias[N], y fp32 (it may be x itself) or fp16."""
        require(
            bias.shape == (x.shape[1],),
            f"bias: wanted {x.shape[1]} values, got shape {bias.shape}",
        )
        return store(x + bias, y)

    def rope_cache_i8(
        self,
        qkv: F32,
        rope: F32,
        positions: I64,
        q: I8,
        sq: F32,
        k: Sequence[I8],
        ks: Sequence[F32],
        v: Sequence[I8],
        vs: Sequence[F32],
        /,
    ) -> None:
        """Rotate, quantise per token and head, and write the cache.

        qkv[R,(nq+2*nk)*hd] is query heads, key heads, value heads; rope[R,2,hd/2] cosines, sines,
        or rope[R,2,0], and nothing is rotated.
        (a, b) halves of a head become a*cos - b*sin, b*cos + a*sin, each product rounded to fp32.
        Out: q[R,nq,hd]; sq[R,nq] = scale * fp32(1/sqrt(hd)); per KV head its cache k[M,hd],
        ks[M], v[M,hd], vs[M], rows `positions`[R].
        """
        per_root = 1.0 / math.sqrt(q.shape[2])
        self.scaled_rope_cache_i8(qkv, rope, positions, q, sq, k, ks, v, vs, per_root)

    def scaled_rope_cache_i8(
        self,
        qkv: F32,
        rope: F32,
        positions: I64,
        q: I8,
        sq: F32,
        k: Sequence[I8],
        ks: Sequence[F32],
        v: Sequence[I8],
        vs: Sequence[F32],
        scale: float,
        /,
    ) -> None:
        """Do as `rope_cache_i8`, but sq[R,nq] is each query's scale times fp32(`scale`)."""
        factor = np.float32(scale)
        _check_positions(positions, len(qkv), _shortest(k, ks, v, vs))
        queries, keys, values = _split_heads(qkv, rope, q.shape[1:], len(k))
        q[...], of_queries = quantise(queries)
        sq[...] = of_queries * factor
        for new, cache, scales in ((keys, k, ks), (values, v, vs)):
            lanes, of_heads = quantise(new)
            for head in range(len(cache)):
                cache[head][positions] = lanes[:, head]
                scales[head][positions] = of_heads[:, head]

    def rope_cache_f16(
        self,
        qkv: F32,
        rope: F32,
        positions: I64,
        q: F16,
        k: Sequence[F16],
        v: Sequence[F16],
        /,
    ) -> int:
        """Rotate as in `rope_cache_i8`, round to fp16 and write q[R,nq,hd] and the cache."""
        _check_positions(positions, len(qkv), _shortest(k, v))
        queries, keys, values = _split_heads(qkv, rope, q.shape[1:], len(k))
        saturated = store(queries, q)
        for new, cache in ((keys, k), (values, v)):
            lanes, more = round_f16(new)
            saturated += more
            for head in range(len(cache)):
                cache[head][positions] = lanes[:, head]
        return saturated

    def attention_i8(
        self,
        q: I8,
        sq: F32,
        k: Sequence[I8],
        ks: Sequence[F32],
        v: Sequence[I8],
        vs: Sequence[F32],
        kv_of: Sequence[int],
        positions: I64,
        out: F16,
        /,
    ) -> int:
        """Attend: q[R,nq,hd], sq[R,nq], per KV head k[B,hd], ks[B], v[B,hd], vs[B]; out[R,nq*hd].

        Query head j reads KV head kv_of[j]. Row r sees token t iff t <= positions[r] < B.
        score = fp32(q.k) * (sq * ks_t); e = exp(score - max visible), +0 where masked;
        p = e * recip(lane_sum(e)), token t in lane t mod 320 of vector t div 320; p_t * vs_t is
        quantised over the bucket (scale s_pv); out = fp32(pq.v) * s_pv rounded to fp16.
        """
        return self.masked_attention_i8(
            q, sq, k, ks, v, vs, kv_of, positions, None, False, None, None, out
        )

    def masked_attention_i8(
        self,
        q: I8,
        sq: F32,
        k: Sequence[I8],
        ks: Sequence[F32],
        v: Sequence[I8],
        vs: Sequence[F32],
        kv_of: Sequence[int],
        positions: I64,
        window: int | None,
        ring: bool,
        cap: float | None,
        sinks: F32 | None,
        out: F16,
        /,
    ) -> int:
        """Attend as `attention_i8` does, with what some models have beside.

        `window`: a row sees the last so many tokens up to its own. `ring`: the views are a ring,
        token t in slot t mod B, and hold the last B tokens that were written, a row's window among
        them; sums go by slots, and any position will do. `cap`: a score becomes
        fp32(cap) * tanh(score * fp32(1/cap)). sinks[nq]: the maximum is also over the head's sink,
        and exp(sink - maximum) is added to lane_sum(e) before the reciprocal.
        """
        rows, n_q, hd = q.shape
        slots = _shortest(k, ks, v, vs)
        _check_attention(q.shape, kv_of, len(k), positions, MOST_TOKENS if ring else slots)
        _check_mask(n_q, window, slots if ring else None, cap, sinks)
        heads_out = np.empty((rows, n_q, hd), np.float32)
        seen = min(int(positions.max(initial=0)) + 1, slots)  # later ones are masked for every row
        step = max(1, SCORES_AT_ONCE // seen)
        for g in sorted(set(kv_of)):
            heads = [j for j in range(n_q) if kv_of[j] == g]
            cache = (k[g][:seen], ks[g][:seen], v[g][:seen], vs[g][:seen])
            queries = q[:, heads].reshape(-1, hd).astype(np.float32)
            scales = sq[:, heads].reshape(-1)
            last = np.repeat(positions, len(heads))
            ends = None if sinks is None else np.tile(sinks[heads], rows)
            done = [
                _attend_i8(
                    queries[i : i + step], scales[i : i + step], *cache,
                    _visible(np.arange(seen), last[i : i + step], window, slots if ring else None),
                    cap, None if ends is None else ends[i : i + step],
                )
                for i in range(0, len(queries), step)
            ]  # fmt: skip
            if done:
                heads_out[:, heads] = np.concatenate(done).reshape(rows, len(heads), hd)
        return store(heads_out.reshape(rows, n_q * hd), out)

    def attention_f16(
        self,
        q: F16,
        k: Sequence[F16],
        v: Sequence[F16],
        kv_of: Sequence[int],
        positions: I64,
        scale: float,
        out: F16,
        /,
    ) -> int:
        """Attend in fp16: shapes as `attention_i8`; hd <= 320.

        score = fp32(q.k) * fp32(scale), the dot as one tile of `matmul_f16`; softmax as in
        `attention_i8`; p rounded to fp16; p.v per 320 tokens as a tile of `matmul_f16`, tiles
        added in fp32 in order; rounded to fp16.
        """
        return self.masked_attention_f16(
            q, k, v, kv_of, positions, scale, None, False, None, None, out
        )

    def masked_attention_f16(
        self,
        q: F16,
        k: Sequence[F16],
        v: Sequence[F16],
        kv_of: Sequence[int],
        positions: I64,
        scale: float,
        window: int | None,
        ring: bool,
        cap: float | None,
        sinks: F32 | None,
        out: F16,
        /,
    ) -> int:
        """Attend as `attention_f16` does, with `masked_attention_i8`'s window, ring, cap, sinks."""
        rows, n_q, hd = q.shape
        slots = _shortest(k, v)
        _check_attention(q.shape, kv_of, len(k), positions, MOST_TOKENS if ring else slots)
        _check_mask(n_q, window, slots if ring else None, cap, sinks)
        require(hd <= LANES, f"attention: wanted heads of at most {LANES}, got {hd}")
        heads_out = np.zeros((rows, n_q, hd), np.float32)
        for r in range(rows):
            seen = min(int(positions[r]) + 1, slots)
            unseen = 0 if window is None or ring else max(0, seen - window)
            base = unseen // LANES * LANES  # whole tiles of tokens before it count nothing
            visible = _visible(
                np.arange(base, seen), positions[r : r + 1], window, slots if ring else None
            )
            for j in range(n_q):
                keys, values = k[kv_of[j]][base:seen], v[kv_of[j]][base:seen]
                scores = tile_dot(spread(q[r, j : j + 1]), spread(keys)) * np.float32(scale)
                scores = scores if cap is None else vmath.capped(scores, cap)
                sink = None if sinks is None else sinks[j : j + 1]
                p = softmax(scores[None], visible, sink).astype(np.float16)
                for t in range(0, seen - base, LANES):
                    part = tile_dot(spread(p[:, t : t + LANES]), spread(values[t : t + LANES].T))
                    heads_out[r, j] += part
        return store(heads_out.reshape(rows, n_q * hd), out)

    def add(self, x: F32, segments: Sequence[F16], /) -> None:
        """Add the segments [R,n_t], side by side, to x[R,H] in fp32; their widths add up to H."""
        delta = join(tuple(segments), len(x))
        require(delta.shape == x.shape, f"add: wanted {x.shape[1]} columns, got {delta.shape[1]}")
        x += delta

    def add_norm(self, x: F32, segments: Sequence[F16], gamma: F32, eps: float, /) -> None:
        """Add the segments' RMSNorm, as in `norm_i8`, to x[R,H] in fp32; gamma[H]."""
        delta = join(tuple(segments), len(x))
        require(
            delta.shape == x.shape, f"add_norm: wanted {x.shape[1]} columns, got {delta.shape[1]}"
        )
        x += _norm(delta, gamma, eps)

    def cap(self, x: F32, cap: float, /) -> None:
        """x[R,N] becomes fp32(cap) * tanh(x * fp32(1/cap))."""
        require(cap > 0, f"cap: wanted more than 0, got {cap}")
        x[...] = vmath.capped(x, cap)

    def silu(self, gu: F32, out: F16, /) -> int:
        """Gate: out[R,n] = (g * sigmoid(g)) * u; gu[R,2n] is the columns of g, then those of u."""
        return _gate("silu", gu, out, lambda gate: gate * vmath.sigmoid(gate))

    def geglu(self, gu: F32, out: F16, /) -> int:
        """Gate: out[R,n] = gelu_tanh(g) * u; gu[R,2n] as in `silu`."""
        return _gate("geglu", gu, out, vmath.gelu_tanh)

    def clamped_silu(self, gu: F32, out: F16, /) -> int:
        """Gate, clamped: out[R,n] = (h * sigmoid(1.702 h)) * (w + 1); gu[R,2n] as in `silu`.

        h = min(g, 7), w = max(min(u, 7), -7).
        """
        return _gate(
            "clamped_silu", gu, out,
            lambda gate: _steep_silu(np.minimum(gate, _LIMIT)),
            lambda up: np.maximum(np.minimum(up, _LIMIT), -_LIMIT) + np.float32(1.0),
        )  # fmt: skip

    def gelu(self, x: F32, out: F16, /) -> int:
        """Apply: out[R,n] = x * (1 + erf(x / sqrt 2)) / 2; x[R,n]."""
        return _apply("gelu", x, out, vmath.gelu)

    def gelu_tanh(self, x: F32, out: F16, /) -> int:
        """Apply `gelu`'s approximation by tanh: out[R,n]; x[R,n]."""
        return _apply("gelu_tanh", x, out, vmath.gelu_tanh)

    def route(self, x: F32, e: I32, g: F32, after: bool, /) -> None:
        """Choose experts: e[R,c] are the columns of the c largest of x[R,E], in ascending order.

        Ties go to the lowest column. m = max(x), w = exp(x - m); g[R,c] is w * recip(lane_sum(w))
        over all columns, of which the chosen ones' then are each times recip(their lane_sum in the
        order of e); with `after`, it is w * recip(lane_sum(w)) over the chosen columns alone.
        """
        rows, chosen = e.shape
        require(
            g.shape == e.shape and x.shape[0] == rows and 1 <= chosen <= x.shape[1],
            f"route: wanted at most {x.shape[1]} experts for {len(x)} rows, got {e.shape}, "
            f"{g.shape}",
        )
        best = np.sort(np.argsort(-x, axis=1, kind="stable")[:, :chosen], axis=1)
        e[...] = best
        scores = np.take_along_axis(x, best, axis=1) if after else x
        seen = np.ones(scores.shape, np.bool_)
        p = softmax(scores, seen)
        if not after:
            p = np.take_along_axis(p, best, axis=1)
            p = p * vmath.recip(vmath.lane_sum(p))[:, None]
        g[...] = p

    def weighted_sum(self, y: F32, g: F32, out: Float, /) -> int:
        """out[R,N] = the sum over c of g[R,c] * y[R,c,N], in fp32, in order from +0."""
        require(
            g.shape == y.shape[:2],
            f"expert weights: wanted shape {y.shape[:2]}, got {g.shape}",
        )
        total = np.zeros((y.shape[0], y.shape[2]), np.float32)
        for slot in range(y.shape[1]):
            total += g[:, slot, None] * y[:, slot]
        return store(total, out)

    def logit_hash(self, logits: F32, first_column: int, /) -> int:
        """Sum mix(column << 32 | fp32 bits) modulo 2^64 over logits[N], columns from first_column.

        mix is splitmix64's finaliser (splitmix.py). Nothing is canonicalised: -0 differs from +0.
        Shares of a vocabulary add up to the whole.
        """
        bits = np.ascontiguousarray(logits, np.float32).view(np.uint32).astype(np.uint64)
        columns = np.arange(first_column, first_column + len(bits), dtype=np.uint64)
        z = (columns << np.uint64(32)) | bits
        splitmix.mix(z)
        return int(np.add.reduce(z))

    def top_k(self, logits: F32, k: int, /) -> tuple[I64, F32]:
        """Return the k largest of logits[N], best first, ties to the lowest id: ids[k], values[k].

        Raises ValueError unless 1 <= k <= N.
        """
        n = len(logits)
        require(1 <= k <= n, f"top_k: wanted 1 <= k <= {n}, got {k}")
        least = np.partition(logits, n - k)[n - k]
        ids = np.flatnonzero(logits >= least)
        best = ids[np.argsort(-logits[ids], kind="stable")[:k]]
        return best.astype(np.int64), logits[best]


def _check_weights(weights: F32, width: int) -> None:
    require(weights.shape == (width,), f"norm: wanted {width} weights, got shape {weights.shape}")


def _norm(x: F32, gamma: F32, eps: float) -> F32:
    width = x.shape[1]
    _check_weights(gamma, width)
    mean = vmath.lane_sum(x * x) * np.float32(1.0 / width)
    y: F32 = (x * vmath.rsqrt(mean + np.float32(eps))[:, None]) * gamma
    return y


def _tiled_shape(x_shape: tuple[int, ...], w_size: int, columns: int) -> None:
    kp = x_shape[1]
    require(
        not kp % LANES and kp <= MAX_TERMS and w_size == columns * kp,
        f"matmul: {columns} columns of K = {kp} want {columns * kp} weights, K a multiple of "
        f"{LANES} up to {MAX_TERMS}; got {w_size} weights",
    )


def _packed_shape(x_shape: tuple[int, ...], w_size: int, scales: tuple[int, ...]) -> int:
    """Check the operands of a product with int4 weights; return the rows of K of a group."""
    (_, kp), (count, columns) = x_shape, scales
    size = packed_vectors(columns) * kp
    require(
        not kp % LANES and kp <= MAX_TERMS and w_size == size and count > 0
        and not kp % count and kp // count in INT4_GROUPS,
        f"matmul: {columns} columns of K = {kp} with {count} scales each want {size} bytes of "
        f"weights, K a multiple of {LANES} up to {MAX_TERMS}, and a scale for 320, 160, 64 or 32 "
        f"rows of it; got {w_size} bytes",
    )  # fmt: skip
    return kp // count


def _split_heads(
    qkv: F32, rope: F32, queries: tuple[int, ...], n_kv: int
) -> tuple[F32, F32, F32]:  # fmt: skip
    """Cut qkv [R,(nq+2nk)*hd] into rotated q [R,nq,hd], rotated k and plain v [R,nk,hd].

    `queries` is (nq, hd).
    """
    rows, n_q = qkv.shape[0], queries[0]
    hd = 2 * rope.shape[2] or queries[1]
    wanted = (rows, (n_q + 2 * n_kv) * hd)
    require(
        qkv.shape == wanted and rope.shape[:2] == (rows, 2),
        f"rope: wanted qkv {wanted} and rope ({rows}, 2, {hd // 2}), got {qkv.shape}, {rope.shape}",
    )
    heads = qkv.reshape(rows, n_q + 2 * n_kv, hd)
    turned = heads[:, : n_q + n_kv]
    if rope.shape[2]:
        turned = rotate(turned, rope)
    return turned[:, :n_q], turned[:, n_q:], heads[:, n_q + n_kv :]


def _shortest(*views: Sequence[Float]) -> int:
    """Return the fewest tokens that any cache view holds."""
    return min(len(view) for group in views for view in group)


def _check_positions(positions: I64, rows: int, tokens: int) -> None:
    require(
        positions.shape == (rows,) and positions.min(initial=0) >= 0
        and positions.max(initial=0) < tokens,
        f"positions: wanted {rows} in [0, {tokens}), got {positions.tolist()}",
    )  # fmt: skip


def _check_attention(
    shape: tuple[int, ...], kv_of: Sequence[int], n_kv: int, positions: I64, bucket: int
) -> None:
    rows, n_q = shape[:2]
    require(
        len(kv_of) == n_q and all(0 <= g < n_kv for g in kv_of),
        f"attention: kv_of must map {n_q} query heads to {n_kv} KV heads, got {list(kv_of)}",
    )
    _check_positions(positions, rows, bucket)


def _check_mask(
    n_q: int, window: int | None, ring: int | None, cap: float | None, sinks: F32 | None
) -> None:
    require(window is None or window > 0, f"attention: wanted a window of 1 or more, got {window}")
    require(
        ring is None or (window is not None and window <= ring),
        f"attention: wanted a window of at most the ring's {ring} slots, got {window}",
    )
    require(cap is None or cap > 0, f"attention: wanted a cap of more than 0, got {cap}")
    require(
        sinks is None or sinks.shape == (n_q,),
        f"attention: wanted {n_q} sinks, got shape {None if sinks is None else sinks.shape}",
    )


def _plain(up: F32) -> F32:
    return up


def _steep_silu(gate: F32) -> F32:
    y: F32 = gate * vmath.sigmoid(gate * np.float32(1.702))
    return y


def _gate(
    name: str, gu: F32, out: F16, activation: Callable[[F32], F32],
    up: Callable[[F32], F32] = _plain,
) -> int:  # fmt: skip
    n = out.shape[1]
    require(gu.shape[1] == 2 * n, f"{name}: wanted {2 * n} columns, got {gu.shape[1]}")
    with np.errstate(over="ignore"):  # fp32 overflow saturates like any other
        return store(activation(gu[:, :n]) * up(gu[:, n:]), out)


def _apply(name: str, x: F32, out: F16, function: Callable[[F32], F32]) -> int:
    require(x.shape[1] == out.shape[1], f"{name}: wanted {out.shape[1]} columns, got {x.shape[1]}")
    return store(function(x), out)


def _visible(
    slots: I64, last: I64, window: int | None, ring: int | None
) -> NDArray[np.bool_]:  # fmt: skip
    """Tell which slots are seen by rows whose own tokens are `last` [n]: [n, slots].

    A row sees what is no older than its window: in a ring, a slot's last token up to its own.
    """
    age = last[:, None] - slots
    if ring is not None:
        age %= ring
    seen = (age >= 0) & (age <= last[:, None])
    return seen if window is None else seen & (age < window)


def _attend_i8(
    q: F32, sq: F32, k: I8, ks: F32, v: I8, vs: F32, visible: NDArray[np.bool_],
    cap: float | None, sinks: F32 | None,
) -> F32:  # fmt: skip
    """Attend for n (row, head) pairs that share a KV head: q [n,hd] -> [n,hd] fp32.

    visible [n,B]; sinks [n].
    """
    # Scales are masked before they are used: those of unwritten tokens may be NaN.
    zero = np.float32(0.0)
    scores = query_key(q, k) * (sq[:, None] * np.where(visible, ks, zero))
    scores = scores if cap is None else vmath.capped(scores, cap)
    weights, scale = quantise(softmax(scores, visible, sinks) * np.where(visible, vs, zero))
    with np.errstate(over="ignore"):  # fp32 overflow saturates like any other
        result: F32 = p_times_v(weights, v).astype(np.float32) * scale[:, None]
    return result
