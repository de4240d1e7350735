"""A part of a page that a command writes: what stands between its two marks."""

from __future__ import annotations

from pathlib import Path

from compiler.regular import read_file
from rack.errors import ConfigError
from rack.system.output import check_file, writing

MOST_PAGE = 1 << 24  # bytes


def marks(command: str) -> tuple[str, str]:
    """Return the marks around what `python -m rack.COMMAND` writes."""
    return f"<!-- begin: python -m rack.{command} -->", "<!-- end -->"


def read_page(path: Path, command: str, *, write: bool) -> str:
    """Return a page that has the marks: read first, as tables take long. Raises ConfigError."""
    try:
        text = read_file(path, MOST_PAGE).decode()  # its ends of lines stay as they are
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: wanted a page to read and write, got {error}") from error
    begin, end = marks(command)
    _, mark, rest = text.partition(begin)
    if not mark or end not in rest:
        raise ConfigError(f"{path}: wanted a page with {begin} and {end}, got none")
    if write:
        check_file(str(path), "a page")
    return text


def put_page(path: Path, page: str, command: str, tables: str, *, write: bool) -> None:
    """Write tables into a page, or refuse a page that has others. Raises ConfigError."""
    begin, end = marks(command)
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    new = f"{before}{begin}\n\n{tables}\n\n{end}{after}"
    if write:
        with writing(str(path), "a page") as file:
            file.write(new.encode())
    elif new != page:
        verb = command.removesuffix(" --markdown")
        raise ConfigError(f"{path}: its tables are not what rack.{verb} says; use --markdown")
