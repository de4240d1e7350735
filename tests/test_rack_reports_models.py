"""The table of models in README: it has every preset, and what it says is what is compiled."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rack_kit import refused

from compiler.model.presets import PRESETS
from compiler.place.layout import parse_layout
from rack.commands import validate_models
from rack.commands.page import marks
from rack.commands.validate import main
from rack.commands.validate_models import PAGE
from rack.machines.profile import load_hardware
from rack.reports.models import MACHINES, MODELS, QUANTISED, Fit, fit, markdown

README = Path(__file__).parent.parent / "README.md"
CHEAP = ("llama-3.2-1b", "llama-3.2-3b")  # whose rows are compiled anew


def lines(text: str) -> list[str]:
    begin, end = marks(PAGE)
    return text.partition(begin)[2].partition(end)[0].strip().splitlines()


def small(model: str, machine: str, dtype: str = "int8") -> Fit:
    return Fit(
        model=model, hardware=machine, dtype=dtype, layout="8x4+4", chips=36, racks=2,
        tokens_per_second=2493.6, context=1728,
    )  # fmt: skip


def test_readme_has_every_preset_on_both_machines() -> None:
    found = [re.match(r"\| `(.*?)` \| (\w+) ", line) for line in lines(README.read_text())[2:]]
    assert [one.groups() for one in found if one] == [(m, on) for m in MODELS for on in MACHINES]
    assert {"llama-8b", "llama-70b", "gemma2-9b"} < set(MODELS)
    assert not any(PRESETS[name].encoder for name in MODELS)


@pytest.mark.parametrize("model", CHEAP)
def test_readme_says_what_is_compiled(model: str) -> None:
    """Layouts are taken from the page: the search for them has tests of its own."""
    head, _, *body = lines(README.read_text())
    here = [line for line in body if line.startswith(f"| `{model}` |")]
    dtypes, rows = re.findall(r"(\w+): layout", head), []
    assert set(dtypes) <= set(QUANTISED)
    for line, name in zip(here, MACHINES, strict=True):
        layouts = re.findall(r"`(\w+x[\w+]+)`", line)
        for dtype, layout in zip(dtypes, layouts, strict=True):
            rows.append(fit(PRESETS[model], load_hardware(name), dtype, parse_layout(layout)))
    assert markdown(rows).splitlines()[2:] == here


def test_types_stand_side_by_side() -> None:
    rows = [small("a", "lesson"), small("a", "lesson", "int4"), small("b", "lesson")]
    assert markdown(rows).splitlines() == [
        "| model | machine | int8: layout | int8: chips (racks) | int8: tokens/s | int8: context | "
        "int4: layout | int4: chips (racks) | int4: tokens/s | int4: context |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| `a` | lesson | `8x4+4` | 36 (2) | 2,494 | 1,728 | `8x4+4` | 36 (2) | 2,494 | 1,728 |",
        "| `b` | lesson | `8x4+4` | 36 (2) | 2,494 | 1,728 |",
    ]


def test_the_page_is_written_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [small("a", "lesson")]
    monkeypatch.setattr(validate_models, "fits", lambda models, machines: iter(rows))
    page, (begin, end) = tmp_path / "page.md", marks(PAGE)
    page.write_text(f"before\n{begin}\n{end}\nafter\n")
    assert main(["models", "--check", str(page)]) == 1
    wanted = "its tables are not what rack.validate models says; use --markdown"
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {page}: {wanted}"
    assert main(["models", "--markdown", str(page)]) == 0
    assert main(["models", "--check", str(page)]) == 0
    assert page.read_text() == f"before\n{begin}\n\n{markdown(rows)}\n\n{end}\nafter\n"
    capsys.readouterr()
    assert main(["models", "llama-8b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == [rows[0].to_dict()]
    assert main(["models", "llama-8b"]) == 0
    assert "2,493.6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["tiny"], "MODEL: wanted one of llama-8b, llama-70b, "),
        (
            ["llama-8b", "--check", "README.md"],
            "MODEL: wanted none with a page, which has them all",
        ),
    ],
)
def test_what_models_refuses(
    capsys: pytest.CaptureFixture[str], argv: list[str], text: str
) -> None:
    assert text in refused(capsys, 2, main, "models", *argv)
