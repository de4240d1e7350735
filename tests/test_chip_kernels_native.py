"""Native kernels against the NumPy twin, bit for bit, for every instruction set that runs here.

The twin's own tests (test_chip_kernels_twin.py, _attention.py) run on the native code as well; here
are more shapes, extreme values, odd views.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_reference import same, strided, up
from native_kit import f16, f32, i8, odd, seeds, thorough, widths, wild, wild_half

from chip.kernels import INSTRUCTION_SETS, Kernels, load, quant
from chip.ops.opcodes import Activation, Function
from chip.spec import INT4_GROUPS

twin = load("numpy")


@pytest.fixture(params=INSTRUCTION_SETS)
def native(request) -> Kernels:
    return load(f"native {request.param}")


def both(name: str, native: Kernels, inputs: list, outputs: list[np.ndarray]) -> None:
    """Run a kernel of both on copies of the outputs; results and counts must be the same bits."""
    spare = [a.copy() for a in outputs]
    with np.errstate(all="ignore"):
        want = getattr(twin, name)(*inputs, *spare)
    got = getattr(native, name)(*inputs, *outputs)
    assert got == want
    for a, b in zip(outputs, spare, strict=True):
        assert same(a, b)


@thorough
@given(rows=st.integers(0, 5), h=widths, eps=st.sampled_from([0.0, 1e-5]), seed=seeds)
def test_norm(native, rows, h, eps, seed):
    rng = np.random.default_rng(seed)
    x, gamma = odd(wild(rng, rows, h)), wild(rng, h)
    if rows:
        x[rows // 2] = 0
    both("norm_i8", native, [x, gamma, eps], [strided(rows, up(h), i8), np.empty(rows, f32)])
    both("norm_f16", native, [x, gamma, eps], [strided(rows, up(h), f16)])


@thorough
@given(rows=st.integers(0, 4), parts=st.lists(st.integers(0, 400), max_size=5), seed=seeds)
def test_gather_and_add(native, rows, parts, seed):
    rng = np.random.default_rng(seed)
    segments = [odd(wild_half(rng, rows, n)) for n in parts]
    kp = up(max(1, sum(parts)))
    both("gather_i8", native, [segments], [strided(rows, kp, i8), np.empty(rows, f32)])
    both("gather_f16", native, [segments], [strided(rows, kp, f16)])
    x = odd(wild(rng, rows, sum(parts)))
    y = x.copy()
    native.add(x, segments)
    twin.add(y, segments)
    assert same(x, y)


@pytest.mark.parametrize("gate", Activation)
@thorough
@given(rows=st.integers(0, 3), n=widths, half=st.booleans(), seed=seeds)
def test_gates(native, gate, rows, n, half, seed):
    gu = odd(wild(np.random.default_rng(seed), rows, 2 * n))
    both(gate, native, [gu], [strided(rows, n, f16 if half else f32)])


@pytest.mark.parametrize("activation", Activation)
def test_gates_over_the_whole_range(native, activation):
    """Every exponent, both signs, and the places where exp and the reciprocal turn subnormal."""
    bits = np.arange(0, 0x7F800000, 1021, dtype=np.int64)
    gate = np.concatenate([bits, bits | 0x80000000]).astype(np.uint32).view(f32)
    gate = np.concatenate([gate, np.linspace(-110, 90, 100_000).astype(f32)])
    gu = np.concatenate([gate, np.full(len(gate), 1.0, f32)])[None]
    both(activation, native, [gu], [np.empty((1, len(gate)), f32)])
    gu[0, len(gate) :] = 2.0**-14
    both(activation, native, [gu], [np.empty((1, len(gate)), f16)])


@pytest.mark.parametrize("function", Function)
@thorough
@given(rows=st.integers(0, 3), n=widths, half=st.booleans(), seed=seeds)
def test_functions(native, function, rows, n, half, seed):
    x = odd(wild(np.random.default_rng(seed), rows, n))
    both(function, native, [x], [strided(rows, n, f16 if half else f32)])


@pytest.mark.parametrize("function", Function)
def test_functions_over_the_whole_range(native, function):
    bits = np.arange(0, 0x7F800000, 1021, dtype=np.int64)
    x = np.concatenate([bits, bits | 0x80000000]).astype(np.uint32).view(f32)[None]
    both(function, native, [x], [np.empty(x.shape, f32)])
    x = np.linspace(-6, 6, 200_000).astype(f32)[None]
    both(function, native, [x], [np.empty(x.shape, f32)])


@thorough
@given(rows=st.integers(0, 4), h=widths, eps=st.sampled_from([0.0, 1e-12]), seed=seeds)
def test_layer_norm_and_what_rounds_it(native, rows, h, eps, seed):
    rng = np.random.default_rng(seed)
    x, (gamma, beta) = odd(wild(rng, rows, h)), wild(rng, 2, h)
    if rows:
        x[rows // 2] = 3
    y = x.copy()
    native.layer_norm(x, gamma, beta, eps)
    twin.layer_norm(y, gamma, beta, eps)
    assert same(x, y)
    both("quantise_i8", native, [x], [strided(rows, up(h), i8), np.empty(rows, f32)])
    both("round_f16", native, [x], [strided(rows, up(h), f16)])
    for half in (f16, f32):
        both("add_bias", native, [x, beta], [strided(rows, h, half)])


@thorough
@given(
    rows=st.integers(0, 7) | st.sampled_from([15, 16, 17, 21, 130]),
    n=st.integers(1, 9) | st.sampled_from([319, 320, 321, 645]),
    tiles=st.integers(1, 9), kind=st.sampled_from(["any", "largest", "signs"]),
    half=st.booleans(), seed=seeds,
)  # fmt: skip
def test_matmul_i8(native, rows, n, tiles, kind, half, seed):
    rng, kp = np.random.default_rng(seed), 320 * tiles
    values = {"any": np.arange(-127, 128), "largest": [127], "signs": [-127, 127, -1, 0]}[kind]
    x, w = rng.choice(values, (rows, kp)).astype(i8), rng.choice(values, n * kp).astype(i8)
    sx, sw = np.abs(wild(rng, rows)), np.abs(wild(rng, n))
    both("matmul_i8", native, [odd(x), sx, w, sw], [strided(rows, n, f16 if half else f32)])


@thorough
@given(
    rows=st.integers(0, 5) | st.sampled_from([8, 9, 10, 11, 16, 130]),
    n=st.integers(1, 35) | st.sampled_from([319, 640, 641, 1285]), tiles=st.integers(1, 5),
    group=st.sampled_from(INT4_GROUPS), kind=st.sampled_from(["any", "largest", "signs"]),
    half=st.booleans(), seed=seeds,
)  # fmt: skip
def test_matmul_i4(native, rows, n, tiles, group, kind, half, seed):
    rng, kp = np.random.default_rng(seed), 320 * tiles
    values = {"any": np.arange(-127, 128), "largest": [127], "signs": [-127, 127, -1, 0]}[kind]
    x, w = rng.choice(values, (rows, kp)).astype(i8), rng.integers(-128, 128, (n + 1) // 2 * kp)
    sx, sw = np.abs(wild(rng, rows)), np.abs(wild(rng, kp // group, n))
    arguments = [odd(x), sx, w.astype(i8), odd(sw)]
    both("matmul_i4", native, arguments, [strided(rows, n, f16 if half else f32)])


@thorough
@given(
    rows=st.integers(0, 3) | st.sampled_from([16, 19]), n=st.integers(1, 5) | st.just(323),
    tiles=st.integers(1, 3), half=st.booleans(), top=st.sampled_from([0x3FF, 0x4400, 0x7BFF]),
    seed=seeds,
)  # fmt: skip
def test_matmul_f16(native, rows, n, tiles, half, top, seed):
    rng = np.random.default_rng(seed)
    x, w = wild_half(rng, rows, 320 * tiles, top=top), wild_half(rng, n * 320 * tiles, top=top)
    both("matmul_f16", native, [odd(x), w], [strided(rows, n, f16 if half else f32)])


def test_rounding_to_half_of_every_kind_of_value(native):
    """All fp16 values and the ties between them, and what saturates."""
    exact = np.arange(0x7C00, dtype=np.uint16).view(f16).astype(f32)
    ties = (exact[:-1] + exact[1:]) / f32(2)
    near = np.concatenate([np.nextafter(ties, f32(0)), np.nextafter(ties, f32(1e9))])
    large = np.array([65519.996, 65520, 1e5, 3e38, 65504.004], f32)
    x = np.concatenate([exact, ties, near, large])
    for values in (x, -x):
        out = np.empty((1, len(x)), f16)
        rounded, count = quant.round_f16(values)
        ones = np.ones((1, 2, 1), f32)
        ones[:, 1] = 0  # cosine 1, sine 0: rotating moves nothing
        heads = np.zeros((1, (len(x) + 2) * 2), f32)
        heads[0, : 2 * len(x) : 2] = values
        cache = [np.empty((1, 2), f16)]
        q = np.empty((1, len(x), 2), f16)
        at = np.zeros(1, np.int64)
        assert native.rope_cache_f16(heads, ones, at, q, cache, cache) == count
        out[0] = q[0, :, 0]
        assert same(out[0] + f16(0), rounded + f16(0))


class Step:
    """A random attention step; what a row may not see is NaN or any byte."""

    def __init__(self, rows: int, n_q: int, n_kv: int, hd: int, tokens: int, seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.positions = np.sort(rng.choice(tokens, min(rows, tokens), replace=False))
        self.rows, self.n_q, self.n_kv, self.hd, self.tokens = (
            len(self.positions),
            n_q,
            n_kv,
            hd,
            tokens,
        )
        self.kv_of = rng.integers(0, n_kv, n_q).tolist()
        seen = int(self.positions.max()) + 1
        self.i8 = [odd(rng.integers(-128, 128, (tokens, hd)).astype(i8)) for _ in range(2 * n_kv)]
        self.scales = [rng.uniform(0, 0.02, tokens).astype(f32) for _ in range(2 * n_kv)]
        self.f16 = [odd(rng.standard_normal((tokens, hd)).astype(f16)) for _ in range(2 * n_kv)]
        for a in (*self.scales, *self.f16):
            a[seen:] = rng.choice([np.nan, np.inf, -np.inf, 6e4], a[seen:].shape)

    def split(self, caches: list) -> tuple[list, list]:
        return caches[: self.n_kv], caches[self.n_kv :]


steps = st.builds(
    Step, rows=st.integers(1, 5), n_q=st.integers(1, 5), n_kv=st.integers(1, 3),
    hd=st.sampled_from([2, 8, 30, 32, 48, 64, 100, 128]),
    tokens=st.sampled_from([1, 3, 4, 17, 319, 320, 321, 700]), seed=seeds,
)  # fmt: skip


@thorough
@given(a=steps, sharp=st.sampled_from([1e-4, 1e-2, 10.0, 1e20]))
def test_attention_i8(native, a, sharp):
    q = odd(a.rng.integers(-127, 128, (a.rows, a.n_q, a.hd)).astype(i8))
    sq = odd((a.rng.random((a.rows, a.n_q)) * sharp).astype(f32))
    (k, v), (ks, vs) = a.split(a.i8), a.split(a.scales)
    inputs = [q, sq, k, ks, v, vs, a.kv_of, a.positions]
    both("attention_i8", native, inputs, [strided(a.rows, a.n_q * a.hd, f16)])


@thorough
@given(a=steps, scale=st.sampled_from([0.0, 0.125, 30.0]))
def test_attention_f16(native, a, scale):
    q = odd(a.rng.standard_normal((a.rows, a.n_q, a.hd)).astype(f16))
    inputs = [q, *a.split(a.f16), a.kv_of, a.positions, scale]
    both("attention_f16", native, inputs, [strided(a.rows, a.n_q * a.hd, f16)])


def test_attention_over_the_largest_head_and_many_tokens(native):
    a = Step(2, 3, 1, 1024, 9000, 1)
    q = a.rng.integers(-127, 128, (a.rows, a.n_q, a.hd)).astype(i8)
    sq = np.full((a.rows, a.n_q), 1e-4, f32)
    (k, v), (ks, vs) = a.split(a.i8), a.split(a.scales)
    inputs = [q, sq, k, ks, v, vs, a.kv_of, a.positions]
    both("attention_i8", native, inputs, [np.empty((a.rows, a.n_q * a.hd), f16)])


@thorough
@given(a=steps, half=st.booleans())
def test_rope_cache(native, a, half):
    qkv = odd(wild(a.rng, a.rows, (a.n_q + 2 * a.n_kv) * a.hd))
    rope = odd(a.rng.uniform(-1, 1, (a.rows, 2, a.hd // 2)).astype(f32))
    caches, scales = (a.f16, []) if half else (a.i8, a.scales)
    old = [c.copy() for c in caches], [s.copy() for s in scales]
    results = []
    for kernels, (held, held_scales) in ((native, (caches, scales)), (twin, old)):
        (k, v), (ks, vs) = a.split(held), a.split(held_scales)
        q, sq = strided(a.rows, a.n_q * a.hd, f16 if half else i8), strided(a.rows, a.n_q, f32)
        q = odd(q.reshape(a.rows, a.n_q, a.hd))
        if half:
            count = kernels.rope_cache_f16(qkv, rope, a.positions, q, k, v)
        else:
            count = kernels.rope_cache_i8(qkv, rope, a.positions, q, sq, k, ks, v, vs)
        results.append(
            (count, q.tobytes(), sq.tobytes(), *(c.tobytes() for c in held + held_scales))
        )
    assert results[0] == results[1]


@thorough
@given(n=st.integers(0, 300), step=st.integers(1, 3), first=st.integers(0, 1 << 31), seed=seeds)
def test_logit_hash(native, n, step, first, seed):
    x = wild(np.random.default_rng(seed), n)[::step]
    assert native.logit_hash(x, first) == twin.logit_hash(x, first)


masks = st.fixed_dictionaries({
    "window": st.sampled_from([None, 1, 5, 300, 320, 321, 1000]),
    "cap": st.sampled_from([None, 0.5, 50.0]),
    "sinks": st.sampled_from([None, -30.0, 2.0, 1e4]),
})  # fmt: skip


def mask_of(a: Step, mask: dict) -> list:
    """Window, ring, cap and sinks, as the kernels take them."""
    sinks = None if mask["sinks"] is None else (a.rng.random(a.n_q) * mask["sinks"]).astype(f32)
    return [mask["window"], mask.get("ring", False), mask["cap"], sinks]


class RingStep(Step):
    """A random step on a ring of so many slots, of which a row's window is at most a part."""

    def __init__(self, rows: int, n_q: int, n_kv: int, hd: int, slots: int, seed: int) -> None:
        super().__init__(min(rows, slots), n_q, n_kv, hd, slots, seed)
        first = int(self.rng.integers(0, 4 * slots))
        self.positions = np.arange(first, first + self.rows)
        written = min(first + self.rows, slots)
        self.window = int(self.rng.integers(1, slots - self.rows + 2))
        for a in (*self.scales, *self.f16):
            a[:written] = self.rng.uniform(0, 0.02, a[:written].shape)
            a[written:] = np.nan


