"""compiler.files: what may stand in a file's place, and JSON that is read or refused."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from compiler.errors import ModelError, one_line
from compiler.files import (
    is_file,
    is_folder,
    names_in,
    parse_object,
    printable,
    read_bytes,
    read_json,
    read_text,
    require_json,
    shown,
    whole,
)


def refusal(run: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as caught:
        run()
    return str(caught.value)


@contextmanager
def nobody() -> Iterator[None]:
    """Give up root's right to read everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Path.mkdir, "wanted a file, got a directory"),
        (os.mkfifo, "wanted a file, got a pipe"),
        (bind, "wanted a file, got a socket"),
        (lambda path: path.symlink_to("/dev/zero"), "wanted a file, got a device"),
        (
            lambda path: path.symlink_to("no/where"),
            "wanted a file, got a link to no/where, which is not there",
        ),
        (
            lambda path: path.symlink_to(path.name),
            "wanted a name that can be looked up, got Too many levels of symbolic links",
        ),
        (
            lambda path: path.symlink_to("/proc/self/mem"),
            "wanted a file that can be read, got Input/output error",
        ),
    ],
)  # fmt: skip
def test_what_is_no_file_is_refused_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], message: str
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    path = Path("x.json")
    make(path)
    for read in (read_bytes, read_text, read_json, require_json):
        assert refusal(lambda read=read: read(path)) == f"x.json: {message}"


def test_absence_is_absence(tmp_path: Path) -> None:
    assert not is_file(tmp_path / "x")
    assert not is_file(tmp_path / "x" / "y")
    assert read_bytes(tmp_path / "x") is None
    assert read_text(tmp_path / "x") is None
    assert read_json(tmp_path / "x") is None
    assert names_in(tmp_path / "x") == []
    assert not is_folder(tmp_path / "x")
    assert refusal(lambda: require_json(tmp_path / "x")).endswith("x: wanted a file, got nothing")


def test_a_link_to_a_file_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("{}")
    (tmp_path / "config.json").symlink_to("blob")
    assert read_json(tmp_path / "config.json") == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("n" * 5000, "wanted a name that can be looked up, got File name too long"),
        ("a\0b", "a\\x00b: wanted a name of a file, got embedded null byte"),
        ("\ud800", "wanted a name of a file, got 'utf-8' codec can't encode character"),
    ],
)
def test_names_that_no_file_can_have(name: str, message: str) -> None:
    for look in (is_file, is_folder, names_in):
        line = refusal(lambda look=look: look(Path(name)))
        assert message in line
        assert len(line) < 1000
        line.encode()


def test_what_may_not_be_read_is_no_absence(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("{}")
    (tmp_path / "folder").mkdir()
    for name in ("x", "folder"):
        (tmp_path / name).chmod(0)
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)  # pytest's own folders are private
    with nobody():
        found = [
            refusal(lambda: read_bytes(tmp_path / "x")),
            refusal(lambda: names_in(tmp_path / "folder")),
            refusal(lambda: is_file(tmp_path / "folder" / "y")),
        ]
    assert found == [
        f"{tmp_path}/x: wanted a file that can be read, got Permission denied",
        f"{tmp_path}/folder: wanted a folder that can be read, got Permission denied",
        f"{tmp_path}/folder/y: wanted a name that can be looked up, got Permission denied",
    ]


def test_a_folder_is_listed_in_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).write_text("")
    assert names_in(tmp_path) == ["a", "b"]
    assert refusal(lambda: names_in(tmp_path / "a")).endswith("a: wanted a folder, got a file")


def test_a_file_too_large_to_be_one_of_a_folder(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.truncate(1 << 40)
    assert refusal(lambda: read_bytes(tmp_path / "x")).endswith(
        "x: wanted at most 268,435,456 bytes, got 1,099,511,627,776"
    )


def test_text_may_have_a_byte_order_mark_and_must_be_utf_8(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes("\ufeffé".encode())
    assert read_text(tmp_path / "x") == "é"
    (tmp_path / "x").write_bytes("é".encode("latin-1"))
    assert "x: wanted UTF-8 text, got 'utf-8' codec can't decode byte 0xe9" in refusal(
        lambda: read_text(tmp_path / "x")
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "wanted valid JSON, got Expecting value: line 1 column 1 (char 0)"),
        (b"7", "wanted a JSON object, got int"),
        (b"[" * 100_000, "wanted valid JSON, got values nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "wanted valid JSON, got Exceeds the limit (4300 digits)"),
        (b'{"a": 1, "b": {"a": 1, "a": 1}}', "a: wanted the key once, got it more than once"),
        ("{}".encode("utf-16"), "wanted valid JSON, got 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_json_that_is_refused(data: bytes, message: str) -> None:
    assert refusal(lambda: parse_object("x", data)).startswith(f"x: {message}")


def test_json_may_have_a_byte_order_mark() -> None:
    assert parse_object("x", b'\xef\xbb\xbf{"a": 64.0}') == {"a": 64.0}


def test_numbers_that_are_whole_are_integers() -> None:
    assert [type(whole(value)) for value in (64.0, 64, 0.5, True, "64", None)] == [
        int, int, float, bool, str, type(None),
    ]  # fmt: skip
    assert whole(float("inf")) == float("inf")


def test_values_are_shown_short() -> None:
    deep: object = 1
    for _ in range(10_000):
        deep = [deep]
    for value in (deep, "x" * 5000, 10**400, [7] * 5000, {str(i): i for i in range(5000)}):
        assert len(shown(value)) < 300
    assert shown(10**5000) == "a very long number"
    assert shown("a") == "'a'"


def test_lines_can_be_printed() -> None:
    assert one_line("a\nb\udce9 é") == "a\\nb\\udce9 é"
    assert one_line("x" * 5000) == "x" * 500 + " … " + "x" * 80
    assert printable(os.fsdecode(b"caf\xe9\n")) == "caf\\xe9\\n"
