"""`python -m rack.validate lstm`: cycles of the LSTM cell that was published for one chip."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from compiler.codegen.lstm_cell import cell_cycles
from compiler.files import shown
from rack.errors import ConfigError
from rack.machines.hardware import Hardware
from rack.machines.profile import load_hardware
from rack.reports.accuracy import Row
from rack.run.config import arguments, count
from rack.system.shell import put

PUBLISHED = {1: 670, 3: 718, 6: 790, 8: 838, 32: 1413}  # batch -> cycles
MOST_HIDDEN, MOST_BATCH = 1 << 14, 1 << 16


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.validate lstm`."""
    parser = argparse.ArgumentParser(
        prog="python -m rack.validate lstm",
        description="Cycles of an LSTM cell of any size on one chip.",
    )
    parser.add_argument(
        "--hidden", type=count(MOST_HIDDEN), required=True, help="units of the hidden state"
    )
    parser.add_argument("--batch", required=True, metavar="B[,B...]", help="sequences at once")
    parser.add_argument("--hardware", default="groqrack", help="a profile (default groqrack)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def batches(text: str) -> list[int]:
    """Parse "1,3,6". Raises ConfigError."""
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError as error:
        got = shown(text)
        raise ConfigError(f"batch: wanted whole numbers with commas, got {got}") from error
    if max(sizes) > MOST_BATCH:
        raise ConfigError(f"batch: wanted at most {MOST_BATCH} sequences, got {shown(max(sizes))}")
    return sizes


def lstm(argv: Sequence[str]) -> int:
    """Print the cycles for every batch size."""
    args = arguments(build_parser(), argv)
    spec = load_hardware(args.hardware).chip
    sizes = batches(args.batch)
    cycles = [cell_cycles(args.hidden, batch, spec) for batch in sizes]
    if args.json:
        put(json.dumps({"cycles": cycles}))
    else:
        for batch, count in zip(sizes, cycles, strict=True):
            put(f"LSTM-{args.hidden}, batch {batch}: {count} cycles ({args.hardware})")
    return 0


def lstm_rows(hardware: Hardware) -> list[Row]:
    """Cycles of the LSTM-512 cell at the published batch sizes."""
    return [
        Row(
            part="chip", figure=f"LSTM cell, hidden 512, batch {batch}", unit="cycles",
            published=wanted, grade="A", source="docs/hardware.md, single-chip results",
            ours=cell_cycles(512, batch, hardware.chip), constants=("delays.*",),
        )
        for batch, wanted in PUBLISHED.items()
    ]  # fmt: skip
