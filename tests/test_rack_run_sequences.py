"""Several sequences on one rack: each as if alone, and the pipeline shared by one rule."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rack_kit import tokenizer
from schedules import WEIGHTS, machine

from compiler.model.presets import PRESETS
from compiler.pipeline import CompiledModel, Options, compile_model
from compiler.place.layout import parse_layout
from compiler.verify.verifier import verify
from rack.errors import RackError
from rack.run.completion import Completion
from rack.run.engine import Engine
from rack.run.local import LocalRack
from rack.run.sequences import Emitted, Sequences
from rack.run.steps import Rack, StepOrder
from rack.run.timing_rack import TimingRack
from rack.text.sampler import SamplingParams

PROMPTS = ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [61], [93, 17, 44, 8], [5] * 9, [7, 7])


@lru_cache(maxsize=16)
def made(
    layout: str = "3x1+1", sequences: int = 3, batch: int = 1, **options: Any
) -> CompiledModel:  # fmt: skip
    """Return `tiny` with slots."""
    asked = {"max_model_len": 48, "prefill_chunk": 4, "buckets": (16, 48), **options}
    return compile_model(
        PRESETS["tiny"], machine("lesson"), parse_layout(layout),
        Options(sequences=sequences, batch=batch, **asked),
    )  # fmt: skip


class Recorder(TimingRack):
    """Notes the steps that it is given."""

    def __init__(self, compiled: CompiledModel) -> None:
        super().__init__(compiled)
        self.orders: list[StepOrder] = []
        self.epochs: list[list[StepOrder]] = []

    def reset(self) -> None:
        self.epochs.append([])
        super().reset()

    def start(self, order: StepOrder) -> None:
        self.orders.append(order)
        self.epochs[-1].append(order)
        super().start(order)


def params(tokens: int = 5) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)


def together(
    rack: Rack, asked: Sequence[tuple[int, Completion]], *, reuse: bool = False,
    leave: dict[int, int] | None = None,
) -> list[Emitted]:  # fmt: skip
    """Run completions that arrive at cycles, in their order; `leave`: number -> after tokens."""
    sequences = Sequences(rack, reuse=reuse)
    waiting, out, given = sorted(asked, key=lambda one: one[0]), list[Emitted](), dict[int, int]()
    numbers = {id(one): number for number, (_, one) in enumerate(asked)}
    while waiting or sequences.running:
        while waiting and not sequences.full and (
            not sequences.running or waiting[0][0] <= sequences.upcoming()
        ):  # fmt: skip
            arrival, completion = waiting.pop(0)
            sequences.admit(completion, arrival)
        for emitted in sequences.advance():
            out.append(emitted)
            number = numbers[id(emitted.completion)]
            given[number] = given.get(number, 0) + 1
            if (leave or {}).get(number) == given[number]:
                sequences.leave(emitted.completion)
    return out


def alone(rack: Rack, prompt: Sequence[int], tokens: int = 5) -> Completion:
    return Engine(rack, tokenizer()).generate(prompt, params(tokens)).run()


def totals(one: Completion) -> tuple[Any, ...]:
    return one.token_ids, one.data_hash, one.prompt_cycles, one.decode_cycles


@pytest.mark.parametrize("layout", ["1x1", "3x1+1", "2x2"])
def test_sequences_together_say_what_each_says_alone(layout: str) -> None:
    model = made(layout)
    rack = LocalRack(model, WEIGHTS)
    wanted = [alone(rack, prompt) for prompt in PROMPTS]
    engine = Engine(rack, tokenizer())
    got = [engine.generate(prompt, params()) for prompt in PROMPTS]
    together(rack, [(0, one) for one in got])
    rack.close()
    for one, other in zip(wanted, got, strict=True):
        assert (one.token_ids, one.data_hash) == (other.token_ids, other.data_hash)
        passed = other.prompt_cycles + sum(other.decode_cycles) - other.waited_cycles
        assert passed == one.prompt_cycles + sum(one.decode_cycles)


def test_a_sequence_that_nothing_hinders_takes_its_time_alone() -> None:
    """Two in a pipeline of four stages: the second's tokens, too, take what they take alone."""
    model = made("3x1+1", sequences=2)
    step = model.steps["decode/48"]
    assert step.cycles // model.interval(step.name, step.name) >= 2
    rack = TimingRack(model)
    engine = Engine(rack, tokenizer())
    wanted = [alone(rack, [3] * 17, 20), alone(rack, [4] * 18, 20)]
    got = [engine.generate([3] * 17, params(20)), engine.generate([4] * 18, params(20))]
    together(rack, [(0, one) for one in got])
    assert got[0].prompt_cycles > wanted[0].prompt_cycles  # prompts take turns
    settled = [one.decode_cycles[3:] for one in got]
    assert settled == [one.decode_cycles[3:] for one in wanted]


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_the_steps_of_any_order_of_arrivals_are_lawful(data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from(["1x1", "3x1+1", "2x2"]))
    model, rack = made(layout), Recorder(made(layout))
    engine = Engine(rack, tokenizer())
    lengths = st.tuples(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 12))
    asked = data.draw(st.lists(lengths, min_size=1, max_size=6))
    completions = [
        (at, engine.generate([9] * prompt, params(tokens))) for at, prompt, tokens in asked
    ]
    leave = data.draw(st.dictionaries(st.integers(0, len(asked) - 1), st.integers(1, 3)))
    out = together(rack, completions, leave=leave)
    assert [one.cycle for one in out] == sorted(one.cycle for one in out)
    for number, (_, one) in enumerate(completions):
        wanted = min(asked[number][2], 48 - asked[number][1], leave.get(number, 99))
        assert len(one.token_ids) == wanted
    for epoch in rack.epochs:
        for before, after in itertools.combinations(epoch, 2):
            assert after.base - before.base >= model.interval(before.name, after.name)


