"""Pairs of steps: at their interval nothing meets, a cycle sooner something does, and it is named.

The full verifier, which looks at every access of both steps, agrees.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedules import machine

from compiler.errors import ScheduleError
from compiler.model.presets import PRESETS
from compiler.pipeline import CompiledModel, Options, compile_model
from compiler.place.layout import parse_layout
from compiler.verify.pairs import check_pairs, spans_of
from compiler.verify.verifier import verify

LAYOUTS = [("2x2+1", "lesson"), ("3x1", "groqrack"), ("1x13", "lesson"), ("2x3+2", "groqrack")]


@lru_cache(maxsize=8)
def made(layout: str, hardware: str, dtype: str = "int8") -> CompiledModel:
    options = Options(
        max_model_len=32, prefill_chunk=4, buckets=(16,), sequences=3, batch=2, dtype=dtype
    )
    return compile_model(PRESETS["tiny"], machine(hardware), parse_layout(layout), options)


def check(model: CompiledModel, one: str, two: str, cycles: int) -> None:
    check_pairs(
        [model.steps[one], model.steps[two]],
        lambda a, b: cycles if (a, b) == (one, two) else model.interval(a, b),
        model.costs, model.network.links,
    )  # fmt: skip


@pytest.mark.parametrize(("layout", "hardware"), LAYOUTS)
def test_the_interval_is_enough_and_a_cycle_less_is_not(layout: str, hardware: str) -> None:
    model = made(layout, hardware)
    chips = model.layout.chips
    met = 0
    for one, two in itertools.product(model.steps, repeat=2):
        cycles = model.interval(one, two)
        check(model, one, two, cycles)
        assert cycles <= model.steps[one].cycles
        with pytest.raises(ScheduleError) as caught:
            check(model, one, two, cycles - 1)
        text = str(caught.value)
        assert text.partition(",")[0].removeprefix("chip ") in {str(n) for n in range(chips)}
        assert f"{one} uses it until " in text
        assert text.endswith(f", {cycles - 1} cycles later: wanted {cycles}")
        met += 1
    assert met == len(model.steps) ** 2


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_the_full_verifier_agrees(data: st.DataObject) -> None:
    layout, hardware = data.draw(st.sampled_from(LAYOUTS))
    model = made(layout, hardware, data.draw(st.sampled_from(["int8", "fp16"])))
    names = data.draw(st.lists(st.sampled_from(sorted(model.steps)), min_size=2, max_size=4))
    bases = [0]
    for n, name in enumerate(names[1:], 1):  # to every step before it: that between may leave out
        bases.append(max(bases[k] + model.interval(names[k], name) for k in range(n)))
    steps = [(model.steps[name], base) for name, base in zip(names, bases, strict=True)]
    verify(
        steps, model.costs, model.network.links, model.memories, config=model.config,
        sequences=model.sequences,
    )  # fmt: skip


def test_a_step_that_leaves_chips_out_hides_the_one_before_it() -> None:
    """Why the interval to every step under way counts: prefill has no part in the head group."""
    model = made("2x2+1", "lesson")
    two = model.interval("decode/16", "prefill4/16") + model.interval("prefill4/16", "decode/16")
    assert two > 0
    head = model.layout.chips - 1
    assert f"chip {head}, memory" not in spans_of(
        model.steps["prefill4/16"], model.costs, model.network.links
    )


def test_links_and_units_are_looked_at() -> None:
    model = made("2x2+1", "lesson")
    step = model.steps["decode/16"]
    spans = spans_of(step, model.costs, model.network.links)
    assert {name.split(", ")[1] for name in spans if ", " in name} >= {"memory", "MXM0", "VXM"}
    for link in {transfer.link for transfer in step.transfers}:
        name = model.network.links[link].name
        own = [t for t in step.transfers if t.link == link]
        slot = model.network.links[link].slot_cycles
        first, last = spans[f"link {name}"]
        assert first == min(t.depart for t in own)
        assert last == max(t.depart + t.vectors * slot for t in own)


def test_a_link_that_is_still_in_use() -> None:
    model = made("2x2+1", "lesson")
    step = model.steps["decode/16"]
    often = Counter(transfer.link for transfer in step.transfers).most_common(1)[0][0]
    *_, last = (transfer for transfer in step.transfers if transfer.link == often)
    link = model.network.links[last.link]
    late = replace(last, depart=last.depart + 10**6)
    spoiled = replace(step, transfers=tuple(late if t is last else t for t in step.transfers))
    interval = model.interval(step.name, step.name)
    first = min(t.depart for t in step.transfers if t.link == last.link)
    until = late.depart + late.vectors * link.slot_cycles
    with pytest.raises(ScheduleError) as caught:
        check_pairs([spoiled], model.interval, model.costs, model.network.links)
    assert str(caught.value) == (
        f"link {link.name}: decode/16 uses it until {until}, and decode/16 from {first} on, "
        f"{interval} cycles later: wanted {until - first}"
    )
