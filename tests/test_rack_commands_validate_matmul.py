"""`rack.validate matmul`: a product of many rows, as the compiler would run it."""

from __future__ import annotations

import json

import pytest
from rack_kit import refused

from chip.ops.product import Activations, Matmul, Plain
from compiler.codegen.cost import cost_model
from compiler.errors import CapacityError
from rack.commands.validate import main
from rack.machines.profile import load_hardware
from rack.reports.products import product_cycles, steps_of, utilisation

SPEC = load_hardware("groqrack").chip


def test_a_product_that_fits_is_one_operation() -> None:
    costs = cost_model(SPEC)
    for dtype, scale in (("int8", 0), ("fp16", None)):
        op = Matmul(
            rows=32, k=1024, n=640, dtype=dtype, out="f16", w=0, sw=scale,
            source=Activations(x=0, s=scale), result=Plain(y=0),
        )  # fmt: skip
        assert product_cycles(32, 1024, 640, dtype, costs) == costs.cycles(op)


def test_rows_that_do_not_fit_go_in_even_steps() -> None:
    """4,096 int8 values and 3,500 fp16 results are 13 + 22 vectors and a scale a row."""
    assert steps_of(460, 4096, 3500, "int8", SPEC) == [460]
    assert steps_of(2304, 4096, 3500, "int8", SPEC) == [461, 461, 461, 461, 460]
    costs = cost_model(SPEC)
    parts = [product_cycles(rows, 4096, 640, "int8", costs) for rows in (1, 461)]
    assert product_cycles(461, 4096, 640, "int8", costs) == parts[1] > parts[0]
    many = steps_of(2304, 4096, 640, "int8", SPEC)
    assert product_cycles(2304, 4096, 640, "int8", costs) == sum(
        product_cycles(rows, 4096, 640, "int8", costs) for rows in many
    )


def test_the_part_of_the_planes() -> None:
    assert utilisation(320, 640, 640, "int8", 320, SPEC) == 1
    assert utilisation(320, 640, 640, "fp16", 4 * 320, SPEC) == 1
    assert utilisation(320, 640, 640, "int8", 640, SPEC) == 0.5


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["matmul", "--m", "40", "--k", "4096", "--n", "320,640", "--dtype", "fp16"]
    assert main([*argv, "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert got["cycles"] == [
        product_cycles(40, 4096, n, "fp16", cost_model(SPEC)) for n in (320, 640)
    ]
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
        ("1", "65536", "65536", 1, "4,299,161,600 bytes of SRAM and has 225,443,840"),
    ],
)
def test_sizes_that_cannot_be(
    capsys: pytest.CaptureFixture[str], m: str, k: str, n: str, code: int, text: str
) -> None:
    assert text in refused(capsys, code, main, "matmul", "--m", m, "--k", k, "--n", n)


def test_rows_that_are_too_long() -> None:
    with pytest.raises(CapacityError):
        steps_of(1, 6_000_000, 1, "int8", SPEC)
