"""What many users get: rates follow from intervals, `plan` says them, and so does the table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rack_kit import refused
from schedules import machine

from compiler.model.presets import PRESETS
from compiler.pipeline import Options, compile_model, lay_out, most_sequences
from compiler.place.layout import parse_layout
from rack.commands import validate_sequences
from rack.commands.page import marks
from rack.commands.plan import main as plan
from rack.commands.validate import main as validate
from rack.reports.sequences import (
    Pace,
    markdown,
    paces,
    rates,
    sequences_report,
    token_cycles,
)

TINY = ["tiny", "--layout", "2x2+1", "--max-model-len", "32"]


def planned(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert plan([*argv, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_a_users_token_takes_what_it_takes_alone_until_the_pipeline_is_full() -> None:
    one = Pace(rows=1, cycles=1000, interval_cycles=300)
    two = Pace(rows=2, cycles=1100, interval_cycles=400)
    assert (one.full_at, two.full_at) == (3, 4)
    assert [one.token_cycles(n) for n in (1, 3, 4, 10)] == [1000, 1000, 1200, 3000]
    assert [two.token_cycles(n) for n in (1, 4, 5, 10)] == [1100, 1100, 1200, 2000]
    assert [token_cycles((one, two), n) for n in (1, 3, 4, 10)] == [1000, 1000, 1100, 2000]


@pytest.mark.parametrize("hardware", ["lesson", "groqrack"])
def test_a_full_pipeline_has_a_step_an_interval(hardware: str) -> None:
    options = Options(max_model_len=32, prefill_chunk=4, buckets=(32,), sequences=9, batch=4)
    model = compile_model(
        PRESETS["tiny"], machine(hardware), parse_layout("2x2+1"), options, kinds="decode"
    )
    found, report = paces(model, 32), sequences_report(model, 32)
    clock = model.chip.clock_hz
    assert [pace.rows for pace in found] == [1, 2, 4]
    for pace in found:
        step = model.step(pace.rows, 32, decode=True)
        assert (pace.cycles, pace.interval_cycles) == (
            step.cycles, model.interval(step.name, step.name),
        )  # fmt: skip
        assert pace.full_at == pace.rows * (step.cycles // pace.interval_cycles)
    assert (report["count"], report["batch"]) == (9, 4)
    assert report["interval_cycles"] == found[2].interval_cycles
    assert report["full_at"] == found[2].full_at
    best = min(max(p.cycles, -(-9 // p.rows) * p.interval_cycles) for p in found)
    assert report["tokens_per_s_user"] == {"alone": clock / found[0].cycles, "all": clock / best}
    assert report["tokens_per_s"] == {
        "alone": clock / found[0].cycles, "all": 9 * (clock / best),
        "full": 4 * clock / found[2].interval_cycles,
    }  # fmt: skip


def test_plan_says_what_sequences_get(capsys: pytest.CaptureFixture[str]) -> None:
    report = planned(capsys, *TINY, "--sequences", "5", "--batch", "2")
    said = report["sequences"]
    assert (said["count"], said["batch"], len(said["steps"])) == (5, 2, 2)
    assert (report["config"]["sequences"], report["config"]["batch"]) == (5, 2)
    alone = planned(capsys, *TINY)
    kv = "sram_bytes_per_chip"
    assert report[kv]["kv_cache"]["max"] > 4 * alone[kv]["kv_cache"]["max"]
    assert alone["sequences"]["count"] == 1
    assert plan([*TINY, "--sequences", "5", "--batch", "2"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for step in said["steps"]:
        assert f"{step['cycles']:,} cycles, one every {step['interval_cycles']:,};" in text
    assert "intervals: a chip begins a step when it has ended the one before" in text
    assert "5 sequences, batches of up to 2: " in text


@pytest.mark.parametrize("extra", [(), ("--batch", "3"), ("--dtype", "fp16")])
def test_plan_finds_the_most_sequences(
    capsys: pytest.CaptureFixture[str], extra: tuple[str, ...]
) -> None:
    most = planned(capsys, *TINY, "--sequences", "max", *extra)["sequences"]["count"]
    assert most > 100
    assert planned(capsys, *TINY, "--sequences", str(most), *extra)["sequences"]["count"] == most
    said = refused(capsys, 1, plan, *TINY, "--sequences", str(most + 1), *extra)
    (missing,) = re.findall(r"([0-9,]+) bytes missing", said)
    a_slot = machine("lesson").chip.sram_bytes // most
    assert 0 < int(missing.replace(",", "")) < 2 * a_slot, "as the chip is used best"


def test_the_most_is_none_where_a_batch_has_no_room() -> None:
    options = Options(max_model_len=32, prefill_chunk=4, sequences=2, batch=2)
    ground = lay_out(PRESETS["tiny"], machine("lesson"), parse_layout("1x1"), options)
    small = 88 * 2 * 320 * 4  # bytes: of four words a bank
    spec = machine("lesson").chip
    assert most_sequences(ground.partition, ground.network, spec, options, 32) > 2
    tight = type(spec)(
        **{name: getattr(spec, name) for name in spec.__slots__} | {"sram_bytes": small}
    )
    assert most_sequences(ground.partition, ground.network, tight, options, 32) == 0


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (
            ["tiny", "--sequences", "max"],
            "sequences: max wants --max-model-len N, the context of each sequence",
        ),
        (
            ["tiny-bert", "--sequences", "max", "--max-model-len", "32"],
            "sequences: wanted 1, as tiny-bert is an encoder, got max",
        ),
        (
            ["tiny", "--sequences", "max", "--max-model-len", "32", "--batch", "0"],
            "batch: wanted 1 to 65536, got 0",
        ),
        (["tiny", "--sequences", "0"], "sequences: wanted 1 to 65536, got 0"),
        (
            ["tiny", "--sequences", "2", "--batch", "3"],
            "batch: wanted 1 to 2, as many as there are sequences, got 3",
        ),
    ],
)
def test_what_cannot_be_planned(
    capsys: pytest.CaptureFixture[str], argv: list[str], text: str
) -> None:
    assert refused(capsys, 1, plan, *argv) == text


def test_max_is_a_word_of_plan_alone(capsys: pytest.CaptureFixture[str]) -> None:
    from rack.commands.generate import main as generate

    said = refused(capsys, 2, generate, "tiny", "--prompt", "a", "--sequences", "max")
    assert said == "sequences: wanted int, got 'max'"


# -- the table


def small_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate_sequences, "CASES", (("tiny", "2x2+1"),))
    monkeypatch.setattr(validate_sequences, "MACHINES", ("groqrack",))


def test_a_line_has_the_rates_of_what_fits() -> None:
    row = rates("tiny", "2x1", machine("lesson"), 4)
    assert [pace.rows for pace in row.paces] == [1, 2, 4]
    assert row.most > 64
    one, four = markdown([row]).splitlines()[2:]
    cells = [cell.strip() for cell in one.strip("|").split("|")]
    assert cells[:3] == ["tiny, 2 (`2x1`)", "lesson", "1"]
    assert cells[7] == f"{row.clock_hz / row.paces[0].cycles:,.0f}"
    assert [cell.strip() for cell in four.strip("|").split("|")][7:9] == ["-", "-"]
    assert row.to_dict()["tokens_per_s_user"]["64"] == row.user(64)


def test_the_table_is_written_and_checked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_table(monkeypatch)
    page = tmp_path / "page.md"
    begin, end = marks(validate_sequences.PAGE)
    page.write_text(f"{begin}\n{end}\n")
    assert validate(["sequences", "--check", str(page)]) == 1
    wanted = "its tables are not what rack.validate sequences says; use --markdown"
    assert wanted in capsys.readouterr().err
    assert validate(["sequences", "--markdown", str(page)]) == 0
    assert "| tiny, 5 (`2x2+1`) | groqrack | 1 |" in page.read_text()
    assert validate(["sequences", "--check", str(page)]) == 0
    assert validate(["sequences", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rates"]
    assert (row["model"], row["chips"]) == ("tiny", 5)
    picture = tmp_path / "rates.svg"
    assert validate(["sequences", "tiny", "--plot", str(picture)]) == 0
    assert "S = 64" in capsys.readouterr().out
    assert "tiny 2x2+1, groqrack" in picture.read_text()


def test_words_that_the_command_refuses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = refused(capsys, 2, validate, "sequences", "gpt-2")
    assert said == "MODEL: wanted one of llama-70b, llama-8b, got gpt-2"
    said = refused(capsys, 2, validate, "sequences", "--plot", "-")
    assert said == "--plot: wanted a file beside the report, got -, standard output"
    said = refused(capsys, 1, validate, "sequences", "--plot", "rates.gif")
    assert said.startswith("rates.gif: wanted a picture to write, got a name that ends in .gif")
    page = tmp_path / "page.md"
    page.write_text("")
    said = refused(capsys, 2, validate, "sequences", "llama-8b", "--check", str(page))
    assert said == "MODEL: wanted none with a page, which has them all"
