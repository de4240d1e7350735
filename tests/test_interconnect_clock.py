"""`interconnect.clock`: counters stay as close as the closed form says, and nothing is a float."""

from __future__ import annotations

import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interconnect.clock import (
    EXACT,
    MICRO,
    ChipClock,
    ClockSpec,
    Jitter,
    SyncHop,
    SyncPath,
    build_clocks,
    slack_cycles,
    stall_cycles,
    start_cycles,
    sync_error,
)
from interconnect.errors import SpecError

DRIFT = ClockSpec(drift_ppm=50, jitter_mcycles=250, latency_sigma_mcycles=2800, seed=1)


def test_latencies_are_drawn_once_about_the_mean() -> None:
    drawn = [DRIFT.trained_cycles(216, f"cable {n}") for n in range(4000)]
    assert drawn[:4] == [DRIFT.trained_cycles(216, f"cable {n}") for n in range(4)]
    assert statistics.mean(drawn) == pytest.approx(216, abs=0.15)
    assert statistics.stdev(drawn) == pytest.approx(2.8, abs=0.15)
    assert min(drawn) >= 216 - 17  # twelve uniform numbers reach six sigma at most
    other = ClockSpec(latency_sigma_mcycles=2800, seed=2)
    assert [other.trained_cycles(216, f"cable {n}") for n in range(20)] != drawn[:20]
    assert EXACT.trained_cycles(216, "any") == 216
    assert ClockSpec(latency_sigma_mcycles=10**6).trained_cycles(1, "cable 3") >= 1
    # A known answer: a trained machine is the same machine on every computer.
    assert drawn[:8] == [218, 209, 214, 216, 217, 214, 218, 215]


def test_drifts_and_phases_are_drawn_within_bounds() -> None:
    drifts = [DRIFT.drift_of(slot) for slot in range(2000)]
    assert (min(drifts), max(drifts)) == (-50, 50)
    assert {EXACT.drift_of(slot) for slot in range(50)} == {0}
    assert all(0 <= DRIFT.phase_of(slot) < MICRO for slot in range(100))


def test_flights_stray_as_measured() -> None:
    """ISCA 2022, Table 2: 100,000 measurements of a link deviate by 2.63 to 2.93 cycles."""
    measured = ClockSpec(jitter_mcycles=11_000, seed=1)
    for link in ("one", "another"):
        jitter = Jitter(measured, link).of(np.arange(100_000)) / MICRO
        assert 2.63 <= jitter.std() <= 2.93
        assert abs(jitter.mean()) < 0.05
        assert -11 <= jitter.min() < -9
        assert 9 < jitter.max() <= 11
    assert not Jitter(EXACT, "link").of(np.arange(9)).any()
    # A known answer: flights stray alike on every computer.
    assert Jitter(measured, "one").of(np.arange(3)).tolist() == [1_054_603, 1_469_352, 1_835_750]


def test_a_counter_that_may_be_off_by_half_its_period_is_refused() -> None:
    clock = ClockSpec(drift_ppm=50, jitter_mcycles=11_000)
    far = tuple(SyncHop(slot, 216) for slot in range(1, 20))
    assert stall_cycles(clock, [far[:5]]) > 100
    assert stall_cycles(replace(clock, hac_period_cycles=512), [far]) > 400
    wanted = "hac_period_cycles: wanted more than 457, twice what a chip's counter may be off, got"
    with pytest.raises(SpecError, match=wanted):
        stall_cycles(clock, [(), far])


def test_exact_clocks_need_no_slack() -> None:
    path = (SyncHop(1, 216), SyncHop(2, 216))
    assert not EXACT.strays
    assert slack_cycles(EXACT, (), path, 24, 216) == 0
    assert stall_cycles(EXACT, [path]) == 0
    trained = ClockSpec(latency_sigma_mcycles=2800)  # known latencies are no reason either
    assert not trained.strays


def test_a_root_counts_by_its_own_period() -> None:
    root = ChipClock(DRIFT, 0, 50)
    assert root.reads(np.array([0, 1, 256])).tolist() == [0, MICRO + 50, 256 * (MICRO + 50)]


def test_slack_of_one_hop() -> None:
    clock = ClockSpec(drift_ppm=50, realign_cycles=65_536)
    one = (SyncHop(1, 216),)
    early, late = sync_error(clock, one)
    assert early == 216 * 50 + 512 * 50  # flown and counted at another rate
    assert late == early + MICRO + 50  # and a wait for the next edge
    # 100 ppm of the interval are 6.55 cycles; with counters and flight that makes 8
    assert slack_cycles(clock, (), one, 24, 216) == 8
    assert stall_cycles(clock, [(), one]) == 8


CLOCKS = st.builds(
    ClockSpec,
    drift_ppm=st.integers(1, 400),
    jitter_mcycles=st.sampled_from([0, 250, 1500]),
    hac_exchange_cycles=st.sampled_from([64, 256, 1024]),
    seed=st.integers(0, 9),
)


@given(CLOCKS, st.lists(st.integers(1, 700), max_size=5), st.data())
@settings(max_examples=80, deadline=None)
def test_no_counter_is_further_off_than_the_bound(
    clock: ClockSpec, latencies: list[int], data: st.DataObject
) -> None:
    path: SyncPath = tuple(SyncHop(slot, lat) for slot, lat in enumerate(latencies, 1))
    drift = st.sampled_from([-clock.drift_ppm, 0, clock.drift_ppm])
    drifts = {slot: data.draw(drift) for slot in range(len(path) + 1)}
    root, chip = build_clocks(clock, 0, [(), path], drifts)
    values = np.arange(0, 200_000, 37, dtype=np.int64)
    off = chip.reads(values) - root.reads(values)
    early, late = sync_error(clock, path)
    assert -early <= off.min()
    assert off.max() <= late


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("drift_ppm", -1, "an integer >= 0"), ("drift_ppm", 10_000, "below 10,000"),
        ("hac_period_cycles", 0, "an integer >= 1"), ("hac_exchange_cycles", 0, "an integer >= 1"),
        ("realign_cycles", 2.5, "an integer >= 1"),
        ("seed", True, "an integer >= 0"),
    ],
)  # fmt: skip
def test_a_spec_out_of_range_is_refused(field: str, value: object, wanted: str) -> None:
    with pytest.raises(SpecError, match=f"link.{field}: wanted {wanted}, got {value!r}"):
        ClockSpec(**{field: value})  # type: ignore[arg-type]


def test_a_chip_that_drifts_more_than_it_may_is_refused() -> None:
    with pytest.raises(SpecError, match="drift of chip 3: wanted within \\+-50, got 51"):
        ChipClock(DRIFT, 3, 51)


def test_a_start_takes_epochs_a_level() -> None:
    """floor(latency / 252) + 1 a level; the deepest chip is the last (ISCA 2022, 3.2)."""
    clock = ClockSpec(drift_ppm=50, jitter_mcycles=11_000)
    hops = [SyncHop(slot, latency) for slot, latency in ((1, 216), (2, 251), (3, 252), (4, 600))]
    assert [start_cycles(clock, [(), (hop,)]) for hop in hops] == [252, 252, 504, 756]
    assert start_cycles(clock, [(), tuple(hops[:2]), tuple(hops[:3])]) == 4 * 252
    assert start_cycles(clock, [()]) == start_cycles(EXACT, [tuple(hops)]) == 0
