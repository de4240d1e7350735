"""Synthetic weights: the same element however it is asked for; bits that must not change."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_reference import slow_mix

from chip.kernels import synthetic

NAME = "model.layers.3.mlp.down_proj.weight"


def slow_element(seed: int, name: str, row: int, column: int) -> int:
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little")
    z = (key + ((row << 32) | (column // 8)) * 0x9E3779B97F4A7C15) % 2**64
    byte = (slow_mix(z) >> 8 * (column % 8)) & 255
    return 0 if byte == 128 else byte - 256 * (byte > 128)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1 << 40),
    first=st.integers(0, 200_000),
    rows=st.integers(1, 5),
    k=st.integers(1, 40),
)
def test_every_element_follows_from_its_own_place(seed, first, rows, k):
    got = synthetic.int8_rows(seed, NAME, first, rows, k)
    want = [[slow_element(seed, NAME, first + i, j) for j in range(k)] for i in range(rows)]
    assert got.dtype == np.int8
    assert got.tolist() == want


@pytest.mark.parametrize("k", [1, 8, 4096, 4099, 200_003])
def test_a_slice_equals_the_whole(k):
    whole = synthetic.int8_rows(1, NAME, 0, 9, k)
    assert (synthetic.int8_rows(1, NAME, 4, 3, k) == whole[4:7]).all()
    assert (synthetic.int8_rows(1, NAME, 0, 9, max(1, k // 2)) == whole[:, : max(1, k // 2)]).all()
    scales = synthetic.scales(1, NAME, 0, 9, k)
    assert (synthetic.scales(1, NAME, 4, 3, k) == scales[4:7]).all()
    part = synthetic.f32_rows(1, NAME, 4, 3, k)
    assert (part == whole[4:7].astype(np.float32) * scales[4:7, None]).all()


def test_far_elements_do_not_wrap_onto_near_ones():
    assert synthetic.int8_rows(0, NAME, (1 << 32) - 1, 1, 16)[0, 9] == slow_element(
        0, NAME, (1 << 32) - 1, 9
    )


def test_distribution():
    q = synthetic.int8_rows(5, NAME, 0, 500, 4096)
    counts = np.bincount(q.reshape(-1).astype(int) + 128, minlength=256)
    assert counts[0] == 0  # never -128
    expected = q.size / 256
    others = np.delete(counts[1:], 127)
    assert abs(counts[128] - 2 * expected) < 6 * math.sqrt(2 * expected)
    assert np.abs(others - expected).max() < 6 * math.sqrt(expected)
    w = synthetic.f32_rows(5, NAME, 0, 500, 4096)
    assert w.dtype == np.float32
    assert abs(float(w.mean())) < 1e-4
    std = w.std(axis=1) * 64
    assert std.min() > 0.84
    assert std.max() < 1.16
    assert abs(std.mean() - 1) < 0.02
    assert len(set(synthetic.scales(5, NAME, 0, 500, 4096).tolist())) > 490
    assert abs(np.corrcoef(w[:-1].reshape(-1), w[1:].reshape(-1))[0, 1]) < 0.005


def test_seed_and_name_matter():
    base = synthetic.int8_rows(0, NAME, 0, 4, 64)
    assert (synthetic.int8_rows(1, NAME, 0, 4, 64) != base).mean() > 0.9
    assert (synthetic.int8_rows(0, NAME + "x", 0, 4, 64) != base).mean() > 0.9


def test_vector_is_near_one():
    v = synthetic.vector(3, "model.norm.weight", 4096)
    assert v.dtype == np.float32
    assert v.min() >= 0.875
    assert v.max() < 1.125
    assert v.std() > 0.06
    assert (synthetic.vector(3, "model.norm.weight", 100) == v[:100]).all()


def test_known_values():
    q = synthetic.int8_rows(0, NAME, 7, 300, 1111)
    assert q[0, :8].tolist() == [-10, 88, -37, -47, -82, -116, 93, -102]
    sha = hashlib.sha256(q.tobytes())
    sha.update(synthetic.scales(0, NAME, 7, 300, 1111).tobytes())
    sha.update(synthetic.f32_rows(0, NAME, 7, 300, 1111).tobytes())
    sha.update(synthetic.vector(0, "model.norm.weight", 1111).tobytes())
    assert sha.hexdigest()[:16] == "c1d65ba1f2215662"


@pytest.mark.parametrize(
    ("first", "rows", "k"),
    [(-1, 1, 8), (0, -1, 8), (0, 1, 0), (1 << 32, 1, 8), (0, 1, (1 << 32) + 1)],
)
def test_refuses_what_has_no_place(first, rows, k):
    for make in (synthetic.int8_rows, synthetic.scales, synthetic.f32_rows):
        with pytest.raises(ValueError, match=r"synthetic weights: wanted rows and columns below"):
            make(0, NAME, first, rows, k)


def test_no_rows():
    assert synthetic.int8_rows(0, NAME, 5, 0, 64).shape == (0, 64)
    assert synthetic.scales(0, NAME, 5, 0, 64).shape == (0,)
