"""RoPE, the KV cache and attention against slow scalar loops, bit for bit."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_reference import (
    even_kv_map,
    floats,
    same,
    slow_dot,
    slow_quantise,
    slow_softmax,
    strided,
)

from chip import kernels as kernels_package
from chip.kernels import Kernels, load, vmath
from chip.kernels.quant import round_f16

f32, f16, i8 = np.float32, np.float16, np.int8
quick = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
seeds = st.integers(0, 1000)


@pytest.fixture(params=kernels_package.NAMES)
def kernels(request) -> Kernels:
    return load(request.param)


class Attention:
    """A random step: caches full of garbage where the step may not look."""

    def __init__(self, rows: int, nq: int, nk: int, hd: int, tokens: int, seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.nq, self.nk, self.hd, self.tokens = nq, nk, hd, tokens
        self.kv_of = even_kv_map(nq, nk) if seed % 2 else rng.integers(0, nk, nq).tolist()
        self.positions = np.sort(rng.choice(tokens, rows, replace=False)).astype(np.int64)
        self.qkv = floats(rng, rows, (nq + 2 * nk) * hd, spread=1)
        inv_freq = vmath.inv_frequencies(10000.0, hd)
        self.rope = vmath.rope_tables(self.positions, inv_freq)
        seen = int(self.positions.max()) + 1
        self.k8 = [rng.integers(-128, 128, (tokens + 9, hd + 8)).astype(i8)[:, 4:-4]
                   for _ in range(2 * nk)]  # fmt: skip
        self.scale = [self.bad(rng.uniform(0, 0.05, tokens + 9), seen) for _ in range(2 * nk)]
        self.k16 = [self.bad(rng.standard_normal((tokens + 9, hd)), seen) for _ in range(2 * nk)]
        self.k16 = [a.astype(f16) for a in self.k16]

    @staticmethod
    def bad(a: np.ndarray, seen: int) -> np.ndarray:
        a = a.astype(f32)
        a[seen::2], a[seen + 1 :: 2] = np.nan, np.inf
        return a

    def cut(self, views: list[np.ndarray], bucket: int) -> tuple[list, list]:
        return [a[:bucket] for a in views[: self.nk]], [a[:bucket] for a in views[self.nk :]]

    def run_i8(self, kernels: Kernels, bucket: int, q: np.ndarray, sq: np.ndarray) -> tuple:
        k, v = self.cut(self.k8, bucket)
        ks, vs = self.cut(self.scale, bucket)
        out = strided(len(q), self.nq * self.hd, f16)
        n = kernels.attention_i8(q, sq, k, ks, v, vs, self.kv_of, self.positions, out)
        return out, n


attentions = st.builds(
    Attention, rows=st.integers(1, 3), nq=st.integers(1, 5), nk=st.integers(1, 3),
    hd=st.sampled_from([2, 8, 12, 64]), tokens=st.sampled_from([3, 40, 320, 321, 700]), seed=seeds,
)  # fmt: skip


@quick
@given(a=attentions, turns=st.booleans())
def test_rope_cache(kernels, a, turns):
    """With tables, or without, and nothing is rotated."""
    rows, nq, nk, hd = len(a.positions), a.nq, a.nk, a.hd
    heads, half = a.qkv.reshape(rows, -1, hd).copy(), hd // 2
    rope = a.rope if turns else np.empty((rows, 2, 0), f32)
    for r, head in np.ndindex(rows, nq + nk if turns else 0):
        x = heads[r, head].copy()
        for i in range(half):
            c, s = a.rope[r, 0, i], a.rope[r, 1, i]
            heads[r, head, i] = x[i] * c - x[i + half] * s
            heads[r, head, i + half] = x[i + half] * c + x[i] * s
    q, sq = strided(rows, nq * hd, i8).reshape(rows, nq, hd), np.empty((rows, nq), f32)
    before = [c.copy() for c in a.k8]
    caches = a.k8[:nk], a.scale[:nk], a.k8[nk:], a.scale[nk:]
    kernels.rope_cache_i8(a.qkv, rope, a.positions, q, sq, *caches)
    for r, p in enumerate(a.positions):
        for head in range(nq + 2 * nk):
            want, scale = slow_quantise(heads[r, head])
            if head < nq:
                assert q[r, head].tolist() == want
                assert sq[r, head] == scale * f32(1 / np.sqrt(hd))
            else:
                assert a.k8[head - nq][p].tolist() == want
                assert a.scale[head - nq][p] == scale
    others = np.setdiff1d(np.arange(len(before[0])), a.positions)
    assert all((new[others] == old[others]).all() for new, old in zip(a.k8, before, strict=True))
    q16 = np.empty((rows, nq, hd), f16)
    rounded, count = round_f16(heads)
    assert kernels.rope_cache_f16(a.qkv, rope, a.positions, q16, a.k16[:nk], a.k16[nk:]) == count
    assert same(q16, np.ascontiguousarray(rounded[:, :nq]))
    for head in range(2 * nk):
        assert same(a.k16[head][a.positions], np.ascontiguousarray(rounded[:, nq + head]))


def slow_attention_i8(a: Attention, q: np.ndarray, sq: np.ndarray) -> np.ndarray:
    want = np.empty((len(q), a.nq, a.hd), f32)
    for r, j in np.ndindex(len(q), a.nq):
        g, seen = a.kv_of[j], range(a.positions[r] + 1)
        k, v, ks, vs = a.k8[g], a.k8[a.nk + g], a.scale[g], a.scale[a.nk + g]
        dots = k[: len(seen)].astype(int) @ q[r, j].astype(int)
        p = slow_softmax([f32(dots[t]) * (sq[r, j] * ks[t]) for t in seen])
        pq, scale = slow_quantise(p * vs[: len(seen)])
        want[r, j] = (np.array(pq) @ v[: len(seen)].astype(int)).astype(f32) * scale
    return want.reshape(len(q), -1)


@quick
@given(a=attentions, ties=st.booleans())
def test_attention_i8(kernels, a, ties):
    rows = len(a.positions)
    q = a.rng.integers(-127, 128, (rows, a.nq, a.hd)).astype(i8)
    sq = a.rng.uniform(0, 0.01, (rows, a.nq)).astype(f32)
    if ties:  # huge scores a few ulp apart: the last bit of every product shows
        sq *= f32(1e6)
        seen = int(a.positions.max()) + 1
        for head in range(a.nk):
            a.k8[head][:seen] = a.k8[head][0]
            a.scale[head][:seen] = f32(0.02) + f32(2.0**-29) * a.rng.integers(0, 9, seen)
    rounded, saturated = round_f16(slow_attention_i8(a, q, sq))
    for bucket in (a.tokens, int(a.positions.max()) + 1, a.tokens + 9):
        out, count = a.run_i8(kernels, bucket, q, sq)
        assert same(out, rounded)
        assert count == saturated


def test_what_a_row_may_not_see_does_not_touch_it(kernels):
    """Garbage between two rows' positions: the later row reads it, the earlier must not."""
    a = Attention(2, 4, 2, 16, 400, 5)
    a.positions = np.array([30, 350])
    q = a.rng.integers(-127, 128, (2, 4, 16)).astype(i8)
    sq = np.full((2, 4), 1e-3, f32)
    want = round_f16(slow_attention_i8(a, q[:1], sq[:1]))[0]
    for scale in a.scale:
        scale[31:] = np.nan
    with np.errstate(invalid="ignore"):
        got = a.run_i8(kernels, 400, q, sq)[0]
    assert same(got[:1], want)


