"""`python -m rack.validate WHAT`: the model of the machine against published figures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rack import validate_lstm
from rack.session import KNOWN_ERRORS


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.validate`."""
    parser = argparse.ArgumentParser(
        prog="python -m rack.validate",
        description="Hold the model of the machine against published figures.",
    )
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    validate_lstm.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 1 refused, 2 bad usage."""
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except KNOWN_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
