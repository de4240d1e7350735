"""How long a rack takes to start, stage by stage, with nothing of it running before.

    python benchmarks/startup.py [MODEL] [--layout 8x4+4] [--transport ray process] [--repeats 3]

Each repeat is a process of its own, so that Ray, imports and page tables start cold as well. Prints
medians: when each stage was complete, in seconds since the interpreter began.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

STARTED = time.perf_counter()


def start(model: str, flags: list[str]) -> dict[str, float]:
    """Start a rack in this process and stop it; return seconds by stage, in order."""
    from rack.commands.bench import build_parser
    from rack.commands.flags import parse
    from rack.run.session import Session, prepare

    _, config = parse(build_parser(), [model, *flags])
    stages = {"imports": time.perf_counter() - STARTED}
    prepared = prepare(config)
    stages["compiled"] = time.perf_counter() - STARTED

    def progress(stage: str, done: int, total: int) -> None:
        if done == total:
            stages[stage] = time.perf_counter() - STARTED

    with Session(prepared, progress):
        stages["ready"] = time.perf_counter() - STARTED
    return stages


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="llama-8b")
    parser.add_argument("--layout", default="8x4+4")
    parser.add_argument("--transport", nargs="+", default=["ray", "process"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    flags = ["--layout", args.layout, "--transport"]
    if args.one:
        print(json.dumps(start(args.model, [*flags, args.transport[0]])))
        return
    for transport in args.transport:
        command = [sys.executable, __file__, args.model, *flags, transport, "--one"]
        runs = []
        for _ in range(args.repeats):
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
        middle = {stage: statistics.median(run[stage] for run in runs) for stage in runs[0]}
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in middle.items())
        print(f"{args.model} {args.layout} over {transport}: {stages} s")


if __name__ == "__main__":
    main()