rings = st.builds(
    RingStep, rows=st.integers(1, 5), n_q=st.integers(1, 5), n_kv=st.integers(1, 3),
    hd=st.sampled_from([2, 30, 64]), slots=st.sampled_from([3, 16, 40, 320, 640, 960]), seed=seeds,
)  # fmt: skip


@thorough
@given(a=steps, mask=masks, sharp=st.sampled_from([1e-4, 1e-2, 10.0]))
def test_masked_attention_i8(native, a, mask, sharp):
    q = odd(a.rng.integers(-127, 128, (a.rows, a.n_q, a.hd)).astype(i8))
    sq = odd((a.rng.random((a.rows, a.n_q)) * sharp).astype(f32))
    (k, v), (ks, vs) = a.split(a.i8), a.split(a.scales)
    inputs = [q, sq, k, ks, v, vs, a.kv_of, a.positions, *mask_of(a, mask)]
    both("masked_attention_i8", native, inputs, [strided(a.rows, a.n_q * a.hd, f16)])


@thorough
@given(a=rings, mask=masks, sharp=st.sampled_from([1e-4, 1e-2, 10.0]))
def test_attention_i8_over_a_ring(native, a, mask, sharp):
    q = odd(a.rng.integers(-127, 128, (a.rows, a.n_q, a.hd)).astype(i8))
    sq = odd((a.rng.random((a.rows, a.n_q)) * sharp).astype(f32))
    (k, v), (ks, vs) = a.split(a.i8), a.split(a.scales)
    mask |= {"window": a.window, "ring": True}
    inputs = [q, sq, k, ks, v, vs, a.kv_of, a.positions, *mask_of(a, mask)]
    both("masked_attention_i8", native, inputs, [strided(a.rows, a.n_q * a.hd, f16)])


