"""`python -m rack.validate`: published figures beside the emulator's own, with signed errors.

`--markdown FILE` rewrites the tables of docs/accuracy.md between their two marks, `--check FILE`
says whether they are still true.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from rack.commands.command import Main, command
from rack.commands.flags import profile_choices, verb_parser
from rack.commands.page import Page, marks, page_flags
from rack.commands.validate_conv import conv
from rack.commands.validate_dtypes import dtypes
from rack.commands.validate_encoder import encoder
from rack.commands.validate_gpus import gpus
from rack.commands.validate_lstm import lstm
from rack.commands.validate_matmul import matmul
from rack.commands.validate_models import models
from rack.commands.validate_rates import rates
from rack.commands.validate_sequences import sequences
from rack.commands.verbs import called_as
from rack.machines.hardware import Hardware
from rack.machines.profile import load_hardware
from rack.reports.accuracy import Row, behind, markdown, number, published
from rack.reports.accuracy_rows import all_rows
from rack.reports.lesson import HEAD, LessonRow, lesson_rows
from rack.reports.lesson import markdown as lesson_markdown
from rack.reports.tables import columns, shown
from rack.system.progress import start_progress
from rack.system.provenance import code_version
from rack.system.shell import put, verb

PAGE = "validate --markdown"
LESSON = "lesson"  # the machine of the course text: held against that, not against publications
LESSON_PAGE = "validate --hardware lesson --markdown"
BEGIN, END = marks(PAGE)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.validate`."""
    parser = verb_parser(
        "validate",
        epilog=f"{called_as('validate')} lstm --help: cycles of an LSTM cell; "
        f"{called_as('validate')} matmul --help: cycles of a product; "
        f"{called_as('validate')} conv --help: cycles of residual blocks; "
        f"{called_as('validate')} encoder --help: latencies of many runs of one sequence; "
        f"{called_as('validate')} models --help: the presets on both machines; "
        f"{called_as('validate')} dtypes --help: what int8 and int4 cost in exactness; "
        f"{called_as('validate')} gpus --help: GPUs' efficiencies, fitted and held against points; "
        f"{called_as('validate')} sequences --help: what many users get; "
        f"{called_as('validate')} rates --help: settings that land on published token times.",
    )
    parser.add_argument_group("machine").add_argument(
        "--hardware", default="groqrack", metavar=profile_choices(),
        help="the published machine (default %(default)s), or yours; lesson: the course text's "
        "figures, as in docs/lesson.md",
    )  # fmt: skip
    page_flags(parser)
    return parser


@command(build_parser)
def table(args: argparse.Namespace) -> None:
    """Print, write or check the table of all figures."""
    hardware = load_hardware(args.hardware)
    if hardware.name == LESSON:
        lesson(args, hardware)
        return
    page = Page.asked_for(args, PAGE)
    rows = all_rows(hardware)
    if page is not None:
        page.put(markdown(rows, hardware))
    elif args.json:
        put(json.dumps(report(rows, hardware)))
    else:
        put(_text(rows, hardware))


def lesson(args: argparse.Namespace, hardware: Hardware) -> None:
    """Print, write or check the course text's figures: the table of the machine that is its own."""
    page = Page.asked_for(args, LESSON_PAGE)
    with start_progress() as progress:
        rows = lesson_rows(hardware, progress.report)
    if page is not None:
        page.put(lesson_markdown(rows))
    elif args.json:
        put(json.dumps(report(rows, hardware)))
    else:
        out = columns(*HEAD)
        for row in rows:
            out.add_row(*row.cells)
        put(shown(out))


COMMANDS: dict[str, Main] = {
    "table": table, "lstm": lstm, "matmul": matmul, "conv": conv, "encoder": encoder,
    "models": models, "dtypes": dtypes, "gpus": gpus, "sequences": sequences,
    "rates": rates,
}  # fmt: skip
"""The first word of the command line; without one it is `table`."""


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 1 refused, 2 bad usage."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words.pop(0) if words and words[0] in COMMANDS else "table"
    return COMMANDS[name](words)


def report(rows: Sequence[Row | LessonRow], hardware: Hardware) -> dict[str, Any]:
    """Return the table as plain data."""
    return {
        "hardware": hardware.name,
        "hardware_digest": hardware.digest(),
        "rows": [row.to_dict(hardware) if isinstance(row, Row) else row.to_dict() for row in rows],
        "code": code_version(),
    }


def _text(rows: Sequence[Row], hardware: Hardware) -> str:
    out = columns("part", "figure", "published", "grade", "ours", "error", "behind ours")
    for row in rows:
        out.add_row(
            row.part, row.figure, f"{published(row)} {row.unit}", row.grade,
            f"{number(row.ours)} {row.unit}", f"{row.error_percent:+.1f} %",
            behind(row, hardware),
        )  # fmt: skip
    return shown(out)
