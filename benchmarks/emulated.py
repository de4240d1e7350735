"""Emulated time per token over layouts: the table of docs/performance.md, in Markdown.

    python benchmarks/emulated.py [--hardware groqrack] [--context 512] [MODEL:LAYOUT ...]

Without rows of your own: llama-8b on 36 chips and llama-70b on 325 and 576, every group size of
interest. Nothing here depends on this machine: schedules are compiled and read, nothing runs.
"""

from __future__ import annotations

import argparse
import sys

from compiler.analyse import PARTS, Analysis, analyse
from compiler.errors import CompilerError
from compiler.model.frontend import resolve_model
from compiler.pipeline import Options, compile_model
from compiler.place.layout import parse_layout
from rack.machines.hardware import Hardware
from rack.machines.profile import load_hardware

ROWS = (
    *(f"llama-8b:{layout}" for layout in ("32x1+4", "16x2+4", "8x4+4", "4x8+4")),
    *(f"llama-70b:{layout}" for layout in ("80x4+5", "80x7+16", "70x8+16", "35x16+16")),
)
NOT_ON_CHIPS = ("host port", "turnaround")


def decode_step(model: str, layout: str, hardware: Hardware, context: int) -> Analysis:
    """Compile a layout's decode step for the bucket that holds `context`, and analyse it."""
    config = resolve_model(model).config
    compiled = compile_model(
        config, hardware, parse_layout(layout), Options(buckets=(context,), max_model_len=context),
        kinds="decode", contexts=(context,),
    )  # fmt: skip
    (step,) = compiled.steps.values()
    return analyse(compiled, step)


def row(name: str, hardware: Hardware, context: int) -> str:
    """Return one row of the table."""
    model, _, layout = name.partition(":")
    found = decode_step(model, layout, hardware, context)
    chips = found.cycles - sum(found.parts[part] for part in NOT_ON_CHIPS)
    cells = [
        f"{model}, {parse_layout(layout).chips}", layout, f"{found.cycles:,}",
        f"{found.cycles * 1e6 / hardware.chip.clock_hz:.1f}", f"{found.roofline_cycles:,}",
        f"{found.roofline_ratio:.2f}", f"{chips / found.roofline_cycles:.2f}",
        *(f"{found.parts[part]:,}" for part in PARTS if part not in NOT_ON_CHIPS),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Run the command; 1 where a layout cannot be compiled."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="MODEL:LAYOUT")
    parser.add_argument("--hardware", default="groqrack")
    parser.add_argument("--context", type=int, default=512, help="tokens (default 512)")
    args = parser.parse_args()
    hardware, failed = load_hardware(args.hardware), 0
    heads = (
        "model, chips", "layout", "cycles", "us", "roofline", "x roofline", "on chips alone",
        *(part for part in PARTS if part not in NOT_ON_CHIPS),
    )  # fmt: skip
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name in args.rows or ROWS:
        try:
            print(row(name, hardware, args.context), flush=True)
        except CompilerError as error:
            failed = 1
            print(f"{name}: {error}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main())
