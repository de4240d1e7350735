"""API keys from a file, compared in constant time.

This module keeps digests only, so no key gets from here into a log, a traceback or a core file.
Limits, logs and messages use a key's name.

The file has a line per key, `NAME KEY` or only `KEY` (then its name is `key-N`, N the line); `#`
starts a comment line.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from pathlib import Path

from rack.errors import ConfigError
from rack.run.config import MOST_FILE
from rack.serve.errors import ApiError

ANYONE = "anyone"
"""The name of every client of a server without keys."""

_SPACE_AND_QUOTES = " \t\r\n\"'"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Keys:
    """The keys of a server; none means that any key, or no key, will do."""

    def __init__(self, named: Iterable[tuple[str, str]] = ()) -> None:
        self._digests: dict[str, bytes] = {}
        for name, key in named:
            if not _NAME.fullmatch(name):
                raise ConfigError(f"key name: wanted up to 64 of A-Z a-z 0-9 _ . -, got {name!r}")
            if key.strip(_SPACE_AND_QUOTES) == "":
                raise ConfigError(f"key {name!r}: wanted a key, got an empty one")
            if key != key.strip():
                raise ConfigError(f"key {name!r}: wanted no space around it, got some")
            if name in self._digests:
                raise ConfigError(f"key name {name!r}: given twice")
            if _digest(key) in self._digests.values():
                raise ConfigError(f"key {name!r}: another name has the same key")
            self._digests[name] = _digest(key)

    @property
    def wanted(self) -> bool:
        """Whether requests must have a key."""
        return bool(self._digests)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the keys, or ANYONE."""
        return tuple(self._digests) or (ANYONE,)

    def check(self, authorization: str | None) -> str:
        """Return the name of the key of an `Authorization` header. Raises ApiError (401)."""
        if not self._digests:
            return ANYONE
        scheme, _, key = (authorization or "").partition(" ")
        given, found = _digest(key.strip()), None
        for name, digest in self._digests.items():  # all of them: time must not tell which
            if hmac.compare_digest(given, digest):
                found = name
        if found is None or scheme.lower() != "bearer":
            raise ApiError(401, "Invalid API Key", code="invalid_api_key")
        return found


def load_keys(path: Path) -> list[tuple[str, str]]:
    """Read a file of keys. Raises ConfigError, which names the line and never shows it."""
    try:
        with path.open("rb") as file:  # a pipe perhaps, from what keeps secrets
            data = file.read(MOST_FILE + 1)
        lines = data.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{path}: wanted a file of API keys: {why}") from None
    if len(data) > MOST_FILE:
        raise ConfigError(f"{path}: wanted a file of API keys: it has more than {MOST_FILE} bytes")
    out = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) == 1 and line != line.rstrip():
            raise ConfigError(
                f"{path}: line {number}: wanted NAME KEY or KEY, got a space at its end"
            )
        if len(words) > 2:
            raise ConfigError(f"{path}: line {number}: wanted NAME KEY, got {len(words)} words")
        out.append((words[0] if len(words) == 2 else f"key-{number}", words[-1]))
    if not out:
        raise ConfigError(f"{path}: wanted at least one API key, got none")
    return out


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
