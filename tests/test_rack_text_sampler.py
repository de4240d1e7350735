"""Sampling: greedy, temperature, top-k, top-p; the same seed and position, the same token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rack.errors import RequestError
from rack.text.sampler import LEAST_TEMPERATURE, SamplingParams, sample, uniform

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.25, 0.2], np.float32))
IDS = np.arange(5)


def drawn(count: int = 4000, logits: np.ndarray = LOGITS, **params: float) -> np.ndarray:
    """Shares of the tokens over many positions."""
    chosen = SamplingParams(temperature=1.0, seed=9, **params)  # type: ignore[arg-type]
    ids = np.arange(len(logits))
    tokens = [sample(ids, logits, chosen, position) for position in range(count)]
    return np.bincount(tokens, minlength=len(logits)) / count


def test_greedy_takes_the_largest_and_of_equals_the_lowest_id() -> None:
    greedy = SamplingParams()
    assert sample(IDS, LOGITS, greedy, 0) == 1
    ties = np.array([1, 3, 3, 2], np.float32)
    assert sample(np.array([9, 7, 5, 1]), ties, greedy, 0) == 5
    for seed in range(20):  # with top-k 1 also when drawn
        params = SamplingParams(temperature=1.0, top_k=1, seed=seed)
        assert sample(np.array([9, 7, 5, 1]), ties, params, 3) == 5


def test_a_temperature_too_small_for_fp32_is_greedy() -> None:
    for temperature in (5e-324, 1e-40, LEAST_TEMPERATURE / 2, LEAST_TEMPERATURE):
        params = SamplingParams(temperature=temperature)
        assert sample(IDS, LOGITS * 1000, params, 1) == 1


def test_the_number_of_a_seed_and_position_is_fixed() -> None:
    assert uniform(0, 0) == uniform(0, 0)
    bits = np.random.Generator(np.random.Philox(key=np.array([3, 7], np.uint64))).random()
    assert uniform(3, 7) == bits  # NumPy's own 53 bits of the same generator
    numbers = {uniform(seed, position) for seed in range(30) for position in range(30)}
    assert len(numbers) == 900
    assert 0.45 < np.mean(list(numbers)) < 0.55
    assert 0.0 <= min(numbers) <= max(numbers) < 1.0
    assert uniform((1 << 64) - 1, 5) != uniform(0, 5)


def test_draws_are_reproducible_by_seed_and_position() -> None:
    params = [SamplingParams(temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    one, again, other = (
        [sample(IDS, LOGITS, each, position) for position in range(50)] for each in params
    )
    assert one == again != other
    assert len(set(one)) > 2


def test_shares_follow_the_probabilities() -> None:
    assert np.abs(drawn() - [0.1, 0.4, 0.05, 0.25, 0.2]).max() < 0.03


def test_temperature_flattens() -> None:
    hot = SamplingParams(temperature=2.0, seed=9)
    tokens = [sample(IDS, LOGITS, hot, position) for position in range(4000)]
    wanted = np.sqrt([0.1, 0.4, 0.05, 0.25, 0.2])
    shares = np.bincount(tokens, minlength=5) / 4000
    assert np.abs(shares - wanted / wanted.sum()).max() < 0.03


def test_top_k_keeps_the_k_largest() -> None:
    shares = drawn(top_k=2)
    assert np.abs(shares - [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]).max() < 0.03


def test_top_p_keeps_the_fewest_that_reach_p() -> None:
    assert (drawn(400, top_p=0.01) == [0, 1, 0, 0, 0]).all()
    shares = drawn(top_p=0.6)  # 0.4, then 0.25 reaches it
    assert np.abs(shares - [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]).max() < 0.03
    assert drawn(top_p=0.9, top_k=4)[2] == 0


@given(
    st.lists(st.integers(-40, 40), min_size=1, max_size=30),
    st.randoms(use_true_random=False),
    st.integers(0, 1 << 63),
    st.floats(0.1, 2.0),
    st.integers(0, 31),
    st.floats(0.05, 1.0),
)
def test_the_order_of_the_ids_does_not_matter(
    halves: list[int], random: object, seed: int, temperature: float, top_k: int, top_p: float
) -> None:
    logits = np.array(halves, np.float32) / 2
    order = list(range(len(halves)))
    random.shuffle(order)  # type: ignore[attr-defined]
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    ids = np.arange(len(halves))
    first = sample(ids, logits, params, 5)
    assert sample(ids[order], logits[order], params, 5) == first
    largest = np.lexsort((ids, -logits))[: top_k or len(ids)]
    assert first in largest
    # What K >= top_k of the largest logits give is what all logits give (--return topk:K).
    if top_k:
        few = np.lexsort((ids, -logits))[: top_k + 3]
        assert sample(few, logits[few], params, 5) == first


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("temperature", -0.1, "a number from 0 to 2"),
        ("temperature", 2.1, "a number from 0 to 2"),
        ("temperature", float("nan"), "a number from 0 to 2"),
        ("top_p", 0.0, "a number above 0, at most 1"),
        ("top_p", 1.1, "a number above 0, at most 1"),
        ("top_k", -1, "0 (no limit) or more"),
        ("seed", -1, "an integer in 0..2^64-1"),
        ("seed", 1 << 64, "an integer in 0..2^64-1"),
        ("max_tokens", 0, "1 or more"),
        ("max_tokens", -5, "1 or more"),
        ("min_tokens", -1, "0 or more"),
        ("stop", ("a",) * 5, "up to 4 strings, none empty"),
        ("stop", ("a", ""), "up to 4 strings, none empty"),
    ],
)
def test_parameters_out_of_range_are_refused(name: str, value: object, wanted: str) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    assert str(caught.value) == f"{name}: wanted {wanted}, got {value!r}"
    assert caught.value.param == name
