"""`rack.compare`: rates of both sides, where they cross, verdicts, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rack_kit import refused
from schedules import compiled

from compiler.errors import CapacityError
from compiler.model.presets import PRESETS
from compiler.pipeline import Options, compile_model
from rack.commands.compare import main
from rack.errors import ConfigError
from rack.machines.gpu import GpuDtype, load_gpu
from rack.machines.profile import load_hardware
from rack.machines.profile_keys import WORD_BYTES
from rack.reports.comparison import Machine, Side, gpu_load
from rack.reports.costs import Prices
from rack.reports.lpu_batches import Pipeline, crowd, slots_that_fit
from rack.reports.sequences import Pace
from rack.reports.workloads import verdicts

TINY = ["tiny", "--layout", "2x2+1", "--max-model-len", "64", "--prefill-chunk", "4"]
ROW = {
    "batch", "in_flight", "tpot_ms", "tokens_per_s_user", "tokens_per_s", "usd_per_million_tokens",
    "usd_per_million_tokens_low", "usd_per_million_tokens_high", "joules_per_token",
}  # fmt: skip
HEADS = {"png": b"\x89PNG\r\n", "svg": b"<?xml"}


def report_of(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main([*argv, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(capsys, *TINY, "--batch", "1,2,64", "--gpu", "h100-sxm,a100-80")
    assert list(report["gpu"]) == ["h100-sxm", "a100-80"]
    for rows in (report["lpu"], *report["gpu"].values()):
        assert [row["batch"] for row in rows] == [1, 2, 64]
        for row in rows:
            assert set(row) == ROW
            rate = row["tokens_per_s"]
            assert row["tokens_per_s_user"] == pytest.approx(rate / row["batch"])
            assert row["tpot_ms"] == pytest.approx(1000 * row["batch"] / rate)
            low, usual, high = (
                row[f"usd_per_million_tokens{end}"] for end in ("_low", "", "_high")
            )
            assert 0 < low < usual < high
    for crossing in report["crossover_batch"].values():
        assert set(crossing) == {"throughput", "cost", "energy"}
    clock, found = 900e6, report["pipeline"]
    steps = [Pace(**step) for step in found["steps"]]
    assert [step.rows for step in steps] == [1, 2, 4]
    assert (found["alone_cycles"], found["interval_cycles"]) == (
        steps[0].cycles, steps[0].interval_cycles,
    )  # fmt: skip
    alone = clock / steps[0].cycles
    for row in report["lpu"]:
        served = row["in_flight"]
        assert served == min(row["batch"], found["kv_caches_that_fit"])
        best = min(
            max(step.cycles, math.ceil(served / step.rows) * step.interval_cycles) for step in steps
        )
        assert row["tokens_per_s"] == pytest.approx(served * clock / best)
    one = report["lpu"][0]
    assert one["tokens_per_s"] == pytest.approx(alone)
    assert found["in_flight_when_full"] == steps[0].cycles // steps[0].interval_cycles
    chip = load_hardware("lesson").economics
    watts = 5 * chip.watts("average_w") * Prices().pue
    assert one["joules_per_token"] == pytest.approx(watts / alone)
    year = 365.25 * 24 * 3600
    money = 5 * chip.price.usual / (chip.life.usual * year * alone)
    assert one["usd_per_million_tokens"] == pytest.approx(
        1e6 * (money + one["joules_per_token"] * 0.10 / 3.6e6)
    )
    assert report["inputs"]["lpu"]["chip"]["average_w"] == {
        "value": 185, "grade": "A", "source": chip.average_w.source
    }  # fmt: skip
    assert report["groqcloud"] is None


def test_crossovers_are_where_rows_cross(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tiny", "--layout", "1x1", "--max-model-len", "64", "--gpu", "h200"]
    found = report_of(capsys, *words)["crossover_batch"]["h200"]
    columns = {
        "throughput": ("tokens_per_s", -1), "cost": ("usd_per_million_tokens", 1),
        "energy": ("joules_per_token", 1),
    }  # fmt: skip
    for what, (key, sign) in columns.items():
        at = found[what]
        assert at > 1
        report = report_of(capsys, *words, "--batch", f"{at - 1},{at}")
        before, after = zip(report["gpu"]["h200"], report["lpu"], strict=True)
        assert sign * before[0][key] >= sign * before[1][key]
        assert sign * after[0][key] < sign * after[1][key]


def test_dearer_power_and_less_use(capsys: pytest.CaptureFixture[str]) -> None:
    base = report_of(capsys, *TINY, "--batch", "1", "--gpu", "h200")
    half = report_of(
        capsys, *TINY, "--batch", "1", "--gpu", "h200", "--utilisation", "0.5"
    )  # fmt: skip
    dear = report_of(
        capsys, *TINY, "--batch", "1", "--gpu", "h200", "--usd-per-kwh", "0", "--pue", "2.4"
    )
    for side in (lambda r: r["lpu"][0], lambda r: r["gpu"]["h200"][0]):
        key = "usd_per_million_tokens"
        assert side(half)[key] == pytest.approx(2 * side(base)[key])
        assert side(half)["joules_per_token"] == pytest.approx(2 * side(base)["joules_per_token"])
        assert side(dear)["joules_per_token"] == pytest.approx(2 * side(base)["joules_per_token"])
        power = side(base)["joules_per_token"] * 1e6 / 3.6e6 * 0.10
        assert side(dear)[key] == pytest.approx(side(base)[key] - power)


def test_verdicts_follow_from_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    works = {work["workload"]: work for work in report_of(capsys, *TINY)["workloads"]}
    assert list(works) == [
        "single user", "voice", "API, 32 and more", "embedding", "batch jobs", "training",
    ]  # fmt: skip
    for name, work in works.items():
        figures = {
            machine: value
            for machine, value in work["figures"].items()
            if machine not in work["cannot"]
        }
        most = name == "single user"
        order = sorted(figures, key=lambda machine: figures[machine], reverse=most)
        assert (work["verdict"], work["next"]) == (order[0], order[1])
        assert work["times"] == pytest.approx(
            max(figures[order[0]], figures[order[1]]) / min(figures[order[0]], figures[order[1]])
        )
    assert works["training"]["cannot"] == {"LPU": "its schedules have no backward pass"}
    assert works["training"]["verdict"] != "LPU"


def machine(name: str, chips: int, per_user: float) -> Machine:
    return Machine(
        name=name, chips=chips, economics=load_hardware("lesson").economics, places=10**6,
        rate=lambda batch: batch * per_user,
    )  # fmt: skip


def test_who_is_too_slow_is_no_choice() -> None:
    """A voice needs 200 tokens/s: a GPU that gives 199 is none, however little it costs."""
    gpu = load_gpu("h200")
    load = gpu_load(gpu, PRESETS["llama-8b"], GpuDtype.FP16, 512, None)
    for speed, verdict, cannot in ((199.0, "LPU", {"h200"}), (201.0, "h200", set())):
        side = Side(gpu=gpu, load=load, machine=machine("h200", 1, speed))
        rack = machine("lesson", 36, 1000.0)
        found = verdicts(
            load.config, load_hardware("lesson"), rack, [side], 1e4, Prices()
        )  # fmt: skip
        voice = found[1]
        assert (voice["workload"], voice["verdict"]) == ("voice", verdict)
        assert set(voice["cannot"]) == cannot
        assert found[0]["verdict"] == "LPU"
    slow = Side(gpu=gpu, load=load, machine=machine("h200", 1, 20.0))
    hardware = load_hardware("lesson")
    voice = verdicts(load.config, hardware, machine("x", 1, 50.0), [slow], 1e4, Prices())[1]
    assert (voice["verdict"], voice["judged_by"]) == ("LPU", "tokens/s a user")


def test_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--gpu", "h100-sxm", "--batch", "1,8", "--gpu-dtype", "int8"]) == 0
    said = capsys.readouterr().out
    for part in (
        "tiny, 64 tokens in context: int8 on lesson 2x2+1, 5 chips, beside GPUs in int8",
        "h100-sxm overtakes the rack: in throughput from batch ",
        "ridge 590.7 operations a byte by the data sheet",
        "LPU chip: ridge 40.0 operations a byte over the streams, 14.5 over SRAM; a token has 2",
        "costs of lesson's chip: 5 of it alone, each of 185 W on average (TDP 215, most 300)",
        "assumption: a sentence of 20 tokens within 100 ms",
        "its schedules have no backward pass",
    ):
        assert part in said


def test_pictures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    files = {kind: tmp_path / f"c.{kind}" for kind in HEADS}
    words = [word for path in files.values() for word in ("--plot", str(path))]
    assert main([*TINY, "--gpu", "h200", "--batch", "1,4", *words]) == 0
    for kind, path in files.items():
        assert path.read_bytes().startswith(HEADS[kind])
    drawn = files["svg"].read_text(encoding="utf-8")
    for text in ("LPU", "1 x h200", "cost", "energy", "tiny on GPUs"):
        assert f"<!-- {text} -->" in drawn
    assert f"{files['png']}: tiny beside h200" in capsys.readouterr().err


def test_a_type_without_a_unit_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "--gpu", "a100-80,h100-sxm", "--batch", "1", "--gpu-dtype", "fp8", "--json"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert "NOTE: a100-80 has no unit for fp8: stored in it, multiplied in fp16" in err
    assert "h100-sxm has no unit" not in err
    assert json.loads(out)["roofline"]["gpu"]["a100-80"]["products_in"] == "fp16"


def test_gpus_that_share_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "--gpu", "h200", "--batch", "1"]
    one, four = (
        report_of(capsys, *words, "--gpu-tp", number)["inputs"]["gpu"]["h200"]["chips"]
        for number in ("1", "4")
    )
    assert (one, four) == (1, 4)


@pytest.mark.parametrize(
    ("code", "words", "said"),
    [
        (1, ["--batch", "0"], "batch: wanted at least 1, got 0"),
        (1, ["--batch", "4,2"], "batch: wanted rising numbers, got '4,2'"),
        (1, ["--batch", "x"], "batch: wanted whole numbers with commas, got 'x'"),
        (1, ["--batch", "9999"], "batch: wanted at most 4096 sequences, got 9999"),
        (2, ["--plot", "-"], "--plot: wanted a file beside the report, got -, standard output"),
        (2, ["--context", "0"], "--context: wanted at least 1, got 0"),
        (2, ["--gpu", "h200,h200"], "--gpu: wanted each once, got h200 2 times"),
        (
            1, ["--gpu", "h300"],
            "h300: gpu: wanted a100-80, h100-lesson, h100-sxm, h200 or the path of a .toml file, "
            "got no such GPU",
        ),
        (1, ["--pue", "0.5"], "pue: wanted 1 to 10, got 0.5"),
        (1, ["--utilisation", "0"], "utilisation: wanted more than 0, got 0.0"),
        (1, ["--usd-per-kwh", "nan"], "usd_per_kwh: wanted 0 to 1000, got nan"),
        (
            1, ["--plot", "a.gif"],
            "a.gif: wanted a picture to write, got a name that ends in .gif; known: png, svg, pdf",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(
    capsys: pytest.CaptureFixture[str], code: int, words: list[str], said: str
) -> None:
    assert refused(capsys, code, main, *TINY, *words).endswith(said)


def test_a_gpu_with_the_racks_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "gpu.toml"
    path.write_text('name = "LPU"\ninherits = "h200"\n')
    said = refused(capsys, 2, main, *TINY, "--gpu", str(path))
    assert said == "--gpu: wanted another name than that of the rack, got LPU"


def test_a_context_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--context", "65"]) == 1
    assert capsys.readouterr().err.endswith("error: context: wanted at most 64, got 65\n")


def test_models_that_gpus_do_not_hold() -> None:
    gpu, model = load_gpu("h100-sxm"), PRESETS["llama-70b"]
    assert gpu_load(gpu, model, GpuDtype.FP16, 512, None).gpus == 2
    with pytest.raises(ConfigError) as caught:
        gpu_load(gpu, model, GpuDtype.FP16, 512, 1)
    assert str(caught.value) == (
        "h100-sxm: llama-70b in fp16 takes 141.1 GB and a KV cache: wanted --gpu-tp 2 or more, "
        "got 1"
    )
    small = replace(gpu, memory_bytes=10**9)
    with pytest.raises(ConfigError) as caught:
        gpu_load(small, model, GpuDtype.FP16, 512, None)
    assert str(caught.value) == (
        "h100-sxm: llama-70b in fp16 takes 141.1 GB and a KV cache: wanted a smaller --gpu-dtype, "
        "got no number of GPUs that holds it"
    )


def test_an_encoder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(capsys, 1, main, "tiny-bert", "--layout", "1x1")
    assert "wanted one that generates text, got tiny-bert, an encoder" in text


def test_a_pipeline_that_fills() -> None:
    one = Pace(rows=1, cycles=100, interval_cycles=30)
    found = Pipeline(chips=4, clock_hz=1000, paces=(one,), places=100)
    assert [found.tokens_per_s(batch) for batch in (1, 3, 4, 50)] == pytest.approx(
        [10, 30, 1000 / 30, 1000 / 30]
    )
    four = Pace(rows=4, cycles=150, interval_cycles=45)
    rows = replace(found, paces=(one, four))
    assert [rows.tokens_per_s(batch) for batch in (1, 4, 5, 8)] == pytest.approx(
        [10, 1000 / 30, 1000 / 30, 8000 / 150]
    )
    cramped = replace(found, places=2)
    assert [cramped.in_flight(batch) for batch in (1, 2, 9)] == [1, 2, 2]
    assert cramped.tokens_per_s(9) == 20


def test_a_crowd_has_the_slots_that_fit() -> None:
    """One more is refused by the compiler."""
    model, hardware = compiled("2x2+1", "lesson"), load_hardware("lesson")
    asked = Options(max_model_len=64, buckets=(64,))
    found = crowd(model, hardware, 64, lambda done, total: None)
    most = slots_that_fit(model.config, hardware, model.layout, asked, 64)
    assert found.places == most > 1
    sizes = [
        replace(hardware, chip=replace(hardware.chip, sram_bytes=WORD_BYTES * words))
        for words in (24, 96, 128, 160, 192, 256)
    ]
    fits = [slots_that_fit(model.config, small, model.layout, asked, 64) for small in sizes]
    assert fits[0] == 0, "not even one"
    few, small = next(pair for pair in zip(fits, sizes, strict=True) if pair[0] > 0)
    assert few < most
    slots = replace(asked, sequences=few, prefill_chunk=16)
    compile_model(model.config, small, model.layout, slots, kinds="decode")
    with pytest.raises(CapacityError):
        compile_model(
            model.config, small, model.layout, replace(slots, sequences=few + 1), kinds="decode"
        )
