"""`python -m rack.validate conv`: cycles of residual blocks, one image on one chip."""

from __future__ import annotations

import argparse
import json

from rack.commands.command import command
from rack.commands.flags import count, output_flags, profile_choices
from rack.commands.verbs import called_as
from rack.machines.profile import load_hardware
from rack.reports.convolutions import chain_cycles, used
from rack.system.shell import put

MOST, MOST_BLOCKS = 1 << 12, 32  # of every size


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.validate conv`."""
    parser = argparse.ArgumentParser(
        prog=f"{called_as('validate')} conv",
        description="Cycles of blocks of a ResNet, 1 x 1, 3 x 3, 1 x 1 and a residual, on a chip.",
        parents=[output_flags(dry_run=False)],
    )
    group = parser.add_argument_group("blocks")
    for name, text in (
        ("height", "rows of the image"), ("width", "pixels of a row"),
        ("channels", "of the image"), ("middle", "channels between a block's convolutions"),
    ):  # fmt: skip
        group.add_argument(
            f"--{name}", type=count(MOST), required=True, metavar=name[0].upper(), help=text
        )
    group.add_argument(
        "--blocks",
        type=count(MOST_BLOCKS),
        default=1,
        metavar="N",
        help="blocks in a chain (%(default)s)",
    )
    parser.add_argument_group("machine").add_argument(
        "--hardware", default="groqrack", metavar=profile_choices(),
        help="a profile (default %(default)s)",
    )  # fmt: skip
    return parser


@command(build_parser)
def conv(args: argparse.Namespace) -> None:
    """Print the cycles of chains of 1 to N blocks, and what one more takes."""
    spec = load_hardware(args.hardware).chip
    shape = args.height, args.width, args.channels, args.middle
    cycles = [
        chain_cycles(*shape, blocks, spec) for blocks in range(min(1, args.blocks), args.blocks + 1)
    ]
    mean = cycles[-1] / len(cycles)
    part = used(*shape, cycles[-1], spec) * len(cycles)
    if args.json:
        put(json.dumps({"cycles": cycles, "utilisation": part}))
        return
    text = f"{args.height} x {args.width} x {args.channels} by {args.middle}"
    put(
        f"{len(cycles)} blocks of {text}: {cycles[-1]} cycles, {mean:.0f} a block, "
        f"{part:.1%} of the planes ({args.hardware})"
    )
