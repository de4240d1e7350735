"""Read a trace's file a piece at a time: its lines, or the items of one JSON array.

Only regular files, and no piece beyond a size: memory stays the same however long the file is.
"""

from __future__ import annotations

import codecs
import io
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from compiler.files import printable, shown
from compiler.regular import open_regular
from rack.errors import ConfigError, TraceError

MOST_BYTES = 1 << 24
"""The longest line, or item of an array: a session of thousands of calls is shorter."""
_BLOCK = 1 << 18
_SPACE = " \t\r\n"


class TraceFile:
    """A trace's file, open: how far it was read, and in which line. A context manager."""

    def __init__(self, path: str) -> None:
        self.path, self.line, self.offset = path, 0, 0
        self._file: io.BufferedReader | None = None
        self.size = 0

    def __enter__(self) -> TraceFile:
        try:
            raw = open_regular(Path(self.path))
        except OSError as error:
            raise self._unread(error) from None
        assert isinstance(raw, io.FileIO)
        self._file = io.BufferedReader(raw, _BLOCK)
        self.size = os.fstat(raw.fileno()).st_size
        return self

    def __exit__(self, *error: object) -> None:
        assert self._file is not None
        self._file.close()

    def refuse(self, wanted: str, got: str, key: str = "", line: int | None = None) -> TraceError:
        """Return the error for the line that was read last, or another."""
        at = self.line if line is None else line
        return TraceError(file=self.path, line=at, key=key, wanted=wanted, got=got)

    def lines(self) -> Iterator[str]:
        """Yield the lines that have more than spaces, without their ends. Raises TraceError."""
        assert self._file is not None
        while data := self._bytes(partial(self._file.readline, MOST_BYTES + 1)):
            self.line += 1
            self.offset += len(data)
            if len(data) > MOST_BYTES:
                raise self.refuse(f"at most {MOST_BYTES:,} bytes", "more")
            if self.line == 1:
                data = data.removeprefix(codecs.BOM_UTF8)
            try:
                text = data.decode()
            except UnicodeDecodeError as error:
                raise self.refuse("UTF-8 text", str(error)) from None
            if text := text.strip(_SPACE):
                yield text

    def items(self) -> Iterator[Any]:
        """Yield the items of a JSON array, which are objects. `line` is where one begins."""
        reading = _Array(self)
        yield from reading.items()

    def block(self, least: int) -> bytes:
        """Read on by `least` bytes or more; nothing at the end."""
        assert self._file is not None
        data = self._bytes(partial(self._file.read, max(least, _BLOCK)))
        self.offset += len(data)
        return data

    def _bytes(self, read: Callable[[], bytes]) -> bytes:
        """Return what is read. Raises ConfigError where the system cannot."""
        try:
            return read()
        except OSError as error:
            raise self._unread(error) from None

    def _unread(self, error: OSError) -> ConfigError:
        got = error.strerror or str(error)
        return ConfigError(f"{printable(self.path)}: wanted a trace to read, got {got}")


class _Array:
    """The text of a JSON array that is not yet read, as far as it is in memory."""

    def __init__(self, file: TraceFile) -> None:
        self._file, self._text, self._at = file, "", 0
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._decoder = json.JSONDecoder()
        self._line = 1  # of `_at`

    def items(self) -> Iterator[Any]:
        self._take("[", "a JSON array")
        if self._peek() == "]":
            self._end()
            return
        while True:
            yield self._item()
            if self._peek() == "]":
                break
            self._take(",", "a comma or the end of the array")
        self._end()

    def _more(self) -> bool:
        """Read on; forget what was read before. Say whether there was more."""
        data = self._file.block(len(self._text) - self._at)
        try:
            text = self._decode.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise self._file.refuse("UTF-8 text", str(error), line=self._line) from None
        self._text, self._at = self._text[self._at :] + text, 0
        return bool(data)

    def _pass(self, end: int) -> None:
        self._line += self._text.count("\n", self._at, end)
        self._at = end

    def _peek(self) -> str:
        """Return the next character that is no space; nothing at the end."""
        while True:
            end = self._at
            while end < len(self._text) and self._text[end] in _SPACE:
                end += 1
            self._pass(end)
            if end < len(self._text):
                return self._text[end]
            if not self._more():
                return ""

    def _take(self, mark: str, wanted: str) -> None:
        found = self._peek()
        self._file.line = self._line
        if found != mark:
            raise self._file.refuse(wanted, shown(found) if found else "the end of the file")
        self._pass(self._at + 1)

    def _end(self) -> None:
        """Pass the array's end. Raises TraceError for what stands behind it."""
        self._pass(self._at + 1)
        if found := self._peek():
            wanted = "nothing behind the array"
            raise self._file.refuse(wanted, shown(found), line=self._line)

    def _item(self) -> Any:
        found = self._peek()
        self._file.line = self._line
        if found != "{":
            raise self._file.refuse("an object", shown(found) if found else "the end of the file")
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except RecursionError:
                raise self._file.refuse("valid JSON", "values nested too deeply") from None
            except ValueError as error:
                if len(self._text) - self._at > MOST_BYTES:
                    wanted = f"an object of at most {MOST_BYTES:,} characters"
                    raise self._file.refuse(wanted, "more, or invalid JSON") from None
                if not self._more():
                    raise self._invalid(error) from None
            else:
                self._pass(end)
                return value

    def _invalid(self, error: ValueError) -> TraceError:
        line = self._line
        if isinstance(error, json.JSONDecodeError):
            line += self._text.count("\n", self._at, error.pos)
        return self._file.refuse("valid JSON", reason(error), line=line)


def reason(error: ValueError) -> str:
    """Return why a text is no JSON, and where in its line."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return str(error)  # an integer of thousands of digits
