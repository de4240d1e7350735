"""Energy and money for a token, on any machine: from power, price and life of its chips.

A machine is paid for and powered at all hours, and makes tokens in `utilisation` of them:

    joules a token = chips * average_w * pue / (tokens a second * utilisation)
    dollars a token = chips * unit_usd / (life * tokens a second * utilisation)
                      + joules a token * usd_per_kwh / 3,600,000

Chips alone: hosts, switches, racks, people and buildings are on neither side. Price and life are
ranges, so dollars are one: cheap chips that last, the usual, dear chips that do not.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from rack.errors import ConfigError
from rack.machines.economics import Economics

YEAR_S = 365.25 * 24 * 3600
KWH_J = 3_600_000
MILLION = 1_000_000

GROQCLOUD = {
    "llama-8b": (0.05, 0.08), "llama-70b": (0.59, 0.79), "mixtral-8x7b": (0.24, 0.24),
    "gemma2-9b": (0.20, 0.20), "gpt-oss-20b": (0.075, 0.30), "gpt-oss-120b": (0.15, 0.60),
}  # fmt: skip
"""Published prices of GroqCloud in USD a million tokens, in and out (docs/hardware.md)."""


LEAST_UTILISATION = 1e-6  # half a minute a year; figures of far less have no finite value


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What costs are worked out with. Raises ConfigError for what cannot be."""

    usd_per_kwh: float = 0.10  # assumption: about what industry pays
    pue: float = 1.2  # assumption: power of the building over that of the chips
    utilisation: float = 1.0  # assumption: share of the hours in which it makes tokens

    def __post_init__(self) -> None:
        for name, low, high in (
            ("usd_per_kwh", 0, 1000), ("pue", 1, 10), ("utilisation", 0, 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if not math.isfinite(value) or not low <= value <= high:
                raise ConfigError(f"{name}: wanted {low} to {high}, got {value}")
        if self.utilisation < LEAST_UTILISATION:
            wanted = f"at least {LEAST_UTILISATION:g}" if self.utilisation else "more than 0"
            raise ConfigError(f"utilisation: wanted {wanted}, got {self.utilisation}")

    def to_dict(self) -> dict[str, float]:
        """Return plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """For a million tokens: energy, and dollars as [low, usual, high]."""

    joules: float
    usd: tuple[float, float, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, with the units in the names."""
        low, usual, high = self.usd
        return {
            "joules_per_million_tokens": self.joules,
            "usd_per_million_tokens": usual,
            "usd_per_million_tokens_low": low,
            "usd_per_million_tokens_high": high,
        }


def cost(economics: Economics, chips: int, tokens_per_s: float, prices: Prices) -> Cost:
    """Return what a million tokens take on so many chips that make `tokens_per_s` together."""
    tokens = tokens_per_s * prices.utilisation  # of a second, over all hours
    joules = chips * economics.watts("average_w") * prices.pue / tokens
    price, life = economics.price, economics.life
    terms = ((price.low, life.high), (price.usual, life.usual), (price.high, life.low))
    low, usual, high = (
        MILLION * (chips * usd / (years * YEAR_S * tokens) + joules * prices.usd_per_kwh / KWH_J)
        for usd, years in terms
    )
    return Cost(joules=joules * MILLION, usd=(low, usual, high))


def inputs(economics: Economics, chips: int, prices: Prices) -> dict[str, Any]:
    """Return what a cost was worked out from, each value of the machine with its source."""
    return {"chips": chips, **prices.to_dict(), "chip": economics.to_dict()}


def input_lines(name: str, found: dict[str, Any]) -> list[str]:
    """Write the same as a line."""
    chip = {key: value["value"] for key, value in found["chip"].items()}
    (low, usual, high), (shortest, years, longest) = chip["unit_usd"], chip["life_years"]
    return [
        f"costs of {name}: {found['chips']} of it alone, each of {chip['average_w']} W on average "
        f"(TDP {chip['tdp_w']}, most {chip['max_w']}), {usual:,} USD ({low:,} to {high:,}, "
        f"assumed) and {years} years ({shortest} to {longest}, assumed), at "
        f"{found['usd_per_kwh']:g} USD a kWh, PUE {found['pue']:g}, {found['utilisation']:.0%} of "
        "the hours in use"
    ]


def cost_text(found: dict[str, Any]) -> str:
    """Write a cost's plain data for a line."""
    joules = found["joules_per_million_tokens"]
    return (
        f"{joules:,.0f} J ({joules / KWH_J:,.3g} kWh) and {found['usd_per_million_tokens']:,.4g} "
        f"USD ({found['usd_per_million_tokens_low']:,.4g} to "
        f"{found['usd_per_million_tokens_high']:,.4g}) a million tokens"
    )


def reference_lines(model: str, found: dict[str, float] | None) -> list[str]:
    """Write a model's published price, if there is one."""
    if found is None:
        return []
    return [
        f"for reference, GroqCloud's published prices of {model}: "
        f"{found['usd_per_million_tokens_in']:g} USD a million tokens in, "
        f"{found['usd_per_million_tokens_out']:g} out"
    ]


def reference(model: str) -> dict[str, float] | None:
    """Return GroqCloud's published prices of a model as plain data; None where there are none."""
    if model not in GROQCLOUD:
        return None
    paid_in, paid_out = GROQCLOUD[model]
    return {"usd_per_million_tokens_in": paid_in, "usd_per_million_tokens_out": paid_out}
