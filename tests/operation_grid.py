"""Single operations over a grid of shapes and rows, with data of the right kind for each.

tests/test_chip_machine_grid.py runs a few, and all of them with `--grid`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from machine_kit import CHIP
from numpy.typing import NDArray
from plain_ops import GATES, kv_layout

from chip.kernels.quant import tile_weights
from chip.ops.experts import columns_apart, expert_stride
from chip.ops.opcodes import Function, Opcode
from chip.ops.rows import row_bytes, segment_offsets
from chip.ops.scratch import Scratch
from chip.spec import VECTOR_BYTES, ChipSpec
from chip.sram import work_turn
from compiler.codegen.gates import ACTIVATIONS

F32 = np.float32
Shape = dict[str, Any]
Case = tuple[Opcode, Shape]
ROWS = (1, 2, 3, 4, 5, 8, 9, 16, 17, 32)
BUCKETS = (256, 512, 1024, 1728)
HEADS = (  # heads, KV heads, head_dim
    (32, 8, 128), (8, 2, 128), (16, 2, 128), (4, 1, 128), (6, 2, 32), (14, 2, 64), (28, 4, 128),
    (8, 4, 8), (16, 16, 64), (7, 7, 30), (5, 5, 64), (20, 10, 24), (3, 1, 320), (2, 2, 160),
)  # fmt: skip
SHARES = ((16,), (48, 32), (336, 0, 664), (96, 80, 80, 80), (1040, 1040, 1008, 1008))
WIDTHS = (16, 40, 64, 172, 320, 336, 656, 1000)
PREFILL_ROWS = (2, 3, 4, 8, 16, 32, 64)
PREFILL_BUCKETS = (256, 512, 1024)
LLAMAS = ((32, 8, 4096, 14336), (64, 8, 8192, 28672))  # heads, KV heads, hidden, intermediate
GROUPS = (1, 4, 8)  # chips of a tensor-parallel group
DEEP, WIDE = 1280, 2560  # what is kept of longer and wider products, with what is left of a tile
PRODUCTS = (  # k, n
    (64, 64), (64, 24), (100, 2000), (330, 1000), (700, 1300), (320, 344), (1000, 16), (48, 336),
)  # fmt: skip


def operand(shape: Shape, names: str) -> Shape:
    """Add operands, to be placed."""
    return {**shape, **dict.fromkeys(names.split(), True)}


def attention(
    heads: int, kv_heads: int, head_dim: int, bucket: int, rows: int, dtype: str = "int8",
    **extra: Any,
) -> Case:  # fmt: skip
    """ATTEND over a bucket that ends before the context does."""
    shape = {
        "rows": rows, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "bucket": bucket,
        "context": bucket + 9, "dtype": dtype,
        "kv_of": tuple(head * kv_heads // heads for head in range(heads)), **extra,
    }  # fmt: skip
    names = "q sq kv kvs y scratch stats" if dtype == "int8" else "q kv y scratch"
    return Opcode.ATTEND, operand(shape, names)


def attentions(dtype: str) -> Iterator[Case]:
    """Every shape and bucket, with every number of rows up to three batches: more repeat those."""
    for heads, bucket, rows in product(HEADS, BUCKETS, (*ROWS, 64, 128)):
        if dtype == "fp16" and heads[2] > VECTOR_BYTES // 2:
            continue
        opcode, shape = attention(*heads, bucket, rows, dtype)
        if rows <= 3 * Scratch(kv_layout(shape), shape["kv_of"], rows, bucket).batch:
            yield opcode, shape
            if rows > 1:
                yield attention(*heads, bucket, rows, dtype, horizon=0)
            for bent in ({"window": 100}, {"cap": 50.0, "window": 200, "scale": 0.1}):
                yield attention(*heads, bucket, rows, dtype, **bent)
            yield attention(*heads, bucket, rows, dtype, sinks=True)
            slots = -(-bucket // 320) * 320
            yield attention(*heads, slots, rows, dtype, window=slots // 3, ring=slots, cap=30.0)


def one_row(k: int, n: int, out: str, **extra: Any) -> Case:
    """An int8 product of one row, with what goes before and after it."""
    shape = {"rows": 1, "k": k, "n": n, "out": out, "dtype": "int8", **extra}
    if extra.get("prologue") == "norm":
        shape["eps"] = 1e-5
    before = {None: "x s", "norm": "src gamma q qs", "gather": "src q qs"}[extra.get("prologue")]
    after = "r" if extra.get("epilogue") == "add" else "y"
    return Opcode.MATMUL, operand(shape, f"{before} w sw {after}")


def products() -> Iterator[Case]:
    """Products of several rows, then of one with every prologue and epilogue."""
    for dtype, rows, (k, n) in product(("int8", "fp16"), ROWS, PRODUCTS):
        shape = {"rows": rows, "k": k, "n": n, "out": "f16" if n % 3 else "f32", "dtype": dtype}
        names = "x s w sw y" if dtype == "int8" else "x w y"
        yield Opcode.MATMUL, operand(shape, names)
        yield Opcode.MATMUL, operand(shape, f"{names} b")
        yield Opcode.MATMUL, operand({**shape, "out": "f32", "epilogue": "cap", "cap": 30.0}, names)
    waits: tuple[Shape, ...] = ({}, {"gaps": 24}, {"pace": 24}, {"gaps": 24, "gaps_last": 90})
    for k, n, before, after, wait in product(
        (64, 330, 1000), (32, 320, 640, 1200, 1648), (None, "norm", "gather"),
        (None, "add", "cap", *map(str, ACTIVATIONS)), waits,
    ):  # fmt: skip
        extra = dict(wait)
        if before is not None:
            extra["prologue"] = before
        if before == "gather":
            extra["shares"] = (k // 32 * 16, k - k // 32 * 16)
        if after is not None:
            extra["epilogue"] = after
        if after == "cap":
            extra["cap"] = 30.0
        out = "f32" if after in (None, "cap") else "f16"
        yield one_row(k, n, out, **extra)
        if before == "norm":
            yield one_row(k, n, out, arrives=24, **extra)


def prefills() -> Iterator[Case]:
    """What a layer of llama-8b or 70B does with a chunk of a prompt, on a chip of a group."""
    for dtype, rows in product(("int8", "fp16"), PREFILL_ROWS):
        found: list[Case] = []
        for (heads, kv_heads, hidden, wide), chips in product(LLAMAS, GROUPS):
            own, own_kv = heads // chips, kv_heads // chips
            for bucket in PREFILL_BUCKETS:
                found.append(attention(own, own_kv, 128, bucket, rows, dtype))
            names = "qkv rope q sq kv kvs" if dtype == "int8" else "qkv rope q kv"
            shape = {"heads": own, "kv_heads": own_kv, "head_dim": 128, "context": 1024}
            found.append((Opcode.ROPE, operand({"rows": rows, "dtype": dtype, **shape}, names)))
            for k, n in (
                (hidden, (own + 2 * own_kv) * 128), (hidden, hidden // chips),
                (hidden, 2 * wide // chips), (wide, hidden // chips),
            ):  # fmt: skip
                shape = {"rows": rows, "k": cut(k, DEEP, 320), "n": cut(n, WIDE, 1280)}
                shape |= {"out": "f16" if k == wide else "f32", "dtype": dtype}
                names = "x s w sw y" if dtype == "int8" else "x w y"
                found.append((Opcode.MATMUL, operand(shape, names)))
        yield from {name(case): case for case in found}.values()


def cut(size: int, most: int, unit: int) -> int:
    """Return a size, or of a larger one `most` and what is left of a unit."""
    return size if size <= most + unit else most + size % unit


def vector_work() -> Iterator[Case]:
    """NORM, GATHER, ADD, gates, ROPE at odd widths."""
    for dtype, rows in product(("int8", "fp16"), ROWS):
        base, scale = {"rows": rows, "dtype": dtype}, " s" if dtype == "int8" else ""
        for n in WIDTHS:
            yield Opcode.NORM, operand({**base, "hidden": n, "eps": 1e-5}, "x gamma q" + scale)
            norm = {**base, "hidden": n, "eps": 1e-5}
            yield Opcode.LAYER_NORM, operand(norm, "x gamma beta q" + scale)
            yield Opcode.LAYER_NORM, operand({**norm, "q": None, "s": None}, "x gamma beta")
            for gate in (*ACTIVATIONS, *Function):
                yield Opcode(gate), operand({**base, "n": n}, "x y")
        for shares in SHARES:
            yield Opcode.GATHER, operand({**base, "shares": shares}, "src q" + scale)
            yield Opcode.ADD, operand({**base, "shares": shares}, "x src")
            yield Opcode.ADD, operand({**base, "shares": shares, "eps": 1e-6}, "x src post")
        for heads, kv_heads, dim in HEADS:
            shape = {**base, "heads": heads, "kv_heads": kv_heads, "head_dim": dim, "context": 64}
            if dtype == "int8":
                yield Opcode.ROPE, operand(shape, "qkv rope q sq kv kvs")
                yield Opcode.ROPE, operand({**shape, "rope": None}, "qkv q sq kv kvs")
                normed = {**shape, "eps": 1e-6, "scale": 0.07}
                yield Opcode.ROPE, operand(normed, "qkv rope q sq kv kvs gq gk")
            elif dim <= VECTOR_BYTES // 2:
                yield Opcode.ROPE, operand(shape, "qkv rope q kv")
                yield Opcode.ROPE, operand({**shape, "rope": None}, "qkv q kv")
                yield Opcode.ROPE, operand({**shape, "eps": 1e-6}, "qkv rope q kv gq gk")


def top_k() -> Iterator[Case]:
    """The largest logits."""
    for n, k in product((16, 320, 336, 1000, 5008), (1, 3, 16)):
        yield Opcode.TOPK, operand({"n": n, "k": k, "first_column": 7}, "x y")


def routes() -> Iterator[Case]:
    """Experts of rows, and their weights."""
    for rows, after in product(ROWS, (False, True)):
        for experts, chosen in ((8, 2), (5, 1), (4, 4), (32, 4), (128, 4), (160, 8)):
            shape = {"rows": rows, "experts": experts, "chosen": chosen, "after": after}
            yield Opcode.ROUTE, operand(shape, "x e g")


def mixture(
    opcode: Opcode, rows: int, k: int, n: int, names: str = "", spec: ChipSpec = CHIP, **extra: Any
) -> Case:  # fmt: skip
    """Products of chosen experts."""
    shape = {"rows": rows, "experts": 4, "chosen": 2, "k": k, "n": n, "dtype": "int8", **extra}
    shape["apart"] = columns_apart(n, work_turn(spec))
    own = "x s e w sw y" if shape["dtype"] == "int8" else "x e w y"
    return opcode, operand(shape, f"{own} {names} {'g t' * (opcode is Opcode.EXPERTS_SUM)}")


def mixtures() -> Iterator[Case]:
    """Products of chosen experts, of few rows."""
    for opcode, dtype, rows, (k, n), chosen in product(
        (Opcode.EXPERTS_EACH, Opcode.EXPERTS_SUM), ("int8", "fp16"), (1, 2, 3),
        ((64, 64), (64, 24), (330, 1000), (700, 1300), (1000, 16), (2880, 360)), (1, 2, 4),
    ):  # fmt: skip
        for names in ("", "b"):
            yield mixture(opcode, rows, k, n, names, dtype=dtype, chosen=chosen)


def name(case: Case) -> str:
    """Return a case's name, for pytest."""
    opcode, shape = case
    kept = [f"{value}" for key, value in shape.items() if value is not True and key != "kv_of"]
    return f"{opcode}-" + "-".join(kept).replace(" ", "")


