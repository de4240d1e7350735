"""The whole system in two seconds: a tiny model, from graph to tokens, on several racks."""

from __future__ import annotations

from collections import defaultdict

import pytest
from schedules import WEIGHTS, compiled

from compiler.model.presets import PRESETS
from rack.run.completion import Completion
from rack.run.engine import Engine
from rack.run.local import LocalRack
from rack.text.sampler import SamplingParams
from rack.text.tokenizer import load_tokenizer

LAYOUTS = ("1x1", "2x2+1", "1x3+2")
PROMPT = [256, *b"One rack"]  # 9 tokens: a chunk of 8, then decode steps
TINY = PRESETS["tiny"]
TOKENIZER = load_tokenizer(None, TINY.vocab_size, TINY.bos_token_id, TINY.eos_token_ids)


def complete(rack: LocalRack, prompt: list[int] = PROMPT, tokens: int = 3) -> Completion:
    """One request through the engine."""
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    return Engine(rack, TOKENIZER).generate(prompt, params).run()


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_one_request_on_three_layouts(dtype: str) -> None:
    seen = defaultdict(set)
    for layout in LAYOUTS:
        model = compiled(layout, dtype=dtype)
        rack = LocalRack(model, WEIGHTS)
        first, second = complete(rack), complete(rack)
        rack.close()
        assert len(first.token_ids) == 3
        assert first.finish_reason == "length"
        assert first.text == second.text
        assert first.decode_cycles == second.decode_cycles
        assert first.prompt_cycles == second.prompt_cycles == model.steps["prefill8/32"].cycles
        assert first.decode_cycles == [model.steps["decode/32"].cycles] * 3
        assert first.data_hash == second.data_hash
        seen["data"].add(first.data_hash)
        seen["tokens"].add(tuple(first.token_ids))
        seen["cycles"].add(first.decode_cycles[0])
    assert len(seen["data"]) == len(seen["tokens"]) == 1  # law 2
    assert len(seen["cycles"]) == len(LAYOUTS)  # each layout has its own cycles


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiling_again_gives_the_same_schedule(layout: str) -> None:
    one = compiled(layout)
    again = compiled.__wrapped__(layout)
    other = compiled(layout, context=48)
    assert one is not again
    assert one.schedule_hash == again.schedule_hash != other.schedule_hash
    assert one.steps == again.steps
    assert {name: str(step) for name, step in one.steps.items()} == {
        name: str(step) for name, step in again.steps.items()
    }
