"""Values out of files: what is not as wanted is refused by file and key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from compiler.checked import Table, parse_json, parse_msgpack, whole
from compiler.errors import ArtifactError

DATA: dict[Any, Any] = {"n": 3, "s": "abc", "l": [1, 2], "t": {"x": 1}, "f": 1.0, "b": True}


def refusal(take: Callable[[], object]) -> str:
    with pytest.raises(ArtifactError) as caught:
        take()
    return str(caught.value)


def test_what_is_as_wanted() -> None:
    table = Table("f", DATA)
    assert (table.integer("n", 3, 3), table.text("s", "[a-c]+"), table.raw("f")) == (3, "abc", 1.0)
    assert (table.integers("l"), table.items("l")) == ((1, 2), [1, 2])
    assert (table.choice("s", ("abc", "x")), table.table("t").integer("x")) == ("abc", 1)
    assert table.names() == list(DATA)
    table.only(*DATA)


@pytest.mark.parametrize(
    ("take", "text"),
    [
        (lambda t: t.integer("m"), "f: m: wanted a value, got nothing"),
        (lambda t: t.integer("n", 4, 9), "f: n: wanted an integer in 4..9, got 3"),
        (lambda t: t.integer("f", 0, 9), "f: f: wanted an integer in 0..9, got 1.0"),
        (lambda t: t.integer("b", 0, 9), "f: b: wanted an integer in 0..9, got True"),
        (lambda t: t.integers("l", 0, 1), "f: l: wanted an integer in 0..1, got 2"),
        (lambda t: t.text("n"), "f: n: wanted a text like .{1,4096}, got 3"),
        (lambda t: t.text("s", "x"), "f: s: wanted a text like x, got 'abc'"),
        (lambda t: t.choice("s", ("x", "y")), "f: s: wanted one of x, y, got 'abc'"),
        (lambda t: t.choice("l", ("x",)), "f: l: wanted one of x, got [1, 2]"),
        (lambda t: t.items("s"), "f: s: wanted a list, got 'abc'"),
        (lambda t: t.table("l"), "f: l: wanted an object, got [1, 2]"),
        (lambda t: t.only("n", "s"), "f: 'l': an unknown key"),
        (lambda t: whole("w", 10**400), f"w: wanted an integer in 0..{1 << 62}, got 10000"),
    ],
)
def test_what_is_not(take: Callable[[Table], object], text: str) -> None:
    assert refusal(lambda: take(Table("f", DATA))).startswith(text)


@pytest.mark.parametrize("key", [3, "a\n", "\ud800"])
def test_keys_are_plain_text(key: object) -> None:
    text = f"f: wanted keys of plain text, got {key!r}"
    assert refusal(lambda: Table("f", {key: 1}).names()) == text


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (b"{", "JSONDecodeError Expecting property name"),
        (b"NaN", "ValueError the number NaN"),
        (b"[-Infinity]", "ValueError the number -Infinity"),
        (b"[" * 100_000, "RecursionError"),
        (b"9" * 5000, "ValueError Exceeds the limit"),
        (b'"\xff"', "UnicodeDecodeError"),
    ],
)
def test_what_is_no_json(data: bytes, got: str) -> None:
    assert refusal(lambda: parse_json("f", data)).startswith(f"f: wanted JSON, got {got}")


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (b"", "ValueError "),
        (b"\xdd\xff\xff\xff\xff", "ValueError "),
        (b"\xc6\xff\xff\xff\xff", "ValueError "),
        (b"\x91" * 5000 + b"\x01", "StackError"),
        (b"\xd4\x05\x00", "ValueError a type of its own, 5"),
        (b"\x81\x91\x01\x02", "TypeError unhashable type: 'list'"),
        (b"\xa1\xff", "UnicodeDecodeError"),
        (b"\x01\x02", "ExtraData"),
        (b"\xc1", "FormatError"),
    ],
)
def test_what_is_no_msgpack(data: bytes, got: str) -> None:
    assert refusal(lambda: parse_msgpack("f", data)).startswith(f"f: wanted msgpack, got {got}")


def test_good_documents() -> None:
    assert parse_json("f", b' {"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    value = {"a": [1, {2: "b"}], "c": -(1 << 63)}
    assert parse_msgpack("f", msgpack.packb(value)) == value
