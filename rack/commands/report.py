"""`python -m rack.report FILE…`: one HTML page of rows, with tables and pictures, for a browser.

The page is one file: styles and pictures (SVG) are in it, and it fetches nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rack.commands.command import UsageError, command
from rack.commands.flags import verb_parser
from rack.errors import ConfigError
from rack.sweeps.columns import parse_plot
from rack.sweeps.page import page
from rack.sweeps.rows import read_rows
from rack.system.output import STANDARD_OUTPUT, check_file, same_file, writing
from rack.system.progress import say, start_progress


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.report`."""
    parser = verb_parser("report")
    rows = parser.add_argument_group("rows")
    rows.add_argument("files", nargs="+", metavar="FILE", help="rows of rack.sweep, JSON Lines")
    group = parser.add_argument_group("page")
    group.add_argument("--title", metavar="TEXT", help="title of the page (default the FILEs)")
    group.add_argument(
        "--plot", action="append", default=[], metavar="X,Y[,COLOUR]",
        help="a picture, as of rack.sweep; may come again (default token rates over each axis)",
    )  # fmt: skip
    files = parser.add_argument_group("output")
    files.add_argument(
        "-o", "--output", metavar="FILE.html",
        help="the page; - is standard output (default the first FILE's name with .html)",
    )  # fmt: skip
    return parser


@command(build_parser)
def main(args: argparse.Namespace) -> None:
    """Write the page."""
    try:
        plots = [parse_plot(text) for text in args.plot]
    except ConfigError as error:
        raise UsageError(str(error)) from error
    output = args.output or str(Path(args.files[0]).with_suffix(".html"))
    if any(same_file(output, file) for file in args.files):
        raise UsageError(f"--output: wanted a file beside the rows, got {output}")
    check_file(output, "a page")
    rows = [row for file in args.files for row in read_rows(file)]
    if not rows:
        raise ConfigError(f"{args.files[0]}: wanted rows to show, got none")
    with start_progress() as progress:
        progress.report("drawing", 0, 1)
        text = page(rows, plots, args.title or ", ".join(Path(file).name for file in args.files))
        progress.report("drawing", 1, 1)
    with writing(output, "a page") as file:
        file.write(text.encode())
    if output != STANDARD_OUTPUT:
        say(f"{output}: {len(rows)} points")
