"""Rate limits as GroqCloud has them: requests and tokens, per minute and per day.

Each limit is a bucket that empties at a constant rate: of 6,000 tokens per minute, 100 come free
every second. A request is taken in when one more request and the tokens it may need (its prompt
and its max_tokens, where given) fit into every bucket of its key and model; when it ends, the
tokens that it asked for but did not make are given back. A failed one is given back entirely.
Prompt tokens that were found in the cache do not count: they are given back as soon as that is
known.

Not thread-safe: everything happens on the server's event loop.
"""

from __future__ import annotations

import math
import time
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.regular import read_file
from rack.errors import ConfigError
from rack.run.config import MOST_FILE
from rack.serve.errors import ApiError

MINUTE_SECONDS, DAY_SECONDS = 60.0, 86_400.0


@dataclass(frozen=True, slots=True)
class Window:
    """One kind of limit: the key in the file, what it counts, and how messages name it."""

    key: str
    counts: str  # "requests" or "tokens": also the type in a 429's body
    title: str
    seconds: float
    header: bool  # whether the rate-limit headers tell of it


WINDOWS = (
    Window("requests_per_minute", "requests", "requests per minute (RPM)", MINUTE_SECONDS, False),
    Window("requests_per_day", "requests", "requests per day (RPD)", DAY_SECONDS, True),
    Window("tokens_per_minute", "tokens", "tokens per minute (TPM)", MINUTE_SECONDS, True),
    Window("tokens_per_day", "tokens", "tokens per day (TPD)", DAY_SECONDS, False),
)
_KEYS = tuple(window.key for window in WINDOWS)
HEADERS = tuple(
    f"x-ratelimit-{what}-{window.counts}"
    for window in WINDOWS
    if window.header
    for what in ("limit", "remaining", "reset")
)
"""The headers that an answer may carry."""


class Bucket:
    """How much of one limit is used; `now` is any clock in seconds."""

    def __init__(self, window: Window, limit: int) -> None:
        self.window, self.limit = window, limit
        self._level, self._at = 0.0, 0.0

    def used(self, now: float) -> float:
        """Return what is used, after what has come free since."""
        free = (now - self._at) * self.limit / self.window.seconds
        return max(0.0, self._level - free)

    def add(self, count: float, now: float) -> None:
        """Use some, or give some back."""
        self._level, self._at = max(0.0, self.used(now) + count), now

    def wait(self, count: float, now: float) -> float:
        """Return in how many seconds `count` will fit; 0 if it fits now."""
        over = self.used(now) + count - self.limit
        return max(0.0, over * self.window.seconds / self.limit)


class Reservation:
    """What a request took from its buckets; to be settled once."""

    def __init__(self, buckets: Collection[Bucket], tokens: int, clock: Callable[[], float]):
        self._buckets, self._tokens, self._clock = buckets, tokens, clock
        self._open = True
        for bucket in buckets:
            bucket.add(self._asked(bucket), clock())

    def give_back(self, tokens: int) -> None:
        """Give back a part, which will not be used; nothing once it is settled."""
        if not self._open:
            return
        self._tokens -= tokens
        for bucket in self._buckets:
            if bucket.window.counts == "tokens":
                bucket.add(-tokens, self._clock())

    def settle(self, tokens: int | None) -> None:
        """End with the tokens used; None gives back everything. Later calls do nothing."""
        if not self._open:
            return
        self._open, now = False, self._clock()
        for bucket in self._buckets:
            if tokens is None:
                bucket.add(-self._asked(bucket), now)
            elif bucket.window.counts == "tokens":
                bucket.add(tokens - self._tokens, now)

    def _asked(self, bucket: Bucket) -> int:
        return self._tokens if bucket.window.counts == "tokens" else 1