@thorough
@given(a=rings, mask=masks, scale=st.sampled_from([0.0, 0.125, 30.0]))
def test_attention_f16_over_a_ring(native, a, mask, scale):
    q = odd(a.rng.standard_normal((a.rows, a.n_q, a.hd)).astype(f16))
    mask |= {"window": a.window, "ring": True}
    inputs = [q, *a.split(a.f16), a.kv_of, a.positions, scale, *mask_of(a, mask)]
    both("masked_attention_f16", native, inputs, [strided(a.rows, a.n_q * a.hd, f16)])


@thorough
@given(a=steps, mask=masks, scale=st.sampled_from([0.0, 0.125, 30.0]))
def test_masked_attention_f16(native, a, mask, scale):
    q = odd(a.rng.standard_normal((a.rows, a.n_q, a.hd)).astype(f16))
    inputs = [q, *a.split(a.f16), a.kv_of, a.positions, scale, *mask_of(a, mask)]
    both("masked_attention_f16", native, inputs, [strided(a.rows, a.n_q * a.hd, f16)])


@thorough
@given(rows=st.integers(0, 4), heads=st.integers(1, 5), hd=widths, seed=seeds)
def test_head_norm(native, rows, heads, hd, seed):
    rng = np.random.default_rng(seed)
    x, gamma = odd(wild(rng, rows, heads * hd)), wild(rng, hd)
    both("head_norm", native, [x, gamma, 1e-6], [strided(rows, heads * hd, f32)])


