"""One row's product as instructions: slots, column blocks, prologues and epilogues, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from one_operation import CHIP, both, placed
from plain_ops import cycles, needed, operation_of, result_stream_cycles, template

from chip.kernels.quant import tile_weights
from chip.ops.opcodes import Opcode
from chip.ops.rows import gated_widths, segment_offsets
from chip.spec import vectors
from compiler.codegen.gates import ACTIVATIONS
from compiler.codegen.products.row import lay_out


def operation(k: int, n: int, out: str, **extra: Any) -> dict[str, Any]:
    """Arguments of a product of one row; operands by what goes before and after it."""
    shape = {"rows": 1, "k": k, "n": n, "out": out, "dtype": "int8", **extra}
    before = {None: "x s", "norm": "src gamma q qs", "gather": "src q qs"}[extra.get("prologue")]
    names = [*before.split(), "w", "sw", "r" if extra.get("epilogue") == "add" else "y"]
    if extra.get("prologue") == "norm":
        shape["eps"] = 1e-5
    return {**shape, **dict.fromkeys(names, True)}


def segments(shares: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.uint8]:
    offsets = segment_offsets(shares, 1)
    out = np.zeros(offsets[-1], np.uint8)
    for at, share in zip(offsets, shares, strict=False):
        out[at : at + 2 * share] = rng.normal(size=share).astype(np.float16).view(np.uint8)
    return out


def data_for(a: dict[str, Any]) -> dict[str, NDArray[Any]]:
    k, n, rng = a["k"], a["n"], np.random.default_rng(a["n"])
    x = np.zeros((1, 320 * vectors(k)), np.int8)
    x[:, :k] = rng.integers(-127, 128, k)
    made = {
        "x": x, "s": rng.random(1, np.float32), "sw": 0.01 * rng.random(n, np.float32),
        "w": tile_weights(rng.integers(-127, 128, (n, k)).astype(np.int8)),
        "gamma": rng.normal(size=k).astype(np.float32),
        "r": np.pad(rng.normal(size=n).astype(np.float32), (0, -n % 80)),
        "src": segments(a["shares"], rng) if "shares" in a
        else rng.normal(size=k).astype(np.float32),
    }  # fmt: skip
    return {name: value for name, value in made.items() if name in a}


CASES: list[tuple[int, int, str, dict[str, Any]]] = [
    (64, 64, "f32", {}),  # one tile, one block
    (100, 2000, "f32", {}),  # sums wait for the VXM
    (64, 4000, "f32", {}),  # ten groups: they wait for a free row of the accumulators
    (700, 1300, "f16", {}),  # four blocks, then a narrow one that planes share unevenly
    (20_800, 400, "f16", {}),  # 65 tiles: two share a slot
    (21_000, 16, "f32", {}),  # and each loads in a cycle: the slot is still in use
    (700, 1300, "f16", {"epilogue": "add", "gaps": 24}),
    (
        330,
        2000,
        "f16",
        {"epilogue": "silu", "gaps": 24, "gaps_last": 90},
    ),  # three pairs; gate and up in a block, unaligned
    (64, 32, "f16", {"epilogue": "silu"}),
    (1000, 640, "f32", {"prologue": "norm"}),
    (1000, 1640, "f16", {"prologue": "norm", "epilogue": "silu"}),
    (1000, 640, "f32", {"prologue": "norm", "arrives": 24}),
    (1000, 700, "f16", {"prologue": "gather", "shares": (1000,), "epilogue": "add"}),
    (1000, 320, "f16", {"prologue": "gather", "shares": (336, 0, 664), "pace": 24}),
    (64, 4000, "f32", {"epilogue": "cap", "cap": 30.0}),  # work on ten groups in turn
    (1000, 700, "f32", {"prologue": "norm", "epilogue": "cap", "cap": 50.0, "pace": 24}),
    # a pair in two blocks, and two halves
    *((64, 2 * 600, "f16", {"epilogue": str(gate)}) for gate in ACTIVATIONS),
    (21_000, 100, "f16", {"prologue": "gather", "shares": (10_496, 10_504), "gaps": 8}),
]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(("k", "n", "out", "extra"), CASES)
def test_equals_the_kernels(k: int, n: int, out: str, extra: dict[str, Any], first: int) -> None:
    a = placed(Opcode.MATMUL, operation(k, n, out, **extra), first)
    results, _ = both(Opcode.MATMUL, a, data_for(a), (0,))
    assert all(any(result) for result in results)


@pytest.mark.parametrize("extra", [{}, {"prologue": "norm", "epilogue": "silu"}])
def test_weights_stream_without_gaps(extra: dict[str, Any]) -> None:
    """From the second tile on only a cycle an activation is lost to the weights."""
    a = operation(4096, 8 * 640, "f16", **extra)
    product = lay_out(operation_of(Opcode.MATMUL, a), CHIP)
    windows = sorted(c for times in product.times.values() for c in times.windows)
    loads = windows[2 * 20 :]  # behind two tiles, that wait for the first activation
    busy = product.prologue.busy if product.prologue is not None else frozenset()
    lost = {*product.filled, *busy} & set(range(loads[0], loads[-1]))
    assert loads[-1] - loads[0] + 1 <= len(loads) + len(lost) + 1
    assert len(windows) == 4096 // 320 * 80 + 80


def test_results_are_there_when_promised() -> None:
    """Vector v of n is ready `stream * v / (n - 1)` cycles after the first, or sooner."""
    for extra in ({}, {"pace": 24}):
        a = operation(14_336, 4096, "f16", epilogue="add", **extra)
        end, stream = (f(Opcode.MATMUL, a, CHIP) for f in (cycles, result_stream_cycles))
        written = {}
        for drain in template(Opcode.MATMUL, a, CHIP).placed:
            for access in drain.block.accesses:
                if access.write and access.ref.operand == "r":
                    for v in range(access.ref.count):
                        at = drain.start + access.cycle + access.beats[v // 2] + 1
                        written[access.ref.vector + drain.shift["r"] + v] = at
        assert sorted(written) == list(range(52))
        assert all(at < end - stream + stream * v / 51 for v, at in written.items())
    assert stream >= 51 * 24  # a link of 24 cycles a vector is done with the product
    assert end - max(written.values()) < 4 * 24


def test_a_norm_of_what_arrives_takes_it_as_it_comes() -> None:
    a = operation(4096, 320, "f32", prologue="norm")
    assert needed(Opcode.MATMUL, "src", a, CHIP) == (0, 0)
    arrives = {**a, "arrives": 24}
    assert needed(Opcode.MATMUL, "src", arrives, CHIP) == (0, 24 * 51)
    longer = cycles(Opcode.MATMUL, arrives, CHIP) - cycles(Opcode.MATMUL, a, CHIP)
    assert longer < 24 * 51  # so the rest begins sooner


def test_columns_of_gate_and_up() -> None:
    assert gated_widths(0) == []
    assert gated_widths(64) == [64]
    assert gated_widths(320) == [320]
    assert gated_widths(14_336) == [320] * 44 + [160, 96]
