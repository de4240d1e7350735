"""Every kernel against slow scalar loops, bit for bit; runs for each implementation there is."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_reference import check_quantised, floats, same, slow_dot, slow_mix, strided, up

from chip import kernels as kernels_package
from chip.kernels import Kernels, load, vmath
from chip.kernels.packed import pack_weights
from chip.kernels.quant import round_f16, tile_weights
from chip.ops.opcodes import Activation, Function
from chip.spec import INT4_GROUPS

f32, f16, i8 = np.float32, np.float16, np.int8
quick = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
seeds = st.integers(0, 1000)
widths = st.sampled_from([1, 16, 319, 320, 321, 650, 1500]) | st.integers(1, 700)


@pytest.fixture(params=kernels_package.NAMES)
def kernels(request) -> Kernels:
    return load(request.param)


@quick
@given(rows=st.integers(0, 3), h=widths, seed=seeds)
def test_norm(kernels, rows, h, seed):
    rng = np.random.default_rng(seed)
    x, gamma = floats(rng, rows, h), floats(rng, 1, h)[0]
    if rows:
        x[0] *= rng.integers(0, 2)  # sometimes a row of zeros
    q, s, y = strided(rows, up(h), i8), np.empty(rows, f32), strided(rows, up(h), f16)
    mean = vmath.lane_sum(x * x) * f32(1 / h)
    want = (x * vmath.rsqrt(mean + f32(1e-5))[:, None]) * gamma
    kernels.norm_i8(x, gamma, 1e-5, q, s)
    check_quantised(q, s, want)
    rounded, count = round_f16(want)
    assert kernels.norm_f16(x, gamma, 1e-5, y) == count
    assert same(y[:, :h], rounded)
    assert not y[:, h:].any()


@quick
@given(rows=st.integers(1, 3), parts=st.lists(st.integers(0, 200), max_size=4), seed=seeds)
def test_gather(kernels, rows, parts, seed):
    rng = np.random.default_rng(seed)
    segments = [floats(rng, rows, n, spread=1).astype(f16) for n in parts]
    whole = np.concatenate([np.zeros((rows, 0), f16), *segments], axis=1)
    kp = up(max(1, sum(parts)))
    q, s, y = strided(rows, kp, i8), np.empty(rows, f32), strided(rows, kp, f16)
    kernels.gather_i8(segments, q, s)
    check_quantised(q, s, whole.astype(f32))
    kernels.gather_f16(segments, y)
    assert same(y[:, : sum(parts)], whole)
    assert not y[:, sum(parts) :].any()
    x = floats(rng, rows, sum(parts))
    want = x + whole.astype(f32)
    kernels.add(x, segments)
    assert same(x, want)


@pytest.mark.parametrize("tiny", [0.0, 1e-38, 7.8e-31])
def test_quantising_almost_nothing_gives_zeros(kernels, tiny):
    q, s = np.ones((1, 320), i8), np.ones(1, f32)
    kernels.norm_i8(np.ones((1, 4), f32), np.full(4, tiny, f32), 0.0, q, s)
    assert not q.any()
    assert s.tobytes() == bytes(4)


@quick
@given(
    rows=st.integers(0, 4), n=widths, k=widths, half=st.booleans(),
    seed=seeds,
)  # fmt: skip
def test_matmul_i8_is_exact(kernels, rows, n, k, half, seed):
    rng = np.random.default_rng(seed)
    x = strided(rows, up(k), i8, 0)
    x[:, :k] = rng.choice([-127, 127, 0, 5], (rows, k)) if seed % 2 else rng.integers(-127, 128, k)
    w = rng.integers(-127, 128, (n, k)).astype(i8)
    w[0] = 127
    sx, sw = np.abs(floats(rng, rows, 1)[:, 0]), np.abs(floats(rng, n, 1)[:, 0])
    y = strided(rows, n, f16 if half else f32)
    saturated = kernels.matmul_i8(x, sx, tile_weights(w), sw, y)
    acc = x[:, :k].astype(np.int64) @ w.T.astype(np.int64)
    want = (acc.astype(np.int32).astype(f32) * sx[:, None]) * sw
    rounded, count = round_f16(want)
    assert same(y, rounded if half else want)
    assert saturated == (count if half else 0)


@quick
@given(
    rows=st.integers(0, 4), n=widths, k=widths, group=st.sampled_from(INT4_GROUPS),
    half=st.booleans(), seed=seeds,
)  # fmt: skip
def test_matmul_i4_scales_each_group_in_the_order_of_k(kernels, rows, n, k, group, half, seed):
    rng = np.random.default_rng(seed)
    x = strided(rows, up(k), i8, 0)
    x[:, :k] = rng.choice([-127, 127, 0, 5], (rows, k)) if seed % 2 else rng.integers(-127, 128, k)
    w = np.zeros((n, up(k)), i8)
    w[:, :k] = rng.integers(-7, 8, (n, k))
    w[0, :k] = 7
    groups = up(k) // group
    sx, sw = np.abs(floats(rng, rows, 1)[:, 0]), np.abs(floats(rng, groups, n))
    y = strided(rows, n, f16 if half else f32)
    saturated = kernels.matmul_i4(x, sx, pack_weights(w[:, :k]), sw, y)
    want = np.zeros((rows, n), f32)
    for g in range(groups):
        lanes = slice(g * group, (g + 1) * group)
        acc = x[:, lanes].astype(np.int64) @ w[:, lanes].T.astype(np.int64)
        want = want + acc.astype(np.int32).astype(f32) * sw[g]
    want = want * sx[:, None]
    rounded, count = round_f16(want)
    assert same(y, rounded if half else want)
    assert saturated == (count if half else 0)


def test_matmul_i8_at_its_largest_sums(kernels):
    k = 131072 // 320 * 320
    y = np.empty((1, 2), f32)
    w = np.full(2 * k, 127, i8)
    kernels.matmul_i8(np.full((1, k), -127, i8), np.ones(1, f32), w, np.ones(2, f32), y)
    assert y.tolist() == [[float(f32(-127 * 127 * k))] * 2]


@quick
@given(rows=st.integers(0, 2), n=st.integers(1, 5), k=widths, seed=seeds)
def test_matmul_f16_keeps_the_order(kernels, rows, n, k, seed):
    rng = np.random.default_rng(seed)
    x = strided(rows, up(k), f16, 0)
    x[:, :k] = round_f16(
        rng.standard_normal((rows, k)).astype(f32) * f32(2) ** rng.integers(-20, 14, k)
    )[0]
    w = round_f16(rng.standard_normal((n, k)).astype(f32) * f32(2) ** rng.integers(-20, 6, k))[0]
    want = np.array([[slow_dot(x[r, :k], w[c]) for c in range(n)] for r in range(rows)], f32)
    want = want.reshape(rows, n)
    y, y16 = strided(rows, n, f32), strided(rows, n, f16)
    assert kernels.matmul_f16(x, tile_weights(w), y) == 0
    assert same(y, want)
    rounded, count = round_f16(want)
    assert kernels.matmul_f16(x, tile_weights(w), y16) == count
    assert same(y16, rounded)


def test_matmul_f16_where_the_order_shows(kernels):
    """Huge products cancel; what is left of the small ones depends on the order."""
    rng = np.random.default_rng(4)
    x, w = (rng.standard_normal((n, 320)) * 2.0**-11 for n in (1, 60))
    x, w = x.astype(f16), w.astype(f16)
    for row in w:
        one, other = rng.choice(320, 2, replace=False)
        row[one], row[other] = 65504, -65504
    x[0, :] = np.where(np.abs(w).max(axis=0) > 1, 65504, x[0]).astype(f16)
    want = np.array([slow_dot(x[0], row) for row in w], f32)
    exact = (w.astype(np.longdouble) @ x[0].astype(np.longdouble)).astype(f32)
    assert (want != exact).any()
    y = np.empty((1, 60), f32)
    kernels.matmul_f16(x, tile_weights(w), y)
    assert same(y[0], want)


def test_matmul_f16_over_several_column_blocks(kernels):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 640)).astype(f16), rng.standard_normal((653, 640)).astype(f16)
    y = np.empty((2, 653), f32)
    kernels.matmul_f16(x, tile_weights(w), y)
    for c in (0, 319, 320, 639, 640, 652):
        assert y[1, c] == slow_dot(x[1], w[c])


def clamped(g, u):
    g, u = np.clip(g, None, f32(7)), np.clip(u, f32(-7), f32(7))
    return (g * vmath.sigmoid(g * f32(1.702))) * (u + f32(1))


GATES = {
    Activation.SILU: lambda gate, up: gate * vmath.sigmoid(gate) * up,
    Activation.GEGLU: lambda gate, up: vmath.gelu_tanh(gate) * up,
    Activation.CLAMPED_SILU: clamped,
}


@pytest.mark.parametrize("gate", Activation)
@quick
@given(rows=st.integers(0, 3), n=st.integers(1, 300), seed=seeds)
def test_gates(kernels, gate, rows, n, seed):
    gu = floats(np.random.default_rng(seed), rows, 2 * n)
    out = strided(rows, n, f16)
    want, count = round_f16(GATES[gate](gu[:, :n], gu[:, n:]))
    assert getattr(kernels, gate)(gu, out) == count
    assert same(out, want)


FUNCTIONS = {Function.GELU: vmath.gelu, Function.GELU_TANH: vmath.gelu_tanh}


@pytest.mark.parametrize("function", Function)
@quick
@given(rows=st.integers(0, 3), n=widths, seed=seeds)
def test_functions(kernels, function, rows, n, seed):
    x, out = floats(np.random.default_rng(seed), rows, n), strided(rows, n, f16)
    want, count = round_f16(FUNCTIONS[function](x))
    assert getattr(kernels, function)(x, out) == count
    assert same(out, want)


@quick
@given(rows=st.integers(0, 3), h=widths, seed=seeds)
def test_layer_norm(kernels, rows, h, seed):
    rng = np.random.default_rng(seed)
    x, (gamma, beta) = floats(rng, rows, h, spread=3), floats(rng, 2, h)
    if rows:
        x[0] = x[0, 0]  # a row without variance is beta
    per = f32(1 / h)
    d = x - (vmath.lane_sum(x) * per)[:, None]
    scale = vmath.rsqrt(vmath.lane_sum(d * d) * per + f32(1e-12))
    want = (d * scale[:, None]) * gamma + beta
    kernels.layer_norm(x, gamma, beta, 1e-12)
    assert same(x, want)
    q, s, y = strided(rows, up(h), i8), np.empty(rows, f32), strided(rows, up(h), f16)
    kernels.quantise_i8(x, q, s)
    check_quantised(q, s, want)
    rounded, count = round_f16(want)
    assert kernels.round_f16(x, y) == count
    assert same(y[:, :h], rounded)
    assert not y[:, h:].any()


def test_layer_norm_is_a_layer_norm(kernels):
    x = np.random.default_rng(4).normal(5, 3, (3, 700)).astype(f32)
    wide = x.astype(np.float64)
    kernels.layer_norm(x, np.full(700, 2, f32), np.full(700, 0.5, f32), 1e-5)
    centred = wide - wide.mean(axis=1, keepdims=True)
    want = centred / np.sqrt(wide.var(axis=1, keepdims=True) + 1e-5) * 2 + 0.5
    assert np.abs(x - want).max() < 1e-5


@quick
@given(rows=st.integers(0, 3), n=widths, half=st.booleans(), seed=seeds)
def test_biases(kernels, rows, n, half, seed):
    rng = np.random.default_rng(seed)
    x, bias = floats(rng, rows, n), floats(rng, 1, n)[0]
    want, (rounded, count) = x + bias, round_f16(x + bias)
    y = strided(rows, n, f16 if half else f32)
    assert kernels.add_bias(x, bias, y) == (count if half else 0)
    assert same(y, rounded if half else want)
    assert kernels.add_bias(x, bias, x) == 0
    assert same(x, want)


def test_silu_multiplies_in_order(kernels):
    """Enough elements for a different order to change some fp16 result."""
    gu = np.random.default_rng(1).standard_normal((8, 20000)).astype(f32)
    gate, up, out = gu[:, :10000], gu[:, 10000:], np.empty((8, 10000), f16)
    kernels.silu(gu, out)
    assert same(out, ((gate * vmath.sigmoid(gate)) * up).astype(f16))
    assert not same(out, (gate * (vmath.sigmoid(gate) * up)).astype(f16))


def test_overflowing_fp32_saturates_quietly(kernels):
    out = np.empty((1, 1), f16)
    assert kernels.silu(np.array([[1e30, -1e30]], f32), out) == 1
    assert out[0, 0] == -65504


@quick
@given(n=st.integers(1, 500), first=st.integers(0, 200_000), seed=seeds)
def test_logit_hash(kernels, n, first, seed):
    x = floats(np.random.default_rng(seed), n)
    mask, want = (1 << 64) - 1, 0
    for i, bits in enumerate(x.view(np.uint32).tolist()):
        want += slow_mix(((first + i) << 32) | bits)
    got = kernels.logit_hash(x, first)
    assert got == want & mask
    cut = n // 2
    parts = kernels.logit_hash(x[:cut], first) + kernels.logit_hash(x[cut:], first + cut)
    assert parts & mask == got


def test_logit_hash_tells_minus_zero(kernels):
    zeros = np.zeros(3, f32)
    assert kernels.logit_hash(zeros, 0) != kernels.logit_hash(-zeros, 0)
    assert kernels.logit_hash(zeros[::2], 4) == kernels.logit_hash(zeros[:2].copy(), 4)


@quick
@given(values=st.lists(st.integers(-3, 3), min_size=1, max_size=50), data=st.data())
def test_top_k_breaks_ties_by_lowest_id(kernels, values, data):
    k = data.draw(st.integers(1, len(values)))
    ids, best = kernels.top_k(np.array(values, f32), k)
    want = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    assert (ids.dtype, best.dtype) == (np.int64, f32)
    assert ids.tolist() == want
    assert best.tolist() == [values[i] for i in want]


def test_top_k_of_many_equal_logits(kernels):
    x = np.zeros(5000, f32)
    x[4000:] = -1
    x[77] = -0.0  # equal to +0
    assert kernels.top_k(x, 100)[0].tolist() == list(range(100))


def test_load(monkeypatch):
    monkeypatch.delenv(kernels_package.ENVIRONMENT, raising=False)
    assert load().name in kernels_package.NAMES
    monkeypatch.setenv(kernels_package.ENVIRONMENT, "abacus")
    with pytest.raises(ValueError, match=r"kernels: unknown implementation 'abacus'; wanted numpy"):
        load()
    assert load("numpy").name == "numpy"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda k: k.norm_f16(np.ones((1, 4), f32), np.ones(3, f32), 0.0, np.empty((1, 320), f16)),
         "norm: wanted 4 weights, got shape (3,)"),
        (lambda k: k.gather_f16([np.ones((1, 321), f16)], np.empty((1, 320), f16)),
         "padded output of 1 x 321: got shape (1, 320)"),
        (lambda k: k.gather_f16([np.ones((1, 3), f16)], np.empty((1, 310), f16)),
         "padded output of 1 x 3: got shape (1, 310)"),
        (lambda k: k.gather_f16([np.ones((2, 3), f16)], np.empty((1, 320), f16)),
         "segment: wanted 1 rows, got shape (2, 3)"),
        (lambda k: k.matmul_i8(np.ones((1, 320), i8), np.ones(1, f32), np.ones(320, i8),
                               np.ones(2, f32), np.empty((1, 2), f32)),
         "matmul: 2 columns of K = 320 want 640 weights"),
        (lambda k: k.matmul_f16(np.ones((1, 300), f16), np.ones(300, f16), np.empty((1, 1), f32)),
         "K a multiple of 320 up to 131072; got 300 weights"),
        (lambda k: k.add(np.ones((1, 4), f32), [np.ones((1, 3), f16)]),
         "add: wanted 4 columns, got 3"),
        (lambda k: k.silu(np.ones((1, 4), f32), np.empty((1, 3), f16)),
         "silu: wanted 6 columns, got 4"),
        (lambda k: k.gelu(np.ones((1, 4), f32), np.empty((1, 3), f16)),
         "gelu: wanted 3 columns, got 4"),
        (lambda k: k.add_bias(np.ones((1, 4), f32), np.ones(3, f32), np.empty((1, 4), f16)),
         "bias: wanted 4 values, got shape (3,)"),
        (lambda k: k.layer_norm(np.ones((1, 4), f32), np.ones(4, f32), np.ones(3, f32), 0.0),
         "norm: wanted 4 weights, got shape (3,)"),
        (lambda k: k.layer_norm(np.ones((1, 4), f32), np.ones(5, f32), np.ones(4, f32), 0.0),
         "norm: wanted 4 weights, got shape (5,)"),
        (lambda k: k.round_f16(np.ones((1, 321), f32), np.empty((1, 320), f16)),
         "padded output of 1 x 321: got shape (1, 320)"),
        (lambda k: k.top_k(np.ones(3, f32), 0), "top_k: wanted 1 <= k <= 3, got 0"),
        (lambda k: k.top_k(np.ones(3, f32), 4), "top_k: wanted 1 <= k <= 3, got 4"),
    ],
)  # fmt: skip
def test_wrong_shapes_are_refused(kernels, call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call(kernels)


def test_known_answers(kernels):
    """Bits of one pass through everything, so that a change of numerics is noticed."""
    rng = np.random.Generator(np.random.Philox(1))
    ints = rng.integers(-127, 128, (2, 640)).astype(i8)
    w = tile_weights(rng.integers(-127, 128, (330, 640)).astype(i8))
    sha = hashlib.sha256()
    y, q, s = np.empty((2, 330), f32), np.empty((2, 640), i8), np.empty(2, f32)
    kernels.matmul_i8(ints, np.full(2, 0.01, f32), w, np.full(330, 0.003, f32), y)
    gated, normed = np.empty((2, 165), f16), np.empty((2, 640), f16)
    kernels.silu(y, gated)
    kernels.norm_i8(y, y[0], 1e-6, q, s)
    kernels.norm_f16(y, y[1], 1e-6, normed)
    wide = np.empty((2, 330), f32)
    kernels.matmul_f16(normed, (w.astype(f16) * f16(0.25)), wide)
    for a in (y, gated, q, s, normed, wide):
        sha.update(a.tobytes())
    sha.update(str(kernels.logit_hash(wide[0], 7)).encode())
    assert sha.hexdigest()[:16] == "89aaf6b61ba62ee4"
