"""Columns of rows by name, and the picture that they make."""

from __future__ import annotations

from typing import Any

import pytest

from rack.errors import ConfigError
from rack.sweeps.columns import Plot, about, column, panel_of, parse_plot


def row(layout: str, context: int, cycles: float, **more: Any) -> dict[str, Any]:
    return {
        "key": f"{layout}/{context}",
        "point": {"layout": layout, "context": context},
        "model": "tiny", "dtype": "int8", "hardware": "lesson", "layout": layout,
        "decode": {"cycles": cycles, "parts": {"exchange": {"cycles": 1}}},
        **more,
    }  # fmt: skip


ROWS = [row("1x1", 16, 10.0), row("1x1", 32, 20.0), row("2x1", 16, 30.0), row("2x1", 32, 40.0)]


@pytest.mark.parametrize("text", ["x,y", " x , y "])
def test_two_columns(text: str) -> None:
    assert parse_plot(text) == Plot(x="x", y="y")
    assert str(parse_plot(text)) == "y over x"


def test_three_columns() -> None:
    assert parse_plot("x,y,z") == Plot(x="x", y="y", colour="z")
    assert str(parse_plot("x,y,z")) == "y over x by z"


@pytest.mark.parametrize("text", ["", "x", "x,", "x,y,", "a,b,c,d", 3, None])
def test_what_is_no_plot(text: object) -> None:
    with pytest.raises(ConfigError, match=r"^plot: wanted X,Y or X,Y,COLOUR, got "):
        parse_plot(text)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("context", [16, 32, 16, 32]),
        ("decode.cycles", [10.0, 20.0, 30.0, 40.0]),
        ("parts.exchange.cycles", [1, 1, 1, 1]),
        ("model", ["tiny"] * 4),
    ],
)
def test_a_column_by_its_name(name: str, values: list[Any]) -> None:
    assert column(ROWS, name) == values


def test_a_row_without_it() -> None:
    assert column([*ROWS[:1], row("1x1", 64, 1.0, more=5)], "more") == [None, 5]


def test_a_name_that_could_be_several() -> None:
    wanted = "wanted one of decode.cycles, decode.parts.exchange.cycles, got several"
    with pytest.raises(ConfigError, match=f"^column cycles: {wanted}$"):
        column(ROWS, "cycles")


def test_a_name_that_is_none() -> None:
    for name, told in (
        ("colour", "rack.plan --json has them"),
        ("cycle", "near: decode.cycles"),
        ("decode.cycels", "near: decode.cycles"),
    ):
        with pytest.raises(ConfigError) as caught:
            column(ROWS, name)
        assert str(caught.value) == f"column {name}: wanted one of the rows', got none; {told}"


def test_a_panel() -> None:
    panel = panel_of(Plot(x="context", y="decode.cycles", colour="layout"), ROWS)
    assert (panel.title, panel.x_label) == ("decode.cycles over context by layout", "context")
    assert {line.label: (line.x, line.y) for line in panel.series} == {
        "layout 1x1": ((16.0, 32.0), (10.0, 20.0)),
        "layout 2x1": ((16.0, 32.0), (30.0, 40.0)),
    }
    assert (panel.log_x, panel.log_y) == (False, False)


def test_numbers_are_sorted_and_names_stay_in_order() -> None:
    turned = [ROWS[1], ROWS[0]]
    (line,) = panel_of(Plot(x="context", y="decode.cycles"), turned).series
    assert line.x == (16.0, 32.0)
    (line,) = panel_of(Plot(x="layout", y="decode.cycles"), [ROWS[2], ROWS[0]]).series
    assert line.x == ("2x1", "1x1")


def test_a_line_with_several_y_at_an_x_is_parted_by_the_other_axes() -> None:
    panel = panel_of(Plot(x="context", y="decode.cycles"), ROWS)
    assert [line.label for line in panel.series] == ["layout 1x1", "layout 2x1"]
    panel = panel_of(Plot(x="model", y="decode.cycles", colour="layout"), ROWS)
    assert [line.label for line in panel.series][:2] == [
        "layout 1x1, context 16", "layout 1x1, context 32",
    ]  # fmt: skip


def test_wide_spreads_are_logarithmic() -> None:
    wide = [row("1x1", 16, 1.0), row("1x1", 128, 50.0)]
    panel = panel_of(Plot(x="context", y="decode.cycles"), wide)
    assert (panel.log_x, panel.log_y) == (True, True)
    none = panel_of(Plot(x="context", y="decode.cycles"), [row("1x1", 16, 0), row("1x1", 17, 99)])
    assert (none.log_x, none.log_y) == (False, False)


def test_rows_that_do_not_fit_are_not_drawn() -> None:
    misfit = {"key": "m", "point": {"layout": "9x9", "context": 16}, "error": {"message": "no"}}
    panel = panel_of(Plot(x="context", y="decode.cycles"), [misfit, ROWS[0]])
    assert [line.x for line in panel.series] == [(16.0,)]
    with pytest.raises(ConfigError, match=r"^plot: wanted rows to draw, got none that fit of 1$"):
        panel_of(Plot(x="context", y="decode.cycles"), [misfit])
    assert about([misfit, *ROWS]) == "tiny int8 on lesson"


@pytest.mark.parametrize("value", ["10", None, True, float("nan"), [1]])
def test_y_is_numbers(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^column decode.cycles: wanted numbers to draw, got "):
        panel_of(Plot(x="context", y="decode.cycles"), [row("1x1", 16, value)])


def test_too_many_lines() -> None:
    rows = [row(f"{n}x1", 16, float(n)) for n in range(1, 22)]
    with pytest.raises(ConfigError) as caught:
        panel_of(Plot(x="context", y="decode.cycles", colour="layout"), rows)
    assert str(caught.value) == (
        "plot: wanted at most 20 lines, got 21: choose another COLOUR, or an axis with fewer values"
    )
