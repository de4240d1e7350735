"""Spoiled input, case by case: what is done to files and JSON, and how the outcome is judged.

A case is a number: the same number spoils the same thing, so that a failure can be run alone. A
case may be refused in one line of a known error, or succeed; anything else fails, and so does a
case that does not end.
"""

from __future__ import annotations

import copy
import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Generic, TypeVar

import pytest

from rack.run.session import KNOWN_ERRORS

MOST_SECONDS = 60  # no case takes a hundredth of it
LONGEST_LINE = 2000  # characters; a long value is shortened

T = TypeVar("T")


def examples(config: pytest.Config, share: float = 1.0) -> int:
    """Give how many cases to run: `--fuzz-examples`, or a share of it for cases that are slow."""
    return max(1, int(config.getoption("--fuzz-examples") * share))


# -- judging


class Hang(Exception):
    """A case that did not end in time."""


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What came of a case: a result, or the line that refused it."""

    result: T | None = None
    refusal: str | None = None


def judge(case: str, run: Callable[[], T]) -> Outcome[T]:
    """Run a case; AssertionError, naming the case, for what is neither a result nor a refusal."""
    try:
        with ends():
            return Outcome(result=run())
    except KNOWN_ERRORS as error:
        refusal = error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise AssertionError(f"{case}: {type(error).__name__}: {error}"[:600]) from error
    line = str(refusal)
    assert line.strip(), f"{case}: {type(refusal).__name__} without a text"
    assert "\n" not in line, f"{case}: several lines: {line!r}"
    assert len(line) <= LONGEST_LINE, f"{case}: {len(line)} characters: {line[:200]}"
    line.encode()  # can be printed
    return Outcome(refusal=line)


@contextmanager
def ends(seconds: float = MOST_SECONDS) -> Iterator[None]:
    """Raise Hang in a block that does not end; main thread only."""

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise Hang(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# -- spoiling JSON

Path_ = tuple[str | int, ...]
"""The keys and places that lead to a value."""


class Raw(str):
    """A piece of JSON text that stands as it is."""

    __slots__ = ()


NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 3, 7, 64.0, 0.5, -0.0, 1e-30, 1e30, 1e400, float("nan"), 2**31, 2**63, 2**64,
    10**9, 10**18, 10**400, -(10**400),
)  # fmt: skip
ODD: tuple[Any, ...] = (
    *NUMBERS, None, True, False, "", "x", "64", "\u2603", "a\0b", "\ud800", "../../etc/passwd",
    "n" * 5000, Raw("9" * 5000), Raw("-1e99999"), [], [[]], {}, {"a": 1}, [1, 2, 3], [None],
)  # fmt: skip


def places(value: Any, path: Path_ = ()) -> list[Path_]:
    """List every value inside a value, itself first."""
    out = [path]
    if isinstance(value, dict):
        for key, inner in value.items():
            out += places(inner, (*path, key))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            out += places(inner, (*path, at))
    return out


def at(value: Any, path: Path_) -> Any:
    """Give the value at a place."""
    for key in path:
        value = value[key]
    return value


def put(value: Any, path: Path_, new: Any) -> Any:
    """Give the value with another one at a place."""
    if not path:
        return new
    out = copy.deepcopy(value)
    at(out, path[:-1])[path[-1]] = new
    return out


def retyped(value: Any) -> list[Any]:
    """Give what looks like a value and is of another type."""
    if isinstance(value, bool):
        return [int(value), str(value).lower(), [value], None]
    if isinstance(value, int | float):
        return [str(value), [value], bool(value), {"value": value}, None, f" {value} "]
    if isinstance(value, str):
        return [[value], {"content": value}, None, value.upper(), 0]
    if isinstance(value, list):
        return [dict(enumerate(value)), value[0] if value else None, [value], None, str(value)]
    return [list(map(list, (value or {}).items())), list(value or {}), None, str(value)]


def spoil_value(rng: random.Random, value: Any) -> tuple[Any, str]:
    """Change one thing in a JSON value: give it with a word on what was done."""
    path = rng.choice(places(value))
    old = at(value, path)
    how = rng.choice(("retype", "odd", "odd", "remove", "rename", "swap", "nest", "number"))
    if how == "remove" and path:
        out = copy.deepcopy(value)
        del at(out, path[:-1])[path[-1]]
        return out, f"removed {_shown(path)}"
    if how == "rename" and path and isinstance(path[-1], str):
        out = copy.deepcopy(value)
        owner = at(out, path[:-1])
        new = rng.choice((path[-1].upper(), path[-1] + "s", "k" * 5000, "\udcff", ""))
        owner[new] = owner.pop(path[-1])
        return out, f"renamed {_shown(path)} to {new[:20]!r}"
    if how == "swap":
        other = rng.choice(places(value))
        new = copy.deepcopy(at(value, other))
        return put(value, path, new), f"{_shown(path)} is as {_shown(other)}"
    if how == "nest":
        depth = rng.choice((3, 200, 450, 900, 980, 5000, 200_000))
        opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
        text = Raw(opening * depth + "1" + closing * depth)
        return put(value, path, text), f"{_shown(path)} nested {depth} deep"
    if how == "number" and isinstance(old, int | float) and not isinstance(old, bool):
        new = rng.choice((old + 1, old - 1, old * 2, -old, old * 10**6, *NUMBERS))
    elif how == "retype":
        new = rng.choice(retyped(old))
    else:
        new = rng.choice(ODD)
    return put(value, path, new), f"{_shown(path)} is {_short(new)}"


def spoil_json(rng: random.Random, text: bytes) -> tuple[bytes, str]:
    """Change one to three things in a JSON document."""
    value, done = json.loads(text), list[str]()
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value, what = spoil_value(rng, value)
        done.append(what)
    return dump(value).encode("utf-8", "surrogatepass"), ", ".join(done)


def dump(value: Any) -> str:
    """Write JSON in which integers may be of any length and Raw text stands as it is."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, dict):
        pairs = (f"{json.dumps(str(key))}: {dump(inner)}" for key, inner in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dump, value)) + "]"
    return json.dumps(value)


