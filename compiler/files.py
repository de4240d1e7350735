"""Read the files of a model folder whole.

A file is absent only if nothing has its name. A directory, a dangling link, a pipe or an unreadable
file is an error, and reading waits for none of them. JSON may start with a byte order mark and has
each key once. Non-goal: tensors, which compiler/model/weights.py maps.
"""

from __future__ import annotations

import json
import os
import reprlib
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compiler.errors import ModelError, one_line

MOST_BYTES = 1 << 28
"""The largest file that is read whole: ten times the largest published tokenizer.json."""

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxlist, _repr.maxdict = 3, 8, 8
_repr.maxstring, _repr.maxother, _repr.maxlong = 120, 60, 40


def shown(value: object) -> str:
    """Return a value's repr for an error, cut where it is long or deep."""
    try:
        return _repr.repr(value)
    except ValueError:  # an integer with more digits than Python prints
        return "a very long number"


def is_file(path: Path) -> bool:
    """Say whether a file is there. Raises ModelError for anything else, or if it cannot tell."""
    mode = _found(path, os.lstat)
    if mode is None:
        return False
    if stat.S_ISLNK(mode):
        mode = _found(path, os.stat)
    if mode is None:
        raise ModelError(str(path), "a file", f"a link to {os.readlink(path)}, which is not there")
    if not stat.S_ISREG(mode):
        got = next((name for test, name in _KINDS if test(mode)), "something else")
        raise ModelError(str(path), "a file", got)
    return True


def is_folder(path: Path) -> bool:
    """Say whether a folder is there. Raises ModelError if it cannot tell, never for absence."""
    mode = _found(path, os.stat)
    return mode is not None and stat.S_ISDIR(mode)


def names_in(folder: Path) -> list[str]:
    """Return the sorted names in a folder; none if it is absent."""
    if not is_folder(folder):
        if is_file(folder):
            raise ModelError(str(folder), "a folder", "a file")
        return []
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise ModelError(str(folder), "a folder that can be read", _reason(error)) from None


def _found(path: Path, look: Callable[[Path], os.stat_result]) -> int | None:
    """Return the mode of the file with this name, or None."""
    try:
        return look(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ModelError(str(path), "a name that can be looked up", _reason(error)) from None
    except ValueError as error:  # a zero byte in the name
        raise ModelError(str(path), "a name of a file", str(error)) from None


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def read_bytes(path: Path) -> bytes | None:
    """Return a file's contents; None if it is absent."""
    if not is_file(path):
        return None
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ModelError(str(path), f"at most {MOST_BYTES:,} bytes", f"{size:,}")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(str(path), "a file that can be read", _reason(error)) from None


def read_text(path: Path) -> str | None:
    """Return a file's text without a byte order mark; None if it is absent."""
    data = read_bytes(path)
    try:
        return None if data is None else data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelError(str(path), "UTF-8 text", str(error)) from None


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON file's object; None if it is absent."""
    data = read_bytes(path)
    return None if data is None else parse_object(str(path), data)


def require_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's object. Raises ModelError if it is absent."""
    value = read_json(path)
    if value is None:
        raise ModelError(str(path), "a file", "nothing")
    return value


def parse_object(where: str, data: bytes) -> dict[str, Any]:
    """Read a JSON object. A key that comes twice is refused, because readers differ on it."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ModelError(f"{where}: {twice}", "the key once", "it more than once")
        return out

    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=once)
    except RecursionError:
        raise ModelError(where, "valid JSON", "values nested too deeply") from None
    except ValueError as error:  # bad JSON, bad UTF-8, integers of thousands of digits
        raise ModelError(where, "valid JSON", str(error)) from None
    if not isinstance(value, dict):
        raise ModelError(where, "a JSON object", type(value).__name__)
    return value


def whole(value: Any) -> Any:
    """Give 64 for 64.0, as some writers of JSON have it; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def printable(path: str | os.PathLike[str]) -> str:
    """Give a file's name as text that can be printed, whatever its bytes."""
    return one_line(os.fsencode(path).decode("utf-8", "backslashreplace"))
