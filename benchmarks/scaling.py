"""What the runtime costs as chips become many: start-up, memory and a step, for each layout.

    python benchmarks/scaling.py [MODEL] [--layouts 5x7+1 5x14+2 …] [--transports process ray]

Each rack is a process of its own. Prints a row of a table for each: chips; seconds from the
compiled model to the rack's readiness; MB a chip beyond its SRAM, of all processes together; the
median wall time of a decode step, and the CPU time that all processes together spend on it; the
moves of vectors in that step, each a send and a receive, for each chip.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

MODEL = Path(__file__).resolve().parent.parent / "tests" / "models" / "stories260K"
LAYOUTS = ("5x7+1", "5x14+2", "5x28+4", "5x56+8")
WARM, STEPS = 3, 60
HEAD = "| chips | layout | transport | ready s | MB a chip | ms a step | CPU ms a step | moves |"


def cpu_seconds(pids: list[int]) -> float:
    """Return the CPU time that processes have used, to the nanosecond."""
    return sum(float(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1e9


def measure(model: str, layout: str, transport: str, context: int) -> dict[str, float]:
    """Start a rack in this process, run steps, stop it."""
    import psutil

    from rack.commands.bench import _memory, build_parser
    from rack.commands.flags import parse
    from rack.run.session import Session, prepare

    words = [model, "--layout", layout, "--transport", transport, "--max-model-len", str(context)]
    _, config = parse(build_parser(), words)
    prepared = prepare(config)
    name = next(name for name, step in prepared.compiled.steps.items() if step.kind.decode)
    started = time.perf_counter()
    with Session(prepared) as session:
        ready, rack = time.perf_counter() - started, session.rack
        rack.reset()
        pids = [one.pid for one in psutil.Process().children(recursive=True)] + [
            psutil.Process().pid
        ]
        walls = []
        for position in range(WARM + STEPS):
            if position == WARM:
                before = cpu_seconds(pids)
            began = time.perf_counter()
            rack.run_step(name, [position], [5])
            walls.append(time.perf_counter() - began)
        cpu = (cpu_seconds(pids) - before) / STEPS
        memory = _memory(prepared)["beyond_sram_mb_per_chip"]
    compiled = prepared.compiled
    links, chips = compiled.network.links, compiled.layout.chips
    moves = sum(not links[one.link].is_host for one in compiled.steps[name].transfers)
    return {
        "chips": chips, "ready": ready, "memory": memory, "moves": moves / chips,
        "step": statistics.median(walls[WARM:]) * 1e3, "cpu": cpu * 1e3,
    }  # fmt: skip


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default=str(MODEL))
    parser.add_argument("--layouts", nargs="+", default=LAYOUTS)
    parser.add_argument("--transports", nargs="+", default=["process"])
    parser.add_argument("--max-model-len", type=int, default=128)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        (layout,), (transport,) = args.layouts, args.transports
        print(json.dumps(measure(args.model, layout, transport, args.max_model_len)))
        return
    print(HEAD + "\n|" + "---|" * (HEAD.count("|") - 1), flush=True)
    for transport in args.transports:
        for layout in args.layouts:
            command = [sys.executable, __file__, args.model, "--layouts", layout, "--one"]
            command += ["--transports", transport, "--max-model-len", str(args.max_model_len)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            got = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {got['chips']} | {layout} | {transport} | {got['ready']:.1f} | "
                f"{got['memory']:.0f} | {got['step']:.1f} | {got['cpu']:.1f} | "
                f"{got['moves']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
