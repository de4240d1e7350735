"""Kill chips at random tokens, and see that nobody notices but the clock on the wall.

    python benchmarks/faults.py --kills 100 [--transport ray] [--seed N]

Each round runs the same requests, several at a time, on a rack with spares. At a random turn of it
one chip or two are killed (SIGKILL) or stopped (SIGSTOP). Tokens, the cycles at which they came and
data hashes must be those of a run in one process without faults; else the exit code is 1. Printed
are the wall seconds from the last sign of life to the error, those of the recovery, and the
emulated cycles that were replayed. At the end no process of the racks and no file may be left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from rack.errors import RackError
from rack.run.completion import Completion
from rack.run.config import RunConfig
from rack.run.remote import RemoteRack
from rack.run.sequences import Sequences
from rack.run.session import Prepared, Session, prepare
from rack.run.steps import Recovery
from rack.text.sampler import SamplingParams

SPARES = 10  # of a rack; then the next one is started
STEP_TIMEOUT_S = 2.0
TOKENS = 8
HOW = (signal.SIGKILL, signal.SIGSTOP)


def requests(session: Session, act: tuple[int, Callable[[], None]] | None = None) -> list[Any]:
    """Run three requests at a time; before turn `act[0]`, do `act[1]`; return what came when."""
    sequences, told = Sequences(session.rack), list[Any]()
    done: list[Completion] = []
    for number in range(3):
        prompt = [256, *range(65, 70 + 4 * number)]
        params = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
        done.append(session.engine.generate(prompt, params))
        sequences.admit(done[-1])
    turn = 0
    while sequences.running:
        turn += 1
        if act is not None and turn == act[0]:
            act[1]()
        for one in sequences.advance():
            assert not isinstance(one.token, RackError)
            told.append((one.token.token_id, one.cycle))
    told += [(one.decode_cycles, one.prompt_cycles, one.data_hash) for one in done]
    recoveries = {id(r): r for one in done for r in one.recoveries}
    return [told, turn, list(recoveries.values())]


def prepared(transport: str, **extra: Any) -> Prepared:
    """Return a small model on five chips, with three slots."""
    return prepare(RunConfig(
        model="tiny", layout="2x2+1", prefill_chunk=4, max_model_len=64, sequences=3,
        transport=transport, step_timeout_s=STEP_TIMEOUT_S, **extra,
    ))  # fmt: skip


def lose(rack: RemoteRack, chips: list[int], how: signal.Signals) -> None:
    """Kill or stop chips."""
    for chip in chips:
        os.kill(rack.members.at(chip).pid, how)


def main(argv: list[str] | None = None) -> int:
    """Run the rounds, with a folder of their own for temporary files; print what they took."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="faults-") as place:
        tempfile.tempdir = place
        try:
            return rounds(argv, Path(place))
        finally:
            tempfile.tempdir = before


def rounds(argv: list[str] | None, place: Path) -> int:
    """Run the rounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--transport", choices=("process", "ray"), default="process")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    draw = random.Random(args.seed)
    with Session(prepared("local")) as session:
        wanted, turns, _ = requests(session)
    found: list[Recovery] = []
    wrong, kills = 0, 0
    while kills < args.kills:
        with Session(prepared(args.transport, spares=SPARES)) as session:
            rack = session.rack
            assert isinstance(rack, RemoteRack)
            while kills < args.kills and rack.spares >= 2:
                chips = draw.sample(range(5), draw.choice((1, 1, 1, 2)))
                how, turn = draw.choice(HOW), draw.randint(1, turns)
                got, _, seen = requests(session, (turn, partial(lose, rack, chips, how)))
                kills += 1
                same = got == wanted
                wrong += not same
                found += seen
                print(
                    f"{kills}: {how.name} of {chips} before turn {turn}: "
                    f"{'same' if same else 'OTHER'}, {len(seen)} recoveries", flush=True,
                )  # fmt: skip
    left = [p for p in psutil.Process().children(recursive=True) if "rack.run" in str(p.cmdline())]
    files = list(place.iterdir())
    print(json.dumps({
        "kills": kills, "other_than_undisturbed": wrong, "recoveries": len(found),
        "detected_seconds": spread([one.detected_seconds for one in found]),
        "recovery_wall_seconds": spread([one.wall_seconds for one in found]),
        "replayed_cycles": spread([one.replayed_cycles for one in found]),
        "processes_left": len(left), "folders_left": len(files),
    }))  # fmt: skip
    return int(bool(wrong or left or files))


def spread(values: list[float]) -> dict[str, float]:
    """Return the median and the largest."""
    return {"median": round(statistics.median(values), 3), "max": round(max(values), 3)}


if __name__ == "__main__":
    sys.exit(main())
