"""The points of a sweep: every combination of the values of its axes, the last axis fastest.

An axis is a key and its values. A key is a flag of a run (`layout`, `max-model-len`), of what a
point is (`context` of a plan, `decode-tokens` of a measurement), or of the machine
(rack/machines/changes.py). Axes come from `--grid KEY=V,V,…` and from the table `grid` of a TOML
file, whose other keys are fixed: `run`, or any flag.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from compiler.errors import one_line
from compiler.files import printable, shown
from compiler.regular import read_file
from rack.errors import ConfigError
from rack.machines.changes import machine_keys, plain_key
from rack.run.config import FLAG_NAMES, KEYS, MOST_FILE, MOST_TOKENS

MOST_POINTS = 1_000_000
NEAR = 3  # known keys that an unknown one may have been meant for


class Run(StrEnum):
    """What a point of a sweep is."""

    PLAN = "plan"
    BENCH = "bench"


OWN: dict[Run, dict[str, int | None]] = {
    Run.PLAN: {"context": None},
    Run.BENCH: {"prompt_tokens": None, "decode_tokens": 16, "repeats": 3},
}
"""Keys of what a point is, beside those of every run; all are counts, with their defaults, None
for those of the verb: 512 tokens of context and 128 of prompt, or as many as fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A key as it was written, and its values in order."""

    key: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values or "" in self.values:
            raise ConfigError(f"grid: {self.key}: wanted values, got an empty one")
        for value in self.values:
            if self.values.count(value) > 1:
                raise ConfigError(f"grid: {self.key}: wanted each value once, got {shown(value)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole sweep: what each point is, the keys that are fixed, the axes."""

    run: Run
    fixed: Mapping[str, Any] = field(default_factory=dict)
    axes: tuple[Axis, ...]

    def __post_init__(self) -> None:
        if not self.axes:
            raise ConfigError("grid: wanted at least one axis (--grid KEY=VALUE,…), got none")
        named: dict[str, str] = {}
        for key in (*self.fixed, *(axis.key for axis in self.axes)):
            name = known(key, self.run)
            if name in named:
                raise ConfigError(f"grid: {key}: wanted each key once, got {named[name]} too")
            named[name] = key
        if len(self) > MOST_POINTS:
            raise ConfigError(f"grid: wanted at most {MOST_POINTS:,} points, got {len(self):,}")

    def __len__(self) -> int:
        return math.prod(len(axis.values) for axis in self.axes)

    def points(self) -> Iterator[dict[str, Any]]:
        """Yield each point's values by key as written, in the grid's order."""
        keys = [axis.key for axis in self.axes]
        for values in itertools.product(*(axis.values for axis in self.axes)):
            yield dict(zip(keys, values, strict=True))


def known(key: str, run: Run) -> str:
    """Return the plain name of a key. Raises ConfigError, with near names, for an unknown one."""
    flags = {FLAG_NAMES.get(name, name): name for name in KEYS} | {name: name for name in KEYS}
    flags |= {name: name for name in OWN[run]}
    if (name := flags.get(key.replace("-", "_"))) is not None:
        return name
    if (name := plain_key(key)) is not None:
        return name
    others = [*flags, *machine_keys(), *(f"interconnect.{name}" for name in machine_keys())]
    near = difflib.get_close_matches(key, others, NEAR)
    told = f"near: {', '.join(near)}" if near else f"flags: {', '.join(flags)}"
    wanted = f"a flag of rack.{run} or a key of the machine's profile"
    raise ConfigError(f"grid: {key:.80}: wanted {wanted}, got an unknown one; {told}")


def parse_axis(text: str) -> Axis:
    """Return the axis that "KEY=V,V,…" means; commas inside brackets part no values."""
    key, equals, values = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"grid: wanted KEY=VALUE,VALUE,…, got {shown(text)}")
    found = [value.strip() for value in re.split(r",(?![^\[]*\])", values)]
    return Axis(key=key.strip(), values=tuple(map(_plain, found)))


def _plain(text: str) -> Any:
    """Return "[4,0]" as two numbers, and what is a number as one; any other text as it is."""
    if text.startswith("[") and text.endswith("]"):
        return tuple(_plain(part.strip()) for part in text[1:-1].split(","))
    for kind, form in ((int, r"-?[0-9]{1,30}"), (float, r"-?[0-9]+\.[0-9]+")):
        if re.fullmatch(form, text):
            return kind(text)
    return text


def read_sweep(path: str) -> tuple[Run | None, dict[str, Any], tuple[Axis, ...]]:
    """Return a file's `run`, its fixed keys and its axes. Raises ConfigError."""
    name = one_line(printable(path))
    try:
        values = tomllib.loads(read_file(Path(path), MOST_FILE).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: wanted a TOML file, got {f'{error!s:.400}'}") from error
    grid, run = values.pop("grid", {}), values.pop("run", None)
    if run is not None and run not in tuple(Run):
        raise ConfigError(f"{name}: run: wanted one of {', '.join(Run)}, got {shown(run)}")
    if not isinstance(grid, dict):
        raise ConfigError(f"{name}: grid: wanted a table, got {shown(grid)}")
    axes = []
    for key, found in _flat(grid):
        if not isinstance(found, list):
            raise ConfigError(f"{name}: grid.{key}: wanted a list of values, got {shown(found)}")
        several = (tuple(value) if isinstance(value, list) else value for value in found)
        axes.append(Axis(key=key, values=tuple(several)))
    return None if run is None else Run(run), dict(_flat(values)), tuple(axes)


def _flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield "a.b" for b in the table a: TOML nests keys with dots."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def parts(
    values: Mapping[str, Any], run: Run
) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    """Return a point's flags of the run, its keys of the machine as written, and its own counts.

    Raises ConfigError for a count that is none.
    """
    flags: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    own: dict[str, int] = {}
    for key, value in values.items():
        name = known(key, run)
        if name in KEYS:
            flags[name] = value if isinstance(value, bool) else str(value)
        elif name in OWN[run]:
            own[name] = _count(key, value)
        else:
            machine[key] = list(value) if isinstance(value, tuple) else value
    return flags, machine, own


def _count(key: str, value: Any) -> int:
    text = str(value)
    if not text.isdecimal() or len(text) > 12 or not 1 <= int(text) <= MOST_TOKENS:
        raise ConfigError(f"{key}: wanted 1 to {MOST_TOKENS}, got {shown(value)}")
    return int(text)


def named(keys: Sequence[str], point: Mapping[str, Any]) -> str:
    """Return a point's values in a line, for people."""
    return " ".join(f"{key}={point[key]}" for key in keys)
