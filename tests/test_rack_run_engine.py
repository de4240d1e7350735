"""The engine: prefill, decode, stopping, and the account of both clocks."""

from __future__ import annotations

import hashlib
import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rack_kit import BOS, EOS, TINY, ScriptRack, known, saying, scripted, tokenizer
from schedules import WEIGHTS, compiled

from chip.kernels import INSTRUCTION_SETS
from compiler.errors import CompilerError
from rack.errors import RackError, RequestError
from rack.run.completion import Completion, StopScanner
from rack.run.config import RunConfig
from rack.run.engine import Engine
from rack.run.local import LocalRack
from rack.run.session import Session, prepare
from rack.text.sampler import SamplingParams

CONTEXT = 64  # of schedules.compiled()


def run(engine: Engine, prompt: list[int], **params: object) -> Completion:
    return engine.generate(prompt, SamplingParams(**params)).run()  # type: ignore[arg-type]


def steps(engine: Engine) -> list[tuple[str, list[int], list[int]]]:
    assert isinstance(engine.rack, ScriptRack)
    return engine.rack.steps


def refusal(engine: Engine, prompt: list[int], **params: object) -> str:
    with pytest.raises(RequestError) as caught:
        run(engine, prompt, **params)
    assert steps(engine) == []
    return str(caught.value)


# -- prefill and decode


def test_one_token_has_no_prefill() -> None:
    engine = scripted(saying("ab"))
    done = run(engine, [BOS], max_tokens=2)
    assert steps(engine) == [("decode/32", [0], [BOS]), ("decode/32", [1], [ord("a")])]
    assert (done.prompt_cycles, done.prompt_seconds) == (0, 0.0)
    assert done.text == "ab"


def test_a_prompt_is_prefilled_in_chunks_but_for_its_last_token() -> None:
    engine = scripted(saying("x"))
    prompt = [BOS, *range(65, 65 + 40)]
    done = run(engine, prompt, max_tokens=1)
    names = [(name, positions) for name, positions, _ in steps(engine)]
    assert names == [
        ("prefill8/32", list(range(8))),
        ("prefill8/32", list(range(8, 16))),
        ("prefill8/32", list(range(16, 24))),
        ("prefill8/32", list(range(24, 32))),
        ("prefill8/64", list(range(32, 40))),
        ("decode/64", [40]),
    ]
    assert [token for _, _, tokens in steps(engine) for token in tokens] == prompt
    until = engine.compiled.cycles_until
    chunks = [name for name, _ in names[:-1]]
    wanted = [until(a, b) for a, b in itertools.pairwise([*chunks, None])]
    assert done.prompt_cycles == sum(wanted)
    assert done.prompt_token_ids == prompt


def test_a_short_rest_takes_the_small_step() -> None:
    engine = scripted(saying("x"))
    run(engine, [BOS, *b"12345678"], max_tokens=1)
    assert [name for name, _, _ in steps(engine)] == ["prefill8/32", "decode/32"]
    engine = scripted(saying("x"))
    run(engine, [BOS, *b"123456789"], max_tokens=1)
    assert [name for name, _, _ in steps(engine)] == ["prefill8/32", "prefill2/32", "decode/32"]


def test_each_token_costs_one_decode_step() -> None:
    engine = scripted(saying("abc"))
    done = run(engine, [BOS], max_tokens=40)
    assert len(done.decode_cycles) == len(done.token_ids) == 40
    cycles = engine.compiled.steps
    want = [cycles["decode/32"].cycles] * 32 + [cycles["decode/64"].cycles] * 8
    assert done.decode_cycles == want
    assert done.completion_seconds == sum(want) / engine.clock_hz
    assert len(done.wall_decode_seconds) == 40


def test_the_data_hash_is_over_the_positions_and_the_tokens() -> None:
    engine = scripted([65, 66])
    done = run(engine, [BOS], max_tokens=2)
    digest = hashlib.sha256(struct.pack("<QQ", 65, 66) + struct.pack("<II", 65, 66))
    assert done.data_hash == digest.hexdigest()


