"""The project's own vector math: the definition of every non-linear function of the emulator.

fp32 adds and multiplies, exact rounding to integers (rint) and bit moves, in a fixed order: no
libm, no divide, no square root, no fused multiply-add, no flush to zero. So every CPU, and native
code written after this file line by line, gives the same bits. Inputs must not be NaN.

Errors are stated in ulp of the fp32 result against float64, as measured by
tests/test_chip_kernels_vmath.py, which also holds known answers. RoPE tables are made on the host
in float64 (adds and multiplies only) and rounded once. Numerics: docs/design.md, section 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Context, Decimal, localcontext

import numpy as np
from numpy.typing import ArrayLike

from chip.kernels.arrays import F32, F64, LANES

RSQRT_ITERATIONS = 3
MAX_ANGLE = float(1 << 20)
"""Largest |angle| in radians that the reduction of `rope_tables` is exact for."""

_f = np.float32
_ONE, _HALF, _THREE_HALVES, _TWO = _f(1.0), _f(0.5), _f(1.5), _f(2.0)

# exp(r) = 1 + r + r^2 * P(r) on |r| <= ln2 / 2; minimax, 0.001 ulp before rounding.
_EXP_POLY = tuple(
    _f(c)
    for c in (
        0.00019790248188655823,
        0.0013944759266451001,
        0.008333497680723667,
        0.04166629537940025,
        0.1666666567325592,
        0.5,
    )
)
_LOG2_E = _f(1.4426950216293335)
_LN2 = _f(0.6931471824645996)
_LN2_HI = _f(0.693359375)  # 9 bits, so n * _LN2_HI is exact
_LN2_LO = _f(-0.00021219444170128554)
_EXP_MIN, _EXP_MAX = _f(-104.5), _f(88.72283172607422)  # e^-104.5 rounds to 0; e^max is finite
_EXP2_MIN, _EXP2_MAX = _f(-151.0), _f(127.99999237060547)

# tanh(x) = x + x * z * P(z), z = x^2, on |x| <= 0.625; minimax, 0.003 ulp before rounding.
_TANH_POLY = tuple(
    _f(c)
    for c in (
        0.0021492023952305317,
        -0.008184424601495266,
        0.021703645586967468,
        -0.0539473220705986,
        0.13333210349082947,
        -0.3333333134651184,
    )
)
_TANH_SMALL = _f(0.625)

# gelu(x) = x * (tanh(x * P(x^2)) / 2 + 1/2), where tanh(x * P(x^2)) is erf(x / sqrt 2) or its
# approximation; minimax on |x| <= 5, 7e-7 in the result. Beyond, P(25): tanh is 1 there.
GELU_POLY = tuple(
    _f(c)
    for c in (
        -5.710929684710209e-08,
        2.8124845812271815e-06,
        -4.739814539789222e-05,
        -5.7355486205779016e-05,
        0.03636491671204567,
        0.7978729605674744,
    )
)
GELU_TANH_POLY = (_f(0.035677406936883926), _f(0.7978845834732056))  # sqrt(2/pi) * (0.044715, 1)
GELU_MAX = _f(25.0)

_RSQRT_MAGIC = np.int32(0x5F3759DF)
_MIN_NORMAL = _f(2.0**-126)
_TWO_24, _TWO_12 = _f(2.0**24), _f(2.0**12)

# pi/2 in two parts: 33 bits, so that k * HI is exact for k < 2^20, and the rest.
_PI = Decimal("3.14159265358979323846264338327950288419716939937510")
_TWO_OVER_PI = float.fromhex("0x1.45f306dc9c883p-1")
_PI_2_HI = float.fromhex("0x1.921fb544p+0")
_PI_2_LO = float.fromhex("0x1.0b4611a626331p-34")
_SIN_POLY = tuple((-1.0) ** n / math.factorial(2 * n + 1) for n in range(7, 0, -1))
_COS_POLY = tuple((-1.0) ** n / math.factorial(2 * n) for n in range(8, 0, -1))


def _horner32(x: F32, coefficients: Sequence[np.float32]) -> F32:
    """Evaluate a polynomial, highest coefficient first, one multiply and one add a step."""
    total: F32 = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        total = total * x + c
    return total


def _scaled_exp(r: F32, n: F32) -> F32:
    """Return e^r * 2^n for |r| <= ln2/2 and integral n in [-151, 128].

    The power is applied in two halves: the first product is exact, the second rounds once, also
    where the result is subnormal.
    """
    grown = _ONE + (r + (r * r) * _horner32(r, _EXP_POLY))
    power = n.astype(np.int32)
    low = power >> np.int32(1)
    high = power - low
    for part in (low, high):
        grown = grown * ((part + np.int32(127)) << np.int32(23)).view(np.float32)
    return grown


def exp(x: ArrayLike) -> F32:
    """Return e^x, fp32; error <= 1 ulp (of the subnormal grid below 2^-126).

    Inputs are clamped: results lie in [+0, 3.4028e38]; -inf and anything below -104 give +0.
    """
    v = np.minimum(np.maximum(np.asarray(x, np.float32), _EXP_MIN), _EXP_MAX)
    n: F32 = np.rint(v * _LOG2_E)
    return _scaled_exp((v - n * _LN2_HI) - n * _LN2_LO, n)


def exp2(x: ArrayLike) -> F32:
    """Return 2^x, fp32; error <= 1 ulp, exact for integral x. Clamped like `exp`."""
    v = np.minimum(np.maximum(np.asarray(x, np.float32), _EXP2_MIN), _EXP2_MAX)
    n: F32 = np.rint(v)
    return _scaled_exp((v - n) * _LN2, n)


def rsqrt(x: ArrayLike) -> F32:
    """Return 1/sqrt(x) for finite x >= 0, fp32; error <= 2 ulp for x > 0.

    Bit-trick start, `RSQRT_ITERATIONS` Newton steps, the last in the form that rounds least.
    Subnormal x is scaled by 2^24 first. rsqrt(+0) is a finite constant (about 1.8e23), so that a
    zero row stays zero after a norm without epsilon.
    """
    v = np.asarray(x, np.float32)
    tiny = v < _MIN_NORMAL
    v = v * np.where(tiny, _TWO_24, _ONE)
    y = (_RSQRT_MAGIC - (v.view(np.int32) >> np.int32(1))).view(np.float32)
    half = v * _HALF
    for _ in range(RSQRT_ITERATIONS - 1):
        y = y * (_THREE_HALVES - (half * y) * y)
    y = y + y * (_HALF - (half * y) * y)
    scaled: F32 = y * np.where(tiny, _TWO_12, _ONE)
    return scaled


def recip(x: ArrayLike) -> F32:
    """Return 1/x as rsqrt(x)^2, fp32, for x in [2^-126, max]; error <= 4.5 ulp (normal results)."""
    r = rsqrt(x)
    return r * r


def sigmoid(x: ArrayLike) -> F32:
    """Return 1/(1+e^-x) for any x but NaN, fp32; error <= 4.5 ulp for x >= -87.

    Below -88.72 the result stays at 2.9e-39, the reciprocal of the largest `exp`.
    """
    return recip(_ONE + exp(-np.asarray(x, np.float32)))


def tanh(x: ArrayLike) -> F32:
    """Return tanh(x) for any x but NaN, fp32, odd; error <= 2.5 ulp."""
    v = np.asarray(x, np.float32)
    a = np.minimum(np.abs(v), _f(32.0))  # saturated from 9.1 on
    z = a * a
    small = a + (a * z) * _horner32(np.minimum(z, _ONE), _TANH_POLY)
    large = _ONE - _TWO * recip(_ONE + exp(a * _TWO))
    return np.copysign(np.where(a < _TANH_SMALL, small, large), v)


def _gelu(x: ArrayLike, coefficients: Sequence[np.float32]) -> F32:
    v = np.asarray(x, np.float32)
    with np.errstate(over="ignore"):  # the square is clamped, and the tanh of infinity is 1
        bent = tanh(v * _horner32(np.minimum(v * v, GELU_MAX), coefficients))
    y: F32 = v * (bent * _HALF + _HALF)
    return y


def gelu(x: ArrayLike) -> F32:
    """Return x * (1 + erf(x / sqrt 2)) / 2, fp32; absolute error <= 1.5e-6."""
    return _gelu(x, GELU_POLY)


def gelu_tanh(x: ArrayLike) -> F32:
    """Return x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2, fp32; error <= 1e-6."""
    return _gelu(x, GELU_TANH_POLY)


def capped(x: ArrayLike, cap: float) -> F32:
    """Return fp32(cap) * tanh(x * fp32(1/cap)), fp32."""
    y: F32 = tanh(np.asarray(x, np.float32) * _f(1.0 / cap)) * _f(cap)
    return y


def lane_sum(v: ArrayLike) -> F32:
    """Sum the last axis in the hardware's order: [..., n] fp32 -> [...] fp32.

    Zero-padded to 320-lane vectors, which are added in order onto +0; then a tree over the lanes:
    upper half onto lower half, 320 -> 160 -> 80 -> 40 -> 20 -> 10 -> 5, and the last five as
    ((v0+v1)+(v2+v3))+v4. Trailing zeros (of either sign) never change the result.
    """
    x = np.asarray(v, np.float32)
    n = x.shape[-1]
    lanes = np.zeros((*x.shape[:-1], LANES), np.float32)
    for start in range(0, n, LANES):
        part = x[..., start : start + LANES]
        lanes[..., : part.shape[-1]] += part
    width = LANES
    while width > 5:
        width //= 2
        lanes = lanes[..., :width] + lanes[..., width:]
    low = (lanes[..., 0] + lanes[..., 1]) + (lanes[..., 2] + lanes[..., 3])
    total: F32 = low + lanes[..., 4]
    return total


def inverse_sqrt_scale(head_dim: int) -> np.float32:
    """Return fp32(1/sqrt(head_dim)), the softmax scale (IEEE double, rounded once)."""
    return _f(1.0 / math.sqrt(head_dim))


def inv_frequencies(theta: float, dim: int) -> F64:
    """Return theta^(-2i/dim) for i < dim/2: float64[dim/2], correctly rounded on any machine.

    Raises ValueError unless theta is positive and finite and dim is a positive even number.
    """
    if not (theta > 0 and math.isfinite(theta)):
        raise ValueError(f"rope_theta: wanted a positive finite number, got {theta!r}")
    if dim < 2 or dim % 2:
        raise ValueError(f"rope dimension: wanted a positive even number, got {dim}")
    with localcontext(Context(prec=50)):
        ln_theta = Decimal(theta).ln()
        powers = [float((ln_theta * -2 * i / dim).exp()) for i in range(dim // 2)]
    return np.array(powers, np.float64)


def llama3_scaled_inv_freq(
    inv_freq: F64,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> F64:
    """Stretch frequencies as Llama 3.1 does (`rope_type: llama3`): float64[n] -> float64[n].

    Wavelengths below original/high_freq_factor stay, those above original/low_freq_factor grow by
    `factor`, those between are interpolated. IEEE double operations only.
    Raises ValueError when high_freq_factor <= low_freq_factor or a factor is not positive.
    """
    if not (0 < low_freq_factor < high_freq_factor and factor > 0):
        raise ValueError(
            f"rope_scaling: wanted factor > 0 and 0 < low_freq_factor < high_freq_factor, got "
            f"{factor}, {low_freq_factor}, {high_freq_factor}"
        )
    scaled = []
    for freq in inv_freq.tolist():
        wavelength = 2 * math.pi / freq
        if wavelength < original_max_position_embeddings / high_freq_factor:
            scaled.append(freq)
        elif wavelength > original_max_position_embeddings / low_freq_factor:
            scaled.append(freq / factor)
        else:
            share = original_max_position_embeddings / wavelength - low_freq_factor
            smooth = share / (high_freq_factor - low_freq_factor)
            scaled.append((1 - smooth) * freq / factor + smooth * freq)
    return np.array(scaled, np.float64)


def yarn_inv_freq(
    inv_freq: F64,
    theta: float,
    factor: float,
    beta_fast: float,
    beta_slow: float,
    original_max_position_embeddings: int,
    *,
    truncate: bool,
) -> F64:
    """Stretch frequencies as YaRN does (`rope_type: yarn`): float64[n] -> float64[n].

    Dimensions that turn more than `beta_fast` times within the original length stay, those that
    turn fewer than `beta_slow` times are divided by `factor`, those between are interpolated;
    `truncate` rounds both edges outwards to whole dimensions. The logarithms are correctly rounded
    on any machine. Raises ValueError unless all numbers are positive and theta is more than 1.
    """
    if not (theta > 1 and min(factor, beta_fast, beta_slow, original_max_position_embeddings) > 0):
        raise ValueError(
            f"rope_scaling: wanted theta > 1 and positive numbers, got {theta}, {factor}, "
            f"{beta_fast}, {beta_slow}, {original_max_position_embeddings}"
        )
    n = len(inv_freq)
    with localcontext(Context(prec=50)):
        turns = [Decimal(original_max_position_embeddings) / (Decimal(beta) * 2 * _PI)
                 for beta in (beta_fast, beta_slow)]  # fmt: skip
        low, high = (float(n * turn.ln() / Decimal(theta).ln()) for turn in turns)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0.0), min(high, 2.0 * n - 1)
    if low == high:
        high += 0.001  # as in transformers
    ramp = np.clip((np.arange(n, dtype=np.float64) - low) / (high - low), 0.0, 1.0)
    stretched: F64 = inv_freq / factor * ramp + inv_freq * (1.0 - ramp)
    return stretched


def yarn_attention_factor(factor: float, scale: float) -> float:
    """Return what YaRN multiplies cosines and sines by: 0.1 scale ln(factor) + 1, or 1."""
    if factor <= 1:
        return 1.0
    with localcontext(Context(prec=50)):
        return float(Decimal("0.1") * Decimal(scale) * Decimal(factor).ln() + 1)


def _horner64(z: F64, coefficients: Sequence[float]) -> F64:
    total: F64 = np.full_like(z, coefficients[0])
    for c in coefficients[1:]:
        total = total * z + c
    return total


def sin_cos(angle: F32) -> tuple[F32, F32]:
    """Return (sin, cos) of fp32 angles; error <= 0.5 ulp up to `MAX_ANGLE`.

    Raises ValueError beyond it. Float64 inside (Cody-Waite, then Taylor), rounded once.
    """
    if angle.size and not float(np.abs(angle).max()) <= MAX_ANGLE:
        raise ValueError(f"angle: wanted at most {MAX_ANGLE:.0f} radians")
    a = angle.astype(np.float64)
    k = np.rint(a * _TWO_OVER_PI)
    r = (a - k * _PI_2_HI) - k * _PI_2_LO
    z = r * r
    sin = r + (r * z) * _horner64(z, _SIN_POLY)
    cos = 1.0 + z * _horner64(z, _COS_POLY)
    quadrant = k.astype(np.int64) & 3
    odd = (quadrant & 1).astype(bool)
    s, c = np.where(odd, cos, sin), np.where(odd, sin, cos)
    s = np.where(quadrant >= 2, -s, s)
    c = np.where((quadrant == 1) | (quadrant == 2), -c, c)
    return s.astype(np.float32), c.astype(np.float32)


def rope_tables(positions: ArrayLike, inv_freq: ArrayLike) -> F32:
    """Return rotary tables [R, 2, hd/2] fp32: cosines, then sines.

    positions: [R] integers; inv_freq: [hd/2] float64. As in Hugging Face, the angle is
    fp32(position) * fp32(inv_freq), rounded to fp32; the functions of that fp32 angle are correct
    to 0.5 ulp. Raises ValueError for a negative position or an angle beyond `MAX_ANGLE`.
    """
    where = np.asarray(positions)
    if where.size and int(where.min()) < 0:
        raise ValueError(f"position: wanted 0 or more, got {int(where.min())}")
    frequency = np.asarray(inv_freq, np.float64).astype(np.float32)
    angle = where.astype(np.float32)[:, None] * frequency[None, :]
    sin, cos = sin_cos(angle)
    return np.stack([cos, sin], axis=1)
