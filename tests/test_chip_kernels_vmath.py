"""The vector math: accuracy against float64, exact corner values, and bits that must not change."""

from __future__ import annotations

import hashlib
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chip.kernels import vmath

f32 = np.float32
MAX = f32(3.4028235e38)
MIN_NORMAL = 2.0**-126


def ulp_error(got: np.ndarray, want: np.ndarray) -> float:
    """Return the largest error in ulp of the fp32 result; ulp of 2^-126 below it."""
    grid = np.spacing(np.maximum(np.abs(want).astype(f32), f32(MIN_NORMAL))).astype(np.float64)
    return float((np.abs(got.astype(np.float64) - want) / grid).max())


def uniform(low: float, high: float, n: int = 200_000) -> np.ndarray:
    return np.random.default_rng(7).uniform(low, high, n).astype(f32)


def any_positive(low: float = 1e-45, n: int = 400_000) -> np.ndarray:
    """Floats with uniform bits: every exponent from that of `low` up."""
    bits = np.random.default_rng(8).integers(1, 0x7F7FFFFF, n, dtype=np.int32)
    x = bits.view(f32)
    return x[x >= low]


def test_exp_is_within_1_ulp():
    x = np.concatenate([uniform(-87.3, 88.72), uniform(-1, 1)])
    assert ulp_error(vmath.exp(x), np.exp(x.astype(np.float64))) <= 1.0


def test_exp_is_gradual_below_the_normal_range():
    x = uniform(-104, -87)
    error = np.abs(vmath.exp(x) - np.exp(x.astype(np.float64))) / 2.0**-149
    assert error.max() <= 1.0


def test_exp_corners():
    x = np.array([0, -0.0, -np.inf, -104.1, -1e30, -103, np.inf, 1e30, 88.8], f32)
    got = vmath.exp(x)
    assert got[:2].tolist() == [1.0, 1.0]
    assert got[2:5].tobytes() == bytes(12)  # exactly +0
    assert got[5] == f32(2.0**-149)
    assert np.isfinite(got).all()
    assert (got[6:] == got[6]).all()
    assert got[6] > 3.4027e38


def test_exp2_is_within_1_ulp_and_exact_for_integers():
    x = uniform(-126, 127.99)
    assert ulp_error(vmath.exp2(x), np.exp2(x.astype(np.float64))) <= 1.0
    whole = np.arange(-149, 128)
    assert (vmath.exp2(whole) == np.ldexp(f32(1), whole)).all()
    low, high = vmath.exp2(np.array([-np.inf, np.inf], f32))
    assert low == 0
    assert 3.4027e38 < high <= MAX


def test_rsqrt_is_within_2_ulp_also_for_subnormals():
    mantissas = np.arange(0x3F800000, 0x40800000, 64).astype("i4").view(f32)
    x = np.concatenate([any_positive(), mantissas])
    assert ulp_error(vmath.rsqrt(x), 1 / np.sqrt(x.astype(np.float64))) <= 2.0


def test_rsqrt_corners():
    zero, one, quarter, most = vmath.rsqrt(np.array([0, 1, 0.25, MAX], f32))
    assert 1e23 < zero < 2e23
    assert (one, quarter) == (1.0, 2.0)
    assert most == pytest.approx(2.0**-64, rel=1e-6)


def test_recip_is_within_4_5_ulp():
    x = any_positive(MIN_NORMAL)
    want = 1 / x.astype(np.float64)
    normal = want >= MIN_NORMAL
    got = vmath.recip(x)
    assert ulp_error(got[normal], want[normal]) <= 4.5
    assert (np.abs(got - want)[~normal] / 2.0**-149).max() <= 2.0


def test_sigmoid_is_within_4_5_ulp():
    x = np.concatenate([uniform(-87, 87), uniform(-8, 8)])
    assert ulp_error(vmath.sigmoid(x), 1 / (1 + np.exp(-x.astype(np.float64)))) <= 4.5


def test_sigmoid_is_quiet_and_bounded_everywhere():
    got = vmath.sigmoid(np.array([-np.inf, -MAX, -88.8, MAX, np.inf], f32))
    assert (got[:3] < 3e-39).all()
    assert (got[:3] > 0).all()
    assert got[3:].tolist() == [1.0, 1.0]


def erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf)(x)