def test_steps_that_overlap_pass_the_verifier() -> None:
    model = made("3x1+1")
    rack = Recorder(model)
    engine = Engine(rack, tokenizer())
    together(rack, [(0, engine.generate(prompt, params())) for prompt in PROMPTS[:3]])
    steps = [(model.steps[order.name], order.base) for order in rack.orders]
    overlap = [a[1] + a[0].cycles > b[1] for a, b in itertools.pairwise(steps)]
    assert sum(overlap) > 5
    verify(steps, model.costs, model.network.links, model.memories, sequences=model.sequences)


def test_running_sequences_take_turns_when_the_pipeline_is_full() -> None:
    model = made("1x1", sequences=8)  # full with five
    step = model.steps["decode/16"]
    assert step.cycles // model.interval(step.name, step.name) < 8
    rack = Recorder(model)
    engine = Engine(rack, tokenizer())
    together(rack, [(0, engine.generate([7], params(14))) for _ in range(8)])
    settled = rack.orders[24:80]  # all have begun, and none has ended
    turns = [order.slots[0] for order in settled]
    assert turns == sorted(turns[:8], key=turns.index) * 7
    assert set(turns[:8]) == {*range(8)}
    for one, two in itertools.pairwise(settled):  # the entry is never free
        assert two.base - one.base == model.interval(one.name, two.name)


def test_a_prompt_goes_in_between_after_a_turn_of_each() -> None:
    """A start would hold up a running sequence: it lets each go before it once."""
    model = made("1x1", sequences=3)
    rack = Recorder(model)
    engine = Engine(rack, tokenizer())
    running = [engine.generate([7], params(12)) for _ in range(2)]
    late = engine.generate([8] * 9, params(2))  # two chunks
    together(rack, [(0, running[0]), (0, running[1]), (1, late)])
    kinds = [(order.slots[0], order.name.split("/")[0]) for order in rack.orders]
    chunks = [n for n, (slot, kind) in enumerate(kinds) if kind == "prefill4"]
    assert len(chunks) == 2
    for first, then in itertools.pairwise([0, *chunks]):
        between = [slot for slot, _ in kinds[first + 1 : then]]
        assert all(between.count(slot) <= 1 for slot in (0, 1)) or first == 0


def test_a_slot_too_many_is_refused() -> None:
    rack = TimingRack(made("1x1", sequences=1))
    engine, sequences = Engine(rack, tokenizer()), Sequences(rack)
    sequences.admit(engine.generate([1], params()))
    with pytest.raises(RackError, match="slots: wanted a free one, got 1 in use"):
        sequences.admit(engine.generate([1], params()))


def test_who_leaves_frees_the_slot_for_the_next() -> None:
    rack = LocalRack(made("2x2", sequences=2), WEIGHTS)
    engine = Engine(rack, tokenizer())
    wanted = alone(rack, PROMPTS[0])
    stays, goes = engine.generate(PROMPTS[0], params()), engine.generate(PROMPTS[3], params())
    sequences = Sequences(rack)
    sequences.admit(stays)
    sequences.admit(goes)
    for _ in range(4):
        sequences.advance()
    sequences.leave(goes)
    assert not sequences.full
    comes = engine.generate(PROMPTS[0], params())
    sequences.admit(comes)
    while sequences.running:
        for emitted in sequences.advance():
            assert emitted.completion is not goes
    rack.close()
    assert stays.data_hash == comes.data_hash == wanted.data_hash


# -- reuse of what a slot holds


def test_a_prompt_that_begins_alike_goes_on_from_the_last_whole_chunk() -> None:
    rack = LocalRack(made("2x2", sequences=2), WEIGHTS)
    engine = Engine(rack, tokenizer())
    first, second = [*range(1, 15)], [*range(1, 12), 40, 41, 42, 43]
    wanted = [alone(rack, prompt) for prompt in (first, second, second)]
    got = [engine.generate(prompt, params()) for prompt in (first, second, second)]
    sequences = Sequences(rack, reuse=True)
    for one in got:
        sequences.admit(one)
        while sequences.running:
            sequences.advance()
    rack.close()
    assert [one.reused_tokens for one in got] == [0, 8, 12]  # of 11 and 14 alike
    assert [one.data_hash for one in got] == [one.data_hash for one in wanted]
    assert got[0].prompt_cycles == wanted[0].prompt_cycles
    assert got[2].prompt_cycles < got[1].prompt_cycles < wanted[1].prompt_cycles


def test_without_reuse_nothing_is_taken_from_a_slot() -> None:
    rack = TimingRack(made("1x1", sequences=2))
    engine, sequences = Engine(rack, tokenizer()), Sequences(rack)
    for _ in range(2):
        one = engine.generate([*range(1, 15)], params())
        sequences.admit(one)
        while sequences.running:
            sequences.advance()
        assert one.reused_tokens == 0
