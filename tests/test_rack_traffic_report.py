"""The report of a replay: each figure held against what its definition gives."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from schedules import compiled

from rack.errors import ConfigError
from rack.traffic import quantiles
from rack.traffic.loads import SPANS, Load
from rack.traffic.quantiles import PERCENTILES, Quantiles
from rack.traffic.report import QUEUE_FULL, TOO_LONG, Tally
from rack.traffic.request import Request
from rack.traffic.simulation import Outcome
from rack.traffic.slo import PRESETS, Slo, parse_slo

HZ = compiled().chip.clock_hz


def outcome(
    number: int, arrival: int, admitted: int, first: int, gaps: dict[int, int], prompt: int = 10
) -> Outcome:
    tokens = 1 + sum(gaps.values())
    request = Request(
        number=number, id=str(number), arrival_s=arrival / HZ, prompt_tokens=prompt,
        output_tokens=tokens,
    )  # fmt: skip
    end = first + sum(gap * times for gap, times in gaps.items())
    return Outcome(
        request=request, replica=0, arrival=arrival, admitted=admitted, first=first, end=end,
        gaps=gaps,
    )  # fmt: skip


def refused(number: int, arrival: int, prompt: int) -> Outcome:
    request = Request(
        number=number, id="", arrival_s=0.0, prompt_tokens=prompt, output_tokens=1
    )  # fmt: skip
    return Outcome(request=request, replica=0, arrival=arrival, refused="because")


def outcomes(count: int, seed: int = 1) -> Iterator[Outcome]:
    rng, arrival = random.Random(seed), 0
    for number in range(count):
        arrival += rng.randrange(40_000)
        admitted = arrival + rng.choice((0, rng.randrange(90_000)))
        first = admitted + rng.randrange(1, 50_000)
        gaps = {rng.randrange(300, 900): rng.randrange(1, 30) for _ in range(rng.randrange(3))}
        yield outcome(number, arrival, admitted, first, gaps, rng.randrange(1, 60))


def test_the_report_by_its_definitions() -> None:
    slo = Slo(name="mine", ttft_s=50_000 / HZ, tpot_s=600 / HZ)
    tally = Tally(compiled(), 2, [slo, Slo(name="late", e2e_s=1e-9)])
    found = list(outcomes(400))
    for one in found:
        tally.take(one)
    limit = compiled().max_model_len
    tally.take(refused(400, 5, limit))
    tally.take(refused(401, 6, limit - 1))
    tally.take(refused(402, 7, limit + 1))
    report = tally.report()
    assert report["requests"] == 403
    assert report["completed"] == 400
    assert report["refused"] == {TOO_LONG: 2, QUEUE_FULL: 1}
    first, last = 5, max(one.end or 0 for one in found)
    first = min(first, *(one.arrival for one in found))
    seconds = (last - first) / HZ
    arrivals = (max(one.arrival for one in found) - first) / HZ
    ms = 1000 / HZ
    ttft = [(one.first or 0) - one.arrival for one in found]
    e2e = [(one.end or 0) - one.arrival for one in found]
    gaps = [[g for g, times in one.gaps.items() for _ in range(times)] for one in found]
    tpot = [sum(some) / len(some) for some in gaps if some]
    wanted = {
        "ttft_ms": ttft, "tpot_ms": tpot, "itl_ms": [gap for some in gaps for gap in some],
        "e2e_ms": e2e, "queue_ms": [(one.admitted or 0) - one.arrival for one in found],
    }  # fmt: skip
    for key, values in wanted.items():
        assert report[key]["exact"]
        assert report[key]["mean"] == pytest.approx(ms * np.mean(values))
        for percentile in PERCENTILES:
            exact = ms * np.percentile(values, percentile)
            assert report[key][f"p{percentile:g}"] == pytest.approx(exact)
    output = sum(len(some) + 1 for some in gaps)
    assert report["output_tokens"] == output
    assert report["requests_per_s"] == pytest.approx(400 / seconds)
    assert report["output_tokens_per_s"] == pytest.approx(output / seconds)
    prompts = sum(one.request.prompt_tokens for one in found)
    assert report["tokens_per_s"] == pytest.approx((prompts + output) / seconds)
    assert report["offered_requests_per_s"] == pytest.approx(402 / arrivals)
    good = [
        a <= 50_000 and (not some or sum(some) / len(some) <= 600)
        for a, some in zip(ttft, gaps, strict=True)
    ]
    assert 0 < sum(good) < 400
    mine, late = report["slo"]
    assert mine["attainment"] == pytest.approx(sum(good) / 403)
    assert mine["goodput_requests_per_s"] == pytest.approx(sum(good) / seconds)
    assert mine["kept"]["ttft"] == pytest.approx(sum(a <= 50_000 for a in ttft) / 403)
    assert mine["kept"]["e2e"] == pytest.approx(400 / 403)
    assert late["attainment"] == 0
    waited = sum((one.admitted or 0) - one.arrival for one in found)
    assert report["waiting"]["mean"] == pytest.approx(waited / (last - first))
    held = sum((one.end or 0) - (one.admitted or 0) for one in found)
    slots = 2 * compiled().sequences
    assert report["slots"]["capacity"] == slots
    assert report["slots"]["occupancy"] == pytest.approx(held / (last - first) / slots)
    assert report["tokens_in_flight"]["capacity"] == slots * limit


def test_nothing_at_all_and_one_request_alone() -> None:
    empty = Tally(compiled(), 1, [parse_slo("server")]).report()
    assert empty["requests"] == empty["completed"] == 0
    assert empty["ttft_ms"]["p99"] is empty["requests_per_s"] is None
    assert empty["offered_requests_per_s"] is empty["slo"][0]["attainment"] is None
    tally = Tally(compiled(), 1, [parse_slo("server")])
    tally.take(outcome(0, 0, 0, 100, {}))
    report = tally.report()
    assert report["tpot_ms"]["mean"] is report["itl_ms"]["p50"] is None
    assert report["slo"][0]["attainment"] == 1
    assert report["ttft_ms"]["mean"] == pytest.approx(1000 * 100 / HZ)


def verdict(*found: Outcome) -> tuple[str, str]:
    tally = Tally(compiled(), 1, [])
    for one in found:
        tally.take(one)
    said = tally.report()["saturation"]
    return said["verdict"], said["why"]


def test_verdicts() -> None:
    every = 1 << 20  # cycles between arrivals
    calm = [outcome(n, n * every, n * every, n * every + 10, {100: 5}) for n in range(100)]
    assert verdict(*calm) == ("not saturated", "0 % of the slots were taken")
    full = [outcome(n, n * every, n * every, n * every + 10, {every - 10: 1}) for n in range(100)]
    assert verdict(*full) == (
        "near saturation", "100 % of the slots were taken, 0.0 waited at the end"
    )  # fmt: skip
    slow = 3 * every // 2  # each takes as long as one and a half arrivals
    grows = [outcome(n, n * every, n * slow, n * slow + 10, {slow - 10: 1}) for n in range(400)]
    said, why = verdict(*grows)
    assert (said, why[:15]) == ("saturated", "the queue grew ")
    assert verdict(*calm, refused(9, 5, 1)) == ("saturated", "1 found the queue full")


def test_percentiles_of_many_values_are_near() -> None:
    rng, plain = random.Random(2), Quantiles()
    values = [rng.lognormvariate(12, 2) for _ in range(quantiles.MOST + 4000)]
    for value in values:
        plain.add(value)
    assert not plain.exact
    assert plain.count == len(values)
    assert plain.mean() == pytest.approx(np.mean(values))
    for percentile, found in zip(PERCENTILES, plain.at(PERCENTILES), strict=True):
        assert found == pytest.approx(np.percentile(values, percentile), rel=0.0005)
    assert len(plain._counts) < 30_000


def test_percentiles_of_few_are_those_of_numpy() -> None:
    for values in ([0], [3, 1], [5, 5, 5, 9], [1, 2, 4, 8, 16, 32]):
        found = Quantiles()
        found.add_all({value: values.count(value) for value in values})
        assert found.at(PERCENTILES) == pytest.approx(np.percentile(values, PERCENTILES))
    assert Quantiles().at(PERCENTILES) == [None] * len(PERCENTILES)
    assert Quantiles().mean() is None


def test_a_load_is_the_integral_of_its_ramps() -> None:
    rng, load, ramps = random.Random(3), Load(), []
    for _ in range(9000):
        begin = rng.randrange(30_000_000)
        end = begin + rng.choice((0, 7, 5000, 900_000, 20_000_000))
        ramps.append((begin, end, rng.choice((0, 1, 50)), rng.choice((1, 90))))
        load.add(*ramps[-1])
    curve = load.curve(50_000_000, SPANS)
    assert load.span_cycles * SPANS >= 50_000_000
    area = sum((end - begin) * (a + b) / 2 for begin, end, a, b in ramps)
    assert load.area == pytest.approx(area)
    total = sum(value for _, value in load.curve(SPANS * load.span_cycles, SPANS))
    assert total * load.span_cycles == pytest.approx(area)
    for at, value in curve[:: len(curve) // 20]:
        low, high = at - load.span_cycles / 2, at + load.span_cycles / 2
        mean = 0.0
        for begin, end, a, b in ramps:
            left, right = max(low, begin), min(high, end)
            if right > left:
                middle = a + (b - a) * ((left + right) / 2 - begin) / (end - begin)
                mean += middle * (right - left) / load.span_cycles
        assert value == pytest.approx(mean, rel=1e-6)
    assert load.most() == pytest.approx(max(value for _, value in curve))
    assert load.mean(0, load.span_cycles) == pytest.approx(curve[0][1])


def test_a_load_long_after_its_ramps() -> None:
    load = Load()
    load.add(0, 10, 4, 4)
    far = 1000 * load.span_cycles * SPANS
    assert load.mean(far // 2, far) == 0
    curve = load.curve(far, 10)
    assert len(curve) <= 10
    assert curve[-1][0] == pytest.approx(far, rel=0.1)
    assert sum(value > 0 for _, value in curve) == 1


def test_memory_does_not_grow_with_the_requests() -> None:
    held = []
    for count in (5000, 20_000):  # grown with them, the second would be four times the first
        tracemalloc.start()
        tally = Tally(compiled(), 1, [parse_slo("server")])
        for number in range(count):
            tally.take(outcome(number, number * 9, number * 9, number * 9 + 50, {7: 3}))
        held.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert held[1] < 1.5 * held[0]


def test_slos() -> None:
    assert parse_slo("server") == Slo(name="server", ttft_s=2.0, tpot_s=0.2)
    assert parse_slo("interactive") == Slo(name="interactive", ttft_s=0.45, tpot_s=0.04)
    assert parse_slo("e2e=3") == Slo(name="e2e=3", e2e_s=3.0)
    assert parse_slo("tpot=50us,ttft=1ms").tpot_s == pytest.approx(50e-6)
    assert set(PRESETS) == {"server", "interactive"}
    for text in ("", "fast", "ttft", "ttft=", "ttft=1m", "ttft=0", "ttft=-1", "ttft=nan",
                 "ttft=inf", "ttft=1,ttft=2", "itl=1", "ttft=1,"):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            parse_slo(text)
        assert str(caught.value) == (
            "slo: wanted server, interactive, or ttft, tpot, e2e as KIND=TIME,… (450ms, 2s; "
            f"seconds), got {text!r}"
        )
