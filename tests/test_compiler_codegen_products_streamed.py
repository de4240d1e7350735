"""Products of many rows: bits as the fast executor's, on the machine; and the planes' use."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from one_operation import CHIP, both, placed
from plain_ops import cycles, scheduled

from chip.errors import TemplateError
from chip.kernels.quant import tile_weights
from chip.ops.opcodes import Opcode
from compiler.codegen.lower import lower_operation
from rack.reports.template_picture import bars

WIDE = {
    "int8": replace(CHIP, work_slices=2, feed_slices=2),
    "fp16": replace(CHIP, work_slices=2, feed_slices=1),
}


def product(
    rows: int, k: int, n: int, dtype: str, out: str, gaps: int | None = None, *,
    biased: bool = False,
) -> dict[str, Any]:  # fmt: skip
    names = ("x s w sw y" if dtype == "int8" else "x w y") + " b" * biased
    shape = {"rows": rows, "k": k, "n": n, "out": out, "dtype": dtype}
    if gaps is not None:
        shape["gaps"] = gaps
    return placed(Opcode.MATMUL, shape | dict.fromkeys(names.split(), True), 0, WIDE[dtype])


@pytest.mark.parametrize("out", ["f16", "f32"])
@pytest.mark.parametrize(
    ("rows", "k", "n"),
    [(2, 64, 64), (5, 700, 1300), (16, 1000, 100), (40, 64, 400), (130, 400, 330)],
)
@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize("biased", [False, True])
def test_bits(dtype: str, rows: int, k: int, n: int, out: str, biased: bool) -> None:
    a = product(rows, k, n, dtype, out, gaps=24 if out == "f16" else None, biased=biased)
    rng = np.random.default_rng(rows)
    wide = -(-k // 320) * 320
    x = np.zeros((rows, wide), np.int8 if dtype == "int8" else np.float16)
    w = rng.normal(size=(n, k)) * 30
    x[:, :k] = rng.normal(size=(rows, k)) * 30
    data = {"x": x, "w": tile_weights(w.astype(x.dtype))}
    if dtype == "int8":
        data |= {"s": rng.random(rows, np.float32), "sw": 0.01 * rng.random(n, np.float32)}
    if biased:
        data["b"] = rng.normal(size=n).astype(np.float32)
    both(Opcode.MATMUL, a, data, tuple(range(rows)), WIDE[dtype])


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize("n", [1376, 1601, 2241, 3500])
def test_the_planes_are_in_use_as_published(dtype: str, n: int) -> None:
    """ISCA 2022, Fig. 13: at least 80 % on one chip for [2304 x 4096] x [4096 x N]."""
    rows, k = 2304, 4096
    a = {"rows": rows, "k": k, "n": n, "out": "f16", "dtype": dtype}
    names = ("x", "s", "w", "sw", "y") if dtype == "int8" else ("x", "w", "y")
    a |= dict.fromkeys(names, 0)
    rate = 4 * 320 * 320 // (1 if dtype == "int8" else 4)
    assert rows * k * n / (cycles(Opcode.MATMUL, a, WIDE[dtype]) * rate) >= 0.8


def test_rows_that_begin_within_a_turn_of_the_feed_slices() -> None:
    a = product(40, 64, 64, "int8", "f16")
    spec = WIDE["int8"]
    operation = scheduled(
        opcode=Opcode.MATMUL, name="late", args=a | {"x": a["x"] + 320}, start=0,
        end=cycles(Opcode.MATMUL, a, spec), nop=0,
    )  # fmt: skip
    with pytest.raises(TemplateError) as caught:
        lower_operation(operation, spec)
    assert str(caught.value) == (
        "rows of a product: wanted a whole turn of the 4 feed slices from their first vector on, "
        "got vector 1"
    )


def test_it_is_drawn() -> None:
    """A picture of its instructions, Repeats too: work and feed slices apart, every ALU in use."""
    a, spec = product(40, 64, 64, "int8", "f16"), WIDE["int8"]
    operation = scheduled(
        opcode=Opcode.MATMUL, name="rows", args=a, start=0, end=cycles(Opcode.MATMUL, a, spec),
        nop=0,
    )  # fmt: skip
    drawn = {
        lane.label: found for lane, found in bars(lower_operation(operation, spec), spec).items()
    }
    assert {"2 work slices", "2 feed slices", "40 bulk slices", "ALU 0", "ALU 2"} <= set(drawn)
    assert sum(bar.end - bar.start for bar in drawn["ALU 0"] if bar.meaning == "VXM: convert") == 40