# -- data


def data_for(opcode: Opcode, a: Shape) -> dict[str, NDArray[Any]]:
    """Return random values of what an operation reads."""
    rng, rows, int8 = np.random.default_rng(len(str(a))), a.get("rows", 1), a.get("dtype") == "int8"
    if opcode is Opcode.ATTEND:
        return _attended(a, rng)
    if opcode in (Opcode.EXPERTS_EACH, Opcode.EXPERTS_SUM):
        return _experts(opcode, a, rng)
    if opcode is Opcode.ROUTE:  # with some that are equal
        return {"x": padded(np.round(2 * rng.normal(size=(rows, a["experts"]))) / 2, F32)}
    widths = {"qkv": 0, "rope": a.get("head_dim"), "gamma": a.get("hidden", a.get("k")),
              "gq": a.get("head_dim"), "gk": a.get("head_dim"), "beta": a.get("hidden"),
              "sw": a.get("n"), "b": a.get("n"), "r": a.get("n")}  # fmt: skip
    widths["post"] = sum(a.get("shares", ()))
    widths["x"] = a.get("hidden", widths["post"]) or a.get("n")
    if opcode is Opcode.ROPE:
        widths["qkv"] = (a["heads"] + 2 * a["kv_heads"]) * a["head_dim"]
    if opcode in GATES:
        widths["x"] *= 2
    out: dict[str, NDArray[Any]] = {}
    for key in ("qkv", "rope", "gq", "gk", "gamma", "beta", "post", "sw", "b", "r", "x"):
        if a.get(key) is not None and not (opcode is Opcode.MATMUL and key == "x"):
            n = rows if key in ("qkv", "rope", "r", "x") else 1
            values = (4 if opcode in GATES else 1) * rng.normal(size=(n, widths[key]))
            out[key] = padded(0.02 * abs(values) if key == "sw" else values, np.float32)
    if opcode is Opcode.MATMUL:
        kind = np.int8 if int8 else np.float16
        draw = (40 if int8 else 1) * rng.normal(size=(rows + a["n"], a["k"]))
        values = np.clip(draw, -127, 127).astype(kind)
        out["w"] = tile_weights(values[rows:])
        if "x" in a:
            out["x"] = np.pad(values[:rows], ((0, 0), (0, -a["k"] % VECTOR_BYTES)))
            out["s"] = rng.random(rows, np.float32)
        if "prologue" in a:
            out["src"] = padded(rng.normal(size=(rows, a["k"])), np.float32)
    if "shares" in a:
        out["src"] = _segments(a["shares"], rows, rng)
    return {key: value for key, value in out.items() if key in a}


