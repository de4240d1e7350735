"""`python -m rack.validate lstm`: cycles of the LSTM cell that was published for one chip."""

from __future__ import annotations

import argparse
import json
from typing import Any

from compiler.lstm import cell_cycles
from rack.errors import ConfigError
from rack.profiles import load_hardware


def add_parser(commands: Any) -> None:
    """Add the subcommand to `rack.validate`'s parser."""
    parser = commands.add_parser("lstm", help="cycles of an LSTM cell of any size on one chip")
    parser.add_argument("--hidden", type=int, required=True, help="units of the hidden state")
    parser.add_argument("--batch", required=True, metavar="B[,B...]", help="sequences at once")
    parser.add_argument("--hardware", default="groqrack", help="a profile (default groqrack)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def batches(text: str) -> list[int]:
    """Parse "1,3,6". Raises ConfigError."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"batch: wanted whole numbers with commas, got {text!r}") from error


def run(args: argparse.Namespace) -> int:
    """Print the cycles for every batch size."""
    spec = load_hardware(args.hardware).chip
    sizes = batches(args.batch)
    cycles = [cell_cycles(args.hidden, batch, spec) for batch in sizes]
    if args.json:
        print(json.dumps({"cycles": cycles}))
    else:
        for batch, count in zip(sizes, cycles, strict=True):
            print(f"LSTM-{args.hidden}, batch {batch}: {count} cycles ({args.hardware})")
    return 0
