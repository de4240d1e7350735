"""splitmix64: NumPy, every native instruction set and the clock's jitter have the same one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_reference import slow_mix

from chip.kernels import NAMES, load, splitmix
from interconnect.clock import ClockSpec, Jitter

words = st.integers(0, 2**64 - 1)


def test_published_numbers() -> None:
    """The first outputs of the generator seeded with 1234567."""
    index = np.arange(1, 6, dtype=np.uint64)
    splitmix.draw(np.uint64(1234567), index)
    assert index.tolist() == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
        16408922859458223821,
    ]  # fmt: skip


@given(z=st.lists(words, min_size=1, max_size=9))
def test_mix(z: list[int]) -> None:
    got = np.array(z, np.uint64)
    splitmix.mix(got)
    assert got.tolist() == [slow_mix(one) for one in z]


@pytest.mark.parametrize("name", NAMES)
@given(z=words)
def test_the_hash_of_one_logit_is_the_finaliser(name: str, z: int) -> None:
    logits = np.array([z % 2**32], np.uint32).view(np.float32)
    assert load(name).logit_hash(logits, z >> 32) == slow_mix(z)


def test_the_clock_draws_the_same_numbers() -> None:
    """A flight's jitter is the mean of the five low groups of 12 bits of one output."""
    jitter = Jitter(ClockSpec(jitter_mcycles=4095 * 5, seed=3), "a link")
    flights = np.arange(1000)
    z = flights.astype(np.uint64)
    splitmix.draw(jitter._key, z)
    total = sum((z >> np.uint64(12 * part)) & np.uint64(4095) for part in range(5))
    want = (2 * total.astype(np.int64) - 5 * 4095) * 1000
    assert jitter.of(flights).tolist() == want.tolist()
