"""One line of a trace, before it is requests: values by name, and the calls that they tell of."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from compiler.files import shown
from rack.errors import TraceError

NS = 10**9
MOST_TOKENS = 1 << 30  # of a call
MOST_NS = 1 << 62
_MOMENT = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?", re.ASCII
)
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Tokens in and out, and how long after the end of the call before it (of the first: 0)."""

    prompt_tokens: int
    output_tokens: int
    delay_ns: int = 0
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Calls that follow each other, and when the first arrives; None where a trace has no times."""

    arrival_ns: int | None
    calls: tuple[Call, ...]
    session: str | None = None


class Fields:
    """Values of a line by name. Each method raises TraceError for what is absent or wrong."""

    __slots__ = ("_refuse", "_under", "_values")

    def __init__(
        self, values: Mapping[str, Any], refuse: Callable[[str, str, str], TraceError],
        under: str = "",
    ) -> None:  # fmt: skip
        self._values, self._refuse, self._under = values, refuse, under

    def count(self, name: str) -> int:
        """Return a number of tokens, or the like: 0 or more."""
        value = self._values.get(name)
        if isinstance(value, str) and _digits(value):
            value = int(value)
        elif isinstance(value, str | float):
            number = _number(value)
            value = int(number) if number is not None and number.is_integer() else value
        if type(value) is not int or not 0 <= value <= MOST_TOKENS:
            raise self._wrong(name, f"a whole number up to {MOST_TOKENS:,}")
        return value

    def ns(self, name: str, unit_ns: int) -> int:
        """Return a time of so many nanoseconds a unit, from 0 on."""
        value = self._values.get(name)
        if isinstance(value, str) and _digits(value):
            value = int(value)
        if type(value) is int and 0 <= value * unit_ns <= MOST_NS:
            return value * unit_ns
        number = _number(value)
        if number is None or number < 0:
            raise self._wrong(name, "a number from 0 on")
        if number * unit_ns > MOST_NS:
            raise self._wrong(name, f"a number up to {MOST_NS / unit_ns:g}")
        return round(number * unit_ns)

    def moment(self, name: str, unit_ns: int) -> int:
        """Return a date with its time of day, or a number of units, in nanoseconds."""
        value = self._values.get(name)
        if not isinstance(value, str) or not (found := _MOMENT.fullmatch(value)):
            if _number(value) is None:
                raise self._wrong(name, "a date and time, or a number")
            return self.ns(name, unit_ns)
        day, time, fraction, zone = found.groups()
        try:
            at = datetime.fromisoformat(f"{day}T{time}{zone or 'Z'}")
        except ValueError:
            raise self._wrong(name, "a date and time") from None
        since = at - _EPOCH
        seconds = since.days * 86_400 + since.seconds
        return seconds * NS + int((fraction or "").ljust(9, "0"))

    def text(self, name: str) -> str:
        """Return a text; a number stands for its digits."""
        value = self._values.get(name)
        if type(value) is int:
            value = shown(value)
        if not isinstance(value, str):
            raise self._wrong(name, "a text")
        return value

    def words(self, name: str) -> str:
        """Return a text that has tokens: JSON can spell half of a character."""
        value = self.text(name)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self._wrong(name, "a text of whole Unicode characters") from None
        return value

    def part(self, name: str) -> Fields:
        """Return the values of an object."""
        value = self._values.get(name)
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return Fields(value, self._refuse, f"{self._under}{name}.")

    def parts(self, name: str, *, needed: bool = True) -> list[Fields]:
        """Return the values of each object of a list; one that is not `needed` may be absent."""
        value = self._values.get(name)
        if value is None and not needed:
            return []
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise self._wrong(name, "a list of objects")
        under = f"{self._under}{name}"
        return [Fields(one, self._refuse, f"{under}[{n}].") for n, one in enumerate(value)]

    def _wrong(self, name: str, wanted: str) -> TraceError:
        got = shown(self._values[name]) if name in self._values else "nothing"
        return self._refuse(wanted, got, f"{self._under}{name}")


def _digits(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20


def _number(value: object) -> float | None:
    """Return a finite number, also one that is written out; else None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and not _DECIMAL.fullmatch(value):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
