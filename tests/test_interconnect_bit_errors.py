"""Which bits arrive wrong: as often as stated, the same everywhere, and decoded for real."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import comb
from typing import Any

import numpy as np
import pytest

from interconnect.bit_errors import ErrorSpec, NoisyEnd, limits, wrong_bits
from interconnect.errors import SpecError
from interconnect.fec import VECTOR_BYTES, WORD_BITS
from interconnect.frame import Frame

OFTEN = ErrorSpec(bit_error_rate=2e-4, burst_rate=1e-5, burst_bits=20, seed=3)
RATE = "a number from 0 to below 1"
PAYLOAD = np.random.default_rng(4).integers(0, 256, 26 * VECTOR_BYTES, np.uint8).tobytes()


def frame(step: int, payload: bytes = PAYLOAD, vectors: int = 26) -> Frame:
    return Frame(
        epoch=1, link=3, step=step, transfer=2, vectors=vectors, depart_cycle=0, payload=payload
    )


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("bit_error_rate", 1.0, RATE), ("bit_error_rate", -1e-9, RATE),
        ("bit_error_rate", float("nan"), RATE), ("burst_rate", 1, RATE),
        ("burst_rate", "0", RATE), ("burst_rate", True, RATE),
        ("burst_bits", 1, "an integer from 2 to 2620"),
        ("burst_bits", 2621, "an integer from 2 to 2620"),
        ("seed", -1, f"an integer from 0 to {2**64 - 1}"),
        ("seed", 1.0, f"an integer from 0 to {2**64 - 1}"),
    ],
)  # fmt: skip
def test_rates_that_cannot_be(field: str, value: Any, wanted: str) -> None:
    with pytest.raises(SpecError) as caught:
        ErrorSpec(**{field: value})
    assert str(caught.value) == f"link.{field}: wanted {wanted}, got {value!r}"


@pytest.mark.parametrize("rate", [2.0**-30, 2.0**-10, 0.25])
def test_limits_are_those_of_the_binomial_distribution(rate: float) -> None:
    found, p = limits(rate), Fraction(rate)
    total = Fraction(0)
    for events, limit in enumerate(found[:40]):
        total += comb(WORD_BITS, events) * p**events * (1 - p) ** (WORD_BITS - events)
        assert limit == min(int(total * 2**64), 2**64 - 1)
    assert list(found) == sorted(found)


def test_extreme_rates() -> None:
    assert limits(0) == limits(0.0) == ()
    assert limits(5e-324) == (2**64 - 1,)  # one word in 2^64
    assert limits(1 - 2**-53)[:2] == (0, 0)
    assert len(limits(1 - 2**-53)) == WORD_BITS
    wrong = wrong_bits(ErrorSpec(bit_error_rate=1 - 2**-53), 1, 2, 3, 4, 1)
    assert wrong == {0: list(range(WORD_BITS))}
    assert (ErrorSpec().errs, ErrorSpec(burst_rate=1e-9).errs, OFTEN.errs) == (False, True, True)


def test_errors_depend_on_what_they_are_of_and_on_nothing_else() -> None:
    place = {"epoch": 1, "link": 2, "step": 3, "transfer": 4}
    base = wrong_bits(OFTEN, **place, vectors=200)
    assert len(base) > 50
    assert wrong_bits(OFTEN, **place, vectors=200) == base
    few = wrong_bits(OFTEN, **place, vectors=30)
    assert few == {vector: bits for vector, bits in base.items() if vector < 30}
    others = [wrong_bits(OFTEN, **{**place, key: 9}, vectors=200) for key in place]
    others.append(wrong_bits(replace(OFTEN, seed=9), **place, vectors=200))
    assert all(other != base for other in others)
    # Of this seed and these numbers, for ever: other code would give other errors.
    assert wrong_bits(ErrorSpec(bit_error_rate=1e-3), 1, 2, 3, 4, 1) == {
        0: [247, 809, 1659, 2164, 2341]
    }


def test_as_many_errors_as_the_rate_says() -> None:
    """Counts of seeded draws lie within five standard deviations of what the rates say."""
    words, spec = 0, ErrorSpec(bit_error_rate=1e-5)
    wrong = np.zeros(WORD_BITS, np.int64)
    for step in range(2000):
        words += 100
        for bits in wrong_bits(spec, 1, 2, step, 0, 100).values():
            wrong[bits] += 1
    mean = words * WORD_BITS * spec.bit_error_rate
    assert abs(wrong.sum() - mean) < 5 * mean**0.5
    halves = wrong[: WORD_BITS // 2].sum() - wrong[WORD_BITS // 2 :].sum()
    assert abs(halves) < 5 * mean**0.5  # as many in one half as in the other


@pytest.mark.parametrize("bits", [2, 3, 41, WORD_BITS])
def test_bursts_have_their_length(bits: int) -> None:
    spec = ErrorSpec(burst_rate=1e-7, burst_bits=bits)
    bursts = [
        wrong for step in range(300) for wrong in wrong_bits(spec, 1, 2, step, 3, 100).values()
    ]
    assert bursts
    for wrong in bursts:
        assert 0 <= wrong[0] <= wrong[-1] < WORD_BITS
        assert wrong[-1] - wrong[0] == bits - 1
    if bits > 2:
        share = sum(len(wrong) - 2 for wrong in bursts) / len(bursts) / (bits - 2)
        assert 0.1 < share < 0.9  # a coin each


def test_what_is_corrected_is_what_was_sent_and_all_else_is_flagged() -> None:
    end, flagged = NoisyEnd(3, OFTEN), 0
    for step in range(400):
        wrong = wrong_bits(OFTEN, 1, 3, step, 2, 26)
        many = [bits for bits in wrong.values() if len(bits) > 1]
        before = end.corrected_vectors, end.flagged_vectors
        came = end.receive(frame(step))
        counted = end.corrected_vectors - before[0], end.flagged_vectors - before[1]
        assert counted == (len(wrong) - len(many), len(many))
        assert came is None if many else bytes(came or b"") == PAYLOAD
        flagged += bool(many)
    assert 100 < flagged < 400
    corrected, lost = OFTEN.shares()
    words = 400 * 26
    for count, share in ((end.corrected_vectors, corrected), (end.flagged_vectors, lost)):
        assert abs(count - words * share) < 5 * (words * share) ** 0.5


def test_shares_of_exact_links_and_of_rare_errors() -> None:
    assert ErrorSpec().shares() == (0.0, 0.0)
    corrected, flagged = ErrorSpec(bit_error_rate=1e-12).shares()
    assert corrected == pytest.approx(2.62e-9, rel=1e-6)
    assert flagged == pytest.approx(2.62e-9**2 / 2, rel=0.05)
    assert ErrorSpec(burst_rate=1e-12).shares() == (0.0, pytest.approx(2.62e-9, rel=1e-6))


def test_a_payload_of_another_size_is_left_to_the_chip() -> None:
    """It is a fault of the run, which the chip names."""
    end = NoisyEnd(3, ErrorSpec(bit_error_rate=0.5))
    short = frame(1, PAYLOAD[:-1])
    assert end.receive(short) is short.payload
    assert (end.corrected_vectors, end.flagged_vectors) == (0, 0)