@quick
@given(a=attentions)
def test_attention_f16(kernels, a):
    rows = len(a.positions)
    q = a.rng.standard_normal((rows, a.nq, a.hd)).astype(f16)
    want = np.zeros((rows, a.nq, a.hd), f32)
    for r, j in np.ndindex(rows, a.nq):
        g, seen = a.kv_of[j], range(a.positions[r] + 1)
        k, v = a.k16[g], a.k16[a.nk + g]
        p = slow_softmax([slow_dot(q[r, j], k[t]) * f32(0.125) for t in seen]).astype(f16)
        for d in (0, a.hd - 1):
            want[r, j, d] = slow_dot(p, v[: len(seen), d])
    for bucket in (int(a.positions.max()) + 1, a.tokens, a.tokens + 9):
        out = strided(rows, a.nq * a.hd, f16)
        k, v = a.cut(a.k16, bucket)
        assert kernels.attention_f16(q, k, v, a.kv_of, a.positions, 0.125, out) == 0
        got = out.reshape(rows, a.nq, a.hd)
        for d in (0, a.hd - 1):
            assert same(got[:, :, d], want[:, :, d].astype(f16))


@pytest.mark.parametrize(
    ("hd", "one", "other"), [(10, 1, 8), (10, 2, 6), (12, 3, 4), (64, 0, 32), (64, 5, 8)]
)
def test_attention_f16_adds_scores_in_order(kernels, hd, one, other):
    """Two huge products cancel; what is left of the small ones depends on the order."""
    rng, tokens = np.random.default_rng(hd + one), 40
    q, k = rng.standard_normal((1, 1, hd)), rng.standard_normal((tokens, hd))
    q, k = (q * 2.0**-11).astype(f16), (k * 2.0**-11).astype(f16)
    q[0, 0, [one, other]], k[:, one], k[:, other] = 65504, 65504, -65504
    v = rng.standard_normal((tokens, hd)).astype(f16)
    scores = [slow_dot(q[0, 0], row) * f32(2.0**21) for row in k]
    p = slow_softmax(scores).astype(f16)
    want = np.array([slow_dot(p, v[:, d]) for d in range(hd)], f32).astype(f16)
    out = np.empty((1, hd), f16)
    kernels.attention_f16(q, [k], [v], [0], np.array([tokens - 1]), 2.0**21, out)
    assert same(out[0], want)


