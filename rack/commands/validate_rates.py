"""`python -m rack.validate rates`: settings that land on the published times of a token."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rack.commands.command import UsageError, command
from rack.commands.page import put_page, read_page
from rack.commands.verbs import called_as
from rack.machines.profile import load_hardware, profile_names
from rack.reports.rates import TARGETS, markdown, search
from rack.reports.tables import columns, shown
from rack.system.progress import start_progress
from rack.system.provenance import code_version
from rack.system.shell import put

PAGE = "validate rates --markdown"


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.validate rates`."""
    parser = argparse.ArgumentParser(
        prog=f"{called_as('validate')} rates",
        description="Search layouts, types, sequences in flight and clocks for those that give a "
        "user's token the published time. No constant of the machine changes. All of it takes "
        "some ten minutes.",
    )
    parser.add_argument(
        "models", nargs="*", default=[], metavar="MODEL",
        help=f"some of {', '.join(TARGETS)}; all without",
    )  # fmt: skip
    parser.add_argument(
        "--hardware", choices=profile_names(), default="lesson", help="default %(default)s"
    )
    form = parser.add_argument_group("output").add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--markdown", metavar="FILE", help="rewrite the table in this page")
    form.add_argument("--check", metavar="FILE", help="1 when the table in this page is not true")
    return parser


@command(build_parser)
def rates(args: argparse.Namespace) -> None:
    """Print, write or check the table."""
    for name in args.models:
        if name not in TARGETS:
            raise UsageError(f"MODEL: wanted one of {', '.join(TARGETS)}, got {name}")
    path = args.markdown or args.check
    if path is not None and args.models:
        raise UsageError("MODEL: wanted none with a page, which has them all")
    write = args.markdown is not None
    page = None if path is None else read_page(Path(path), PAGE, write=write)
    with start_progress() as progress:
        models = args.models or list(TARGETS)
        found = search(models, load_hardware(args.hardware), progress.report)
    if page is not None:
        put_page(Path(path), page, PAGE, markdown(found), write=write)
    elif args.json:
        put(json.dumps({"rates": [one.to_dict() for one in found], "code": code_version()}))
    else:
        out = columns(
            "model", "published", "way", "type", "layout", "chips", "sequences", "clock", "ours",
            "error",
        )  # fmt: skip
        for one in found:
            out.add_row(
                one.model, f"{one.published_us:,.1f} us ({one.published})", one.way, one.dtype,
                one.layout, str(one.chips), str(one.sequences), f"{one.clock_mhz:,.1f} MHz",
                f"{one.token_us:,.1f} us", f"{one.error_percent:+.1f} %",
            )  # fmt: skip
        put(shown(out))
