"""`python -m rack.validate sequences`: what many users get, as the table in docs/performance.md."""

from __future__ import annotations

import argparse
import json

from rack.commands.command import check_beside, command
from rack.commands.page import Page, check_names, page_flags
from rack.commands.verbs import called_as
from rack.machines.profile import load_hardware
from rack.reports.pictures import PICTURES, picture_kind
from rack.reports.plots import draw_panels
from rack.reports.sequences import (
    BATCH,
    CASES,
    CONTEXT,
    COUNTS,
    MACHINES,
    markdown,
    panel,
    rates,
)
from rack.reports.tables import columns, shown
from rack.system.output import check_file, writing
from rack.system.progress import start_progress
from rack.system.provenance import code_version
from rack.system.shell import put

PAGE = "validate sequences --markdown"


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.validate sequences`."""
    parser = argparse.ArgumentParser(
        prog=f"{called_as('validate')} sequences",
        description="Tokens per second of a user by the number of sequences in flight, of "
        f"{', '.join(f'{model} {layout}' for model, layout in CASES)} on {' and '.join(MACHINES)} "
        f"at a context of {CONTEXT}. All of them take a quarter of an hour.",
    )
    known = sorted({model for model, _ in CASES})
    parser.add_argument(
        "models", nargs="*", default=[], metavar="MODEL", help=f"some of {', '.join(known)}"
    )
    page_flags(parser).add_argument(
        "--plot", action="append", metavar="FILE",
        help=f"draw it too; {', '.join(PICTURES)}; may be repeated",
    )  # fmt: skip
    return parser


@command(build_parser)
def sequences(args: argparse.Namespace) -> None:
    """Print, write or check the table."""
    check_beside("--plot", *(args.plot or ()))
    kinds = {path: picture_kind(path) for path in args.plot or ()}
    for file in kinds:
        check_file(file, "a picture")
    known = sorted({model for model, _ in CASES})
    check_names("MODEL", args.models, known, args)
    page = Page.asked_for(args, PAGE)
    wanted = [
        (model, layout, machine)
        for model, layout in CASES if model in (args.models or known) for machine in MACHINES
    ]  # fmt: skip
    rows = []
    with start_progress() as progress:
        for model, layout, machine in wanted:
            rows.append(rates(model, layout, load_hardware(machine), BATCH))
            progress.report("models laid out", len(rows), len(wanted))
    for file, kind in kinds.items():
        with writing(file, "a picture") as picture:
            picture.write(draw_panels([panel(rows)], "Sequences in flight", kind))
    if page is not None:
        page.put(markdown(rows))
    elif args.json:
        put(json.dumps({"rates": [row.to_dict() for row in rows], "code": code_version()}))
    else:
        out = columns("model", "machine", "chips", "slots", *(f"S = {n}" for n in COUNTS))
        for row in rows:
            cells = (f"{row.user(n):,.1f}" if n <= row.most else "-" for n in COUNTS)
            out.add_row(row.model, row.hardware, str(row.chips), f"{row.most:,}", *cells)
        put(shown(out))
