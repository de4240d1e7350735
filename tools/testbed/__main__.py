"""Make a test bed, run a command on its laptop, and end it: python -m tools.testbed --help."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

from tools.testbed.bed import MACHINE_BYTES, Bed, BedError
from tools.testbed.needs import UnavailableError
from tools.testbed.switch import Weather

EXAMPLE = """\
Machines host1, host2, ... at 10.0.0.11, 10.0.0.12, ... let the laptop's user in as `ubuntu`, which
is what clusters/local.yaml says. The command, a shell without one, runs in the project's folder:

  python -m tools.testbed ray up -y clusters/local.yaml
  python -m tools.testbed --delay-ms 2 --loss 0.001

Everything ends with the command.
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    out = argparse.ArgumentParser(
        prog="python -m tools.testbed", description=__doc__, epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    out.add_argument("--hosts", type=int, default=3, help="machines beside the laptop (default 3)")
    gibibytes = MACHINE_BYTES >> 30
    out.add_argument(
        "--memory-gib", type=float, default=gibibytes,
        help=f"memory that a machine says it has (default {gibibytes})",
    )  # fmt: skip
    out.add_argument("--delay-ms", type=float, default=0.0, help="of every frame on its way")
    out.add_argument("--loss", type=float, default=0.0, help="share of frames that are lost")
    out.add_argument("--rate-mbit", type=float, help="of a machine's cable in each direction")
    out.add_argument("--seed", type=int, default=0, help="of the losses (default 0)")
    out.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    return out


def main(argv: Sequence[str]) -> int:
    """Run the command line."""
    args = parser().parse_args(argv)
    rate = None if args.rate_mbit is None else args.rate_mbit * 1e6 / 8
    try:
        wanted = Weather(
            delay_s=args.delay_ms / 1000, loss=args.loss, rate_bytes_s=rate, seed=args.seed
        )
        weather = None if wanted == Weather(seed=args.seed) else wanted
        with Bed(args.hosts, int(args.memory_gib * (1 << 30)), weather) as bed:
            words = bed.laptop.command(args.command or ["bash"])
            return subprocess.run(words, check=False).returncode
    except (UnavailableError, BedError, ValueError) as error:
        print(f"testbed: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
