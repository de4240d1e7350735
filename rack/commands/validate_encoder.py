"""`python -m rack.validate encoder`: many runs of one sequence, from one program's cycles."""

from __future__ import annotations

import argparse
import json

from compiler.model.presets import PRESETS
from compiler.pipeline import DTYPES
from rack.commands.command import at_least, command
from rack.commands.flags import count, output_flags, profile_choices
from rack.commands.verbs import called_as
from rack.errors import ConfigError
from rack.machines.profile import load_hardware
from rack.reports.encoders import HOST_JITTER_US, RUNS, HostRuns, sequence_cycles
from rack.run.config import MOST_INTEGER
from rack.system.shell import put

MOST_RUNS, MOST_JITTER_US, BAR = 1 << 22, 1e6, 50
MODELS = tuple(name for name, config in PRESETS.items() if config.encoder is not None)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.validate encoder`."""
    parser = argparse.ArgumentParser(
        prog=f"{called_as('validate')} encoder",
        description="Latencies of one sequence over many runs: the cycles of its program, and a "
        "model of the host's jitter, which is an assumption.",
        parents=[output_flags(dry_run=False)],
    )
    group = parser.add_argument_group("sequence")
    group.add_argument("model", choices=MODELS, metavar="MODEL", help=", ".join(MODELS))
    group.add_argument(
        "--tokens", type=count(1 << 16), default=384, metavar="N", help="default %(default)s"
    )
    group.add_argument("--dtype", choices=DTYPES, default="fp16", help="default %(default)s")
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--hardware", default="groqrack", metavar=profile_choices(),
        help="a profile (default %(default)s)",
    )  # fmt: skip
    machine.add_argument("--layout", default="4x1", metavar="PxT", help="default %(default)s")
    host = parser.add_argument_group("host")
    host.add_argument(
        "--runs", type=count(MOST_RUNS), default=RUNS, metavar="N", help="default %(default)s"
    )
    host.add_argument(
        "--jitter-us", type=float, default=HOST_JITTER_US, metavar="US",
        help="mean delay of each way over PCIe (default %(default)s, an assumption)",
    )  # fmt: skip
    host.add_argument(
        "--seed", type=count(MOST_INTEGER), default=0, metavar="N", help="default %(default)s"
    )
    return parser


@command(build_parser)
def encoder(args: argparse.Namespace) -> None:
    """Print the histogram."""
    if not 0 <= args.jitter_us <= MOST_JITTER_US:
        wanted = f"0 to {MOST_JITTER_US:.0f} us"
        raise ConfigError(f"jitter_us: wanted {wanted}, got {args.jitter_us}")
    at_least(args, 1, "tokens", "runs")
    at_least(args, 0, "seed")
    hardware = load_hardware(args.hardware)
    cycles = sequence_cycles(hardware, args.model, args.layout, args.tokens, args.dtype)
    program_us = cycles * 1e6 / hardware.chip.clock_hz
    runs = HostRuns.draw(program_us, args.runs, args.jitter_us, args.seed)
    figures = {
        name: runs.quantile(share) for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1))
    }
    bars = runs.histogram()
    if args.json:
        report = {
            "cycles": cycles, "program_us": program_us, "runs": args.runs,
            "host_jitter_us": args.jitter_us, "seed": args.seed,
            **{f"{name}_us": value for name, value in figures.items()}, "histogram": bars,
        }  # fmt: skip
        put(json.dumps(report))
        return
    put(
        f"{args.model}, {args.tokens} tokens, {args.dtype}, {args.layout} on {hardware.name}: "
        f"{cycles:,} cycles = {program_us:,.1f} us; {args.runs:,} runs with a host jitter of "
        f"{args.jitter_us} us a way (assumption):"
    )
    put(", ".join(f"{name} {value:,.1f} us" for name, value in figures.items()))
    most = max(number for _, number in bars)
    for edge, number in bars:
        put(f"{edge:>10,.0f} us {number:>7,} {'#' * -(-number * BAR // most)}")
