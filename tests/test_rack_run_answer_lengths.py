"""Lengths of answers: what can be asked for, and that they are spread as asked."""

from __future__ import annotations

import statistics

import pytest

from rack.errors import ConfigError
from rack.run.answer_lengths import DEFAULT, answer_lengths
from rack.run.config import RunConfig


def drawn(spec: str, count: int = 2000) -> list[int]:
    lengths = answer_lengths(spec)
    assert lengths is not None
    return [lengths.of([prompt], 7) for prompt in range(count)]


def test_the_default_is_the_published_median() -> None:
    found = drawn(DEFAULT, 5000)
    assert 120 < statistics.median(found) < 138
    assert 195 < statistics.mean(found) < 231
    assert min(found) >= 1


def test_other_distributions() -> None:
    assert set(drawn("fixed:9")) == set(drawn("9")) == {9}
    assert set(drawn("uniform:3,6")) == {3, 4, 5, 6}
    assert statistics.mean(drawn("uniform:3,6")) == pytest.approx(4.5, abs=0.1)
    assert set(drawn("lognormal:20,0")) == {20}
    assert answer_lengths("none") is None


@pytest.mark.parametrize(
    "spec",
    ["", "0", "-1", "1.5", "nan", "x", "fixed", "fixed:", "fixed:1,2", "uniform:5", "uniform:6,5",
     "uniform:0,5", "uniform:1,nan", "lognormal:5", "lognormal:0.5,1", "lognormal:5,-1",
     "lognormal:5,6", "lognormal:inf,1", "normal:5,1", "9" * 400],
)  # fmt: skip
def test_what_is_no_distribution(spec: str) -> None:
    with pytest.raises(ConfigError) as caught:
        answer_lengths(spec)
    text = str(caught.value)
    assert text.startswith("answer_tokens: wanted N, fixed:N, uniform:A,B (1 <= A <= B), ")
    assert text.endswith(f"got {spec!r}")


def test_only_where_tokens_are_random() -> None:
    assert RunConfig(model="tiny", executor="timing", answer_tokens="5").answer_tokens == "5"
    with pytest.raises(ConfigError, match="answer_tokens: wanted --executor timing, whose tokens"):
        RunConfig(model="tiny", answer_tokens="5")
