"""`python -m rack.validate dtypes FOLDER...`: what int8 and int4 weights cost in exactness."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from rack.commands.command import command
from rack.commands.page import Page, page_flags
from rack.commands.verbs import called_as
from rack.reports.dtypes import GOLDEN, TEXTS, Cost, costs, held, markdown
from rack.reports.tables import columns, shown
from rack.system.progress import start_progress
from rack.system.provenance import code_version
from rack.system.shell import put

PAGE = "validate dtypes --markdown"


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.validate dtypes`."""
    parser = argparse.ArgumentParser(
        prog=f"{called_as('validate')} dtypes",
        description="Mean negative log-likelihood of texts, or error of logits, by dtype.",
    )
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", help=f"a model with {TEXTS} or {GOLDEN} beside it"
    )
    page_flags(parser)
    return parser


@command(build_parser)
def dtypes(args: argparse.Namespace) -> None:
    """Print, write or check the table."""
    page = Page.asked_for(args, PAGE)
    against = [held(Path(folder)) for folder in args.folders]
    rows: list[Cost] = []
    with start_progress() as progress:
        for one in against:
            rows += costs(one, partial(progress.report, one.model.config.name))
    if page is not None:
        page.put(markdown(rows))
    elif args.json:
        put(json.dumps({"costs": [row.to_dict() for row in rows], "code": code_version()}))
    else:
        out = columns("model", "weights", "tokens", "mean NLL", "error of logits")
        for row in rows:
            nll = "" if row.nll is None else f"{row.nll:.4f}"
            error = "" if row.logit_error is None else f"{row.logit_error:.2%}"
            out.add_row(row.model, row.way, str(row.tokens), nll, error)
        put(shown(out))
