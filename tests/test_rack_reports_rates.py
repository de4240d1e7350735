"""Settings that land on published times of a token: the search, on small models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rack_kit import refused

from compiler.model.presets import PRESETS
from rack.commands import validate_rates
from rack.commands.validate import main
from rack.machines.profile import load_hardware
from rack.reports import rates
from rack.reports.rates import (
    Landing,
    at_clock,
    landings,
    layouts,
    markdown,
    slower_clock,
    tried,
)
from rack.reports.sequences import Pace

MACHINE = load_hardware("lesson")
TINY = PRESETS["tiny"]


def silent(stage: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def found() -> list[rates.Tried]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rates, "GROUPS", (1, 2))
        patch.setattr(rates, "DTYPES", ("int8", "fp16"))
        return tried(TINY, MACHINE, silent)


def test_layouts_are_pipelines_of_whole_layers() -> None:
    texts = {str(layout) for layout in layouts(PRESETS["llama-8b"])}
    assert {"32x1", "16x1", "2x16", "8x4"} <= texts
    assert len(texts) == 25
    assert {str(layout) for layout in layouts(TINY)} == {
        f"{stages}x{group}" for stages in (3, 2) for group in (1, 2, 4, 8, 16)
    }


def test_what_was_tried_is_what_is_scheduled(found: list[rates.Tried]) -> None:
    assert {one.dtype for one in found} == {"int8", "fp16"}
    for one in found:
        compiled = rates._estimate(TINY, MACHINE, one.dtype, one.layout)
        assert compiled is not None
        (step,) = compiled.steps.values()
        assert one.token_us(1) == pytest.approx(step.cycles / 900)
        interval = compiled.interval(step.name, step.name)
        assert one.token_us(100) == pytest.approx(100 * interval / 900)


def test_the_nearest_on_each_way(found: list[rates.Tried]) -> None:
    wanted = 2 * max(one.token_us(1) for one in found)
    alone, shared, clock = landings(found, MACHINE, wanted, "a try")
    assert [one.way for one in (alone, shared, clock)] == ["alone", "in flight", "clock"]
    assert alone.token_us == max(one.token_us(1) for one in found)
    assert alone.error_percent == pytest.approx(-50)
    assert abs(shared.error_percent) <= 1
    for one in found:
        number = one.sharing(wanted)
        if number is not None:
            assert one.layout.chips >= shared.chips
            assert one.token_us(number) == pytest.approx(wanted, rel=0.01)
    assert (alone.clock_mhz, shared.clock_mhz) == (900, 900)
    assert clock.clock_mhz < 450, "the host keeps its time, so the chip must be slower still"
    assert abs(clock.error_percent) < 0.1


def test_who_shares_a_pipeline(found: list[rates.Tried]) -> None:
    one = replace(found[0], pace=Pace(rows=1, cycles=100, interval_cycles=30), clock_hz=10**6)
    assert one.sharing(120.0) == 4
    assert one.sharing(121.0) == 4
    assert one.sharing(125.0) is None  # four are 4 % off
    assert one.sharing(60.0) is None  # two do not fill it


def test_no_room_for_several(
    found: list[rates.Tried], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(rates, "slots_that_fit", lambda *_: 1)
    wanted = 2 * max(one.token_us(1) for one in found)
    assert [one.way for one in landings(found, MACHINE, wanted, "x")] == ["alone", "clock"]


def test_a_slower_clock_by_its_profile(found: list[rates.Tried]) -> None:
    clock, token_us = slower_clock(found[0], MACHINE, 100.0)
    assert token_us == pytest.approx(100, rel=0.001)
    slow = at_clock(MACHINE, clock)
    assert (slow.name, slow.chip.clock_hz) == ("lesson", clock)
    compiled = rates._estimate(TINY, slow, found[0].dtype, found[0].layout)
    assert compiled is not None
    (step,) = compiled.steps.values()
    assert step.cycles * 1e6 / clock == pytest.approx(token_us)
    assert load_hardware("lesson").chip.clock_hz == 900_000_000, "no constant changes"


LANDED = Landing(
    model="llama-8b", published_us=1000.0, published="1,000 tokens/s", way="alone", dtype="int8",
    layout="8x4+4", chips=36, sequences=1, clock_mhz=900.0, token_us=1010.0,
)  # fmt: skip


def test_the_verb(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(validate_rates, "search", lambda models, hardware, progress: [LANDED])
    assert main(["rates"]) == 0
    assert "+1.0 %" in capsys.readouterr().out
    assert main(["rates", "llama-8b", "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["rates"] == [LANDED.to_dict()]
    assert report["rates"][0]["error_percent"] == pytest.approx(1)
    page = tmp_path / "page.md"
    page.write_text(f"<!-- begin: python -m rack.{validate_rates.PAGE} -->\n<!-- end -->\n")
    assert main(["rates", "--markdown", str(page)]) == 0
    assert markdown([LANDED]) in page.read_text()
    assert main(["rates", "--check", str(page)]) == 0
    text = refused(capsys, 2, main, "rates", "tiny")
    assert text.endswith("MODEL: wanted one of llama-8b, llama-70b, gemma2-9b, got tiny")
    text = refused(capsys, 2, main, "rates", "llama-8b", "--check", str(page))
    assert text.endswith("MODEL: wanted none with a page, which has them all")
