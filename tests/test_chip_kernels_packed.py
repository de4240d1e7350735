"""int4 weights: quantising by groups of K, packing two columns a byte."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chip.kernels import BEST, packed, quant, synthetic
from chip.kernels.packed import (
    groups_of,
    pack_weights,
    packed_vectors,
    quantize_groups,
    unpack,
    write_packed,
)
from chip.kernels.quant import MIN_ABSMAX
from chip.spec import INT4_GROUPS

f32, i8 = np.float32, np.int8
WAYS = [BEST, None] if BEST is not None else [None]
quick = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quick
@given(
    n=st.integers(1, 20), k=st.integers(1, 700), group=st.sampled_from(INT4_GROUPS),
    power=st.integers(-95, 120), seed=st.integers(0, 9),
)  # fmt: skip
def test_a_group_has_a_scale_of_its_own(monkeypatch, n, k, group, power, seed):
    w = np.random.default_rng(seed).standard_normal((n, k)).astype(f32) * f32(2.0**power)
    w[0] = 0
    found = []
    for best in WAYS:
        monkeypatch.setattr(quant, "BEST", best)
        found.append(quantize_groups(w, group))
    q, scales = found[0]
    assert all((q.tobytes(), scales.tobytes()) == (a.tobytes(), b.tobytes()) for a, b in found)
    assert scales.shape == (groups_of(k, group), n)
    assert not scales[:, 0].any()
    for i in range(n):
        for g in range(groups_of(k, group)):
            part = w[i, g * group : (g + 1) * group]
            a = np.abs(part).max(initial=f32(0))
            scale = a / f32(7) if a >= MIN_ABSMAX else f32(0)
            assert scales[g, i] == scale
            want = np.clip(np.rint(part / scale), -7, 7) if scale else 0 * part
            assert q[i, g * group : (g + 1) * group].tolist() == want.tolist()


def test_known_weights_of_four_bits():
    w = np.zeros((1, 64), f32)
    w[0, :5] = 14, -3, 1, -13.1, 5
    w[0, 32] = -0.7
    q, scales = quantize_groups(w, 32)
    assert q[0, :5].tolist() == [7, -2, 0, -7, 2]  # ties to even
    assert q[0, 32] == -7
    assert scales[:3, 0].tolist() == [2.0, float(f32(0.7) / f32(7)), 0.0]
    assert scales.shape == (10, 1)


def test_many_columns_are_quantised_a_few_at_a_time():
    w = np.random.default_rng(3).standard_normal((37, 1 << 16)).astype(f32)
    q, scales = quantize_groups(w, 320)
    rows = [quantize_groups(w[i : i + 1], 320) for i in range(37)]
    assert (q == np.concatenate([r[0] for r in rows])).all()
    assert (scales == np.concatenate([r[1] for r in rows], axis=1)).all()


def test_quantising_by_groups_refuses():
    with pytest.raises(ValueError, match=re.escape("wanted a matrix [N, K], got shape (4,)")):
        quantize_groups(np.zeros(4, f32), 64)
    w = np.ones((5, 400), f32)
    w[3, 399] = np.inf
    with pytest.raises(ValueError, match="weights: output column 3 is not finite"):
        quantize_groups(w, 64)


@pytest.mark.parametrize(
    ("n", "k", "i", "j"),
    [(1500, 650, 959, 321), (1500, 650, 960, 321), (1500, 650, 1389, 649), (5, 960, 4, 959)],
)
def test_two_columns_share_a_vector(n, k, i, j):
    q = np.zeros((n, k), i8)
    q[i, j] = -3
    kp = -(-k // 320) * 320
    block, tile = i // 640, j // 320
    vectors = packed_vectors(min(640, n - 640 * block))
    flat = pack_weights(q)
    assert flat.shape == (packed_vectors(n) * kp,)
    at = 320 * block * kp + (tile * vectors + i % 640 % vectors) * 320 + j % 320
    assert np.flatnonzero(flat).tolist() == [at]
    assert int(flat[at]) & 255 == (13 << 4 if i % 640 >= vectors else 13)


@quick
@given(
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=4), k=st.integers(1, 700),
    first=st.integers(0, 3), seed=st.integers(0, 9),
)  # fmt: skip
def test_columns_written_in_turns_are_unpacked_again(monkeypatch, cuts, k, first, seed):
    """Columns beside them, in the same bytes, stay."""
    rng = np.random.default_rng(seed)
    q = rng.integers(-7, 8, (sum(cuts), k)).astype(i8)
    tiles, vectors = -(-k // 320), packed_vectors(first + len(q)) + seed % 3
    before = rng.integers(-128, 128, (tiles, vectors, 320)).astype(i8)
    found = []
    for best in WAYS:
        monkeypatch.setattr(packed, "BEST", best)
        block, at = before.copy(), first
        for cut in cuts:
            write_packed(q[at - first : at - first + cut], block, at)
            at += cut
        found.append(block)
    assert all((block == found[0]).all() for block in found)
    columns = unpack(found[0], 2 * vectors)
    of_all = columns.transpose(1, 0, 2).reshape(2 * vectors, -1)
    assert (of_all[first:at, :k] == q).all()
    assert not of_all[first:at, k:].any()
    assert (np.delete(columns, np.s_[first:at], 1)
            == np.delete(unpack(before, 2 * vectors), np.s_[first:at], 1)).all()  # fmt: skip


@pytest.mark.parametrize("best", WAYS)
def test_only_four_bits_count_and_the_lowest_is_zero(monkeypatch, best):
    monkeypatch.setattr(packed, "BEST", best)
    block = np.zeros((1, 1, 320), i8)
    write_packed(np.array([[8, -8, 24, 23, -1, 120]], i8), block, 0)
    assert block[0, 0, :6].tolist() == [0, 0, 0, 7, 15, 0]


@pytest.mark.parametrize("best", WAYS)
@pytest.mark.parametrize(
    ("shape", "at"), [((2, 2, 320), 2), ((1, 9, 320), 0), ((2, 9, 320), -1), ((2, 9), 0)]
)
def test_a_packed_block_without_room_is_refused(monkeypatch, best, shape, at):
    monkeypatch.setattr(packed, "BEST", best)
    wanted = f"packed block: wanted 2 tiles of 320 with room for columns {at} to {at + 3}, got"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        write_packed(np.zeros((3, 321), i8), np.empty(shape, i8), at)


@pytest.mark.skipif(BEST is None, reason="native kernels are not built")
def test_native_packing_refuses_a_block_without_room():
    from chip.kernels import _native

    for block, at in ((np.zeros((1, 1, 320), i8), 0), (np.zeros((2, 1, 320), i8), 1)):
        shape = ", ".join(map(str, block.shape))
        wanted = f"packed block of shape ({shape}): no room for 2 columns of 321 lanes from column"
        with pytest.raises(ValueError, match=re.escape(wanted)):
            _native.write_packed(0, np.zeros((2, 321), i8), block, at)


def test_synthetic_weights_of_four_bits():
    """Any element from name, row and column alone; values and scales as of int8 ones."""
    q = synthetic.int4_rows(5, "w", 0, 500, 4096)
    values, counts = np.unique(q, return_counts=True)
    assert values.tolist() == list(range(-7, 8))
    assert np.allclose(counts / q.size, [1 / 16] * 7 + [2 / 16] + [1 / 16] * 7, atol=2e-3)
    assert (synthetic.int4_rows(5, "w", 30, 9, 4096) == q[30:39]).all()
    assert (synthetic.int4_rows(5, "w", 30, 9, 777) == q[30:39, :777]).all()
    scales = synthetic.int4_scales(5, "w", 0, 500, 4096, 64)
    assert scales.shape == (65, 500)
    assert (synthetic.int4_scales(5, "w", 30, 9, 4096, 64) == scales[:, 30:39]).all()
    assert len(np.unique(scales)) > 0.99 * scales.size
    whole = q * np.repeat(scales, 64, axis=0)[:4096].T
    assert abs(whole.std() * np.sqrt(4096) - 1) < 0.01
