"""Single operations as instructions: results are the fast executor's, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from one_operation import both, placed
from plain_ops import kv_layout

from chip.kernels.quant import tile_weights
from chip.ops.opcodes import Opcode
from chip.spec import pad_vector


def rows_of(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Pad rows to whole vectors."""
    rows, n = values.shape
    out = np.zeros((rows, pad_vector(n * values.itemsize) // values.itemsize), values.dtype)
    out[:, :n] = values
    return out


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    ("rows", "k", "n", "out"),
    [
        (1, 64, 64, "f32"),  # one tile, one block
        (1, 700, 640, "f16"),  # a group of two blocks
        (1, 330, 1000, "f32"),  # three full blocks, and one that only the eastern pair has
        (3, 64, 24, "f16"),
        (8, 320, 344, "f32"),
        (16, 700, 1008, "f16"),
        (33, 640, 48, "f32"),
    ],
)
def test_product(rows: int, k: int, n: int, out: str, first: int) -> None:
    shape = {"rows": rows, "k": k, "n": n, "out": out, "dtype": "fp16"}
    a = placed(Opcode.MATMUL, {**shape, "x": True, "w": True, "y": True}, first)
    rng = np.random.default_rng(n)
    x = np.zeros((rows, -(-k // 320) * 320), np.float16)
    x[:, :k] = rng.normal(size=(rows, k))
    x[-1, 0] = 60_000
    w = tile_weights(rng.normal(size=(n, k)).astype(np.float16))
    (y,), saturated = both(Opcode.MATMUL, a, {"x": x, "w": w}, tuple(range(rows)))
    assert any(y)
    assert bool(saturated) == (out == "f16")


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_a_product_of_more_rows_than_the_accumulators_hold(dtype: str) -> None:
    rows, k, n, int8 = 200, 64, 48, dtype == "int8"
    shape = {"rows": rows, "k": k, "n": n, "out": "f32", "dtype": dtype}
    names = dict.fromkeys(("x", "s", "w", "sw", "y") if int8 else ("x", "w", "y"), True)
    a = placed(Opcode.MATMUL, {**shape, **names})
    rng = np.random.default_rng(n)
    kind = np.int8 if int8 else np.float16
    x = np.zeros((rows, 320), kind)
    x[:, :k] = (9 * rng.normal(size=(rows, k))).astype(kind)
    w = tile_weights((9 * rng.normal(size=(n, k))).astype(kind))
    scales = {"s": rng.random(rows, np.float32), "sw": rng.random(n, np.float32)}
    data = {"x": x, "w": w, **{name: scales[name] for name in scales if int8}}
    (y,), _ = both(Opcode.MATMUL, a, data, tuple(range(rows)))
    assert any(y[-320:])


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "positions"),
    [(4, 2, 16, (5,)), (8, 3, 12, (0, 1)), (3, 3, 128, (9, 10, 4)), (2, 2, 160, (63,))],
)
def test_rope(heads: int, kv_heads: int, dim: int, positions: tuple[int, ...]) -> None:
    rows = len(positions)
    shape = {
        "rows": rows, "heads": heads, "kv_heads": kv_heads, "head_dim": dim, "context": 64,
        "dtype": "fp16",
    }  # fmt: skip
    names = dict.fromkeys(("qkv", "rope", "q", "kv"), True)
    a = placed(Opcode.ROPE, {**shape, **names})
    rng = np.random.default_rng(dim)
    qkv = rng.normal(size=(rows, (heads + 2 * kv_heads) * dim)).astype(np.float32)
    qkv[:, -1] = 1e6
    tables = rng.normal(size=(rows, dim)).astype(np.float32)
    data = {"qkv": rows_of(qkv), "rope": rows_of(tables)}
    (q, kv), saturated = both(Opcode.ROPE, a, data, positions)
    assert any(q)
    assert any(kv)
    assert saturated == rows


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "bucket", "positions"),
    [
        (4, 2, 16, 32, (0, 20)),
        (8, 1, 128, 330, (329,)),  # a second chunk of ten tokens
        (5, 5, 12, 64, (0, 63, 30)),
        (3, 3, 160, 1000, (310,)),
        (8, 2, 64, 330, tuple(range(320, 329))),  # two batches of rows
        (20, 10, 24, 200, (170,)),  # two groups of heads; half a tile, and the other cut short
    ],
)
def test_attend_fp16(
    heads: int, kv_heads: int, dim: int, bucket: int, positions: tuple[int, ...]
) -> None:
    rows = len(positions)
    shape = {
        "rows": rows, "heads": heads, "kv_heads": kv_heads, "head_dim": dim, "bucket": bucket,
        "context": bucket + 9, "dtype": "fp16",
        "kv_of": tuple(head * kv_heads // heads for head in range(heads)),
    }  # fmt: skip
    names = dict.fromkeys(("q", "kv", "y", "scratch"), True)
    a = placed(Opcode.ATTEND, {**shape, **names})
    layout, rng = kv_layout(a), np.random.default_rng(bucket)
    q = rng.normal(size=rows * layout.query_bytes(heads) // 2).astype(np.float16)
    kv = rng.normal(size=layout.total_bytes // 2).astype(np.float16)
    (y,), _ = both(Opcode.ATTEND, a, {"q": q, "kv": kv}, positions)
    assert any(y)


@pytest.mark.parametrize(("n", "k", "first"), [(320, 3, 1), (16, 16, 0), (512, 5, 1), (5000, 4, 0)])
def test_top_k(n: int, k: int, first: int) -> None:
    """Many equal logits, zeros of both signs among them."""
    a = placed(Opcode.TOPK, {"n": n, "k": k, "x": True, "y": True}, first)
    rng = np.random.default_rng(n)
    logits = np.round(2 * rng.normal(size=n)).astype(np.float32)
    logits[rng.integers(0, n, n // 8)] = -0.0
    ((y,), _) = both(Opcode.TOPK, {**a, "first_column": 70_000}, {"x": logits}, (0,))
    columns = np.frombuffer(y, np.uint32)[:k] - 70_000
    assert columns.tolist() == np.argsort(-logits, kind="stable")[:k].tolist()
