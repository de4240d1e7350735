"""`python -m rack.validate gpus`: efficiencies of GPUs fitted anew, and errors on other points."""

from __future__ import annotations

import argparse
import json

from rack.commands.command import command
from rack.commands.page import Page, check_names, page_flags
from rack.commands.verbs import called_as
from rack.reports.gpu_page import SHIPPED, Fitted, fitted_gpus, markdown
from rack.reports.tables import columns, shown
from rack.system.provenance import code_version
from rack.system.shell import put

PAGE = "validate gpus --markdown"


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.validate gpus`."""
    parser = argparse.ArgumentParser(
        prog=f"{called_as('validate')} gpus",
        description="Fit the three efficiencies of each GPU to one half of its measured points, "
        "and show the errors on the other half. What is found is what the GPU's profile has: its "
        "keys are printed as the profile's file wants them.",
    )
    parser.add_argument(
        "gpus", nargs="*", default=[], metavar="GPU",
        help=f"some of {', '.join(SHIPPED)}; all without",
    )  # fmt: skip
    page_flags(parser)
    return parser


@command(build_parser)
def gpus(args: argparse.Namespace) -> None:
    """Print, write or check the fits."""
    check_names("GPU", args.gpus, SHIPPED, args)
    page = Page.asked_for(args, PAGE)
    found = fitted_gpus(args.gpus or SHIPPED)
    if page is not None:
        page.put(markdown(found))
    elif args.json:
        put(json.dumps({"gpus": [one.to_dict() for one in found], "code": code_version()}))
    else:
        put(_text(found))


def _text(found: list[Fitted]) -> str:
    out = columns(
        "GPU", "model", "GPUs", "points", "median of absolute errors", "median", "from", "to"
    )
    for one in found:
        for row in one.errors:
            out.add_row(
                row.gpu, row.model, row.gpus, str(row.points),
                f"{row.median_absolute_percent:.1f} %", f"{row.median_percent:+.1f} %",
                f"{row.least_percent:+.1f} %", f"{row.most_percent:+.1f} %",
            )  # fmt: skip
    return shown(*(line for one in found for line in one.lines()), out)
