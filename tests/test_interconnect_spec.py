"""Links' numbers: exact rates, slots, and what is refused."""

from __future__ import annotations

import pickle
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interconnect.errors import SpecError
from interconnect.spec import LinkSpec

GROQ: dict[str, int] = {
    "lanes": 4,
    "line_rate_bps": 25_781_250_000,
    "encoding_payload": 64,
    "encoding_total": 66,
    "latency_cycles": 216,
}
CLOCK_HZ = 900_000_000


def test_published_link() -> None:
    spec = LinkSpec(**GROQ)
    assert spec.payload_bps == 100_000_000_000  # 12.5 GB/s each way
    assert spec.packet_bytes == 328
    assert spec.slot_cycles(CLOCK_HZ) == 24  # 23.6, rounded up


def test_published_host_port() -> None:
    spec = LinkSpec.from_payload_rate(24 * 8 * 10**9, overhead_bytes=0, latency_cycles=9_000)
    assert spec.slot_cycles(CLOCK_HZ) == 12


@pytest.mark.parametrize(("ports", "slot"), [(1, 21), (2, 42), (11, 229)])
def test_shared_egress_stays_exact(ports: int, slot: int) -> None:
    rate = Fraction(4_100_000_000_000, 36) / ports
    spec = LinkSpec.from_payload_rate(rate, latency_cycles=216)
    assert spec.payload_bps == rate
    assert spec.slot_cycles(CLOCK_HZ) == slot


@given(st.fractions(min_value=Fraction(1, 1000), max_value=10**15), st.integers(1, 10**10))
def test_slot_is_the_least_that_fits(rate: Fraction, clock_hz: int) -> None:
    slot = LinkSpec.from_payload_rate(rate, latency_cycles=1).slot_cycles(clock_hz)
    bits_per_cycle = rate / clock_hz
    assert slot * bits_per_cycle >= 328 * 8 > (slot - 1) * bits_per_cycle


def test_spec_is_plain_integers() -> None:
    spec = LinkSpec(**GROQ)
    assert all(type(value) is int for value in asdict(spec).values())
    assert LinkSpec(**asdict(spec)) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"latency_cycles": 0}, "link.latency_cycles: wanted an integer >= 1, got 0"),
        ({"lanes": 0}, "link.lanes: wanted an integer >= 1, got 0"),
        ({"line_rate_bps": 1.5}, "link.line_rate_bps: wanted an integer >= 1, got 1.5"),
        ({"overhead_bytes": -1}, "link.overhead_bytes: wanted an integer >= 0, got -1"),
        ({"overhead_bytes": True}, "link.overhead_bytes: wanted an integer >= 0, got True"),
        (
            {"encoding_payload": 67},
            "link.encoding_payload: wanted at most encoding_total (66), got 67",
        ),
    ],
)
def test_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError) as caught:
        LinkSpec(**{**GROQ, **change})
    assert str(caught.value) == text


def test_refused_rates_and_clocks() -> None:
    with pytest.raises(SpecError, match=r"^link.payload_bps: wanted more than 0, got 0$"):
        LinkSpec.from_payload_rate(0, latency_cycles=1)
    with pytest.raises(SpecError, match=r"^link.clock_hz: wanted an integer >= 1, got 0$"):
        LinkSpec(**GROQ).slot_cycles(0)