def by_slot(tokens: range, slots: int, values: np.ndarray, hidden: float) -> np.ndarray:
    """The values of tokens, in the slots of a ring that has them; `hidden` in the others."""
    out = np.full(min(tokens.stop, slots), hidden, f32)
    out[[t % slots for t in tokens]] = values
    return out


@pytest.mark.parametrize(
    ("slots", "window", "position"),
    [
        (320, 190, 700),  # one vector of tokens, around the end of the ring
        (320, 190, 1000),  # not around it
        (320, 190, 250),  # before the ring is full
        (960, 830, 5000),  # three vectors: the order of sums shows
        (960, 960, 2879),  # the last slot, and all of them
        (960, 1, 960),
    ],
)
def test_a_ring_sums_by_slots(kernels, slots, window, position):
    """Token t lies in slot t mod `slots`; what a row does not see counts nothing, wherever it is.

    The definition is written out over tokens, from caches that hold all of them.
    """
    rng, hd = np.random.default_rng(position), 12
    k, v = (rng.integers(-128, 128, (position + 1, hd)).astype(i8) for _ in range(2))
    ks, vs = (rng.uniform(0, 0.05, position + 1).astype(f32) for _ in range(2))
    tokens = range(max(0, position + 1 - window), position + 1)
    seen = slice(tokens.start, tokens.stop)

    def ring(a: np.ndarray, fill: float = 0) -> np.ndarray:
        out = np.full((slots, *a.shape[1:]), fill, a.dtype)
        for t in range(position + 1):
            out[t % slots] = a[t]
        return out

    q = rng.integers(-127, 128, (1, 1, hd)).astype(i8)
    sq = np.full((1, 1), 0.004, f32)
    dots = k[seen].astype(int) @ q[0, 0].astype(int)
    scores = [f32(dot) * (sq[0, 0] * scale) for dot, scale in zip(dots, ks[seen], strict=True)]
    p = slow_softmax(list(by_slot(tokens, slots, np.array(scores), -np.inf)))
    shares = p[[t % slots for t in tokens]] * vs[seen]
    pq, scale = slow_quantise(shares)
    want = round_f16((np.array(pq) @ v[seen].astype(int)).astype(f32) * scale)[0]
    out, at = np.empty((1, hd), f16), np.array([position])
    caches = [[ring(a, np.nan if a.dtype == f32 else 0)] for a in (k, ks, v, vs)]
    kernels.masked_attention_i8(q, sq, *caches, [0], at, window, True, None, None, out)
    assert same(out[0], want)

    q16, k16, v16 = ((a / f32(64)).astype(f16) for a in (q, k, v))
    scores = [slow_dot(q16[0, 0], k16[t]) * f32(0.5) for t in tokens]
    p = slow_softmax(list(by_slot(tokens, slots, np.array(scores), -np.inf))).astype(f16)
    values = ring(v16)[: len(p)]
    want = np.array([slow_dot(p, values[:, d]) for d in range(hd)], f32).astype(f16)
    kernels.masked_attention_f16(
        q16, [ring(k16, np.nan)], [ring(v16, np.nan)], [0], at, 0.5, window, True, None, None, out
    )
    assert same(out[0], want)


