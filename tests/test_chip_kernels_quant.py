"""Weight tiling and quantisation, fp16 rounding."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chip.kernels.quant import (
    MIN_ABSMAX,
    quantize_weight,
    round_f16,
    tile_weights,
    untile_weights,
    write_tiles,
)

f32 = np.float32


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 700), k=st.integers(1, 700), seed=st.integers(0, 9))
def test_tiling_is_undone(n, k, seed):
    w = np.random.default_rng(seed).integers(-127, 128, (n, k)).astype(np.int8)
    flat = tile_weights(w)
    assert flat.dtype == np.int8
    assert flat.shape == (n * -(-k // 320) * 320,)
    assert (untile_weights(flat, n, k) == w).all()


@pytest.mark.parametrize(
    ("n", "k", "i", "j"), [(700, 650, 333, 321), (16, 1, 15, 0), (5, 960, 4, 959)]
)
def test_a_weight_lies_where_the_layout_says(n, k, i, j):
    w = np.zeros((n, k), np.float16)
    w[i, j] = 1
    kp = -(-k // 320) * 320
    block, tile = i // 320, j // 320
    columns = min(320, n - 320 * block)
    at = 320 * block * kp + (tile * columns + i % 320) * 320 + j % 320
    flat = tile_weights(w)
    assert flat.dtype == np.float16
    assert np.flatnonzero(flat).tolist() == [at]


def test_k_is_padded_with_zeros_and_n_is_not():
    flat = tile_weights(np.ones((2, 321), np.int8))
    assert flat.shape == (2 * 640,)
    assert flat.sum() == 2 * 321


def test_tiling_refuses_wrong_shapes():
    with pytest.raises(ValueError, match=re.escape("wanted a matrix [N, K], got shape (3,)")):
        tile_weights(np.zeros(3, np.int8))
    with pytest.raises(ValueError, match=re.escape("2 x 321: wanted shape (1280,), got (640,)")):
        untile_weights(np.zeros(640, np.int8), 2, 321)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 40), k=st.integers(1, 200), power=st.integers(-95, 120), seed=st.integers(0, 9)
)
def test_quantised_weights_are_within_half_a_step(n, k, power, seed):
    w = np.random.default_rng(seed).standard_normal((n, k)).astype(f32) * f32(2.0**power)
    w[0] = 0
    q, scale = quantize_weight(w)
    assert q.dtype == np.int8
    assert scale.dtype == f32
    assert np.abs(q.astype(int)).max(initial=0) <= 127
    assert not q[0].any()
    assert scale[0] == 0
    for i in range(1, n):
        a = np.abs(w[i]).max()
        if a < MIN_ABSMAX:
            assert (scale[i], q[i].any()) == (0, False)
            continue
        assert scale[i] == a / f32(127)
        assert q[i, np.abs(w[i]).argmax()] in (127, -127)
        want = [int(np.rint(x / scale[i])) for x in w[i]]
        assert q[i].tolist() == np.clip(want, -127, 127).tolist()


def test_quantise_in_many_row_chunks_equals_row_by_row():
    w = np.random.default_rng(3).standard_normal((37, 1 << 16)).astype(f32)
    q, scale = quantize_weight(w)
    rows = [quantize_weight(w[i : i + 1]) for i in range(37)]
    assert (q == np.concatenate([r[0] for r in rows])).all()
    assert (scale == np.concatenate([r[1] for r in rows])).all()


def test_known_weights():
    q, scale = quantize_weight(np.array([[127, -1.5, 0.5, 2.5], [1e-31, 0, 0, -1e-31]], f32))
    assert q.tolist() == [[127, -2, 0, 2], [0, 0, 0, 0]]  # ties to even; tiny columns vanish
    assert scale.tolist() == [1.0, 0.0]
    empty, no_scales = quantize_weight(np.zeros((2, 0), f32))
    assert empty.shape == (2, 0)
    assert no_scales.tolist() == [0, 0]


def test_quantise_refuses():
    with pytest.raises(ValueError, match=re.escape("wanted a matrix [N, K], got shape (4,)")):
        quantize_weight(np.zeros(4, f32))
    for bad in (np.nan, np.inf):
        w = np.ones((3, 4), f32)
        w[2, 1] = bad
        with pytest.raises(ValueError, match="weights: output column 2 is not finite"):
            quantize_weight(w)


def test_quantise_names_the_column_of_a_large_matrix():
    w = np.ones((3, 1 << 20), f32)  # quantised a row at a time
    w[2, 5] = np.nan
    with pytest.raises(ValueError, match="weights: output column 2 is not finite"):
        quantize_weight(w)


def test_round_f16_saturates_and_counts():
    x = np.array([[65504, 65505, -65519], [1e30, -np.inf, 2049]], f32)
    got, saturated = round_f16(x)
    assert got.dtype == np.float16
    assert got.tolist() == [[65504, 65504, -65504], [65504, -65504, 2048]]
    assert saturated == 4
    assert round_f16(np.array([0.1, 6e-8, 1e-9], f32))[1] == 0


@pytest.mark.parametrize("k", [5, 320, 700])
def test_rows_written_into_a_block_are_the_tiled_layout(k: int) -> None:
    w = np.arange(7 * k, dtype=np.int64).astype(np.int8).reshape(7, k)
    tiles = -(-k // 320)
    block = np.full((tiles, 7, 320), 99, np.int8)
    write_tiles(w[:3], block, 0)
    write_tiles(w[3:], block, 3)
    assert np.array_equal(block.ravel(), tile_weights(w))


@pytest.mark.parametrize("dtype", [np.int8, np.float16])
def test_rows_written_into_a_block_leave_the_others(dtype: type) -> None:
    w = np.random.default_rng(0).integers(-128, 128, (7, 650)).astype(dtype)
    block = np.full((3, 9, 320), 5, dtype)
    write_tiles(w, block, 2)
    assert (block[:, 2:].reshape(-1) == tile_weights(w)).all()
    assert (block[:, :2] == 5).all()
    with pytest.raises(ValueError, match="room for columns 3 to 10, got shape"):
        write_tiles(w, block, 3)


def test_a_block_without_room_is_refused() -> None:
    block = np.zeros((1, 4, 320), np.int8)
    with pytest.raises(ValueError, match=r"with room for columns -1 to 1, got shape \(1, 4, 320\)"):
        write_tiles(np.zeros((2, 320), np.int8), block, -1)
    with pytest.raises(ValueError, match=r"with room for columns 3 to 5, got shape \(1, 4, 320\)"):
        write_tiles(np.zeros((2, 320), np.int8), block, 3)
