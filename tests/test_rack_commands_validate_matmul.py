"""`rack.validate matmul`: a product of many rows, as the compiler would run it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from rack_kit import refused

from chip.ops.product import Activations, Matmul, Plain
from compiler.codegen.cost import cost_model
from compiler.errors import CapacityError
from compiler.pipeline import wide
from rack.commands.validate import main
from rack.machines.profile import load_hardware
from rack.reports.products import product_cycles, steps_of, utilisation

SPEC = load_hardware("groqrack").chip


def test_a_product_that_fits_is_one_operation() -> None:
    for dtype, scale in (("int8", 0), ("fp16", None)):
        op = Matmul(
            rows=32, k=1024, n=640, dtype=dtype, out="f16", w=0, sw=scale,
            source=Activations(x=0, s=scale), result=Plain(y=0),
        )  # fmt: skip
        alone = cost_model(wide(dtype, SPEC)).cycles(op)
        assert product_cycles(32, 1024, 640, dtype, SPEC) == alone


def test_rows_that_do_not_fit_go_in_even_steps() -> None:
    """4,096 int8 values are 13 vectors, 3,500 fp16 results 22 and a scale; a slice has 8,192."""
    assert steps_of(1487, 4096, 3500, "int8", SPEC) == [744, 743]
    assert steps_of(1486, 4096, 3500, "int8", SPEC) == [1486]
    assert steps_of(2304, 4096, 640, "int8", SPEC) == [2304]
    assert steps_of(2304, 4096, 640, "fp16", SPEC) == [576] * 4  # 26 vectors, of half as many
    one = product_cycles(576, 4096, 64, "fp16", SPEC)
    assert product_cycles(2304, 4096, 64, "fp16", SPEC) == 4 * one


def test_a_chip_without_feed_slices_has_all_rows_in_work_slices() -> None:
    chip = replace(SPEC, slices_per_hop=2)
    assert wide("int8", chip) == chip
    assert steps_of(468, 4096, 3500, "int8", chip) == [234, 234]
    assert steps_of(466, 4096, 3500, "int8", chip) == [466]


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_the_published_sweep(dtype: str) -> None:
    """ISCA 2022, 5.2 and Fig. 13: at least 80 %."""
    for n in (1376, 3500):
        cycles = product_cycles(2304, 4096, n, dtype, SPEC)
        assert 0.8 <= utilisation(2304, 4096, n, dtype, cycles, SPEC) < 1


def test_the_part_of_the_planes() -> None:
    assert utilisation(320, 640, 640, "int8", 320, SPEC) == 1
    assert utilisation(320, 640, 640, "fp16", 4 * 320, SPEC) == 1
    assert utilisation(320, 640, 640, "int8", 640, SPEC) == 0.5


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["matmul", "--m", "40", "--k", "4096", "--n", "320,640", "--dtype", "fp16"]
    assert main([*argv, "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert got["cycles"] == [product_cycles(40, 4096, n, "fp16", SPEC) for n in (320, 640)]
    assert all(0 < part < 1 for part in got["utilisation"])
    assert len(got["utilisation"]) == 2
    assert main(argv) == 0
    text = capsys.readouterr().out
    line = f"[40 x 4096] x [4096 x 320], fp16: {got['cycles'][0]} cycles, "
    assert text.startswith(line)
    assert text.endswith("of the planes (groqrack)\n")


@pytest.mark.parametrize(
    ("m", "k", "n", "code", "text"),
    [
        ("0", "1", "1", 1, "matmul: wanted m, k and n of 1 or more, got 0, 1, 1"),
        ("1", "1", "1,-2", 1, "matmul: wanted m, k and n of 1 or more, got 1, 1, -2"),
        ("1", "1", "1,x", 1, "n: wanted whole numbers with commas, got '1,x'"),
        ("1", "1", "65537", 1, "n: wanted at most 65536 columns, got 65537"),
        ("65537", "1", "1", 2, "argument --m: wanted an integer up to 65,536, got '65537'"),
        ("1", "65536", "65536", 1, "bytes of SRAM and has 209,715,200"),
    ],
)
def test_sizes_that_cannot_be(
    capsys: pytest.CaptureFixture[str], m: str, k: str, n: str, code: int, text: str
) -> None:
    assert text in refused(capsys, code, main, "matmul", "--m", m, "--k", k, "--n", n)


def test_rows_that_are_too_long() -> None:
    with pytest.raises(CapacityError):
        steps_of(1, 12_000_000, 1, "int8", SPEC)