def test_the_rows_of_a_step_on_a_ring_see_what_they_see_alone(kernels):
    """Later rows of a step have written over what no row sees any more."""
    rng, slots, window, first = np.random.default_rng(3), 320, 193, 600
    rows = slots - window + 1
    k, v = (rng.standard_normal((first + rows, 8)).astype(f16) for _ in range(2))
    q, at = rng.standard_normal((rows, 2, 8)).astype(f16), np.arange(first, first + rows)
    together, alone = np.empty((2, rows, 16), f16)

    def attend(row: slice, written: int, out: np.ndarray) -> None:
        rings = [np.empty((slots, 8), f16) for _ in range(2)]
        for t in range(written):
            rings[0][t % slots], rings[1][t % slots] = k[t], v[t]
        kernels.masked_attention_f16(
            q[row], rings[:1], rings[1:], [0, 0], at[row], 0.3, window, True, None, None, out
        )

    attend(slice(None), first + rows, together)
    for row in range(rows):
        attend(slice(row, row + 1), first + row + 1, alone[row : row + 1])
    assert same(together, alone)


def test_rows_of_a_chunk_do_not_see_each_other(kernels):
    a = Attention(3, 4, 2, 16, 400, 5)
    q = a.rng.integers(-127, 128, (3, 4, 16)).astype(i8)
    sq = np.full((3, 4), 1e-3, f32)
    together = a.run_i8(kernels, 400, q, sq)[0]
    for r in range(3):
        b = Attention(3, 4, 2, 16, 400, 5)
        b.positions = b.positions[r : r + 1]
        assert same(together[r], b.run_i8(kernels, 400, q[r : r + 1], sq[r : r + 1])[0][0])


