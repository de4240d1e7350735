"""`python -m rack.validate models`: the presets on both machines, as the table in README."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields

from rack.commands.command import command
from rack.commands.page import Page, check_names, page_flags
from rack.commands.verbs import called_as
from rack.machines.profile import load_hardware
from rack.reports.models import MACHINES, MODELS, QUANTISED, Fit, fits, markdown
from rack.reports.tables import columns, shown
from rack.system.progress import start_progress
from rack.system.provenance import code_version
from rack.system.shell import put

PAGE = "validate models --markdown"


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.validate models`."""
    parser = argparse.ArgumentParser(
        prog=f"{called_as('validate')} models",
        description="Chips, racks, tokens per second and the largest context of the presets, on "
        f"{' and '.join(MACHINES)}. All of them take a quarter of an hour.",
    )
    parser.add_argument(
        "models",
        nargs="*",
        default=[],
        metavar="MODEL",
        help=f"some of {', '.join(MODELS)}; all without",
    )
    page_flags(parser)
    return parser


@command(build_parser)
def models(args: argparse.Namespace) -> None:
    """Print, write or check the table."""
    check_names("MODEL", args.models, MODELS, args)
    page = Page.asked_for(args, PAGE)
    wanted, machines = args.models or MODELS, [load_hardware(name) for name in MACHINES]
    rows, total = [], len(wanted) * len(machines) * len(QUANTISED)
    with start_progress() as progress:
        for row in fits(wanted, machines):
            rows.append(row)
            progress.report("models laid out", len(rows), total)
    if page is not None:
        page.put(markdown(rows))
    elif args.json:
        put(json.dumps({"models": [row.to_dict() for row in rows], "code": code_version()}))
    else:
        out = columns(*(field.name for field in fields(Fit)))
        for row in rows:
            out.add_row(
                row.model, row.hardware, row.dtype, row.layout, str(row.chips), str(row.racks),
                f"{row.tokens_per_second:,.1f}", f"{row.context:,}",
            )  # fmt: skip
        put(shown(out))
