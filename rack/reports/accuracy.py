"""Published figures beside the emulator's own: what a row is, and how the table is written.

The rows are in `accuracy_rows`. Every row names the profile's constants behind our figure, because
a small error proves nothing where a constant was fitted to that figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from rack.machines.hardware import Hardware

Published = float | tuple[float, float | None]
"""A figure, or a band: lowest and highest, None where there is no highest."""

NAMED = 3  # constants that a cell of the table names; of more it gives the number


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One published figure and ours, in the same unit.

    `published` is a figure, or a band that ours may lie in. `constants` are keys of the profile
    that ours follows from, with `*` for many. `on`: the machine, where it is not the table's.
    """

    part: str
    figure: str
    unit: str
    published: Published
    grade: str
    source: str
    ours: float
    constants: tuple[str, ...]
    on: Hardware | None = None

    @property
    def error_percent(self) -> float:
        """Signed error of ours; against a band, from the edge it lies beyond, 0 inside."""
        if isinstance(self.published, tuple):
            low, high = self.published
            wanted = max(self.ours, low) if high is None else min(max(self.ours, low), high)
        else:
            wanted = self.published
        return (self.ours - wanted) / wanted * 100

    def behind(self, hardware: Hardware) -> dict[str, Any]:
        """Constants behind our figure that are assumptions, and those fitted, with what to."""
        hardware = self.on or hardware
        keys = [
            key
            for key in hardware.sources
            if any(fnmatchcase(key, pattern) for pattern in self.constants)
        ]
        sources = {key: hardware.sources[key] for key in keys}
        return {
            "constants": keys,
            "assumed": [key for key, s in sources.items() if s.grade == "assumption"],
            "fitted": {key: s.fitted for key, s in sources.items() if s.fitted},
        }

    def to_dict(self, hardware: Hardware) -> dict[str, Any]:
        """Return the row as plain data, with error and constants."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "on"}
        machine = (self.on or hardware).name
        return {
            **plain,
            "hardware": machine,
            "error_percent": self.error_percent,
            **self.behind(hardware),
        }


def number(value: float) -> str:
    """Write a figure: whole numbers as they are, others with three significant digits."""
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


def published(row: Row) -> str:
    """Write the published figure or band."""
    if isinstance(row.published, tuple):
        low, high = row.published
        if high is None:
            return f"> {number(low)}"
        return f"< {number(high)}" if low == 0 else f"{number(low)} to {number(high)}"
    return number(row.published)


def behind(row: Row, hardware: Hardware) -> str:
    """Write what stands behind our figure, for a cell of the table."""
    found = row.behind(hardware)
    fitted = list(found["fitted"])
    assumed = [key for key in found["assumed"] if key not in fitted]
    out = []
    for what, keys in (("fitted", fitted), ("assumed", assumed)):
        names = ", ".join(key.removeprefix("chip.") for key in keys)
        if keys:
            out.append(f"{what}: {names if len(keys) <= NAMED else len(keys)}")
    return "; ".join(out) or "published constants"


def markdown(rows: Sequence[Row], hardware: Hardware) -> str:
    """Write two tables: the figures, and every constant that is assumed or was fitted."""
    lines = [
        "| part | figure | published | grade | ours | error | behind ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.part} | {row.figure} | {published(row)} {row.unit} | {row.grade} "
            f"| {number(row.ours)} {row.unit} | {row.error_percent:+.1f} % "
            f"| {behind(row, hardware)} |"
        )
    lines += ["", "| constant | value | grade | where it comes from |", "|---|---|---|---|"]
    for key, sourced in hardware.sources.items():
        if sourced.grade == "assumption" or sourced.fitted:
            reason = sourced.source.removeprefix("assumption: ")
            fitted = f"; fitted to {sourced.fitted}" if sourced.fitted else ""
            value = f"{sourced.value:,}" if isinstance(sourced.value, int) else sourced.value
            lines.append(f"| {key} | {value} | {sourced.grade} | {reason}{fitted} |")
    return "\n".join(lines)
