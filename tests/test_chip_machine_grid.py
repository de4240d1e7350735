"""Every operation's instructions run on the machine, with the bits and in the cycles promised.

A grid of shapes and rows (tests/operation_grid.py): a few cases by default, all with `--grid`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from one_operation import CHIP, both, placed
from operation_grid import (
    Case,
    attention,
    attentions,
    data_for,
    mixture,
    mixtures,
    name,
    one_row,
    operand,
    positions_for,
    prefills,
    products,
    routes,
    top_k,
    vector_work,
)
from plain_ops import template

from chip.ops.opcodes import Activation, Function, Opcode
from chip.spec import ChipSpec
from chip.sram import feed_start
from compiler.codegen.gates import ACTIVATIONS

# refused by the machine before ALUs' results were reserved: the first chunks of int8 prompts
REFUSED = [
    attention(*heads, 256, rows)
    for *heads, rows in ((32, 8, 128, 2), (8, 2, 128, 8), (16, 2, 128, 4), (6, 2, 32, 8),
                         (14, 2, 64, 5), (28, 4, 128, 3))
]  # fmt: skip
OVERWRITTEN = (  # what was read of the last values, by what went to the cache in that cycle
    Opcode.ROPE,
    operand(
        {"rows": 1, "dtype": "int8", "heads": 32, "kv_heads": 8, "head_dim": 128, "context": 64},
        "qkv rope q sq kv kvs",
    ),
)
ENCODED = {
    "rows": 3, "heads": 12, "kv_heads": 12, "head_dim": 64, "context": 64, "rope": None
}  # fmt: skip
NORMED = {"context": 64, "eps": 1e-6, "scale": 0.07}
RING = {"heads": 6, "kv_heads": 2, "head_dim": 32, "context": 8192, "ring": 320}
POST = "x src post"
CAPPED = {"k": 330, "n": 1000, "out": "f32", "epilogue": "cap", "cap": 30.0}
DEFAULT = [
    *REFUSED,
    OVERWRITTEN,
    attention(16, 16, 64, 512, 2),
    attention(7, 7, 30, 256, 9),
    attention(8, 1, 128, 512, 16),  # llama-70b, T = 8
    attention(4, 1, 128, 1024, 4, "fp16"),  # llama-8b, T = 8
    attention(8, 2, 128, 256, 5, "fp16"),
    (Opcode.NORM, operand({"rows": 5, "hidden": 336, "eps": 1e-5, "dtype": "int8"}, "x gamma q s")),
    (Opcode.GATHER, operand({"rows": 9, "shares": (48, 32), "dtype": "fp16"}, "src q")),
    (Opcode.ADD, operand({"rows": 17, "shares": (336, 0, 664), "dtype": "int8"}, "x src")),
    # three groups, whose sums take longer to leave than to add: the third has the first's rows
    (
        Opcode.MATMUL,
        operand({"rows": 16, "k": 64, "n": 2880, "out": "f32", "dtype": "int8"}, "x s w sw y"),
    ),
    (
        Opcode.MATMUL,
        operand({"rows": 16, "k": 64, "n": 1600, "out": "f32", "dtype": "fp16"}, "x w y"),
    ),
    *(
        (Opcode(gate), operand({"rows": 3, "n": 172, "dtype": "int8"}, "x y"))
        for gate in (*ACTIVATIONS, *Function)
    ),
    # an encoder's
    *(
        (Opcode.LAYER_NORM, operand({"rows": 5, "hidden": 336, "eps": 1e-12, **to}, names))
        for to, names in (
            ({"dtype": "int8"}, "x gamma beta q s"),
            ({"dtype": "fp16"}, "x gamma beta q"),
            ({"dtype": "int8", "q": None, "s": None}, "x gamma beta"),
        )
    ),
    (Opcode.ROPE, operand({**ENCODED, "dtype": "int8"}, "qkv q sq kv kvs")),
    (Opcode.ROPE, operand({**ENCODED, "dtype": "fp16"}, "qkv q kv")),
    *(attention(12, 12, 64, 128, 5, dtype, horizon=0) for dtype in ("int8", "fp16")),
    *(
        (
            Opcode.MATMUL,
            operand({"rows": rows, "k": 330, "n": 1000, "out": out, "dtype": dtype}, names),
        )
        for rows, out in ((1, "f32"), (5, "f32"), (5, "f16"))
        for dtype, names in (("int8", "x s w sw b y"), ("fp16", "x w b y"))
    ),
    *(
        (Opcode.ROUTE, operand({"rows": rows, "experts": of, "chosen": n, "after": after}, "x e g"))
        for rows, of, n, after in (
            (1, 8, 2, False),
            (1, 32, 4, True),
            (1, 4, 4, False),
            (3, 8, 2, True),
            (3, 5, 1, False),
        )
    ),
    # products of chosen experts: one after another overlap; uneven blocks, and biases
    *(
        mixture(opcode, rows, k, n, names, dtype=dtype)
        for opcode in (Opcode.EXPERTS_EACH, Opcode.EXPERTS_SUM)
        for dtype in ("int8", "fp16")
        for rows, k, n, names in ((1, 64, 64, ""), (1, 330, 400, "b"), (3, 320, 40, ""))
    ),
    mixture(Opcode.EXPERTS_SUM, 1, 6000, 40, chosen=4),  # more tiles than slots
    mixture(Opcode.EXPERTS_SUM, 1, 64, 64, "b", chosen=1),
    mixture(Opcode.EXPERTS_EACH, 81, 64, 24, experts=2, chosen=1),  # scales of two vectors
    # other models': windows, caps, sinks
    *(
        attention(*heads, bucket, rows, dtype, **extra)
        for dtype in ("int8", "fp16")
        for heads, bucket, rows in (((6, 2, 32), 700, 1), ((8, 2, 128), 330, 3))
        for extra in (
            {"window": 100},
            {"cap": 20.0, "scale": 0.05},
            {"window": 37, "cap": 50.0},
            {"window": 100, "sinks": True},
        )
    ),
    # and rings of slots
    *(
        attention(8, 2, 128, 320, 3, dtype, window=window, ring=320, **extra)
        for dtype in ("int8", "fp16")
        for window, extra in ((190, {}), (7, {"cap": 20.0}))
    ),
    *(
        (Opcode.ROPE, operand({**RING, "rows": 3, "dtype": dtype}, names))
        for dtype, names in (("int8", "qkv rope q sq kv kvs"), ("fp16", "qkv rope q kv"))
    ),
    attention(8, 1, 64, 128, 9, "int8", window=5, sinks=True),  # batches of rows
    attention(8, 1, 64, 128, 9, "fp16", window=5, sinks=True),
    # other models': norms of what is added, norms of heads, a scale of scores, logits with a cap
    *(
        (Opcode.ADD, operand({"rows": rows, "shares": of, "eps": 1e-6, "dtype": "int8"}, POST))
        for rows in (1, 5)
        for of in ((768,), (336, 0, 664))
    ),
    *(
        (Opcode.ROPE, operand({**NORMED, "rows": rows, "dtype": dtype, **heads}, names))
        for rows, heads in (
            (1, {"heads": 2, "kv_heads": 1, "head_dim": 128}),
            (3, {"heads": 2, "kv_heads": 1, "head_dim": 128}),
            (1, {"heads": 7, "kv_heads": 7, "head_dim": 30}),
            (1, {"heads": 2, "kv_heads": 1, "head_dim": 8}),
            (1, {"heads": 10, "kv_heads": 2, "head_dim": 160}),
        )
        for dtype, names in (
            ("int8", "qkv rope q sq kv kvs gq gk"),
            ("fp16", "qkv rope q kv gq gk"),
        )
    ),
    *(
        (Opcode.MATMUL, operand({**CAPPED, "rows": rows, "dtype": dtype}, names))
        for rows in (1, 5)
        for dtype, names in (("int8", "x s w sw y"), ("fp16", "x w y"))
    ),
    *(
        one_row(330, 1648, "f16", prologue="norm", epilogue=str(gate), arrives=24, gaps=24)
        for gate in ACTIVATIONS
    ),
]

WIDER = replace(CHIP, work_slices=2, feed_slices=2)
MANY_ROWS = [  # blocks that overlap themselves, reduce lanes by turns and read vectors by fours
    *(
        (opcode, operand({"rows": 17, "dtype": dtype, **shape}, names))
        for dtype in ("int8", "fp16")
        for opcode, shape, names in (
            (Opcode.NORM, {"hidden": 656, "eps": 1e-5}, "x gamma q"),
            (Opcode.LAYER_NORM, {"hidden": 768, "eps": 1e-12}, "x gamma beta q"),
            (Opcode.GATHER, {"shares": (768,)}, "src q"),
            (Opcode.GATHER, {"shares": (336, 0, 664)}, "src q"),
        )
    ),
    *((Opcode.ADD, operand({"rows": 17, "shares": of, "dtype": "int8"}, "x src"))
      for of in ((768,), (336, 0, 664))),
    *((Opcode.ADD, operand({"rows": 17, "shares": of, "eps": 1e-6, "dtype": "int8"}, POST))
      for of in ((768,), (336, 0, 664))),
    *((Opcode(gate), operand({"rows": 17, "n": 336, "dtype": "int8"}, "x y"))
      for gate in (*Activation, *Function)),
    *((Opcode.ROPE, operand({**ENCODED, "rows": 17, **to}, "qkv " + names))
      for to, names in (
          ({"dtype": "int8"}, "q sq kv kvs"),
          ({"dtype": "fp16"}, "q kv"),
          ({"dtype": "int8", "heads": 8, "kv_heads": 2, "rope": True}, "rope q sq kv kvs"),
          ({"dtype": "int8", "heads": 7, "kv_heads": 7, "head_dim": 30}, "q sq kv kvs"),
          ({**NORMED, "dtype": "int8", "heads": 2, "kv_heads": 1, "rope": True},
           "rope q sq kv kvs gq gk"),
          ({**NORMED, "dtype": "fp16", "heads": 2, "kv_heads": 1, "head_dim": 128, "rope": True},
           "rope q kv gq gk"),
      )),
]  # fmt: skip


def every() -> list[Case]:
    """The whole grid."""
    return [
        *attentions("int8"), *attentions("fp16"), *products(), *prefills(), *vector_work(),
        *top_k(), *routes(), *mixtures(),
    ]  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = every() if metafunc.config.getoption("--grid") else DEFAULT
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", cases, ids=name)
    if "many_rows" in metafunc.fixturenames:
        metafunc.parametrize("many_rows", MANY_ROWS, ids=name)


def test_equals_the_fast_executor(case: Case) -> None:
    opcode, shape = case
    if not template(opcode, shape, CHIP).lowered:
        pytest.skip("its cost is an estimate, and the product says so")
    a = placed(opcode, shape, first=len(name(case)) % 2)
    results, _ = both(opcode, a, data_for(opcode, a), positions_for(a))
    assert all(any(result) for result in results)


@pytest.mark.parametrize("opcode", [Opcode.EXPERTS_EACH, Opcode.EXPERTS_SUM])
def test_chosen_experts_where_there_are_two_work_slices(opcode: Opcode) -> None:
    _, shape = mixture(opcode, 2, 330, 360, "b", spec=WIDER)
    a = placed(opcode, shape, first=1, spec=WIDER)
    assert template(opcode, shape, WIDER).lowered
    results, _ = both(opcode, a, data_for(opcode, a), positions_for(a), WIDER)
    assert all(any(result) for result in results)


@pytest.mark.parametrize("spec", [CHIP, WIDER], ids=["one slice a side", "two, and two for feed"])
def test_many_rows_equal_the_fast_executor(many_rows: Case, spec: ChipSpec) -> None:
    opcode, shape = many_rows
    if shape["dtype"] == "int8" and opcode in (Opcode.NORM, Opcode.LAYER_NORM, Opcode.GATHER):
        shape = operand(shape, "s")
    a = placed(opcode, shape, first=len(name(many_rows)) % 2, spec=spec)
    if spec.feed_slices and opcode in (Opcode.NORM, Opcode.LAYER_NORM, Opcode.GATHER):
        a["q"] = feed_start(spec)
    assert template(opcode, shape, spec).lowered
    results, _ = both(opcode, a, data_for(opcode, a), positions_for(a), spec)
    assert all(any(result) for result in results)