def padded(values: NDArray[Any], kind: type[np.generic]) -> NDArray[Any]:
    """Return rows of whole vectors."""
    item = np.dtype(kind).itemsize
    n = values.shape[1]
    return np.pad(values.astype(kind), ((0, 0), (0, row_bytes(n, item) // item - n)))


def _segments(shares: tuple[int, ...], rows: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a gather buffer: a segment for each share, padded by rows."""
    offsets = segment_offsets(shares, rows)
    out = np.zeros(offsets[-1], np.uint8)
    for at, stop, share in zip(offsets, offsets[1:], shares, strict=False):
        part = padded(rng.normal(size=(rows, share)), np.float16)
        out[at:stop] = part.reshape(-1).view(np.uint8)
    return out


def _attended(a: Shape, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    rows, heads, layout = a["rows"], a["heads"], kv_layout(a)
    sinks = {} if a.get("sinks") is None else {"sinks": padded(rng.normal(size=(1, heads)), F32)}
    if a["dtype"] == "fp16":
        q = rng.normal(size=rows * layout.query_bytes(heads) // 2).astype(np.float16)
        return {"q": q, "kv": rng.normal(size=layout.total_bytes // 2).astype(np.float16), **sinks}
    scales = rng.uniform(0, 0.02, layout.scales_bytes // 4).astype(np.float32)
    sq = rng.uniform(0.5, 2, (rows * heads, 1)) / (20 * a["head_dim"] ** 0.5)
    return {"sq": np.repeat(sq, VECTOR_BYTES // 4, axis=1).astype(F32), "kvs": scales, **sinks}


def _experts(opcode: Opcode, a: Shape, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Return rows, the experts of each in ascending order, and every expert's weights."""
    count, chosen, n, int8 = a["experts"], a["chosen"], a["n"], a["dtype"] == "int8"
    rows = a["rows"] * (chosen if opcode is Opcode.EXPERTS_SUM else 1)
    kind = np.int8 if int8 else np.float16
    draw = (40 if int8 else 1) * rng.normal(size=(rows + count * n, a["k"]))
    values = np.clip(draw, -127, 127).astype(kind)
    tiles = [tile_weights(values[rows + e * n : rows + (e + 1) * n]) for e in range(count)]
    stride = expert_stride(a["k"], n, a["dtype"]) // np.dtype(kind).itemsize
    apart = a["apart"] // 4
    picked = [np.sort(rng.permutation(count)[:chosen]) for _ in range(a["rows"])]
    columns = {"sw": 0.02 * rng.random((count, n)), "b": rng.normal(size=(count, n))}
    out = {
        "x": np.pad(values[:rows], ((0, 0), (0, -a["k"] % VECTOR_BYTES))),
        "s": rng.random(rows, np.float32),
        "w": np.stack([np.pad(one.reshape(-1), (0, stride - one.size)) for one in tiles]),
        "e": padded(np.stack(picked), np.int32),
        "g": padded(rng.random((a["rows"], chosen)), np.float32),
        **{key: np.pad(one, ((0, 0), (0, apart - n))).astype(F32) for key, one in columns.items()},
    }
    return {key: value for key, value in out.items() if a.get(key) is not None}


def positions_for(a: Shape) -> tuple[int, ...]:
    """Return the rows' positions: the last that a bucket has; the last first with a horizon.

    In a ring they are around the end of its third lap.
    """
    rows = int(a.get("rows", 1))
    last = a.get("bucket", a.get("context", rows))
    if a.get("ring") is not None:
        last = 3 * int(a["ring"]) + rows // 2
    found = tuple(range(last - rows, last))
    return found if a.get("horizon") is None else found[::-1]
