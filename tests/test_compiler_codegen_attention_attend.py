"""int8 attention: what its template makes of random data, what it costs, where it keeps it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from one_operation import CHIP, both, placed
from plain_ops import cycles, kv_layout, operands, operation_of, template

from chip.ops.opcodes import Opcode
from chip.ops.scratch import ITEM, QUAD, Scratch
from chip.spec import VECTOR_BYTES
from compiler.codegen.attention.attend import attend

LLAMA_8B = {"heads": 32, "kv_heads": 8, "head_dim": 128}
LLAMA_70B = {"heads": 16, "kv_heads": 2, "head_dim": 128}  # one of four chips


def shaped(heads: int, kv_heads: int, head_dim: int, bucket: int, rows: int = 1) -> dict[str, Any]:
    return {
        "rows": rows, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "bucket": bucket,
        "context": bucket + 9, "dtype": "int8",
        "kv_of": tuple(head * kv_heads // heads for head in range(heads)),
    }  # fmt: skip


def cost(bucket: int, rows: int = 1, **shape: int) -> int:
    return cycles(Opcode.ATTEND, shaped(bucket=bucket, rows=rows, **shape), CHIP)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "bucket", "positions"),
    [
        (8, 4, 8, 64, (63,)),  # two KV heads in a quad
        (6, 2, 16, 16, (3, 4)),  # a quad of two heads; no token in the east
        (7, 7, 30, 100, (99, 3)),  # four KV heads in a quad, and a quad of three
        (32, 8, 128, 512, (400,)),  # four groups
        (16, 2, 128, 512, (511,)),
        (5, 5, 64, 657, (640,)),  # a second tile of one run
        (3, 1, 320, 330, (329,)),  # a head fills a vector
        (4, 1, 64, 3200, (3199,)),  # more tiles than planes and buffers hold
        (20, 10, 24, 200, (170, 171)),  # two groups
        (2, 1, 128, 160, tuple(range(130, 150))),  # two batches
    ],
)
def test_equals_the_kernel(
    heads: int, kv_heads: int, dim: int, bucket: int, positions: tuple[int, ...]
) -> None:
    rows = len(positions)
    names = dict.fromkeys(("q", "sq", "kv", "kvs", "y", "scratch", "stats"), True)
    shape = shaped(heads, kv_heads, dim, bucket, rows)
    a = placed(Opcode.ATTEND, {**shape, **names}, first=bucket % 2)
    rng, layout = np.random.default_rng(bucket), kv_layout(a)
    sq = rng.uniform(0.5, 2, (rows * heads, 1)) / (20 * dim**0.5)
    scales = rng.uniform(0, 0.02, layout.scales_bytes // 4).astype(np.float32)
    data = {"sq": np.repeat(sq, VECTOR_BYTES // 4, axis=1).astype(np.float32), "kvs": scales}
    (y,), _ = both(Opcode.ATTEND, a, data, positions)
    results = np.frombuffer(y, np.float16).reshape(rows, -1)[:, : heads * dim]
    assert results.any(axis=1).all()
    assert results.std() > 0.01


def test_a_batch_that_is_not_full() -> None:
    """Nineteen rows in batches of four: the last has three."""
    kept = Scratch(kv_layout(shaped(8, 2, 128, 512)), (0,) * 4 + (1,) * 4, 19, 512)
    assert kept.batch == 4
    test_equals_the_kernel(8, 2, 16, 512, tuple(range(100, 119)))


def test_shapes_that_are_served() -> None:
    """What a layer of llama-8b takes on one chip, and of llama-70b on four."""
    assert cost(512, **LLAMA_8B) <= 1300
    assert cost(512, **LLAMA_70B) <= 1000
    for shape in (LLAMA_8B, LLAMA_70B, {"heads": 64, "kv_heads": 8, "head_dim": 128}):
        for bucket in (4096, 7344, 8192):
            assert template(Opcode.ATTEND, shaped(bucket=bucket, **shape), CHIP).lowered


def test_cost_grows_with_the_bucket() -> None:
    """Linearly: a token costs the same at any length."""
    costs = [cost(bucket, **LLAMA_8B) for bucket in (2560, 5120, 7680)]
    near, far = costs[1] - costs[0], costs[2] - costs[1]
    assert abs(far - near) < near / 20


def test_cost_grows_with_the_rows() -> None:
    """Batches of rows cost the same each; what is built is one batch."""
    shape = {"heads": 8, "kv_heads": 2, "head_dim": 128}
    one, four, eight = (cost(512, rows, **shape) for rows in (16, 64, 128))
    assert 3 * (eight - four) == 4 * (four - one)
    assert one < 16 * cost(512, **shape) / 2
    kept = [Scratch(kv_layout(shaped(8, 2, 128, 512)), (0,) * 8, n, 512) for n in (16, 128)]
    assert [one.batch for one in kept] == [4, 4]


@pytest.mark.parametrize("rows", [1, 7, 128])
@pytest.mark.parametrize("bucket", [16, 512, 4096])
def test_scratch_of_smaller_buckets_is_no_larger(rows: int, bucket: int) -> None:
    kept = [
        Scratch(kv_layout(a), a["kv_of"], rows, b)
        for b in (bucket // 2, bucket)
        for a in [shaped(bucket=b, rows=rows, **LLAMA_8B)]
    ]
    assert kept[0].bytes <= kept[1].bytes
    assert kept[0].known_bytes <= kept[1].known_bytes
    for one in kept:
        quads = one.batch * len(one.quads)
        last = one.item(quads - 1, one.columns - 1, 1) + ITEM
        assert last * VECTOR_BYTES <= one.bytes
        assert quads * one.known * VECTOR_BYTES <= one.known_bytes


def test_items_lie_apart() -> None:
    kept = Scratch(kv_layout(shaped(8, 2, 16, 330)), (0,) * 8, 3, 330)
    firsts = [
        kept.item(quad, column, side)
        for quad in range(6) for column in range(kept.columns) for side in range(2)
    ]  # fmt: skip
    assert len(set(firsts)) == len(firsts)
    assert all(first % ITEM == 0 for first in firsts)
    for side in range(2):
        own = {kept.item(quad, 0, side) // 16 % 2 for quad in range(6)}
        assert own == {side}


def test_quads_do_not_cross_groups() -> None:
    a = shaped(30, 15, 64, 64)
    kept = Scratch(kv_layout(a), a["kv_of"], 1, 64)
    assert [len(heads) for _, heads in kept.quads] == [4, 4, 2] * 3
    assert [head for _, heads in kept.quads for head in heads] == list(range(30))
    assert all(len(heads) <= QUAD for _, heads in kept.quads)


def test_regions_are_what_is_kept() -> None:
    a = shaped(8, 2, 128, 512, 3)
    a |= dict.fromkeys(("q", "sq", "kv", "kvs", "y", "scratch", "stats"), 0)
    _, written = operands(Opcode.ATTEND, a)
    sizes = {name: size for name, (_, size) in written}
    kept = Scratch(kv_layout(a), a["kv_of"], 3, 512)
    assert (sizes["scratch"], sizes["stats"]) == (kept.bytes, kept.known_bytes)


def test_heads_wider_than_a_vector() -> None:
    with pytest.raises(ValueError, match="ATTEND: wanted int8 heads of at most 320, got 336 int8"):
        attend(operation_of(Opcode.ATTEND, shaped(2, 2, 336, 64)), CHIP)


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_a_ring_of_other_slots_than_whole_vectors_is_refused(dtype: str) -> None:
    """Lanes beyond the last slot would be seen by rows that see the slots before it."""
    a = {**shaped(8, 2, 64, 512), "dtype": dtype, "window": 100, "ring": 512}
    with pytest.raises(ValueError, match="wanted a ring of whole vectors of 320 slots, got 512"):
        template(Opcode.ATTEND, a, CHIP)


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_a_window_costs_its_ring_at_any_context(dtype: str, rows: int) -> None:
    ring = {**shaped(4, 1, 128, 640, rows), "dtype": dtype, "window": 500, "ring": 640}
    long = {**ring, "context": 100_000}
    whole = {**long, "bucket": 6400, "window": None, "ring": None}
    assert cycles(Opcode.ATTEND, long, CHIP) == cycles(Opcode.ATTEND, ring, CHIP)
    assert 3 * cycles(Opcode.ATTEND, long, CHIP) < 2 * cycles(Opcode.ATTEND, whole, CHIP)


def test_bent_scores_and_sinks_cost_a_short_pass() -> None:
    """A column a cycle more, and what a pass or a block takes at its ends."""
    plain = shaped(**LLAMA_70B, bucket=512)
    quads = len(operation_of(Opcode.ATTEND, plain).kept.quads)
    columns = -(-512 // 80)
    for more in ({"window": 100}, {"cap": 50.0}, {"window": 100, "cap": 50.0}):
        bent = cycles(Opcode.ATTEND, plain | more, CHIP) - cycles(Opcode.ATTEND, plain, CHIP)
        assert 0 < bent < quads * (columns + 24) + 60
    sinks = cycles(Opcode.ATTEND, plain | {"sinks": 0}, CHIP)
    assert 0 < sinks - cycles(Opcode.ATTEND, plain, CHIP) < 60 + 24 * quads