@thorough
@given(rows=st.integers(0, 4), parts=st.lists(widths, min_size=1, max_size=4), seed=seeds)
def test_add_norm_and_cap(native, rows, parts, seed):
    rng = np.random.default_rng(seed)
    segments, gamma = [odd(wild_half(rng, rows, n)) for n in parts], wild(rng, sum(parts))
    x = odd(wild(rng, rows, sum(parts)))
    y = x.copy()
    native.add_norm(x, segments, gamma, 1e-5)
    twin.add_norm(y, segments, gamma, 1e-5)
    assert same(x, y)
    native.cap(x, 30.0)
    twin.cap(y, 30.0)
    assert same(x, y)
    assert np.abs(x).max(initial=0) <= 30


@thorough
@given(rows=st.integers(0, 4), experts=st.integers(1, 130), data=st.data(), seed=seeds)
def test_route(native, rows, experts, data, seed):
    """Few different values, so that there are ties."""
    rng, chosen = np.random.default_rng(seed), data.draw(st.integers(1, experts))
    x = odd(rng.choice(wild(rng, 7, largest=80.0), (rows, experts)).astype(f32))
    outputs = [strided(rows, chosen, np.int32), strided(rows, chosen, f32)]
    e, g = (a.copy() for a in outputs)
    for after in (False, True):
        twin.route(x, e, g, after)
        native.route(x, *outputs, after)
        assert same(outputs[0], e)
        assert same(outputs[1], g)
        for row in range(rows):
            wanted = sorted(range(experts), key=lambda i, row=row: (-x[row, i], i))[:chosen]
            assert e[row].tolist() == sorted(wanted)
            assert abs(float(g[row].sum()) - 1) < 1e-4


