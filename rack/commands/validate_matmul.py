"""`python -m rack.validate matmul`: cycles of a product, and how much of the planes it uses."""

from __future__ import annotations

import argparse
import json

from compiler.pipeline import DTYPES
from rack.commands.command import command
from rack.commands.flags import count, numbers, output_flags, profile_choices
from rack.commands.verbs import called_as
from rack.machines.profile import load_hardware
from rack.reports.products import product_cycles, utilisation
from rack.system.shell import put

MOST = 1 << 16  # of every side


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.validate matmul`."""
    parser = argparse.ArgumentParser(
        prog=f"{called_as('validate')} matmul",
        description="Cycles of [M x K] x [K x N] on one chip, and its part of the planes' rate.",
        parents=[output_flags(dry_run=False)],
    )
    group = parser.add_argument_group("product")
    for name, text in (("m", "rows"), ("k", "values of a row")):
        group.add_argument(
            f"--{name}", type=count(MOST), required=True, metavar=name.upper(), help=text
        )
    group.add_argument("--n", required=True, metavar="N[,N...]", help="columns of the weight")
    group.add_argument(
        "--dtype", default="int8", choices=DTYPES, help="weights and activations (%(default)s)"
    )
    parser.add_argument_group("machine").add_argument(
        "--hardware", default="groqrack", metavar=profile_choices(),
        help="a profile (default %(default)s)",
    )  # fmt: skip
    return parser


@command(build_parser)
def matmul(args: argparse.Namespace) -> None:
    """Print cycles and utilisation for every number of columns."""
    spec = load_hardware(args.hardware).chip
    columns = numbers(args.n, "n", MOST, "columns")
    cycles = [product_cycles(args.m, args.k, n, args.dtype, spec) for n in columns]
    used = [
        utilisation(args.m, args.k, n, args.dtype, taken, spec)
        for n, taken in zip(columns, cycles, strict=True)
    ]
    if args.json:
        put(json.dumps({"cycles": cycles, "utilisation": used}))
        return
    for n, taken, part in zip(columns, cycles, used, strict=True):
        shape = f"[{args.m} x {args.k}] x [{args.k} x {n}]"
        put(f"{shape}, {args.dtype}: {taken} cycles, {part:.1%} of the planes ({args.hardware})")
