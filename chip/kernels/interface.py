"""The kernels' interface: what the VXM and MXM compute, on views of SRAM given by the caller.

One contract, several implementations that agree bit for bit: the NumPy twin (`twin.py`, the
definition) and native code. Rules that hold for every method:

- R = rows (tokens of the step). 2-D and 3-D views may be strided between rows and heads; lanes
  are contiguous. Kp = K rounded up to 320; the lanes of an output beyond K are written as 0.
- "-> int" counts the values whose magnitude exceeded 65504 when rounded (saturating) to fp16.
- Quantisation, per row: a = max|x|; s = a * fp32(1/127); q = clamp(rint(x * (127 * recip(a))),
  -127, 127), fp32 throughout; a < 2^-100 gives zeros and s = 0. rint is to nearest even.
- Values must be finite, except in cache rows a token may not see, which may hold any bytes.
- A row's result never depends on other rows, nor attention's on the length of the cache views.
- Nothing allocates more than a few MB of scratch. Wrong shapes raise ValueError.

Numerics: DESIGN section 6; functions: `vmath.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

I8 = NDArray[np.int8]
F16 = NDArray[np.float16]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Float = NDArray[Any]  # fp32, or fp16 (then rounded, saturating)


class Kernels(Protocol):
    """The arithmetic of one chip."""

    name: str

    def norm_i8(self, x: F32, gamma: F32, eps: float, q: I8, s: F32) -> None:
        """RMSNorm of x[R,H], then quantise: q[R,Kp], s[R].

        mean = lane_sum(x*x) * fp32(1/H); y = (x * rsqrt(mean + fp32(eps))) * gamma[H].
        """

    def norm_f16(self, x: F32, gamma: F32, eps: float, y: F16) -> int:
        """RMSNorm of x[R,H] as in `norm_i8`, rounded to y[R,Kp]."""

    def gather_i8(self, segments: Sequence[F16], q: I8, s: F32) -> None:
        """Concatenate segments [R,n_t] (n_t may be 0) and quantise each row: q[R,Kp], s[R]."""

    def gather_f16(self, segments: Sequence[F16], y: F16) -> None:
        """Concatenate segments [R,n_t] into y[R,Kp]."""

    def matmul_i8(self, x: I8, sx: F32, w: I8, sw: F32, y: Float) -> int:
        """y[R,N] = (fp32(x . w) * sx[R]) * sw[N], x.w exact in int32; x[R,Kp], w[N*Kp] tiled.

        Exact for Kp <= 131072. w as `chip.kernels.quant.tile_weights` lays it out; y fp32 or fp16.
        """

    def matmul_f16(self, x: F16, w: F16, y: Float) -> int:
        """y[R,N] = x[R,Kp] . w[N*Kp] tiled, y fp32 or fp16.

        A 320-long K tile is a dot in fp64: lane i into partial i mod 16 in order of i, from +0,
        then a tree by halves (p[i]+p[i+8], +4, +2, +1), rounded once to fp32; tiles are added in
        fp32 in order, from +0. Products are exact in fp64, so a fused multiply-add is the same.
        """

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
    ) -> None:
        """Rotate, quantise per token and head, and write the cache.

        qkv[R,(nq+2*nk)*hd] is query heads, key heads, value heads; rope[R,2,hd/2] cosines, sines.
        (a, b) halves of a head become a*cos - b*sin, b*cos + a*sin, each product rounded to fp32.
        Out: q[R,nq,hd]; sq[R,nq] = scale * fp32(1/sqrt(hd)); per KV head its cache k[M,hd],
        ks[M], v[M,hd], vs[M], rows `positions`[R].
        """

    def rope_cache_f16(
        self,
        qkv: F32,
        rope: F32,
        positions: I64,
        q: F16,
        k: Sequence[F16],
        v: Sequence[F16],
    ) -> int:
        """Rotate as in `rope_cache_i8`, round to fp16 and write q[R,nq,hd] and the cache."""

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
    ) -> int:
        """Attend: q[R,nq,hd], sq[R,nq], per KV head k[B,hd], ks[B], v[B,hd], vs[B]; out[R,nq*hd].

        Query head j reads KV head kv_of[j]. Row r sees token t iff t <= positions[r] < B.
        score = fp32(q.k) * (sq * ks_t); e = exp(score - max visible), +0 where masked;
        p = e * recip(lane_sum(e)), token t in lane t mod 320 of vector t div 320; p_t * vs_t is
        quantised over the bucket (scale s_pv); out = fp32(pq.v) * s_pv rounded to fp16.
        """

    def attention_f16(
        self,
        q: F16,
        k: Sequence[F16],
        v: Sequence[F16],
        kv_of: Sequence[int],
        positions: I64,
        scale: float,
        out: F16,
    ) -> int:
        """Attend in fp16: shapes as `attention_i8`; hd <= 320.

        score = fp32(q.k) * fp32(scale), the dot as one tile of `matmul_f16`; softmax as in
        `attention_i8`; p rounded to fp16; p.v per 320 tokens as a tile of `matmul_f16`, tiles
        added in fp32 in order; rounded to fp16.
        """

    def add(self, x: F32, segments: Sequence[F16]) -> None:
        """x[R,H] += the segments [R,n_t] side by side, in fp32; their widths add up to H."""

    def silu(self, gu: F32, out: F16) -> int:
        """out[R,n] = (g * sigmoid(g)) * u of gu[R,2n] = g columns, then u columns."""

    def logit_hash(self, logits: F32, first_column: int) -> int:
        """Sum mod 2^64 of mix(column << 32 | fp32 bits) over logits[N], columns from first_column.

        mix(z) is splitmix64's finaliser: z ^= z>>30; z *= 0xBF58476D1CE4E5B9; z ^= z>>27;
        z *= 0x94D049BB133111EB; z ^= z>>31. Nothing is canonicalised: -0 differs from +0. Shares
        of a vocabulary add up to the whole.
        """

    def top_k(self, logits: F32, k: int) -> tuple[I64, F32]:
        """Return the k largest of logits[N], best first, ties to the lowest id: ids[k], values[k].

        Raises ValueError unless 1 <= k <= N.
        """


def even_kv_map(n_heads: int, n_kv_heads: int) -> list[int]:
    """Return the usual `kv_of`: query head j reads KV head j * n_kv_heads // n_heads."""
    return [j * n_kv_heads // n_heads for j in range(n_heads)]
