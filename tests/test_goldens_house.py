"""Known answers that a change of the code's inside must not move: schedules, cycles, tokens, bits.

A change that is meant to move one says so in CHANGELOG.md. `make goldens` runs this file as a
script, which writes tests/goldens/house.json anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rack.run.config import RunConfig
from rack.run.session import Session, prepare
from rack.text.sampler import SamplingParams

MODELS = Path(__file__).parent / "models"
GOLDEN = Path(__file__).parent / "goldens" / "house.json"

# model, hardware, layout, dtype, steps ("decode" or "all") and the contexts they are for
SCHEDULES = [
    ("llama-8b", "lesson", "8x4+4", "int8", "all", [512]),
    ("llama-8b", "groqrack", "8x4+4", "int8", "decode", [512]),
    ("llama-8b", "groqrack", "32x1+4", "int8", "decode", [512]),
    ("llama-70b", "groqrack", "80x4+5", "int8", "decode", [512]),
    ("tiny", "lesson", "2x2+1", "int8", "all", None),
    ("tiny", "lesson", "2x2+1", "fp16", "all", None),
    ("tiny", "groqrack", "1x3", "fp16", "all", None),
    ("tiny", "lesson", "3x1", "int8", "all", None),
]
RUNS = [("int8", "1x1"), ("int8", "1x4+1"), ("int8", "5x1"), ("fp16", "1x1"), ("fp16", "2x2")]


def schedule(
    model: str, hardware: str, layout: str, dtype: str, kinds: str, contexts: list[int] | None
) -> dict[str, Any]:  # fmt: skip
    """Return the schedule's hash and the cycles of every step that is compiled."""
    config = RunConfig(model=model, hardware=hardware, layout=layout, dtype=dtype)
    compiled = prepare(config, kinds=kinds, contexts=contexts, runs=False).compiled
    cycles = {name: step.cycles for name, step in compiled.steps.items()}
    return {"schedule_hash": compiled.schedule_hash, "cycles": cycles}


def run(dtype: str, layout: str) -> dict[str, Any]:
    """Return tokens, bits and cycles of a short run of the trained model."""
    config = RunConfig(model=str(MODELS / "stories260K"), dtype=dtype, layout=layout)
    with Session(prepare(config)) as session:
        params = SamplingParams(max_tokens=12, ignore_eos=True)
        done = session.engine.generate(list(range(5, 25)), params).run()
    return {
        "token_ids": done.token_ids, "data_hash": done.data_hash,
        "prompt_cycles": done.prompt_cycles, "decode_cycles": done.decode_cycles,
    }  # fmt: skip


def golden() -> dict[str, Any]:
    known: dict[str, Any] = json.loads(GOLDEN.read_text())
    return known


def name_of(case: Sequence[Any]) -> str:
    return " ".join(str(word) for word in case)


@pytest.mark.parametrize("case", SCHEDULES, ids=name_of)
def test_schedules_are_as_they_were(case: Any) -> None:
    assert schedule(*case) == golden()[name_of(case)]


@pytest.mark.parametrize("case", RUNS, ids=name_of)
def test_tokens_bits_and_cycles_are_as_they_were(case: Any) -> None:
    known = golden()[name_of(case)]
    assert run(*case) == known
    assert known["data_hash"] == golden()[name_of((case[0], "1x1"))]["data_hash"]


def main() -> None:
    """Write the file anew."""
    found = {name_of(case): schedule(*case) for case in SCHEDULES}
    found |= {name_of(case): run(*case) for case in RUNS}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
