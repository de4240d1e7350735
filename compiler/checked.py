"""Read values of a file that anybody may have written: each is checked for type and bounds.

A wrong value is refused by file and key. So the code that uses the values meets no wrong type, no
number out of bounds and no missing key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from typing import Any, NoReturn

import msgpack

from compiler.errors import ArtifactError
from compiler.files import shown

MOST = 1 << 62  # of any number: below the 64 bits of files and arrays


class Table:
    """One object of a file. `what` names the file and the object's key."""

    def __init__(self, what: str, data: object) -> None:
        self.what = what
        if not isinstance(data, dict):
            raise ArtifactError(f"{what}: wanted an object, got {shown(data)}")
        self._data = data

    def raw(self, key: str) -> Any:
        """Return a value as it is. Raises ArtifactError if there is none."""
        if key not in self._data:
            raise ArtifactError(f"{self.what}: {key}: wanted a value, got nothing")
        return self._data[key]

    def integer(self, key: str, least: int = 0, most: int = MOST) -> int:
        """Return an integer in `least`..`most`."""
        return whole(f"{self.what}: {key}", self.raw(key), least, most)

    def integers(self, key: str, least: int = 0, most: int = MOST) -> tuple[int, ...]:
        """Return a list of integers in `least`..`most`."""
        what = f"{self.what}: {key}"
        return tuple(whole(what, value, least, most) for value in self.items(key))

    def text(self, key: str, pattern: str = r".{1,4096}") -> str:
        """Return a text that the whole pattern matches."""
        value = self.raw(key)
        if not isinstance(value, str) or re.fullmatch(pattern, value, re.DOTALL) is None:
            self.refuse(key, f"a text like {pattern}", value)
        return value

    def choice(self, key: str, allowed: Collection[str]) -> str:
        """Return one of a few texts."""
        value = self.raw(key)
        if not isinstance(value, str) or value not in allowed:
            self.refuse(key, f"one of {', '.join(allowed)}", value)
        return value

    def items(self, key: str) -> list[Any]:
        """Return a list."""
        value = self.raw(key)
        if not isinstance(value, list):
            self.refuse(key, "a list", value)
        return value

    def table(self, key: str) -> Table:
        """Return the object under a key."""
        return Table(f"{self.what}: {key}", self.raw(key))

    def names(self) -> list[str]:
        """Return the keys. Raises ArtifactError if one is not plain text."""
        for key in self._data:
            if not isinstance(key, str) or not key.isprintable():
                raise ArtifactError(f"{self.what}: wanted keys of plain text, got {shown(key)}")
        return list(self._data)

    def only(self, *known: str) -> None:
        """Refuse every key but these."""
        for key in self.names():
            if key not in known:
                raise ArtifactError(f"{self.what}: {shown(key)}: an unknown key")

    def refuse(self, key: str, wanted: str, got: object) -> NoReturn:
        """Raise ArtifactError for a value."""
        raise ArtifactError(f"{self.what}: {key}: wanted {wanted}, got {shown(got)}")


def whole(what: str, value: object, least: int = 0, most: int = MOST) -> int:
    """Return a value if it is an integer in `least`..`most`; else raise ArtifactError."""
    if type(value) is not int or not least <= value <= most:
        raise ArtifactError(f"{what}: wanted an integer in {least}..{most}, got {shown(value)}")
    return value


def parse_json(what: str, data: bytes, form: str = "JSON") -> Any:
    """Read JSON without NaN and infinities. Raises ArtifactError."""
    return _parsed(what, form, lambda: json.loads(data, parse_constant=_no_number))


def parse_msgpack(what: str, data: bytes) -> Any:
    """Read msgpack without types of its own; never allocates more than the data can hold.

    Raises ArtifactError.
    """
    return _parsed(
        what, "msgpack",
        lambda: msgpack.unpackb(data, strict_map_key=False, ext_hook=_no_type, timestamp=0),
    )  # fmt: skip


def _parsed(what: str, form: str, parse: Callable[[], Any]) -> Any:
    try:
        return parse()
    # deep nesting, bad UTF-8, keys that cannot be keys, lengths beyond the data
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        got = f"{type(error).__name__} {error}".strip()
        raise ArtifactError(f"{what}: wanted {form}, got {got}") from None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"the number {text}")


def _no_type(code: int, data: bytes) -> NoReturn:
    raise ValueError(f"a type of its own, {code}")
