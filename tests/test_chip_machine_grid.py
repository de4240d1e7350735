"""Every operation's instructions run on the machine, with the bits and in the cycles promised.

A grid of shapes and rows (tests/operation_grid.py): a few cases by default, all with `--grid`.
"""

from __future__ import annotations

import pytest
from one_operation import CHIP, both, placed
from operation_grid import (
    Case,
    attention,
    attentions,
    data_for,
    name,
    one_row,
    operand,
    positions_for,
    prefills,
    products,
    top_k,
    vector_work,
)
from plain_ops import template

from chip.ops.opcodes import Activation, Function, Opcode

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
        for gate in (*Activation, *Function)
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
        one_row(330, 1648, "f16", prologue="norm", epilogue=str(gate), arrives=24, gaps=24)
        for gate in Activation
    ),
]


def every() -> list[Case]:
    """The whole grid."""
    return [
        *attentions("int8"), *attentions("fp16"), *products(), *prefills(), *vector_work(),
        *top_k(),
    ]  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = every() if metafunc.config.getoption("--grid") else DEFAULT
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", cases, ids=name)


def test_equals_the_fast_executor(case: Case) -> None:
    opcode, shape = case
    if not template(opcode, shape, CHIP).lowered:
        pytest.skip("its cost is an estimate, and the product says so")
    a = placed(opcode, shape, first=len(name(case)) % 2)
    results, _ = both(opcode, a, data_for(opcode, a), positions_for(a))
    assert all(any(result) for result in results)
