"""GPUs' efficiencies: the fit comes out again, and errors on points it has not seen are small."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from rack_kit import refused

from rack.commands.validate import main
from rack.errors import ConfigError
from rack.machines.gpu import Efficiency, GpuDtype, load_gpu
from rack.reports.gpu_fit import (
    COLUMNS,
    Point,
    error_percent,
    fit,
    read_points,
    split,
)
from rack.reports.gpu_page import SHIPPED, fitted_gpus
from rack.reports.gpu_time import terms

POINTS = read_points()
PAGE = Path(__file__).parent.parent / "docs" / "gpus.md"
HEAD = ",".join(COLUMNS)
LINE = "llama-8b,h100-sxm,bf16,someone,1,1024,512,8,550.01,7.417"


@pytest.mark.parametrize("name", SHIPPED)
def test_the_fit_comes_out_again(name: str) -> None:
    gpu = load_gpu(name)
    assert fit(gpu, split(gpu, POINTS).fitted) == gpu.efficiency


@pytest.mark.parametrize("name", SHIPPED)
def test_errors_on_points_that_were_held_back(name: str) -> None:
    gpu = load_gpu(name)
    held = split(gpu, POINTS).held
    for several, most in ((False, 15), (True, 25)):
        errors = [
            abs(error_percent(gpu, point, gpu.efficiency))
            for point in held
            if (point.gpus > 1) is several
        ]
        assert errors
        assert median(errors) <= most


@pytest.mark.parametrize("name", SHIPPED)
def test_points_are_halved(name: str) -> None:
    gpu = load_gpu(name)
    found = split(gpu, POINTS)
    assert not {*found.fitted} & {*found.held}
    for several in (True, False):
        counts = [
            sum((point.gpus > 1) is several for point in half)
            for half in (found.fitted, found.held)
        ]
        assert 0 <= counts[0] - counts[1] <= 1
    all_of_it = [point for point in POINTS if point.gpu == name]
    assert len(all_of_it) == len(found.fitted) + len(found.held) + len(found.left_out)


def test_a_fit_finds_what_points_were_made_with() -> None:
    """With a few points that are wild, too: errors count, not their squares."""
    gpu = load_gpu("h100-sxm")
    true = Efficiency(memory=0.6, compute=0.5, layer_s=2e-5)
    halves = split(gpu, POINTS)
    points = [*halves.fitted, *halves.held]
    made = [
        replace(point, token_ms=terms(gpu, point.load()).seconds(true) * 1000) for point in points
    ]
    assert fit(gpu, made) == true
    wild = [replace(point, token_ms=point.token_ms * 5) for point in made[:10]]
    found = fit(gpu, [*wild, *made[10:]])
    assert found.memory == pytest.approx(true.memory, rel=0.02)
    assert found.compute == pytest.approx(true.compute, rel=0.02)


def test_points_that_are_left_out() -> None:
    gpu = load_gpu("h100-sxm")
    point = next(point for point in split(gpu, POINTS).fitted if point.gpus == 1)
    cases = {
        "first token after more than 10 s": replace(point, first_ms=10_001.0),
        "faster than the data sheet": replace(point, token_ms=0.1),
        "on more than 8 GPUs": replace(point, gpus=16),
    }
    for reason, one in cases.items():
        assert split(gpu, [one, point]).left_out == ((one, reason),)
    assert split(gpu, [point, point]).left_out == ((point, "a line that stands twice"),)
    assert split(gpu, [replace(point, first_ms=None)]).left_out == ()
    assert split(load_gpu("h200"), [point]).fitted == ()


def test_a_cache_is_as_wide_as_the_engine_makes_it() -> None:
    def width(engine: str, dtype: GpuDtype) -> int:
        return replace(POINTS[0], engine=engine, dtype=dtype).load().kv_bytes

    assert width("trtllm 1.0", GpuDtype.FP8) == 1
    assert width("vllm 0.12.0", GpuDtype.FP8) == 2
    assert width("trtllm 1.0", GpuDtype.FP16) == 2


def test_few_points_are_refused() -> None:
    gpu = load_gpu("h100-sxm")
    with pytest.raises(ConfigError) as caught:
        fit(gpu, POINTS[:2])
    assert str(caught.value) == "h100-sxm: wanted 3 measured points or more, got 2"


def test_a_point_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(f"{HEAD}\n{LINE}\n")
    (point,) = read_points(path)
    assert point == Point(
        model="llama-8b", gpu="h100-sxm", dtype=GpuDtype.FP16, engine="someone", gpus=1,
        input_tokens=1024, output_tokens=512, batch=8, first_ms=550.01, token_ms=7.417,
    )  # fmt: skip
    load = point.load()
    assert (load.context, load.prompt_tokens, load.prompt_context) == (1280, 16, 512)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("llama-8b", "llama-9b", "m.csv, line 2: wanted a model that is known, got 'llama-9b'"),
        (
            "bf16", "fp2",
            "m.csv, line 2: precision: wanted one of fp16, bf16, not stated, fp8, int8, fp4, got "
            "'fp2'",
        ),
        ("7.417", "fast", "m.csv, line 2: wanted numbers, got could not convert string to float: "
         "'fast'"),
        ("7.417", "-1", "m.csv, line 2: wanted numbers above 0, got [1, 1024, 512, 8] and -1.0"),
        ("model,", "models,", f"m.csv: wanted the columns {HEAD}, got "),
    ],
)  # fmt: skip
def test_a_line_that_is_no_point(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(f"{HEAD}\n{LINE}\n".replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        read_points(path)
    assert str(caught.value).startswith(said)


def test_the_page_is_true(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpus", "--check", str(PAGE)]) == 0
    assert capsys.readouterr().out == ""


def test_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpus", "a100-80", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)["gpus"]
    assert report["gpu"] == "a100-80"
    assert report["fitted"] == report["in_profile"]
    assert report["points"] == {"fitted": 11, "held_back": 9, "left_out": {}}
    assert main(["gpus", "a100-80"]) == 0
    said = capsys.readouterr().out
    assert "a100-80: fitted to 11 points, 9 held back; left out: none" in said
    assert f"memory_permille = {report['fitted']['memory'] * 1000:.0f}" in said
    assert "mixtral-8x7b" in said
    text = refused(capsys, 2, main, "gpus", "h300")
    assert text.endswith("GPU: wanted one of a100-80, h100-sxm, h200, got h300")
    text = refused(capsys, 2, main, "gpus", "h200", "--check", str(PAGE))
    assert text.endswith("GPU: wanted none with a page, which has them all")


def test_no_more_than_the_data_sheet_is_reached() -> None:
    for one in fitted_gpus(SHIPPED):
        assert 0 < one.reached.memory <= 1
        assert 0 < one.reached.compute <= 1
        assert one.reached.layer_s >= 0
