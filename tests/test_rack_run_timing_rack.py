"""The timing executor: the schedule's cycles, no data, and tokens that a seed decides."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rack_kit import EOS, TINY, tokenizer
from schedules import WEIGHTS, compiled

from chip.ops.program import Program
from rack.commands import generate, plan
from rack.run.answer_lengths import answer_lengths
from rack.run.engine import Engine
from rack.run.local import LocalRack
from rack.run.timing_rack import TimingRack
from rack.text.sampler import SamplingParams


def test_the_cycles_are_those_of_the_fast_executor() -> None:
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    model = compiled("2x2+1")
    local = LocalRack(model, WEIGHTS)
    want = Engine(local, tokenizer()).generate([1] * 12, params).run()
    got = Engine(TimingRack(model), tokenizer()).generate([1] * 12, params).run()
    local.close()
    assert got.prompt_cycles == want.prompt_cycles > 0
    assert got.decode_cycles == want.decode_cycles
    assert got.data_hash is None
    assert want.data_hash is not None


def test_a_request_reads_no_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    """When chunks may follow each other is worked out once, however long a prompt is."""
    model, params = compiled("2x2+1"), SamplingParams(max_tokens=3)
    want = Engine(TimingRack(model), tokenizer()).generate([1] * 40, params).run()
    read: list[object] = []
    monkeypatch.setattr(Program, "operations", property(read.append))
    got = Engine(TimingRack(model), tokenizer()).generate([1] * 40, params).run()
    assert got.prompt_cycles == want.prompt_cycles
    assert not read


def test_tokens_follow_the_seed_and_never_end_the_sequence() -> None:
    def tokens(seed: int) -> list[int]:
        engine = Engine(TimingRack(compiled()), tokenizer())
        return engine.generate([1], SamplingParams(seed=seed)).run().token_ids

    assert tokens(1) == tokens(1) != tokens(2)
    assert len(tokens(1)) == 63
    assert all(token != EOS and 0 <= token < TINY.vocab_size for token in tokens(1))


def test_every_token_is_visible_text_of_its_own() -> None:
    """A client that counts chunks, or encodes the text again, comes to the same number."""
    words = tokenizer()
    engine = Engine(TimingRack(compiled()), words)
    events = list(engine.generate([1], SamplingParams(seed=3)))
    assert len(events) == 63
    assert all(len(event.text) == 1 and "!" <= event.text <= "~" for event in events)
    text = "".join(event.text for event in events)
    assert words.encode(text)[1:] == [event.token_id for event in events]


def test_without_plain_tokens_an_end_that_is_drawn_becomes_the_next_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rack.run.completion.uniform", lambda seed, position: EOS / TINY.vocab_size)
    bare = tokenizer()
    monkeypatch.setattr(bare, "plain_ids", [], raising=False)
    engine = Engine(TimingRack(compiled()), bare)
    assert engine.generate([1], SamplingParams(max_tokens=1)).run().token_ids == [EOS + 1]


def lengths(spec: str, **asked: Any) -> list[tuple[int, str | None]]:
    """Length and end of ten answers to different prompts."""
    engine = Engine(TimingRack(compiled()), tokenizer(), answer_lengths(spec))
    found = []
    for first in range(10):
        done = engine.generate([first, 1], SamplingParams(**asked)).run()
        found.append((len(done.token_ids), done.finish_reason))
    return found


def test_answers_end_where_their_length_says() -> None:
    assert lengths("fixed:5") == [(5, "stop")] * 10
    assert lengths("5", max_tokens=5) == [(5, "stop")] * 10
    assert lengths("5", max_tokens=4) == [(4, "length")] * 10
    assert lengths("5", min_tokens=7) == [(7, "stop")] * 10
    assert lengths("5", ignore_eos=True) == [(62, "length")] * 10
    assert lengths("none") == [(62, "length")] * 10
    assert lengths("5", stop=("".join(map(chr, range(33, 127))),)) == [(5, "stop")] * 10


def test_lengths_follow_seed_and_prompt() -> None:
    found = lengths("uniform:2,30", seed=1)
    assert found == lengths("uniform:2,30", seed=1) != lengths("uniform:2,30", seed=2)
    assert len(set(found)) > 3
    assert all(2 <= count <= 30 for count, _ in found)


def test_a_timing_rack_has_nothing_to_reset_or_close() -> None:
    rack = TimingRack(compiled())
    rack.reset()
    rack.close()
    assert (rack.saturated(), rack.executor, rack.transport) == (0, "timing", "none")
    with pytest.raises(KeyError):
        rack.run_step("decode/999", [0], [1])


@pytest.mark.slow
def test_llama_8b_takes_the_cycles_that_its_plan_says(capsys: pytest.CaptureFixture[str]) -> None:
    model = ["llama-8b", "--layout", "8x4+4", "--max-model-len", "512"]
    assert plan.main([*model, "--json", "--context", "200"]) == 0
    planned = json.loads(capsys.readouterr().out)
    argv = [*model, "--executor", "timing", "--prompt", "a", "--max-tokens", "2", "--json"]
    assert generate.main(argv) == 0
    out, err = capsys.readouterr()
    ran = json.loads(out)
    assert planned["decode"]["step"] == "decode/256"
    assert ran["emulated"]["decode_cycles"] == [planned["decode"]["cycles"]] * 2
    assert ran["data_hash"] is None
    assert (ran["executor"], ran["transport"]) == ("timing", "none")
    assert "TIMING executor: cycles are exact, tokens are drawn at random" in err
