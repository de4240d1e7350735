"""`python -m rack.validate rates`: settings that land on the published times of a token."""

from __future__ import annotations

import argparse
import json

from rack.commands.command import command
from rack.commands.page import Page, check_names, page_flags
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
    page_flags(parser)
    return parser


@command(build_parser)
def rates(args: argparse.Namespace) -> None:
    """Print, write or check the table."""
    check_names("MODEL", args.models, TARGETS, args)
    page = Page.asked_for(args, PAGE)
    with start_progress() as progress:
        models = args.models or list(TARGETS)
        found = search(models, load_hardware(args.hardware), progress.report)
    if page is not None:
        page.put(markdown(found))
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