def _shown(path: Path_) -> str:
    return ".".join(str(key)[:40] for key in path) or "all"


def _short(value: Any) -> str:
    text = "a long integer" if isinstance(value, int) and abs(value) > 10**40 else repr(value)
    return text if len(text) < 60 else f"{text[:50]}…"


# -- spoiling bytes and files


def spoil_bytes(rng: random.Random, data: bytes, most: int | None = None) -> tuple[bytes, str]:
    """Flip, cut, double, insert or overwrite bytes, of the first `most` where given."""
    end = min(len(data), most or len(data))
    where = rng.randrange(end) if end else 0
    how = rng.choice(("flip", "flip", "cut", "double", "insert", "empty", "garble", "tail"))
    if how == "flip":
        flipped = bytes([data[where] ^ 1 << rng.randrange(8)]) if data else b""
        return data[:where] + flipped + data[where + 1 :], f"a bit of byte {where} flipped"
    if how == "cut":
        return data[:where], f"cut to {where} bytes"
    if how == "double":
        return data[:where] + data, f"its first {where} bytes twice"
    if how == "insert":
        new = rng.choice((b"\0", b"\xff", b"\xef\xbb\xbf", b'"', b"{", b"\n", rng.randbytes(9)))
        return data[:where] + new + data[where:], f"{new!r} inserted at {where}"
    if how == "garble":
        new = rng.randbytes(min(16, end - where))
        return data[:where] + new + data[where + len(new) :], f"16 bytes from {where} on garbled"
    if how == "tail":
        return data + rng.choice((b"\0", b" ", b"}", b"x" * 5000)), "bytes behind its end"
    return b"", "emptied"


def spoil_file(rng: random.Random, path: Path) -> str:
    """Put something that is no file, or another file, in the place of a file."""
    hows = ("directory", "dangling link", "loop", "FIFO", "device", "nothing", "link", "other")
    how = rng.choice(hows)
    data = path.read_bytes()
    others = sorted(p for p in path.parent.iterdir() if p.is_file() and p != path)
    path.unlink()
    if how == "directory":
        path.mkdir()
    elif how == "dangling link":
        path.symlink_to("nowhere/at-all")
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "FIFO":
        os.mkfifo(path)
    elif how == "device":
        path.symlink_to(rng.choice(("/dev/null", "/dev/zero", "/dev/full")))
    elif how == "link":
        target = path.with_name(f"{path.name}.moved")
        target.write_bytes(data)
        path.symlink_to(target.name)
    elif how == "other" and others:
        other = rng.choice(others)
        path.write_bytes(other.read_bytes())
        return f"{path.name} is a copy of {other.name}"
    return f"{path.name} is {how}"
