"""`python -m rack.validate lstm`: cycles of the LSTM cell that was published for one chip."""

from __future__ import annotations

import argparse
import json

from compiler.codegen.lstm_cell import cell_cycles
from rack.commands.command import command
from rack.commands.flags import count, numbers, output_flags, profile_choices
from rack.commands.verbs import called_as
from rack.machines.profile import load_hardware
from rack.system.shell import put

MOST_HIDDEN, MOST_BATCH = 1 << 14, 1 << 16


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.validate lstm`."""
    parser = argparse.ArgumentParser(
        prog=f"{called_as('validate')} lstm",
        description="Cycles of an LSTM cell of any size on one chip.",
        parents=[output_flags(dry_run=False)],
    )
    group = parser.add_argument_group("cell")
    group.add_argument(
        "--hidden", type=count(MOST_HIDDEN), required=True, metavar="N",
        help="units of the hidden state",
    )  # fmt: skip
    group.add_argument("--batch", required=True, metavar="B[,B...]", help="sequences at once")
    parser.add_argument_group("machine").add_argument(
        "--hardware", default="groqrack", metavar=profile_choices(),
        help="a profile (default %(default)s)",
    )  # fmt: skip
    return parser


@command(build_parser)
def lstm(args: argparse.Namespace) -> None:
    """Print the cycles for every batch size."""
    spec = load_hardware(args.hardware).chip
    sizes = numbers(args.batch, "batch", MOST_BATCH, "sequences")
    cycles = [cell_cycles(args.hidden, batch, spec) for batch in sizes]
    if args.json:
        put(json.dumps({"cycles": cycles}))
    else:
        for batch, count in zip(sizes, cycles, strict=True):
            put(f"LSTM-{args.hidden}, batch {batch}: {count} cycles ({args.hardware})")