def test_events_carry_text_cycles_and_the_end() -> None:
    completion = scripted([*"é".encode(), ord("!")]).generate([BOS], SamplingParams(max_tokens=3))
    events = list(completion)
    assert [event.text for event in events] == ["", "é", "!"]  # half a character waits
    assert [event.finish_reason for event in events] == [None, None, "length"]
    assert [event.token_id for event in events] == completion.token_ids
    assert {event.emulated_cycles for event in events} == set(completion.decode_cycles)
    assert list(completion) == []  # a completion runs once


# -- how it ends


def test_max_tokens_and_the_end_of_the_context() -> None:
    assert run(scripted(saying("a")), [BOS], max_tokens=5).finish_reason == "length"
    for asked in (None, 1000):
        done = run(scripted(saying("a")), [BOS, 65, 66, 67], max_tokens=asked)
        assert len(done.token_ids) == CONTEXT - 4
        assert done.finish_reason == "length"
    done = run(scripted(saying("a")), [65] * (CONTEXT - 1))
    assert len(done.token_ids) == 1


def test_the_end_of_sequence_stops_and_is_not_text() -> None:
    done = run(scripted([*saying("hi"), EOS, *saying("never")]), [BOS])
    assert (done.text, done.finish_reason) == ("hi", "stop")
    assert done.token_ids == [*saying("hi"), EOS]


def test_ignore_eos_goes_on() -> None:
    done = run(scripted([*saying("hi"), EOS]), [BOS], ignore_eos=True, max_tokens=7)
    assert (done.text, done.finish_reason) == ("hihih", "length")
    assert done.token_ids.count(EOS) == 2


def test_min_tokens_takes_the_next_best_instead_of_the_end() -> None:
    done = run(scripted([EOS]), [BOS], min_tokens=3)
    assert done.token_ids == [EOS + 1] * 3 + [EOS]
    assert done.finish_reason == "stop"
    done = run(scripted([EOS]), [BOS], min_tokens=3, max_tokens=2)
    assert (len(done.token_ids), done.finish_reason) == (2, "length")


def test_stop_strings_over_token_boundaries() -> None:
    engine = scripted(saying("one two, three"))
    events = list(engine.generate([BOS], SamplingParams(stop=("wo, t",))))
    assert "".join(event.text for event in events) == "one t"
    assert events[-1].finish_reason == "stop"
    assert len(events) == len("one two, t")
    shown = [event.text for event in events]
    assert shown[5] == ""  # "w" may be the beginning of a stop string
    done = run(scripted(saying("wow. ")), [BOS], stop=("wo!",), max_tokens=6)
    assert done.text == "wow. w"  # what was held back comes with the end


def plain_model(chunks: list[str], stops: list[str]) -> tuple[str, bool]:
    """All that may be shown: str.find over the whole text so far, after every chunk."""
    text = ""
    for chunk in chunks:
        text += chunk
        found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
        if found:
            return text[: min(found)], True
    return text, False


@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=4),
)
def test_the_stop_scanner_shows_what_str_find_would(chunks: list[str], stops: list[str]) -> None:
    scanner, shown, text = StopScanner(stops), "", ""
    for chunk in chunks:
        text += chunk
        hit_before = scanner.hit
        shown += scanner.feed(chunk)
        if not scanner.hit:
            held = text[len(shown) :]
            assert text == shown + held
            assert held == "" or any(stop.startswith(held) for stop in stops)  # no longer than need
        assert not hit_before or scanner.hit
    shown += scanner.flush()
    assert (shown, scanner.hit) == plain_model(chunks, stops)
    assert scanner.flush() == ""


# -- what is refused


def test_prompts_that_cannot_be_are_refused() -> None:
    engine = scripted([65])
    assert refusal(engine, []) == "prompt: wanted at least one token, got none"
    long = f"prompt: wanted fewer tokens than the context of {CONTEXT}, got {CONTEXT} tokens"
    assert refusal(engine, [65] * CONTEXT) == long
    vocab = TINY.vocab_size
    assert refusal(engine, [1, vocab]) == f"prompt: wanted token ids below {vocab}, got {vocab}"
    assert refusal(engine, [-1]) == f"prompt: wanted token ids below {vocab}, got -1"
    with pytest.raises(CompilerError, match=f"context: wanted at most {CONTEXT}, got 65"):
        engine.compiled.step(1, 65, decode=True)