def test_gelu_is_that_of_the_error_function():
    x = np.concatenate([uniform(-8, 8, 100_000), uniform(-0.01, 0.01, 20_000)])
    wide = x.astype(np.float64)
    error = np.abs(vmath.gelu(x) - wide * (1 + erf(wide / math.sqrt(2))) / 2)
    assert error.max() < 1.5e-6
    near = np.abs(x) < 0.01  # relative there
    assert (error[near] <= 1e-6 * np.abs(x[near])).all()


def test_gelu_by_tanh_is_that_approximation():
    x = uniform(-12, 12)
    wide = x.astype(np.float64)
    want = wide / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
    assert np.abs(vmath.gelu_tanh(x) - want).max() < 1e-6
    assert np.abs(vmath.gelu_tanh(x) - vmath.gelu(x)).max() > 1e-4  # another function


@pytest.mark.parametrize("gelu", [vmath.gelu, vmath.gelu_tanh])
def test_gelu_corners(gelu):
    got = gelu(np.array([0.0, -0.0, 20, -20, MAX, -MAX, 1e-45], f32))
    assert got[:2].tobytes() == np.array([0.0, -0.0], f32).tobytes()
    assert got[2:6].tolist() == [20.0, 0.0, MAX, 0.0]
    assert got[6] >= 0


def test_tanh_is_odd_and_within_2_5_ulp():
    tiny = f32(10) ** uniform(-37, 0)
    x = np.concatenate([uniform(-10, 10), uniform(-0.7, 0.7), tiny])
    got = vmath.tanh(x)
    assert ulp_error(got, np.tanh(x.astype(np.float64))) <= 2.5
    assert (vmath.tanh(-x) == -got).all()
    ends = vmath.tanh(np.array([-np.inf, -MAX, -0.0, 0.0, MAX, np.inf], f32))
    assert ends.tobytes() == np.array([-1, -1, -0.0, 0.0, 1, 1], f32).tobytes()


def slow_lane_sum(v: list[np.float32]) -> np.float32:
    lanes = [f32(0)] * 320
    for i, x in enumerate(v):
        lanes[i % 320] = lanes[i % 320] + x
    while len(lanes) > 5:
        half = len(lanes) // 2
        lanes = [lanes[i] + lanes[i + half] for i in range(half)]
    return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + lanes[4]


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 1300), zeros=st.integers(0, 700), seed=st.integers(0, 99))
def test_lane_sum_follows_the_hardware_order(n, zeros, seed):
    v = np.random.default_rng(seed).standard_normal((2, n)).astype(f32)
    v *= f32(10) ** np.arange(2, dtype=f32)[:, None]
    got = vmath.lane_sum(v)
    assert got.tolist() == [slow_lane_sum(list(row)) for row in v]
    padded = np.concatenate([v, np.full((2, zeros), -0.0, f32)], axis=1)
    assert vmath.lane_sum(padded).tobytes() == got.tobytes()


def test_lane_sum_of_nothing_and_of_minus_zero_is_plus_zero():
    got = vmath.lane_sum(np.full((1, 1), -0.0, f32))
    assert got.tobytes() == bytes(4)
    assert vmath.lane_sum(np.zeros((3, 0), f32)).tobytes() == bytes(12)


def test_sin_cos_are_correct_to_half_an_ulp_up_to_131072():
    for top in (1.0, 8192.0, 131072.0, 2.0**20):
        a = uniform(0, top)
        sin, cos = vmath.sin_cos(a)
        assert ulp_error(sin, np.sin(a.astype(np.float64))) <= 0.5001
        assert ulp_error(cos, np.cos(a.astype(np.float64))) <= 0.5001


def test_sin_cos_near_multiples_of_a_quarter_turn():
    """Where the reduction cancels: the fp32 angles closest to k * pi/2."""
    near = (np.arange(83000) * (math.pi / 2)).astype(f32)
    sin, cos = vmath.sin_cos(near)
    assert ulp_error(sin, np.sin(near.astype(np.float64))) <= 0.5001
    assert ulp_error(cos, np.cos(near.astype(np.float64))) <= 0.5001


def test_rope_tables_are_cosines_then_sines_of_fp32_angles():
    inv_freq = vmath.inv_frequencies(500000.0, 128)
    positions = np.array([0, 1, 17, 8191, 131071])
    got = vmath.rope_tables(positions, inv_freq)
    angle = (positions.astype(f32)[:, None] * inv_freq.astype(f32)).astype(np.float64)
    assert got.shape == (5, 2, 64)
    assert got.dtype == f32
    assert ulp_error(got[:, 0], np.cos(angle)) <= 0.5001
    assert ulp_error(got[:, 1], np.sin(angle)) <= 0.5001
    assert vmath.rope_tables([], inv_freq).shape == (0, 2, 64)


