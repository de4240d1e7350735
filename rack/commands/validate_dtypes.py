"""`python -m rack.validate dtypes FOLDER...`: what int8 and int4 weights cost in exactness."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from rack.commands.command import command
from rack.commands.page import put_page, read_page
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
    form = parser.add_argument_group("output").add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--markdown", metavar="FILE", help="rewrite the table in this page")
    form.add_argument("--check", metavar="FILE", help="1 when the table in this page is not true")
    return parser


@command(build_parser)
def dtypes(args: argparse.Namespace) -> None:
    """Print, write or check the table."""
    path, write = args.markdown or args.check, args.markdown is not None
    page = None if path is None else read_page(Path(path), PAGE, write=write)
    against = [held(Path(folder)) for folder in args.folders]
    rows: list[Cost] = []
    with start_progress() as progress:
        for one in against:
            rows += costs(one, partial(progress.report, one.model.config.name))
    if page is not None:
        put_page(Path(path), page, PAGE, markdown(rows), write=write)
    elif args.json:
        put(json.dumps({"costs": [row.to_dict() for row in rows], "code": code_version()}))
    else:
        out = columns("model", "weights", "tokens", "mean NLL", "error of logits")
        for row in rows:
            nll = "" if row.nll is None else f"{row.nll:.4f}"
            error = "" if row.logit_error is None else f"{row.logit_error:.2%}"
            out.add_row(row.model, row.way, str(row.tokens), nll, error)
        put(shown(out))