def step(**changes) -> list:
    """A small valid attention call; `changes` spoil it."""
    call = {"q": np.ones((1, 2, 8), f16), "k": [np.ones((4, 8), f16)], "v": [np.ones((4, 8), f16)]}
    call |= {"kv_of": [0, 0], "positions": np.array([3]), "scale": 1.0}
    return list((call | {"out": np.empty((1, 16), f16)} | changes).values())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"kv_of": [0]}, "attention: kv_of must map 2 query heads to 1 KV heads, got [0]"),
        ({"kv_of": [0, 1]}, "attention: kv_of must map 2 query heads to 1 KV heads, got [0, 1]"),
        ({"positions": np.array([4])}, "positions: wanted 1 in [0, 4), got [4]"),
        ({"positions": np.array([-1])}, "positions: wanted 1 in [0, 4), got [-1]"),
        ({"positions": np.array([1, 2])}, "positions: wanted 1 in [0, 4), got [1, 2]"),
        ({"out": np.empty((1, 15), f16)}, "output: wanted shape (1, 16), got (1, 15)"),
        ({"out": np.empty((1, 16))}, "output: wanted float32 or float16, got float64"),
        ({"q": np.ones((1, 2, 321), f16)}, "attention: wanted heads of at most 320, got 321"),
    ],
)
def test_attention_refuses(kernels, changes, text):
    assert kernels.attention_f16(*step()) == 0
    with pytest.raises(ValueError, match=re.escape(text)):
        kernels.attention_f16(*step(**changes))


def test_the_shortest_cache_bounds_the_positions(kernels):
    text = re.escape("positions: wanted 1 in [0, 3), got [3]")
    with pytest.raises(ValueError, match=text):
        kernels.attention_f16(*step(v=[np.ones((3, 8), f16)]))
    q, sq, out = np.ones((1, 1, 8), i8), np.ones((1, 1), f32), np.empty((1, 8), f16)
    qkv, rope, at = np.ones((1, 24), f32), np.ones((1, 2, 4), f32), np.array([3])
    for short in range(4):
        sizes = [3 if i == short else 5 for i in range(4)]
        caches = [[np.ones((n, 8), i8)] if i % 2 == 0 else [np.ones(n, f32)]
                  for i, n in enumerate(sizes)]  # fmt: skip
        with pytest.raises(ValueError, match=text):
            kernels.attention_i8(q, sq, *caches, [0], at, out)
        with pytest.raises(ValueError, match=text):
            kernels.rope_cache_i8(qkv, rope, at, q, sq, *caches)


def test_the_twin_attends_in_parts_as_at_once(monkeypatch):
    a = Attention(3, 4, 2, 16, 400, 5)
    q = a.rng.integers(-127, 128, (3, 4, 16)).astype(i8)
    sq = a.rng.uniform(0, 0.01, (3, 4)).astype(f32)
    whole = a.run_i8(load("numpy"), 400, q, sq)
    monkeypatch.setattr("chip.kernels.twin.SCORES_AT_ONCE", 800)  # two of a KV head's six
    parts = a.run_i8(load("numpy"), 400, q, sq)
    assert same(whole[0], parts[0])
    assert whole[1] == parts[1]


def test_attention_i8_refuses(kernels):
    q, sq, out = np.ones((1, 1, 1025), i8), np.ones((1, 1), f32), np.empty((1, 1025), f16)
    k, s = [np.ones((2, 1025), i8)], [np.ones(2, f32)]
    with pytest.raises(ValueError, match="head: wanted at most 1024, got 1025"):
        kernels.attention_i8(q, sq, k, s, k, s, [0], np.array([1]), out)


def test_rope_cache_refuses(kernels):
    q, cache = np.empty((1, 2, 8), f16), [np.empty((4, 8), f16)]
    qkv, rope = np.ones((1, 32), f32), np.ones((1, 2, 4), f32)
    text = "rope: wanted qkv (1, 32) and rope (1, 2, 4), got (1, 31), (1, 2, 4)"
    with pytest.raises(ValueError, match=re.escape(text)):
        kernels.rope_cache_f16(qkv[:, 1:], rope, np.array([0]), q, cache, cache)
    with pytest.raises(ValueError, match=re.escape("positions: wanted 1 in [0, 4), got [4]")):
        kernels.rope_cache_f16(qkv, rope, np.array([4]), q, cache, cache)


def test_even_kv_map():
    assert even_kv_map(8, 2) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert even_kv_map(3, 1) == [0, 0, 0]
