"""The course text's figures: its arithmetic by hand, and the machine's beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from schedules import compiled

from compiler.errors import CompilerError
from compiler.model.presets import PRESETS
from rack.commands import validate
from rack.commands.validate import main
from rack.machines.profile import load_hardware
from rack.reports import lesson
from rack.reports.lesson import (
    LessonRow,
    capacity_rows,
    gpu_rows,
    machine_rows,
    markdown,
    percentiles,
    rate_rows,
)
from rack.run.session import KNOWN_ERRORS

PAGE = Path(__file__).parent.parent / "docs" / "lesson.md"
MACHINE = load_hardware("lesson")


def silent(stage: str, done: int, total: int) -> None:
    pass


def by_figure(rows: list[LessonRow]) -> dict[str, LessonRow]:
    return {row.figure: row for row in rows}


def test_the_rack() -> None:
    rows = by_figure(list(machine_rows(MACHINE)))
    assert rows["chips of a rack"].ours == rows["chips of a rack"].counted == 18
    assert rows["SRAM of a rack"].counted == pytest.approx(4.14)
    assert rows["SRAM of a rack"].ours == pytest.approx(4.152, abs=0.001)
    assert rows["SRAM bandwidth of a chip"].ours == pytest.approx(50.688)
    assert rows["chip to chip, a rack"].ours == pytest.approx(4.1)


def test_the_gpu_of_the_text() -> None:
    ridge, rate = gpu_rows()
    assert (ridge.said, rate.said) == ("148", "239")
    assert ridge.counted == pytest.approx(148.57, abs=0.01)
    assert rate.counted == pytest.approx(239.29, abs=0.01)
    assert ridge.ours is not None
    assert ridge.ours > 2 * 148, "an H100 has another peak"
    assert rate.ours is not None
    assert rate.counted is not None
    assert rate.ours < rate.counted, "no GPU reaches its data sheet"


def test_chips_by_the_text_s_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesson, "_smallest", lambda config, hardware, dtype: ("1x20", 20, 64))
    rows = by_figure(list(capacity_rows(MACHINE, silent)))
    counted = {name: rows[f"7B in {name}"].counted for name in ("fp32", "fp16", "int8", "int4")}
    assert counted == {"fp32": 122, "fp16": 61, "int8": 31, "int4": 16}
    assert rows["70B in int4"].counted == 153  # 152.2: "152+"
    assert rows["7B in fp32"].ours is None
    assert rows["7B in int8: cards"].ours == 10
    assert rows["7B in int8: racks"].ours == 2
    assert rows["70B in int8: racks"].said == "multiple"


def test_a_model_that_no_layout_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesson, "smallest_layout", lambda config, hardware, options: None)
    with pytest.raises(CompilerError) as caught:
        lesson._smallest(PRESETS["tiny"], MACHINE, "int8")
    assert str(caught.value) == "tiny: no layout of lesson holds it in int8"
    assert isinstance(caught.value, KNOWN_ERRORS)


def test_equal_requests_take_equally_long() -> None:
    assert percentiles(compiled("2x2+1", "lesson")) == 1.0


def test_rates_of_a_small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of any model: its rate, the time of a token, and who would share it."""
    monkeypatch.setattr(lesson, "RATES", (("tiny", "2x2+1", 1000, "1,000"),))
    monkeypatch.setattr(lesson, "percentiles", lambda model: 1.0)
    monkeypatch.setattr(lesson, "CONTEXT", 64)
    model = compiled("2x2+1", "lesson")
    monkeypatch.setattr(lesson, "_compiled", lambda config, hardware, layout: model)
    with pytest.raises(KeyError, match="llama-8b"):
        list(rate_rows(MACHINE, silent))
    rows = []
    for row in rate_rows(MACHINE, silent):
        rows.append(row)
        if len(rows) == 2:
            break
    rate, time = rows
    step = model.step_for(64)
    assert rate.ours == pytest.approx(9e8 / step.cycles)
    assert time.ours == pytest.approx(step.cycles / 900)
    assert time.counted == 1000
    full = 9e8 / model.cycles_until(step.name, step.name)
    assert f"makes {full:,.0f} tokens/s in all" in rate.why
    assert f"where {round(full / 1000)} share it" in rate.why


ROW = LessonRow(
    part="rack", figure="chips", unit="chips", said="152+", counted=152.2, ours=None, why="so"
)


def test_how_a_row_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert ROW.cells == ("rack", "chips", "152+ chips", "152.2 chips", "-", "so")
    assert markdown([ROW]).splitlines()[2] == "| rack | chips | 152+ chips | 152.2 chips | - | so |"
    monkeypatch.setattr(validate, "lesson_rows", lambda hardware, progress: [ROW])
    words = ["--hardware", "lesson"]
    assert main(words) == 0
    assert "152.2 chips" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["rows"] == [ROW.to_dict()]
    assert (report["hardware"], report["hardware_digest"]) == ("lesson", MACHINE.digest())
    page = tmp_path / "page.md"
    page.write_text(f"a\n<!-- begin: python -m rack.{validate.LESSON_PAGE} -->\n<!-- end -->\nb\n")
    assert main([*words, "--markdown", str(page)]) == 0
    assert "| 152+ chips |" in page.read_text()
    assert main([*words, "--check", str(page)]) == 0


@pytest.mark.slow
def test_the_page_is_true() -> None:
    assert main(["--hardware", "lesson", "--check", str(PAGE)]) == 0
