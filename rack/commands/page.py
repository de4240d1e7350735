"""A part of a page that a command writes: what stands between its two marks."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.regular import read_file
from rack.commands.command import UsageError
from rack.errors import ConfigError
from rack.system.output import check_file, writing

MOST_PAGE = 1 << 24  # bytes


def page_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the forms of output: JSON, a page to write or a page to check. Return their group."""
    output = parser.add_argument_group("output")
    form = output.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--markdown", metavar="FILE", help="rewrite the tables in this page")
    form.add_argument("--check", metavar="FILE", help="1 when the tables in this page are not true")
    return output


def check_names(
    word: str, names: Sequence[str], known: Collection[str], args: argparse.Namespace
) -> None:
    """Refuse a name that is not known, and any with a page. Raises UsageError."""
    for name in names:
        if name not in known:
            raise UsageError(f"{word}: wanted one of {', '.join(known)}, got {name}")
    if names and _asked(args)[0] is not None:
        raise UsageError(f"{word}: wanted none with a page, which has them all")


def _asked(args: argparse.Namespace) -> tuple[str | None, bool]:
    """Return the page that was asked for, if any, and whether to write it."""
    write = args.markdown is not None  # an empty name is one, and is refused as such
    return (args.markdown if write else args.check), write


def marks(command: str) -> tuple[str, str]:
    """Return the marks around what `python -m rack.COMMAND` writes."""
    return f"<!-- begin: python -m rack.{command} -->", "<!-- end -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page that was asked for, with the marks of `command`: to write, or to check."""

    path: Path
    command: str
    text: str
    write: bool

    @classmethod
    def asked_for(cls, args: argparse.Namespace, command: str) -> Page | None:
        """Read it at once, as tables take long; None where none was. Raises ConfigError."""
        name, write = _asked(args)
        if name is None:
            return None
        path = Path(name)
        return cls(path=path, command=command, text=_read(path, command, write), write=write)

    def put(self, tables: str) -> None:
        """Write tables between the marks, or refuse a page that has others. Raises ConfigError."""
        begin, end = marks(self.command)
        before, _, rest = self.text.partition(begin)
        _, _, after = rest.partition(end)
        new = f"{before}{begin}\n\n{tables}\n\n{end}{after}"
        if self.write:
            with writing(str(self.path), "a page") as file:
                file.write(new.encode())
        elif new != self.text:
            verb = self.command.removesuffix(" --markdown")
            raise ConfigError(
                f"{self.path}: its tables are not what rack.{verb} says; use --markdown"
            )


def _read(path: Path, command: str, write: bool) -> str:
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
