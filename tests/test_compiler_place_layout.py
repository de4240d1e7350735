"""Layouts as text, and the chips they number."""

from __future__ import annotations

import pytest

from compiler.errors import LayoutError
from compiler.place.layout import Layout, parse_layout


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("1x1", Layout(stages=1, group=1)),
        ("8x4+4", Layout(stages=8, group=4, head=4)),
        (" 2x3+0 ", Layout(stages=2, group=3)),
        ("40x8+16", Layout(stages=40, group=8, head=16)),
    ],
)
def test_parse_and_print(text: str, layout: Layout) -> None:
    assert parse_layout(text) == layout
    assert parse_layout(str(layout)) == layout


@pytest.mark.parametrize("text", ["", "8", "8x", "x4", "8x4+", "8*4", "-1x4", "8x4+4+4", "1.5x2"])
def test_what_is_no_layout(text: str) -> None:
    with pytest.raises(LayoutError) as caught:
        parse_layout(text)
    assert str(caught.value) == f"layout {text!r}: wanted PxT or PxT+H, such as 8x4+4"


@pytest.mark.parametrize("text", ["0x1", "1x0", "0x0+4"])
def test_no_chips(text: str) -> None:
    with pytest.raises(LayoutError) as caught:
        parse_layout(text)
    assert str(caught.value) == f"layout {text!r}: wanted at least one stage of one chip"


def test_chips_are_numbered_by_stage_then_head() -> None:
    layout = parse_layout("3x2+4")
    assert layout.chips == 10
    assert [layout.stage_chips(stage) for stage in range(3)] == [(0, 1), (2, 3), (4, 5)]
    assert layout.head_chips == (6, 7, 8, 9)
    assert parse_layout("3x2").head_chips == (4, 5)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1x129", "at most 128 chips a stage, got 129"),
        ("1x1+1025", "at most 1024 chips of the head group, got 1025"),
        ("65x128", "at most 8192 chips, got 8320"),
        ("999999999x1", "at most 8192 chips, got 999999999"),
    ],
)
def test_more_chips_than_can_be_laid_out(text: str, wanted: str) -> None:
    with pytest.raises(LayoutError) as caught:
        parse_layout(text)
    assert str(caught.value) == f"layout {text!r}: wanted {wanted}"


@pytest.mark.parametrize("text", ["9" * 5000 + "x1", "1x1000000000", "\u0661x1", "x" * 5000])
def test_no_numbers_of_a_layout(text: str) -> None:
    with pytest.raises(LayoutError, match="wanted PxT or PxT\\+H, such as 8x4\\+4") as caught:
        parse_layout(text)
    assert len(str(caught.value)) < 250
