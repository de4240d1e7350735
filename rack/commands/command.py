"""Run a verb, from its command line to its exit code. Every verb goes through this module.

0   done
1   refused, failed or interrupted: one line on standard error (rack/system/shell.py)
2   bad usage: the line above, behind the verb's usage
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Protocol, TypeVar

from rack.commands.flags import arguments, parse
from rack.reports.placement import placement
from rack.run.config import RunConfig
from rack.run.session import Prepared
from rack.system.output import STANDARD_OUTPUT
from rack.system.shell import put, verb

Parser = Callable[[], argparse.ArgumentParser]
Work = Callable[[argparse.Namespace], int | None]
ModelWork = Callable[[argparse.Namespace, RunConfig], int | None]
_T = TypeVar("_T")


class UsageError(Exception):
    """A flag has a value that the verb cannot take: exit code 2."""


class Main(Protocol):
    """The main function of a verb: takes a command line (default: the process's own), returns an
    exit code."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def command(build_parser: Parser) -> Callable[[Work], Main]:
    """Make the main function of a verb from a function of its parsed flags."""
    return lambda work: _main(build_parser, arguments, work, work)


def model_command(build_parser: Parser) -> Callable[[ModelWork], Main]:
    """Make the main function of a verb that takes a model: its flags resolve to a `RunConfig`."""
    return lambda work: _main(build_parser, parse, lambda given: work(*given), work)


def _main(
    build_parser: Parser,
    read: Callable[[argparse.ArgumentParser, Sequence[str] | None], _T],
    run: Callable[[_T], int | None],
    work: Callable[..., int | None],
) -> Main:
    """`work` gives the function its name and text. It returns the exit code, None for 0."""

    @verb
    @wraps(work)
    def main(argv: Sequence[str] | None = None) -> int:
        parser = build_parser()
        given = read(parser, argv)
        try:
            return run(given) or 0
        except UsageError as error:
            parser.error(str(error))

    return main


def at_least(args: argparse.Namespace, least: int, *names: str) -> None:
    """Check those of the flags that are given. Raises UsageError for one below `least`."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')}: wanted at least {least}, got {value}")


def check_beside(flag: str, *files: str | None) -> None:
    """Refuse standard output, where the report goes, for what is beside it. Raises UsageError."""
    if STANDARD_OUTPUT in files:
        wanted = "a file beside the report"
        raise UsageError(f"{flag}: wanted {wanted}, got {STANDARD_OUTPUT}, standard output")


def show_placement(prepared: Prepared, *, as_json: bool = False) -> None:
    """Print the placement: `--dry-run`."""
    put(placement(prepared, as_json=as_json))
