"""The file of a sweep's rows: JSON Lines, one row a point, in the order in which they were asked.

A row is written whole and at once. A sweep that was killed leaves at most one torn line at the end,
which the next one cuts off; rows that are there are kept as they are, to the byte. A file that is
no regular one (`-`, a pipe) is written from the start.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from compiler.errors import one_line
from compiler.files import printable, shown
from rack.errors import ConfigError
from rack.system.output import STANDARD_OUTPUT, check_file, writing
from rack.system.shell import os_line

MOST_LINE = 1 << 20  # bytes of a row
_BEGIN = b'{"key": "'  # of each: what begins otherwise is no torn row, and is not cut off
_FIELDS = {"key": str, "point": dict, "run": str}
_OF_A_FIT = {"model": str, "dtype": str, "hardware": str, "notices": list}


def encode(row: dict[str, Any]) -> bytes:
    """Return a row as a line."""
    return json.dumps(row, ensure_ascii=True).encode() + b"\n"


def read_rows(path: str) -> list[dict[str, Any]]:
    """Return the whole rows of a file. Raises ConfigError, with the line, for what is none."""
    return [row for row, _ in _lines(path)]


def _lines(path: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each whole row, with the offset of its end."""
    name, end = one_line(printable(path)), 0
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MOST_LINE), b""), 1):
                end += len(line)
                if not line.endswith(b"\n"):
                    if len(line) >= MOST_LINE:
                        raise _no_row(name, number, f"{MOST_LINE} bytes and more")
                    if line.startswith(_BEGIN) or _BEGIN.startswith(line):
                        return  # torn
                    raise _no_row(name, number, shown(line.decode("utf-8", "replace")))
                yield _row(name, number, line), end
    except OSError as error:
        raise ConfigError(f"{name}: wanted a file of rows, got {os_line(error)}") from error


def _row(name: str, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise _no_row(name, number, shown(line.decode("utf-8", "replace").rstrip())) from None
    if not isinstance(row, dict):
        raise _no_row(name, number, shown(row))
    if not isinstance(row.get("key"), str) or not isinstance(row.get("point"), dict):
        raise _no_row(name, number, "an object without key and point")
    if (lacking := _lacking(row)) is not None:
        raise _no_row(name, number, f"an object without {lacking}")
    return row


def _lacking(row: dict[str, Any]) -> str | None:
    """Return the key that a row lacks, or has in another type; None where it has them all."""
    error = row.get("error")
    if "error" in row and not (isinstance(error, dict) and isinstance(error.get("message"), str)):
        return "error.message"
    wanted = _FIELDS if "error" in row else _FIELDS | _OF_A_FIT
    return next((key for key, kind in wanted.items() if not isinstance(row.get(key), kind)), None)


def _no_row(name: str, number: int, got: str) -> ConfigError:
    return ConfigError(f"{name}, line {number}: wanted a row of rack.sweep, got {got}")


class Rows:
    """A file that rows are added to, and the keys of those that it has."""

    def __init__(self, file: BinaryIO, there: frozenset[str]) -> None:
        self._file, self.there = file, there

    def add(self, row: dict[str, Any]) -> None:
        """Write a row and hand it to the system. Raises OSError."""
        self._file.write(encode(row))
        self._file.flush()


@contextmanager
def adding(path: str, code: dict[str, str]) -> Iterator[Rows]:
    """Open a file to add rows that `code` makes; other code's rows are refused.

    Raises ConfigError, also where another sweep adds to the file.
    """
    check_file(path, "a file of rows")
    if path == STANDARD_OUTPUT or (os.path.exists(path) and not _is_regular(path)):
        with writing(path) as file:
            yield Rows(file, frozenset())
        return
    with open(path, "ab") as file:
        name = one_line(printable(path))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wanted = "a file that no other sweep adds to"
            raise ConfigError(f"{name}: wanted {wanted}, got one in use") from None
        there, end = set(), 0
        for row, after in _lines(path):
            if row.get("code") != code:
                wanted, got = code_told(code), code_told(row.get("code"))
                raise ConfigError(
                    f"{name}: wanted rows of this code ({wanted}), got {got}: name another file"
                )
            there.add(row["key"])
            end = after
        os.truncate(path, end)
        yield Rows(file, frozenset(there))


def _is_regular(path: str) -> bool:
    return stat.S_ISREG(Path(path).stat().st_mode)


def code_told(code: object) -> str:
    """Return what a row says of the code that made it, as text."""
    if not isinstance(code, dict):
        return shown(code)
    return f"{code.get('version')}, commit {code.get('commit')}"
