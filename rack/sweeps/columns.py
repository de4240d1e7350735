"""Columns of rows: a name finds its value in a row, and columns make a picture.

A column is an axis's key, a path into the row (`decode.cycles`, `config.dtype`), or the end of a
path that no other path of the row ends with (`tokens_per_second`).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compiler.files import shown
from rack.errors import ConfigError
from rack.reports.plots import Panel, Series

WIDE = 8  # times: numbers that spread further are drawn on a logarithmic axis
FAR = 50  # the same of y
MOST_LINES = 20  # of a picture
NEAR = 3  # columns that an unknown one may have been meant for


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Which columns to draw: y over x, a line for each value of `colour`."""

    x: str
    y: str
    colour: str | None = None

    def __str__(self) -> str:
        return f"{self.y} over {self.x}" + (f" by {self.colour}" if self.colour else "")


def parse_plot(text: object) -> Plot:
    """Return what "X,Y" or "X,Y,COLOUR" means. Raises ConfigError."""
    names = [part.strip() for part in text.split(",")] if isinstance(text, str) else []
    if len(names) not in (2, 3) or not all(names):
        raise ConfigError(f"plot: wanted X,Y or X,Y,COLOUR, got {shown(text)}")
    return Plot(x=names[0], y=names[1], colour=names[2] if len(names) == 3 else None)


def paths(row: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every plain value of a row by its path; an axis's key is a path of its own."""
    for key, value in row.items():
        if isinstance(value, dict):
            yield from paths(value, "" if not before and key == "point" else f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def column(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """Return a column's value in each row, None where a row has none.

    Raises ConfigError for a name that no row has, or that could mean several columns.
    """
    flat = [dict(paths(row)) for row in rows]
    every = list(dict.fromkeys(path for row in flat for path in row))
    found = [name] if name in every else [p for p in every if p.endswith(f".{name}")]
    if len(found) > 1:
        raise ConfigError(f"column {name}: wanted one of {', '.join(found)}, got several")
    if not found:
        ends = {path.rpartition(".")[2]: path for path in reversed(every)} | {p: p for p in every}
        near = [ends[one] for one in difflib.get_close_matches(name, ends, NEAR)]
        told = f"near: {', '.join(dict.fromkeys(near))}" if near else "rack.plan --json has them"
        raise ConfigError(f"column {name:.80}: wanted one of the rows', got none; {told}")
    return [row.get(found[0]) for row in flat]


def panel_of(plot: Plot, rows: Sequence[Mapping[str, Any]]) -> Panel:
    """Return the picture's panel: rows that fit, lines in the order in which they come.

    Where a line would have several y at one x, it is parted by the axes that tell them apart.
    Raises ConfigError where there is nothing to draw, or too many lines.
    """
    fit = [row for row in rows if "error" not in row]
    if not fit:
        raise ConfigError(f"plot: wanted rows to draw, got none that fit of {len(rows)}")
    ys = [drawable(plot.y, value) for value in column(fit, plot.y)]
    xs = _numbers(column(fit, plot.x))
    lines: dict[str, list[tuple[Any, float]]] = {}
    for x, y, label in zip(xs, ys, _labels(plot, fit, xs), strict=True):
        lines.setdefault(label or plot.y, []).append((x, y))
    if len(lines) > MOST_LINES:
        raise ConfigError(
            f"plot: wanted at most {MOST_LINES} lines, got {len(lines)}: choose another COLOUR, or "
            "an axis with fewer values"
        )
    if all(isinstance(x, float) for x in xs):
        lines = {label: sorted(points) for label, points in lines.items()}
    series = tuple(
        Series(label=label, x=tuple(x for x, _ in points), y=tuple(y for _, y in points))
        for label, points in lines.items()
    )
    return Panel(
        title=str(plot), x_label=plot.x, y_label=plot.y, series=series,
        log_x=_spread(xs, WIDE), log_y=_spread(ys, FAR),
    )  # fmt: skip


def about(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return which models, types and machines the rows that fit are of: a picture's title."""
    said = (f"{row['model']} {row['dtype']} on {row['hardware']}" for row in rows if "model" in row)
    return ", ".join(dict.fromkeys(said))


def _labels(
    plot: Plot, rows: Sequence[Mapping[str, Any]], xs: Sequence[float | str]
) -> list[str]:  # fmt: skip
    """Return the line of each row."""
    names = [] if plot.colour is None else [plot.colour]
    columns = [column(rows, name) for name in names]
    axes = dict.fromkeys(key for row in rows for key in row["point"])
    for axis in (axis for axis in axes if axis not in (plot.x, plot.colour)):
        places = [str(place) for place in zip(xs, *columns, strict=True)]
        values = [str(row["point"].get(axis)) for row in rows]
        if len({*zip(places, values, strict=True)}) > len({*places}):
            names.append(axis)
            columns.append(values)
    return [
        ", ".join(f"{name} {value}" for name, value in zip(names, found, strict=True))
        for found in zip(*columns, strict=True)
    ] or [""] * len(rows)


def drawable(name: str, value: object) -> float:
    """Return a column's value that is drawn. Raises ConfigError for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"column {name}: wanted numbers to draw, got {shown(value)}")
    return float(value)


def _numbers(values: Sequence[Any]) -> list[float | str]:
    """Return values as numbers if all are, else as names."""
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError):
        return [str(value) for value in values]


def _spread(values: Sequence[float | str], times: int) -> bool:
    numbers = [value for value in values if isinstance(value, float)]
    if len(numbers) < len(values):
        return False
    return min(numbers) > 0 and max(numbers) >= times * min(numbers)
