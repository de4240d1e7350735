"""`rack.validate`: published figures, ours beside them, and a page that stays true."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rack_kit import refused

from compiler.model.presets import PRESETS
from rack.commands import validate
from rack.commands.validate import main
from rack.machines.hardware import Sourced
from rack.machines.profile import load_hardware
from rack.reports import accuracy_rows, encoders
from rack.reports.accuracy import Row, behind, number, published
from rack.reports.accuracy_rows import capacity_rows, chip_rows, link_rows, weight_chips
from rack.reports.exchange import all_to_all, exchange_cycles

PAGE = Path(__file__).parent.parent / "docs" / "accuracy.md"
MACHINE = load_hardware("groqrack")
OF_CYCLES = {key for key in MACHINE.sources if not key.startswith("errors.")}
"""The machine's constants that cycles depend on: a link's errors change none."""


def row(published: float | tuple[float, float], ours: float, *constants: str) -> Row:
    return Row(
        part="part", figure="figure", unit="us", published=published, grade="A", source="paper",
        ours=ours, constants=constants,
    )  # fmt: skip


def by_figure(rows: list[Row]) -> dict[str, Row]:
    return {row.figure: row for row in rows}


@pytest.mark.parametrize(
    ("published", "ours", "error"),
    [
        (200, 190, -5), (200, 200, 0), (200, 230, 15), ((100, 300), 100, 0), ((100, 300), 50, -50),
        ((100, 300), 600, 100), ((0, 40), 39, 0), ((0, 40), 44, 10),
    ],
)  # fmt: skip
def test_signed_error(published: float | tuple[float, float], ours: float, error: float) -> None:
    assert row(published, ours).error_percent == pytest.approx(error)


def test_how_figures_are_written() -> None:
    assert [number(value) for value in (24, 230_686_720, 3425.24, 1.7644, 0.2667)] == [
        "24", "230,686,720", "3,425.2", "1.76", "0.267"
    ]  # fmt: skip
    assert published(row((0, 40), 39)) == "< 40"
    assert published(row((319, 1200), 1)) == "319 to 1,200"


def test_what_is_behind_a_figure() -> None:
    assert behind(row(1, 1, "chip.streams"), MACHINE) == "published constants"
    assert behind(row(1, 1, "chip.clock_hz", "chip.mxm_a*"), MACHINE) == (
        "assumed: mxm_activation_slots, mxm_accumulator_rows"
    )
    assert behind(row(1, 1, "chip.*", "delays.*"), MACHINE) == "fitted: 6; assumed: 41"
    found = row(1, 1, "link.latency_ns", "chip.forward_cycles").behind(MACHINE)
    assert found["constants"] == ["chip.forward_cycles", "link.latency_ns"]
    assert found["fitted"] == {"chip.forward_cycles": "1.6 us end to end in a rack"}


def test_every_row_rests_on_constants_of_the_profile() -> None:
    for entry in (*chip_rows(MACHINE), *link_rows(MACHINE), *capacity_rows(MACHINE)):
        for pattern in entry.constants:
            alone = replace(entry, constants=(pattern,)).behind(MACHINE)["constants"]
            assert alone, f"{entry.figure}: no key {pattern}"


def test_the_chip_s_figures() -> None:
    rows = by_figure(chip_rows(MACHINE))
    assert rows["peak, int8"].ours == pytest.approx(737.28)
    assert rows["SRAM bandwidth"].ours == 56_320
    exact = [name for name, row in rows.items() if row.error_percent == 0]
    assert {*rows} - {*exact} == {
        "peak, int8", "peak, fp16", "peak, int8, at 1 GHz", "SRAM bandwidth as sold",
        "SRAM reads that fetch leaves for streams",
    }  # fmt: skip
    slow = replace(MACHINE, chip=replace(MACHINE.chip, clock_hz=450_000_000))
    assert by_figure(chip_rows(slow))["peak, int8"].error_percent == pytest.approx(-50.848)


def test_exchanges_are_the_scheduler_s() -> None:
    hop = MACHINE.chip.forward_cycles + 24 + 216
    assert exchange_cycles(MACHINE, [(0, 1)], 1) == 24 + 216
    assert exchange_cycles(MACHINE, [(0, 1, 2, 3)], 1) == 24 + 216 + 2 * hop
    assert exchange_cycles(MACHINE, [(0, 1)], 10) == 240 + 216
    assert exchange_cycles(MACHINE, all_to_all(8), 5) == 5 * 24 + 216  # seven links at once
    assert exchange_cycles(MACHINE, [(0, 1), (0, 1)], 1) == 2 * 24 + 216  # one link, in turn
    rows = by_figure(link_rows(MACHINE))
    assert rows["latency inside a node"].ours == 216
    assert rows["end to end in a rack, three hops"].ours == pytest.approx(1.6)
    five = rows["end to end in 10,440 chips, five hops"]
    assert five.ours == pytest.approx((24 + 216 + 4 * hop) / 900)
    assert five.error_percent == 0


def test_chips_per_model() -> None:
    rows = by_figure(capacity_rows(MACHINE))
    assert rows["weights of llama-8b, int8, without the embedding table"].ours == 33
    for name, entry in rows.items():
        if name.startswith("weights"):  # padding and scales never make it less
            assert 0 <= entry.error_percent < 3, name
    config = PRESETS["llama-8b"]
    assert weight_chips(config, "int8", 2 * MACHINE.chip.sram_bytes, table=False) == 17


def test_a_machine_of_another_kind_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\ninherits = "lesson"\n')
    text = refused(capsys, 1, main, "--hardware", str(path), "--json")
    assert text == "mine: cabling to hold against published figures: wanted dragonfly, got free"


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy_rows, "ROW_SOURCES", (chip_rows,))


@pytest.mark.usefixtures("few_rows")
def test_table_and_json_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert sorted(report) == ["code", "hardware", "hardware_digest", "rows"]
    assert [entry["figure"] for entry in report["rows"]] == [r.figure for r in chip_rows(MACHINE)]
    fitted = {figure["figure"]: figure["fitted"] for figure in report["rows"]}
    assert fitted["peak, int8"] == {}
    loaded = fitted["weight load with SRAM read and transit"]
    assert loaded == {"chip.slices_per_hop": "a weight load in under 40 cycles"}
    assert report["rows"][0]["error_percent"] == pytest.approx(-1.696)
    assert main([]) == 0
    text = capsys.readouterr().out
    for entry in report["rows"]:
        assert f"{entry['error_percent']:+.1f} %" in text


@pytest.mark.usefixtures("few_rows")
def test_the_page_is_written_and_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    text = refused(capsys, 1, main, "--check", str(page))
    assert text.startswith(f"{page}: wanted a page to read and write, got ")
    page.write_bytes(b"\xff")
    assert "can't decode byte 0xff" in refused(capsys, 1, main, "--check", str(page))
    page.write_text("# No marks\n")
    text = refused(capsys, 1, main, "--markdown", str(page))
    assert text.endswith(f"{validate.BEGIN} and {validate.END}, got none")
    page.write_text(f"before\n{validate.BEGIN}\nold\n{validate.END}\nafter\n")
    text = refused(capsys, 1, main, "--check", str(page))
    assert text == f"{page}: its tables are not what rack.validate says; use --markdown"
    assert main(["--markdown", str(page)]) == 0
    assert main(["--check", str(page)]) == 0
    written = page.read_text()
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    peak = "| chip | peak, int8 | 750 TOPS | A | 737.3 TOPS | -1.7 % | published constants |"
    assert peak in written
    assert "| chip.mxm_activation_slots | 64 | assumption | 20 KiB a plane" in written
    page.write_text(written.replace("737.3", "750.0"))
    assert main(["--check", str(page)]) == 1


def test_a_command_of_its_own_gets_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[str] = []
    monkeypatch.setitem(validate.COMMANDS, "other", lambda argv: got.extend(argv) or 3)
    assert main(["other", "--size", "4"]) == 3
    assert got == ["--size", "4"]


@pytest.mark.slow
def test_the_page_of_the_docs_is_true(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", str(PAGE)]) == 0, capsys.readouterr().err


def test_sourced_is_fitted_to_nothing_unless_said() -> None:
    assert Sourced(4, "A", "paper").fitted == ""


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["--hidden", "16385", "--batch", "1"], 2, "argument --hidden: wanted an integer up to"),
        (["--hidden", "512", "--batch", "65537"], 1, "batch: wanted at most 65536 sequences"),
        (["--hidden", "512", "--batch=--"], 2, "--batch: wanted a value, got '--'"),
    ],
)
def test_a_cell_has_bounds(
    capsys: pytest.CaptureFixture[str], argv: list[str], code: int, text: str
) -> None:
    assert text in refused(capsys, code, main, "lstm", *argv)


@pytest.mark.parametrize("flag", ["--check", "--markdown"])
@pytest.mark.parametrize("page", ["", "none.md"])
@pytest.mark.parametrize("words", [[], ["models"], ["gpus"], ["rates"], ["sequences"]])
def test_a_page_is_refused_before_figures_are_worked_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    flag: str, page: str, words: list[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(validate, "all_rows", lambda hardware: pytest.fail("worked out"))
    monkeypatch.chdir(tmp_path)
    assert main([*words, flag, page]) == 1
    shown = page or "."
    assert capsys.readouterr().err.startswith(f"error: {shown}: wanted a page to read and write")


TINY_ENCODER = ["encoder", "tiny-bert", "--tokens", "16", "--layout", "1x1"]


def test_runs_of_an_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY_ENCODER, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["program_us"] == report["cycles"] / 900
    assert sum(runs for _, runs in report["histogram"]) == report["runs"] == 24_240
    assert report["program_us"] < report["p50_us"] < report["p99_us"] < report["max_us"]
    # two exponential delays of 5 us: their sum is below 8.39 us in half of the runs
    assert report["p50_us"] - report["program_us"] == pytest.approx(8.39, abs=0.2)
    assert report["p99_us"] - report["program_us"] == pytest.approx(33.2, abs=1.5)
    again = {**report}
    assert main([*TINY_ENCODER, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == again
    assert main([*TINY_ENCODER, "--json", "--seed", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["histogram"] != report["histogram"]
    assert main([*TINY_ENCODER, "--jitter-us", "0", "--runs", "10"]) == 0
    said = capsys.readouterr().out
    assert "a host jitter of 0.0 us a way (assumption)" in said
    assert said.splitlines()[-1].endswith(f"      10 {'#' * 50}")


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["--jitter-us", "-1"], 1, "jitter_us: wanted 0 to 1000000 us, got -1.0"),
        (["--jitter-us", "nan"], 1, "jitter_us: wanted 0 to 1000000 us, got nan"),
        (["--runs", "0"], 2, "--runs: wanted at least 1, got 0"),
        (["--tokens", "0"], 2, "--tokens: wanted at least 1, got 0"),
        (["--seed", "-1"], 2, "--seed: wanted at least 0, got -1"),
        (["--tokens", "257"], 1, "max_model_len: tiny-bert has 256 positions, got 257"),
    ],
)
def test_runs_that_cannot_be(
    capsys: pytest.CaptureFixture[str], argv: list[str], code: int, text: str
) -> None:
    assert text in refused(capsys, code, main, *TINY_ENCODER, *argv)


def test_rows_of_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def cycles(hardware: Any, *shape: Any) -> int:
        asked.append(shape)
        return 900_000  # 1,000 us

    monkeypatch.setattr(encoders, "sequence_cycles", cycles)
    rows = encoders.encoder_rows(MACHINE)
    assert asked == [
        ("bert-base", "1x1", 128, "fp16"), ("bert-base", "1x1", 128, "int8"),
        ("bert-large", "4x1", 384, "fp16"), ("bert-large", "1x4", 384, "fp16"),
    ]  # fmt: skip
    assert [round(row.ours, 2) for row in rows[:2]] == [1000, 1000]
    within, all_runs, below = rows[2:5]
    assert [row.ours for row in rows[5:]] == [within.ours, all_runs.ours, below.ours]
    assert 1000 < within.ours < all_runs.ours < 1225
    assert within.error_percent == all_runs.error_percent == below.error_percent == 0
    assert below.ours == pytest.approx(0.83, abs=0.02)
    for entry in rows:
        assert set(entry.behind(MACHINE)["constants"]) == OF_CYCLES


def test_rows_of_encoders_over_chips() -> None:
    """Six layers a chip: as published, linear in chips, for sequences a second and for one."""
    rows = encoders.scaling_rows(MACHINE)
    assert [row.published for row in rows] == [4, 4, 8, 8, 16, 16]
    for row in rows:
        assert abs(row.error_percent) < 5
        assert set(row.behind(MACHINE)["constants"]) == OF_CYCLES
    steps = [encoders.layer_cycles(MACHINE, 6 * chips, chips, "fp16")[1] for chips in (4, 8)]
    assert steps[0] == steps[1]
