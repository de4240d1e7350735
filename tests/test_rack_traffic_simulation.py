"""A trace in virtual time: as the server's own sequences would run it, step by step."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rack_kit import tokenizer
from test_rack_run_sequences import made, together

from rack.run.engine import Engine
from rack.run.timing_rack import TimingRack
from rack.text.sampler import SamplingParams
from rack.traffic.request import Request
from rack.traffic.simulation import Outcome, simulate

HZ = made().chip.clock_hz
Asked = list[tuple[int, int, int]]
"""(cycles since the one before, prompt tokens, output tokens) of each request."""


def requests(asked: Asked) -> list[Request]:
    out, at = [], 0
    for number, (gap, prompt, tokens) in enumerate(asked):
        at += gap
        out.append(
            Request(
                number=number, id=str(number), arrival_s=at / HZ, prompt_tokens=prompt,
                output_tokens=tokens,
            )
        )  # fmt: skip
    return out


def by_number(outcomes: list[Outcome]) -> list[Outcome]:
    return sorted(outcomes, key=lambda one: one.request.number)


@given(st.data())
@settings(deadline=None, max_examples=12)
def test_it_is_what_sequences_do(data: st.DataObject) -> None:
    """Also where hundreds of equal rounds are passed over at once."""
    layout = data.draw(st.sampled_from(["1x1", "3x1+1"]))
    batch = data.draw(st.sampled_from([1, 2]))
    model = made(layout, batch=batch, max_model_len=256, buckets=(64, 256))
    one = st.tuples(st.integers(0, 3 * 10**6), st.integers(1, 30), st.integers(1, 220))
    asked: Asked = data.draw(st.lists(one, min_size=1, max_size=6))
    trace = requests(asked)
    engine = Engine(TimingRack(model), tokenizer())
    completions = []
    for request in trace:
        params = SamplingParams(max_tokens=request.output_tokens, ignore_eos=True)
        cycle = round(request.arrival_s * HZ)
        completions.append((cycle, engine.generate([9] * request.prompt_tokens, params)))
    cycles: dict[int, list[int]] = {}
    for emitted in together(engine.rack, completions):
        cycles.setdefault(id(emitted.completion), []).append(emitted.cycle)
    got = by_number(list(simulate(model, trace)))
    for outcome, (_, completion) in zip(got, completions, strict=True):
        wanted = cycles[id(completion)]
        assert (outcome.first, outcome.end) == (wanted[0], wanted[-1])
        gaps: dict[int, int] = {}
        for a, b in itertools.pairwise(wanted):
            gaps[b - a] = gaps.get(b - a, 0) + 1
        assert outcome.gaps == gaps


def test_rounds_that_are_equal_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    model, leaps = made("3x1+1", max_model_len=256, buckets=(256,)), []
    from rack.run.dispatch import Dispatcher

    leap = Dispatcher.leap

    def counted(self: Dispatcher, cycles: int, tokens: dict[int, int]) -> None:
        leaps.append(sum(tokens.values()))
        leap(self, cycles, tokens)

    monkeypatch.setattr(Dispatcher, "leap", counted)
    list(simulate(model, requests([(0, 1, 220)] * 3)))
    assert sum(leaps) > 500


def test_what_cannot_be_served_is_refused() -> None:
    model = made("1x1", sequences=1)
    got = by_number(list(simulate(model, requests([(0, 48, 1), *[(0, 1, 9)] * 3]), max_queue=1)))
    assert [one.refused for one in got] == [
        "48 tokens in a context of 48", None, None, "the queue is full",
    ]  # fmt: skip
    assert got[1].admitted == 0
    assert got[2].admitted == got[1].end


def test_an_answer_ends_with_the_context() -> None:
    (got,) = simulate(made("1x1"), requests([(0, 40, 99)]))
    assert sum(got.gaps.values()) == 7  # eight tokens


def test_racks_share_what_comes() -> None:
    model = made("1x1", sequences=1)
    got = by_number(list(simulate(model, requests([(0, 1, 9)] * 4), replicas=2)))
    assert [one.replica for one in got] == [0, 1, 0, 1]
    assert got[0].end == got[1].end == got[2].admitted


def test_one_that_follows_comes_after_the_end() -> None:
    model = made("1x1", sequences=2)
    first, second, third = requests([(0, 2, 5), (0, 2, 5), (9, 1, 1)])
    followed = Request(
        number=0, id="0", arrival_s=0.0, prompt_tokens=2, output_tokens=5, session="s"
    )
    follows = Request(
        number=1, id="1", arrival_s=0.0, prompt_tokens=2, output_tokens=5, session="s", after=0,
        delay_s=1e-6,
    )  # fmt: skip
    got = by_number(list(simulate(model, [followed, follows, third])))
    assert got[0].end is not None
    assert got[1].arrival == got[0].end + round(1e-6 * HZ)
    assert (first.number, second.number) == (0, 1)


def test_who_follows_nobody_is_not_lost() -> None:
    (one,) = requests([(0, 1, 1)])
    follows = replace(one, number=1, after=7)
    with pytest.raises(ValueError, match="request 1: wanted one to follow, got number 7, which"):
        list(simulate(made("1x1"), [one, follows]))


def test_arrivals_are_in_order() -> None:
    one, two = requests([(0, 1, 1), (5000, 1, 1)])
    with pytest.raises(
        ValueError, match="request 0: wanted an arrival at cycle 5000 or later, got"
    ):
        list(simulate(made("1x1"), [two, one]))
