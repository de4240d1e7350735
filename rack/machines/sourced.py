"""Values that say where they come from: how a machine's file writes them, for all kinds of machine.

`{ value = 4, grade = "A", source = "..." }` or `{ value = 4, source = "assumption: ..." }`;
`fitted = "..."` names what a value was chosen to meet. Anything else is a ProfileError, which names
file and key. What a value may be, its reader says.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from compiler.files import shown
from compiler.regular import read_file
from rack.errors import ProfileError

GRADES = ("A", "B", "C", "D", "M")
MOST_BYTES = 1 << 20  # of a file
MOST_TEXT = 1000  # characters of a name or a source


class Sourced(NamedTuple):
    """A value of a profile and where it comes from; `grade` is "assumption" for one of ours.

    `fitted` names the published figure that the value was chosen to meet; "" when there is none.
    """

    value: int | float | str | list[int]
    grade: str
    source: str
    fitted: str = ""


def parse(path: Path) -> dict[str, Any]:
    """Read a file of TOML. Raises ProfileError."""
    try:
        return tomllib.loads(read_file(path, MOST_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # bad UTF-8, deep nesting, long numbers
        raise ProfileError(file=str(path), key="file", wanted="TOML", got=str(error)) from error


def text_of(path: Path, document: dict[str, Any], key: str) -> str:
    """Return a text at the top of a document. Raises ProfileError."""
    value = document.get(key)
    if not isinstance(value, str) or not 1 <= len(value) <= MOST_TEXT or not value.isprintable():
        got = "nothing" if value is None else shown(value)
        raise ProfileError(file=str(path), key=key, wanted="a text", got=got)
    return value


def flattened(
    path: Path, document: dict[str, Any], tables: Collection[str],
    check_known: Callable[[str, str, str], None], check: Callable[[str, str, object], None],
) -> dict[str, Sourced]:  # fmt: skip
    """Return a document's own values by "table.key".

    `check_known` is given file, table and key, `check` file, key and value; both raise ProfileError
    for what may not be, as this does for a table that is not one of `tables`.
    """
    file, values = str(path), dict[str, Sourced]()
    for table, entries in document.items():
        if table in ("name", "inherits"):
            continue
        if not isinstance(entries, dict) or table not in tables:
            wanted = f"one of name, inherits, {', '.join(f'[{name}]' for name in tables)}"
            raise ProfileError(file=file, key=f"{table:.80}", wanted=wanted, got="an unknown key")
        for name, content in entries.items():
            key = f"{table}.{name:.80}"
            check_known(file, table, key)
            values[key] = entry(file, key, content, check)
    return values


def entry(
    file: str, key: str, content: object, check: Callable[[str, str, object], None]
) -> Sourced:  # fmt: skip
    """Return one inline table, its value as `check` wants it. Raises ProfileError."""
    shape = '{ value, grade, source } or { value, source = "assumption: ..." }'
    if not isinstance(content, dict) or not {"value", "source"} <= set(content):
        raise ProfileError(file=file, key=key, wanted=shape, got=shown(content))
    if extra := sorted(set(content) - {"value", "grade", "source", "fitted"}):
        got = f"also {', '.join(extra):.80}"
        raise ProfileError(file=file, key=key, wanted=shape, got=got)
    value, source, grade = content["value"], content["source"], content.get("grade")
    check(file, key, value)
    if not words_in(source) or not source.removeprefix("assumption:").strip():
        raise ProfileError(file=file, key=key, wanted="a source in words", got=shown(source))
    fitted = content.get("fitted", "")
    if "fitted" in content and not words_in(fitted):
        wanted = "the figure it was fitted to, in words"
        raise ProfileError(file=file, key=key, wanted=wanted, got=shown(fitted))
    assumed = source.startswith("assumption:")
    if assumed and grade is not None:
        wanted = "no grade on an assumption"
        raise ProfileError(file=file, key=key, wanted=wanted, got=shown(grade))
    if not assumed and grade not in GRADES:
        wanted = f"a grade ({', '.join(GRADES)}) or a source that starts with 'assumption:'"
        got = "neither" if grade is None else shown(grade)
        raise ProfileError(file=file, key=key, wanted=wanted, got=got)
    return Sourced(value, grade or "assumption", source, fitted)


def words_in(text: object) -> bool:
    """Say whether a value is a text with something in it."""
    return isinstance(text, str) and bool(text.strip()) and len(text) <= MOST_TEXT
