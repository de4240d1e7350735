"""`python -m rack.disasm DIR --chip N --op NAME`: an operation of an artifact as instructions.

Cycles are the step's; the text assembles again (chip/assembly.py). Without `--op` the chip's
scheduled operations are listed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from chip.assembly import disassemble
from chip.operations import MOVES
from chip.program import Program
from chip.queues import to_queues
from chip.spec import ChipSpec
from compiler.artifact import read_artifact
from compiler.lower import lower_operation
from rack.errors import ConfigError
from rack.session import KNOWN_ERRORS


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.disasm`."""
    parser = argparse.ArgumentParser(
        prog="python -m rack.disasm",
        description="Show an operation of a compiled model as TSP instructions.",
    )
    parser.add_argument("folder", metavar="DIR", help="an artifact of rack.compile")
    parser.add_argument("--chip", type=int, default=0, metavar="N", help="logical chip (default 0)")
    parser.add_argument("--op", metavar="NAME", help="an operation, layers.0.mlp.down_proj")
    parser.add_argument("--step", metavar="NAME", help="default: the smallest decode step")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 1 refused, 2 bad usage."""
    args = build_parser().parse_args(argv)
    try:
        compiled, _ = read_artifact(Path(args.folder))
        name = args.step or next(iter(compiled.steps))
        if name not in compiled.steps:
            raise ConfigError(f"step: wanted one of {', '.join(compiled.steps)}, got {name!r}")
        chips = compiled.layout.chips
        if not 0 <= args.chip < chips:
            raise ConfigError(f"chip: wanted 0 to {chips - 1}, got {args.chip}")
        program = compiled.steps[name].programs[args.chip]
        print(program if args.op is None else listing(program, args.op, compiled.chip))
    except KNOWN_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def listing(program: Program, name: str, spec: ChipSpec) -> str:
    """Return every operation of that name: its line in the schedule, then its instructions.

    Raises ConfigError where the program has none. Transfers are placed with the whole program, so
    only their lines are shown.
    """
    found = [operation for operation in program.operations if operation.name == name]
    if not found:
        raise ConfigError(
            f"op: chip {program.chip} has no {name!r} in step {program.step}; without --op its "
            f"operations are listed"
        )
    parts = []
    for operation in found:
        parts.append(str(operation))
        if operation.opcode not in MOVES:
            parts.append(disassemble(to_queues(lower_operation(operation, spec))))
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