def test_a_rack_of_few_logits_refuses_what_needs_more() -> None:
    engine = scripted([65], compiled(top_k=4))
    wanted = "top_k: wanted 1 to 4: this rack returns the 4 largest logits, got "
    assert refusal(engine, [BOS], temperature=1.0) == wanted + "0"
    assert refusal(engine, [BOS], temperature=1.0, top_k=5) == wanted + "5"
    too_few = (
        "min_tokens: wanted 0: of the 4 largest logits that this rack returns too few are left "
        "without 1 ends of sequence, got 2"
    )
    assert refusal(engine, [BOS], temperature=1.0, top_k=4, min_tokens=2) == too_few
    run(engine, [BOS], temperature=1.0, top_k=4, min_tokens=2, ignore_eos=True, max_tokens=1)
    run(engine, [BOS], top_k=50, min_tokens=2, max_tokens=1)  # greedy needs two
    one = scripted([EOS], compiled(top_k=1))
    assert "of the 1 largest logits" in refusal(one, [BOS], min_tokens=1)


def test_few_logits_and_min_tokens_give_what_all_logits_give() -> None:
    for params in ({}, {"temperature": 1.0, "top_k": 3, "seed": 5}):
        few = run(scripted([EOS], compiled(top_k=4)), [BOS], min_tokens=5, max_tokens=9, **params)
        full = run(scripted([EOS]), [BOS], min_tokens=5, max_tokens=9, **params)
        assert few.token_ids == full.token_ids


# -- on chips


@pytest.mark.parametrize("layout", ["1x1", "1x3+2"])
def test_few_logits_from_the_chips_give_the_tokens_of_all_logits(layout: str) -> None:
    full, few = compiled(layout), compiled(layout, top_k=6)
    racks = [LocalRack(model, WEIGHTS) for model in (full, few)]
    assert full.schedule_hash != few.schedule_hash
    for params in (
        {},
        {"temperature": 1.0, "top_k": 6, "seed": 1},
        {"temperature": 2.0, "top_k": 5, "seed": 2, "min_tokens": 2},
        {"temperature": 0.7, "top_k": 3, "top_p": 0.8, "seed": 3},
    ):
        one, two = (
            run(Engine(rack, tokenizer()), [BOS, *b"Hi"], max_tokens=5, **params) for rack in racks
        )
        assert one.token_ids == two.token_ids
        assert one.data_hash == two.data_hash  # over all logits, whatever was returned
    results = [rack.run_step("decode/32", [0], [1]) for rack in racks]
    logits, top = results[0].logits, results[1].top
    assert logits is not None
    assert top is not None
    ids, values = top
    best = np.argsort(-logits, kind="stable")[:6]
    assert set(best) <= set(ids)
    assert (logits[ids] == values).all()
    for rack in racks:
        rack.close()


def test_a_completion_that_was_left_does_not_disturb_the_next() -> None:
    rack = LocalRack(compiled("2x2+1"), WEIGHTS)
    engine = Engine(rack, tokenizer())
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    want = engine.generate([BOS, *b"a prompt"], params).run()
    left = engine.generate([BOS, *b"something else, longer"], params)
    next(iter(left))
    next(iter(left))
    got = engine.generate([BOS, *b"a prompt"], params).run()
    assert (got.token_ids, got.data_hash) == (want.token_ids, want.data_hash)
    assert (got.prompt_cycles, got.decode_cycles) == (want.prompt_cycles, want.decode_cycles)
    with pytest.raises(RackError, match="this completion was left: another one has started"):
        next(iter(left))
    assert len(left.token_ids) == len(left.decode_cycles) == 2
    rack.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "tokens"), [("1x1", 200), ("5x1", 60), ("2x3+1", 40), ("1x4+2", 40)]
)
def test_the_trained_model_says_what_it_should(stories260k: Path, layout: str, tokens: int) -> None:
    """All 200 tokens on every layout run as Ray actors in test_rack_ray.py."""
    tokens = tokens if INSTRUCTION_SETS else 20  # the NumPy kernels take 40 times as long
    config = RunConfig(model=str(stories260k), layout=layout, dtype="fp16", transport="local")
    with Session(prepare(config)) as session:
        for entry in known(stories260k):
            prompt = entry["prompt_token_ids"]
            wanted = entry["token_ids"][len(prompt) : tokens]
            done = run(session.engine, prompt, max_tokens=len(wanted), ignore_eos=True)
            assert done.token_ids == wanted, entry["prompt"]