@thorough
@given(rows=st.integers(0, 4), parts=st.integers(1, 5), n=widths, half=st.booleans(), seed=seeds)
def test_weighted_sum(native, rows, parts, n, half, seed):
    rng = np.random.default_rng(seed)
    y, g = wild(rng, rows, parts, n), odd(rng.random((rows, parts)).astype(f32))
    both("weighted_sum", native, [y, g], [strided(rows, n, f16 if half else f32)])


@thorough
@given(a=steps, scale=st.sampled_from([1 / 12, 0.25]))
def test_scaled_rope_cache(native, a, scale):
    """Queries of another scale; all else is as without."""
    qkv = odd(wild(a.rng, a.rows, (a.n_q + 2 * a.n_kv) * a.hd))
    rope = odd(a.rng.uniform(-1, 1, (a.rows, 2, a.hd // 2)).astype(f32))
    (k, v), (ks, vs) = a.split(a.i8), a.split(a.scales)
    found = []
    for kernels in (native, twin):
        q, sq = np.empty((a.rows, a.n_q, a.hd), i8), np.empty((a.rows, a.n_q), f32)
        kernels.scaled_rope_cache_i8(qkv, rope, a.positions, q, sq, k, ks, v, vs, scale)
        found.append((q, sq))
    assert same(found[0][1], found[1][1])
    plain = np.empty_like(sq)
    twin.rope_cache_i8(qkv, rope, a.positions, q, plain, k, ks, v, vs)
    assert same(found[0][0], q)
    assert np.allclose(sq, plain * (scale * np.sqrt(a.hd)), rtol=1e-6)


REFUSED = [
    ("head_norm", [np.ones((1, 7), f32), np.ones(2, f32), 0.1, np.ones((1, 7), f32)],
     "head_norm: wanted heads of 2, got 7 columns"),
    ("add_norm", [np.ones((1, 4), f32), [np.ones((1, 3), f16)], np.ones(4, f32), 0.1],
     "add_norm: wanted 4 columns, got 3"),
    ("matmul_i4", [np.zeros((1, 320), i8), np.ones(1, f32), np.zeros(320, i8),
                   np.ones((4, 2), f32), np.ones((1, 2), f32)],
     "matmul: 2 columns of K = 320 with 4 scales each want 320 bytes of weights, K a multiple of "
     "320 up to 131072, and a scale for 320, 160, 64 or 32 rows of it; got 320 bytes"),
    ("matmul_i4", [np.zeros((1, 640), i8), np.ones(1, f32), np.zeros(640, i8),
                   np.ones((2, 3), f32), np.ones((1, 3), f32)],
     "3 columns of K = 640 with 2 scales each want 1280 bytes of weights"),
    ("cap", [np.ones((1, 4), f32), 0.0], "cap: wanted more than 0, got 0.0"),
    ("route", [np.ones((1, 2), f32), np.ones((1, 3), np.int32), np.ones((1, 3), f32), False],
     "route: wanted at most 2 experts for 1 rows, got (1, 3), (1, 3)"),
    ("weighted_sum", [np.ones((1, 2, 4), f32), np.ones((1, 3), f32), np.ones((1, 4), f32)],
     "expert weights: wanted shape (1, 2), got (1, 3)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "message"), REFUSED)
def test_wrong_arguments_are_refused_alike(native, name, arguments, message):
    for kernels in (native, twin):
        with pytest.raises(ValueError, match=re.escape(message)):
            getattr(kernels, name)(*arguments)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([0, False, None, None], "attention: wanted a window of 1 or more, got 0"),
        ([2, True, None, None], "a window of at most the ring's 1 slots, got 2"),
        ([None, True, None, None], "a window of at most the ring's 1 slots, got None"),
        ([None, False, -1.0, None], "attention: wanted a cap of more than 0, got -1.0"),
        ([None, False, None, np.ones(2, f32)], "attention: wanted 1 sinks, got shape (2,)"),
    ],
)
def test_wrong_masks_are_refused_alike(native, mask, message):
    cache = [np.zeros((1, 2), f16)]
    call = [np.zeros((1, 1, 2), f16), cache, cache, [0], np.zeros(1, np.int64), 1.0, *mask]
    for kernels in (native, twin):
        with pytest.raises(ValueError, match=re.escape(message)):
            kernels.masked_attention_f16(*call, np.empty((1, 2), f16))
