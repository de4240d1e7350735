"""`python -m rack.validate models`: the presets on both machines, as the table in README."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path

from rack.commands.command import UsageError, command
from rack.commands.page import put_page, read_page
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
    form = parser.add_argument_group("output").add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--markdown", metavar="FILE", help="rewrite the table in this page")
    form.add_argument("--check", metavar="FILE", help="1 when the table in this page is not true")
    return parser


@command(build_parser)
def models(args: argparse.Namespace) -> None:
    """Print, write or check the table."""
    for name in args.models:
        if name not in MODELS:
            raise UsageError(f"MODEL: wanted one of {', '.join(MODELS)}, got {name}")
    path = args.markdown or args.check
    if path is not None and args.models:
        raise UsageError("MODEL: wanted none with a page, which has them all")
    write = args.markdown is not None
    page = None if path is None else read_page(Path(path), PAGE, write=write)
    wanted, machines = args.models or MODELS, [load_hardware(name) for name in MACHINES]
    rows, total = [], len(wanted) * len(machines) * len(QUANTISED)
    with start_progress() as progress:
        for row in fits(wanted, machines):
            rows.append(row)
            progress.report("models laid out", len(rows), total)
    if page is not None:
        put_page(Path(path), page, PAGE, markdown(rows), write=write)
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
