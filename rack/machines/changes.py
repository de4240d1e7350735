"""Keys of a machine that a sweep may change, and what their values are as a profile's values.

A key is one of a profile (`link.latency_ns`, `clock.drift_ppm`), also behind the package that it
describes (`interconnect.link.latency_ns`), or one of DERIVED, which stands for several of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

from compiler.files import shown
from rack.errors import ConfigError
from rack.machines.profile_keys import KNOWN, RATES, TEXTS

GB_PER_S = "link.gb_per_s"
DERIVED = {GB_PER_S: "GB/s of payload that each link between chips has, whatever is cabled"}
PREFIX = "interconnect."
DESCRIBED = ("link", "clock", "errors")  # tables about the interconnect

Value = int | float | str | list[int]


def plain_key(key: str) -> str | None:
    """Return a key without its package; None for what is no key of a machine."""
    short = key.removeprefix(PREFIX)
    if short != key and short.partition(".")[0] not in DESCRIBED:
        return None
    return short if short in KNOWN or short in DERIVED else None


def machine_keys() -> list[str]:
    """Return every key that can be changed, sorted."""
    return sorted({*KNOWN, *DERIVED})


def changed(values: Mapping[str, object]) -> dict[str, Value]:
    """Return changes of a profile's own keys: derived keys are worked out, numbers are whole
    but for rates of errors.

    Raises ConfigError for a value that is no number, and for two keys that say the same.
    """
    out: dict[str, Value] = {}
    for key, value in values.items():
        short = plain_key(key)
        assert short is not None, key
        found = _link(key, value) if short == GB_PER_S else {short: _value(key, short, value)}
        if twice := sorted(set(out) & set(found)):
            raise ConfigError(f"{key}: wanted {twice[0]} once, got it from another key too")
        out |= found
    return out


def _link(key: str, value: object) -> dict[str, Value]:
    """Return a link of this payload rate: one lane without encoding."""
    rate = _number(key, value) * 8 * 10**9
    if rate < 1 or rate != int(rate):
        wanted = "a number above 0 with at most 9 places after the point"
        raise ConfigError(f"{key}: wanted {wanted}, got {shown(value)}")
    return {
        "link.rate": "per_link", "link.lanes": 1, "link.line_rate_bps": int(rate),
        "link.encoding_payload": 1, "link.encoding_total": 1,
    }  # fmt: skip


def _value(key: str, short: str, value: object) -> Value:
    if short in TEXTS:
        return str(value)
    if short in RATES:
        return float(_number(key, value))
    if isinstance(value, list):  # of [d_func, d_skew]; the profile checks it
        return [_whole(key, one) for one in value]
    return _whole(key, value)


def _whole(key: str, value: object) -> int:
    number = _number(key, value)
    if number != int(number):
        raise ConfigError(f"{key}: wanted a whole number, got {shown(value)}")
    return int(number)


def _number(key: str, value: object) -> Decimal:
    """Return a number as it was written: 12.5 is exact, and 9e8 whole."""
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        number = Decimal("NaN")
    if isinstance(value, bool) or not number.is_finite() or abs(number.adjusted()) > 30:
        raise ConfigError(f"{key}: wanted a number, got {shown(value)}")
    return number