def test_rope_tables_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match=r"position: wanted 0 or more, got -1"):
        vmath.rope_tables([3, -1], [1.0])
    with pytest.raises(ValueError, match=r"angle: wanted at most 1048576 radians"):
        vmath.rope_tables([1 << 21], [1.0])


@pytest.mark.parametrize(("theta", "dim"), [(10000.0, 8), (10000.0, 128), (500000.0, 128)])
def test_inv_frequencies_match_the_power(theta, dim):
    want = theta ** -(np.arange(0, dim, 2) / dim)
    np.testing.assert_allclose(vmath.inv_frequencies(theta, dim), want, rtol=1e-15)


@pytest.mark.parametrize(
    ("theta", "dim", "text"),
    [
        (0.0, 8, "rope_theta: wanted a positive finite number, got 0.0"),
        (math.inf, 8, "rope_theta: wanted a positive finite number, got inf"),
        (1e4, 7, "rope dimension: wanted a positive even number, got 7"),
        (1e4, 0, "rope dimension: wanted a positive even number, got 0"),
    ],
)
def test_inv_frequencies_refuse(theta, dim, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        vmath.inv_frequencies(theta, dim)


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones():
    base = vmath.inv_frequencies(500000.0, 128)
    got = vmath.llama3_scaled_inv_freq(base, 8.0, 1.0, 4.0, 8192)
    wavelength = 2 * np.pi / base
    short, long = wavelength < 8192 / 4, wavelength > 8192
    assert (got[short] == base[short]).all()
    assert (got[long] == base[long] / 8).all()
    between = ~short & ~long
    assert between.any()
    smooth = (8192 / wavelength[between] - 1) / 3
    want = (1 - smooth) * base[between] / 8 + smooth * base[between]
    np.testing.assert_allclose(got[between], want, rtol=1e-15)


@pytest.mark.parametrize(("factor", "low", "high"), [(0, 1, 4), (8, 4, 4), (8, 0, 4)])
def test_llama3_scaling_refuses(factor, low, high):
    with pytest.raises(ValueError, match=r"rope_scaling: wanted factor > 0 and 0 < low_freq"):
        vmath.llama3_scaled_inv_freq(np.ones(2), factor, low, high, 8192)


def test_inverse_sqrt_scale():
    assert vmath.inverse_sqrt_scale(64) == f32(0.125)
    assert vmath.inverse_sqrt_scale(128).dtype == f32


def digest(*arrays: np.ndarray) -> str:
    sha = hashlib.sha256()
    for a in arrays:
        sha.update(np.ascontiguousarray(a).tobytes())
    return sha.hexdigest()[:16]


def known_inputs() -> dict[str, np.ndarray]:
    """Every 4099th float, made of integers alone."""
    everything = np.arange(0, 0x7F800000, 4099, dtype=np.int64).astype(np.int32).view(f32)
    both = np.concatenate([everything, -everything])
    lanes = (np.arange(1000, dtype=np.int64) * 2654435761 % 65521 - 32768).astype(f32) * f32(0.01)
    return {"both": both, "positive": everything, "lanes": lanes}


@pytest.mark.parametrize(
    ("name", "inputs", "want"),
    [
        ("exp", "both", "ee320b3b71b386ba"),
        ("exp2", "both", "42719c4b28bf7759"),
        ("rsqrt", "positive", "5d044633a5df9e23"),
        ("recip", "normal", "d0bce731df7fa256"),
        ("sigmoid", "both", "5ae3a9978849f0c2"),
        ("tanh", "both", "2263e7bafed391fe"),
        ("lane_sum", "lanes", "4692a075e78e5610"),
    ],
)
def test_known_bits(name, inputs, want):
    known = known_inputs()
    known["normal"] = known["positive"][known["positive"] >= MIN_NORMAL]
    assert digest(getattr(vmath, name)(known[inputs])) == want


def test_known_bits_of_rope():
    inv_freq = vmath.inv_frequencies(500000.0, 128)
    scaled = vmath.llama3_scaled_inv_freq(inv_freq, 8.0, 1.0, 4.0, 8192)
    tables = vmath.rope_tables(np.arange(0, 131072, 97), scaled)
    assert digest(inv_freq, scaled, tables) == "356a9f9887d3b101"