class Limiter:
    """The buckets of every key and model. `limits` says the limits of a key and model."""

    def __init__(
        self, limits: Callable[[str, str], Mapping[str, int]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._limits, self._clock = limits, clock
        self._buckets: dict[tuple[str, str], list[Bucket]] = {}

    def reserve(self, key: str, model: str, tokens: int) -> Reservation:
        """Take a request in. Raises ApiError: 429, or 413 where it can never fit."""
        buckets, now = self._of(key, model), self._clock()
        for bucket in buckets:
            asked = tokens if bucket.window.counts == "tokens" else 1
            if asked > bucket.limit:
                raise _too_large(bucket, key, model, asked)
        waits = [b.wait(tokens if b.window.counts == "tokens" else 1, now) for b in buckets]
        longest = max(range(len(waits)), key=waits.__getitem__, default=0)
        if waits and waits[longest] > 0:
            raise _reached(buckets[longest], key, model, tokens, waits[longest], now)
        return Reservation(buckets, tokens, self._clock)

    def headers(self, key: str, model: str) -> dict[str, str]:
        """Return the rate-limit headers: requests per day, tokens per minute."""
        out, now = {}, self._clock()
        for bucket in self._of(key, model):
            if bucket.window.header:
                used, counts = bucket.used(now), bucket.window.counts
                left = max(0, math.floor(bucket.limit - used))
                reset = used * bucket.window.seconds / bucket.limit
                out[f"x-ratelimit-limit-{counts}"] = str(bucket.limit)
                out[f"x-ratelimit-remaining-{counts}"] = str(left)
                out[f"x-ratelimit-reset-{counts}"] = duration(reset)
        return out

    def _of(self, key: str, model: str) -> list[Bucket]:
        if (key, model) not in self._buckets:  # keys and models are those of the server: few
            limits = self._limits(key, model)
            self._buckets[key, model] = [
                Bucket(window, limits[window.key]) for window in WINDOWS if window.key in limits
            ]
        return self._buckets[key, model]


def duration(seconds: float) -> str:
    """Write a duration as the headers have it: `2m59.56s`, rounded up to milliseconds."""
    milliseconds = math.ceil(round(seconds * 1000, 3))
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    shown = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{shown}"
    return f"{minutes}m{shown}" if minutes else shown


def load_limits(
    path: Path, keys: Collection[str], models: Collection[str]
) -> Callable[[str, str], Mapping[str, int]]:
    """Read a limits file: `[default]`, `[models."NAME"]`, `[keys.NAME]`; the later wins.

    Raises ConfigError for a file that cannot be read and for unknown keys, models or limits.
    """
    try:
        document = tomllib.loads(read_file(path, MOST_FILE).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # bad TOML, bad UTF-8, deep nesting
        raise ConfigError(f"{path}: wanted a TOML file, got {error}") from None
    if unknown := sorted(set(document) - {"default", "models", "keys"}):
        raise ConfigError(f"{path}: {unknown[0]}: wanted default, models or keys")
    default = _table(path, "default", document.get("default", {}))
    per_model = _tables(path, "models", document.get("models", {}), models)
    per_key = _tables(path, "keys", document.get("keys", {}), keys)
    return lambda key, model: default | per_model.get(model, {}) | per_key.get(key, {})


def _tables(
    path: Path, where: str, tables: Any, known: Collection[str]
) -> dict[str, dict[str, int]]:
    if not isinstance(tables, dict):
        raise ConfigError(f"{path}: {where}: wanted tables, got {tables!r}")
    if unknown := sorted(set(tables) - set(known)):
        raise ConfigError(f"{path}: {where}.{unknown[0]}: wanted one of {', '.join(known)}")
    return {name: _table(path, f"{where}.{name}", table) for name, table in tables.items()}


def _table(path: Path, where: str, table: Any) -> dict[str, int]:
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {where}: wanted a table, got {table!r}")
    for key, value in table.items():
        if key not in _KEYS:
            raise ConfigError(f"{path}: {where}.{key}: wanted one of {', '.join(_KEYS)}")
        if type(value) is not int or value < 1:
            raise ConfigError(f"{path}: {where}.{key}: wanted an integer above 0, got {value!r}")
    return table


def _reached(
    bucket: Bucket, key: str, model: str, tokens: int, wait: float, now: float
) -> ApiError:
    asked = tokens if bucket.window.counts == "tokens" else 1
    return ApiError(
        429,
        f"Rate limit reached for model `{model}` in organization `{key}` on "
        f"{bucket.window.title}: Limit {bucket.limit}, Used {round(bucket.used(now))}, Requested "
        f"{asked}. Please try again in {duration(wait)}.",
        kind=bucket.window.counts, code="rate_limit_exceeded",
        headers={"retry-after": str(math.ceil(wait))},
    )  # fmt: skip


def _too_large(bucket: Bucket, key: str, model: str, asked: int) -> ApiError:
    return ApiError(
        413,
        f"Request too large for model `{model}` in organization `{key}` on "
        f"{bucket.window.title}: Limit {bucket.limit}, Requested {asked}; please reduce your "
        "message size or max_tokens",
        kind=bucket.window.counts, code="rate_limit_exceeded",
    )  # fmt: skip
