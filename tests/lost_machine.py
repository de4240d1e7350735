"""Run a completion on a cluster; in the middle of it wait until somebody has let a machine go.

    ray submit clusters/local.yaml tests/lost_machine.py MODEL LAYOUT SPARES TOKENS FILE

Runs on a machine of the cluster, which has the packages only. Prints as JSON where the chips are
after the third token, waits until FILE is there, and prints a line of JSON with all of it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from rack.run.config import RunConfig
from rack.run.remote import RemoteRack
from rack.run.session import Session, prepare
from rack.text.sampler import SamplingParams

WAIT_AFTER = 3
WAIT_SECONDS = 120.0


def places(rack: RemoteRack) -> list[str]:
    """The address of each chip's machine."""
    ends = [rack.members.at(chip).endpoint for chip in sorted(rack.members.processes)]
    return [end.removeprefix("tcp://").rpartition(":")[0] for end in ends]


def wait_for(file: Path) -> None:
    """Wait until a file is there."""
    until = time.monotonic() + WAIT_SECONDS
    while not file.exists():
        assert time.monotonic() < until, file
        time.sleep(0.02)


def main(model: str, layout: str, spares: str, tokens: str, wait: str) -> None:
    """Run the command."""
    file = Path(wait)
    config = RunConfig(model=model, layout=layout, transport="ray", spares=int(spares))
    with Session(prepare(config)) as session:
        rack = session.rack
        assert isinstance(rack, RemoteRack)
        prompt = session.prepared.tokenizer.encode("Hello")
        params = SamplingParams(max_tokens=int(tokens), ignore_eos=True)
        done = session.engine.generate(prompt, params)
        for number, _ in enumerate(done, 1):
            if number == WAIT_AFTER:
                print(json.dumps({"placed": places(rack)}), flush=True)
                wait_for(file)
        seen = [{"chips": one.chips, "what": one.what, "replayed_cycles": one.replayed_cycles,
                 "detected_seconds": one.detected_seconds, "wall_seconds": one.wall_seconds}
                for one in done.recoveries]  # fmt: skip
        print(json.dumps({
            "token_ids": done.token_ids, "data_hash": done.data_hash,
            "decode_cycles": done.decode_cycles, "placed": places(rack), "recoveries": seen,
        }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
