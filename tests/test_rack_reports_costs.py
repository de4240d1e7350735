"""Energy and money for a token, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rack.errors import ConfigError
from rack.machines.profile import load_hardware
from rack.machines.sourced import Sourced
from rack.reports.costs import GROQCLOUD, Prices, cost, cost_text, inputs, reference

CHIP = replace(
    load_hardware("lesson").economics,
    average_w=Sourced(100, "A", "x"), unit_usd=Sourced([50, 100, 200], "A", "x"),
    life_years=Sourced([1, 2, 4], "A", "x"),
)  # fmt: skip
YEAR_S = 365.25 * 24 * 3600


def test_by_hand() -> None:
    """Ten chips of 100 W, PUE 2, half of the hours: 4,000 J for a token a second."""
    found = cost(CHIP, 10, 1.0, Prices(usd_per_kwh=0.36, pue=2.0, utilisation=0.5))
    assert found.joules == pytest.approx(4000 * 1e6)
    power = 4000 / 3.6e6 * 0.36
    for usd, price, years in zip(found.usd, (50, 100, 200), (4, 2, 1), strict=True):
        assert usd == pytest.approx(1e6 * (10 * price / (years * YEAR_S * 0.5) + power))


def test_twice_the_rate_is_half_the_cost() -> None:
    one, two = (cost(CHIP, 3, rate, Prices()) for rate in (100.0, 200.0))
    assert two.joules == pytest.approx(one.joules / 2)
    assert two.usd == pytest.approx([usd / 2 for usd in one.usd])


def test_prices_that_cannot_be() -> None:
    for name, value, said in (
        ("usd_per_kwh", -1.0, "usd_per_kwh: wanted 0 to 1000, got -1.0"),
        ("pue", 0.9, "pue: wanted 1 to 10, got 0.9"),
        ("pue", float("inf"), "pue: wanted 1 to 10, got inf"),
        ("utilisation", 1.5, "utilisation: wanted 0 to 1, got 1.5"),
        ("utilisation", 0.0, "utilisation: wanted more than 0, got 0.0"),
        ("utilisation", 5e-324, "utilisation: wanted at least 1e-06, got 5e-324"),
    ):
        with pytest.raises(ConfigError) as caught:
            Prices(**{name: value})
        assert str(caught.value) == said


def test_inputs_stand_beside() -> None:
    found = inputs(CHIP, 7, Prices())
    assert (found["chips"], found["pue"], found["usd_per_kwh"]) == (7, 1.2, 0.10)
    assert found["chip"]["average_w"] == {"value": 100, "grade": "A", "source": "x"}
    text = cost_text(cost(CHIP, 1, 1.0, Prices(pue=1.0)).to_dict())
    assert text.startswith("100,000,000 J (27.8 kWh) and ")
    assert text.endswith(" a million tokens")


def test_published_prices_are_those_of_docs_hardware() -> None:
    assert reference("llama-8b") == {
        "usd_per_million_tokens_in": 0.05, "usd_per_million_tokens_out": 0.08
    }  # fmt: skip
    assert reference("tiny") is None
    assert GROQCLOUD["llama-70b"] == (0.59, 0.79)
