"""The file of rows: whole lines only, kept to the byte, refused by line where it is none."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from rack.errors import ConfigError
from rack.sweeps.rows import adding, encode, read_rows

CODE = {"version": "1", "commit": "c"}


def row(key: str, **more: Any) -> dict[str, Any]:
    about = {"run": "plan", "model": "m", "dtype": "int8", "hardware": "h", "notices": []}
    return {"key": key, "point": {"context": 1}, "code": CODE, **about, **more}


def add(path: Path, *keys: str) -> frozenset[str]:
    with adding(str(path), CODE) as rows:
        for key in keys:
            rows.add(row(key))
        return rows.there


def test_rows_are_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    with adding(str(path), CODE) as rows:
        assert rows.there == frozenset()
        rows.add(row("a", said="é"))
        assert path.read_bytes() == encode(row("a", said="é"))
        assert path.read_bytes().isascii()
    assert read_rows(str(path)) == [row("a", said="é")]


def test_what_is_there_stays_and_is_known(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    assert add(path, "a", "b") == frozenset()
    before = path.read_bytes()
    assert add(path, "c") == {"a", "b"}
    assert path.read_bytes() == before + encode(row("c"))


@pytest.mark.parametrize("left", [1, 20, -1])
def test_a_torn_line_is_cut_off(tmp_path: Path, left: int) -> None:
    path = tmp_path / "rows"
    add(path, "a", "b")
    whole = path.read_bytes()
    path.write_bytes(encode(row("a")) + encode(row("b"))[:left])
    assert [one["key"] for one in read_rows(str(path))] == ["a"]
    assert add(path, "b") == {"a"}
    assert path.read_bytes() == whole


def test_only_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b'{"key"')
    assert add(path, "a") == frozenset()
    assert path.read_bytes() == encode(row("a"))


@pytest.mark.parametrize(
    ("line", "got"),
    [
        (b"no json", "'no json'"),
        (b"[1]", r"\[1\]"),
        (b'{"key": 1, "point": {}}', "an object without key and point"),
        (b'{"key": "a"}', "an object without key and point"),
        (b"\xff", "'�'"),
        (b"", "''"),
        (b"x" * (1 << 20), "1048576 bytes and more"),
    ],
)
def test_a_line_that_is_no_row(tmp_path: Path, line: bytes, got: str) -> None:
    path = tmp_path / "rows"
    path.write_bytes(encode(row("a")) + line + b"\n" + encode(row("b")))
    with pytest.raises(ConfigError, match=f", line 2: wanted a row of rack.sweep, got {got}"):
        read_rows(str(path))
    with pytest.raises(ConfigError, match=", line 2: "):
        add(path, "c")


@pytest.mark.parametrize(
    ("more", "lacking"),
    [
        ({"run": 5}, "run"),
        ({"model": None}, "model"),
        ({"notices": 5}, "notices"),
        ({"error": "x"}, "error.message"),
        ({"error": {"type": "x"}}, "error.message"),
    ],
)
def test_a_row_that_lacks_a_key(tmp_path: Path, more: dict[str, Any], lacking: str) -> None:
    path = tmp_path / "rows"
    path.write_bytes(encode(row("a", **more)))
    with pytest.raises(ConfigError) as caught:
        read_rows(str(path))
    assert str(caught.value) == (
        f"{path}, line 1: wanted a row of rack.sweep, got an object without {lacking}"
    )


def test_a_row_of_what_does_not_fit_has_no_figures(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    bare = {"key": "a", "point": {}, "run": "plan", "code": CODE, "error": {"message": "small"}}
    path.write_bytes(encode(bare))
    assert read_rows(str(path)) == [bare]


@pytest.mark.parametrize("text", [b"a note", b'{"precious": 1}', b" ", encode(row("a"))[1:-1]])
def test_what_is_no_torn_row_is_not_cut_off(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "rows"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=r", line 1: wanted a row of rack\.sweep, got '"):
        add(path, "a")
    assert path.read_bytes() == text


def test_rows_of_other_code_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(encode({**row("a"), "code": {"version": "1", "commit": "d"}}))
    with pytest.raises(ConfigError) as caught:
        add(path, "b")
    assert str(caught.value) == (
        f"{path}: wanted rows of this code (1, commit c), got 1, commit d: name another file"
    )
    path.write_bytes(encode({**row("a"), "code": 3}))
    with pytest.raises(ConfigError, match=r"\(1, commit c\), got 3: name another file$"):
        add(path, "b")


def test_one_sweep_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    wanted = "wanted a file that no other sweep adds to, got one in use"
    with adding(str(path), CODE), pytest.raises(ConfigError, match=f"^{path}: {wanted}$"):
        add(path)
    add(path)


def test_a_pipe_gets_all_rows(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()))
    reader.start()
    assert add(path, "a", "b") == frozenset()
    reader.join(60)
    assert found == [encode(row("a")) + encode(row("b"))]


def test_places_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"wanted a file of rows to write, got .*a folder"):
        add(tmp_path)
    with pytest.raises(ConfigError, match=r"no: wanted a file of rows, got .*No such file"):
        read_rows(str(tmp_path / "no"))
