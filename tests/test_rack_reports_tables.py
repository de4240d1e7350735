"""Tables: whole in a file, folded on a terminal, and no text is taken for markup."""

from __future__ import annotations

import io

import pytest

from rack.reports.tables import columns, shown

LONG = "layers.31.self_attn.qkv_proj[/red]:smile:" * 5


def test_a_table_in_a_file_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = columns("name", "cycles")
    table.add_row(LONG, "1,234")
    text = shown("a head " * 20, table)
    assert text.splitlines()[0] == "a head " * 20
    assert LONG in text
    assert not text.endswith("\n")


@pytest.mark.parametrize("width", ["0", "1", "20", "80"])
def test_a_table_on_a_terminal_is_folded_and_not_cut(
    width: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("TERM", "dumb")
    table = columns("name", "cycles")
    table.add_row(LONG, "1,234")
    text = shown(LONG, table)
    first, *lines = text.splitlines()
    assert first == LONG
    assert "…" not in text
    if width in ("20", "80"):
        cells = "".join(line.split("│")[1].strip() for line in lines if line.startswith("│"))
        assert cells == LONG


def test_a_locale_without_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    table = columns("name")
    table.add_row("µ")
    assert "| \\xb5 " in shown(table)
