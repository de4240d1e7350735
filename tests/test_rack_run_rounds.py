"""Sequences driven back to back: each as if alone, several steps under way."""

from __future__ import annotations

import pytest
from rack_kit import tokenizer
from schedules import WEIGHTS
from test_rack_run_sequences import Recorder, alone, made, params

from rack.run.engine import Engine
from rack.run.local import LocalRack
from rack.run.rounds import Rounds

PROMPT = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("layout", ["1x1", "3x1+1", "2x2"])
def test_all_say_what_one_says_alone(layout: str, batch: int) -> None:
    rack = LocalRack(made(layout, batch=batch), WEIGHTS)
    wanted, engine = alone(rack, PROMPT), Engine(rack, tokenizer())
    first = [engine.generate(PROMPT, params()) for _ in range(3)]
    Rounds(rack, first).fill()
    for _ in range(2):
        again = [engine.generate(PROMPT, params()) for _ in range(3)]
        assert Rounds(rack, again).decode() > 0
        assert {one.data_hash for one in again} == {wanted.data_hash}
        assert [one.token_ids for one in again] == [wanted.token_ids] * 3
    rack.close()


def test_steps_begin_as_soon_as_those_under_way_let_them() -> None:
    model = made("3x1+1")
    rack = Recorder(model)
    engine = Engine(rack, tokenizer())
    ones = [engine.generate(PROMPT, params(4)) for _ in range(3)]
    Rounds(rack, ones).decode()
    step = model.steps["decode/16"]
    gap, start = model.interval(step.name, step.name), model.network.start_cycles
    assert [(one.slots, one.base) for one in rack.orders] == [
        ((slot,), start + turn * step.cycles + slot * gap) for turn in range(4) for slot in range(3)
    ]


def test_groups_of_rows_take_turns() -> None:
    model = made("3x1+1", batch=2)
    rack = Recorder(model)
    engine = Engine(rack, tokenizer())
    ones = [engine.generate(PROMPT, params(2 + slot)) for slot in range(3)]
    Rounds(rack, ones).decode()
    steps = [(one.name.split("/")[0], one.slots) for one in rack.orders]
    two, one = ("decode2", (0, 1)), ("decode", (2,))
    assert steps == [two, one, two, one, ("decode", (1,)), one, one]
