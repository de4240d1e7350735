"""Panels of lines: what is drawn, that it is the same each time, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from rack.reports.plots import Mark, Panel, Series, draw_panels

HEADS = {"png": b"\x89PNG\r\n", "svg": b"<?xml", "pdf": b"%PDF-"}


def panel(**changes: Any) -> Panel:
    lines = (
        Series(label="rack", x=(1, 2, 4), y=(900.0, 900.0, 450.0)),
        Series(label="other", x=(1, 2, 4), y=(90.0, 89.0, 88.0), dashed=True),
    )
    values: dict[str, Any] = {
        "title": "a user", "x_label": "batch", "y_label": "tokens/s", "series": lines, **changes,
    }  # fmt: skip
    return Panel(**values)


@pytest.mark.parametrize("kind", HEADS)
def test_equal_panels_give_equal_bytes(kind: str) -> None:
    panels = [panel(log_x=True, log_y=True, marks=(Mark(x=2, label="here"),))]
    drawn = draw_panels(panels, "all", kind)
    assert drawn.startswith(HEADS[kind])
    assert drawn == draw_panels(panels, "all", kind)
    assert drawn != draw_panels([panel(log_x=True)], "all", kind)


def test_each_panel_and_each_name_is_there() -> None:
    named = Series(label="rack", x=("8x4+4", "4x8"), y=(3.0, 2.0))
    third = panel(title="by layout", x_label="layout", series=(named,))
    text = draw_panels([panel(), panel(title="in all"), third], "all", "svg").decode()
    # a text is drawn as glyphs, with itself in a comment
    for name in ("a user", "in all", "by layout", "8x4+4", "4x8", "batch", "tokens/s", "rack"):
        assert f"<!-- {name} -->" in text
    assert text.count("<!-- rack -->") == 1  # one legend for all


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        ((1, 2), (1.0,), "rack: wanted as many x as y, at least one, got 2 and 1"),
        ((), (), "rack: wanted as many x as y, at least one, got 0 and 0"),
        ((1,), (float("nan"),), "rack: wanted finite numbers, got (nan,)"),
    ],
)
def test_a_line_without_points(x: tuple[float, ...], y: tuple[float, ...], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        Series(label="rack", x=x, y=y)
    assert str(caught.value) == said


def test_panels_that_cannot_be_drawn() -> None:
    with pytest.raises(ValueError) as caught:
        panel(series=())
    assert str(caught.value) == "a user: wanted at least one series, got none"
    zero = (Series(label="rack", x=(1,), y=(0.0,)),)
    with pytest.raises(ValueError) as caught:
        panel(series=zero, log_y=True)
    assert str(caught.value) == "a user: y: wanted numbers above 0 on a log axis"
    names = (Series(label="rack", x=("a",), y=(1.0,)),)
    with pytest.raises(ValueError) as caught:
        panel(series=names, log_x=True)
    assert str(caught.value) == "a user: x: wanted numbers above 0 on a log axis"
