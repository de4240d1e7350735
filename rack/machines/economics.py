"""What a chip or a GPU draws and costs: the table [economics] of a machine's profile.

Power in whole watts. Price and life are ranges, [low, usual, high], as hardly any is published.
None of it moves a cycle, so it is no part of a machine's digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from compiler.files import shown
from rack.errors import ProfileError
from rack.machines.sourced import Sourced

TABLE = "economics"
MOST_W = 100_000
MOST_USD = 10**9
MOST_YEARS = 100


class Range(NamedTuple):
    """A value that nobody publishes: the least, the usual and the most of it."""

    low: int
    usual: int
    high: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Economics:
    """Power, price and life of one chip; each value with its source."""

    average_w: Sourced
    tdp_w: Sourced
    max_w: Sourced
    unit_usd: Sourced
    life_years: Sourced

    def watts(self, name: str) -> int:
        """Return one of the powers: "average_w", "tdp_w" or "max_w"."""
        value = getattr(self, name).value
        assert isinstance(value, int), name  # check_economics saw it
        return value

    @property
    def price(self) -> Range:
        """US dollars for one."""
        return _range(self.unit_usd)

    @property
    def life(self) -> Range:
        """Years over which the price is paid off."""
        return _range(self.life_years)

    def to_dict(self) -> dict[str, Any]:
        """Return every value with its grade and source, in JSON's types."""
        return {
            name: {"value": value.value, "grade": value.grade, "source": value.source}
            for name in NAMES
            for value in (getattr(self, name),)
        }


NAMES = tuple(field.name for field in fields(Economics))
ECONOMIC_KEYS = tuple(f"{TABLE}.{name}" for name in NAMES)


def economics_of(file: str, values: Mapping[str, Sourced]) -> Economics:
    """Make it from a profile's values. Raises ProfileError for one that is missing or too small."""
    for key in ECONOMIC_KEYS:
        if key not in values:
            raise ProfileError(file=file, key=key, wanted="a value", got="nothing")
    made = Economics(**{name: values[f"{TABLE}.{name}"] for name in NAMES})
    powers = [made.watts(name) for name in ("average_w", "tdp_w", "max_w")]
    if powers != sorted(powers):
        wanted = "average_w <= tdp_w <= max_w"
        raise ProfileError(file=file, key=TABLE, wanted=wanted, got=", ".join(map(str, powers)))
    return made


def check_economics(file: str, key: str, value: object) -> None:
    """Raise ProfileError for a value that a key of ECONOMIC_KEYS cannot have."""
    if key.endswith("_w"):
        if type(value) is not int or not 1 <= value <= MOST_W:
            wanted = f"watts, 1 to {MOST_W}"
            raise ProfileError(file=file, key=key, wanted=wanted, got=shown(value))
        return
    most = MOST_USD if key.endswith("_usd") else MOST_YEARS
    found = value if isinstance(value, list) else []
    if len(found) != 3 or not all(type(one) is int and 1 <= one <= most for one in found):
        wanted = f"[low, usual, high], integers of 1 to {most}"
        raise ProfileError(file=file, key=key, wanted=wanted, got=shown(value))
    if found != sorted(found):
        raise ProfileError(file=file, key=key, wanted="[low, usual, high], rising", got=str(value))


def _range(sourced: Sourced) -> Range:
    assert isinstance(sourced.value, list)  # check_economics saw it
    return Range(*sourced.value)
