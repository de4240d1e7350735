"""Lines over an axis: one picture of one or more panels, each with its series.

A panel's x are numbers, or names at even distances in the order in which they come. Equal panels
give equal bytes. Drawn with matplotlib, without a display. Non-goal: any choice of what to show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from rack.reports.timeline import METADATA

COLOURS = (
    "#2a6f97", "#e09f3e", "#9e2a2b", "#52a675", "#6a2c91", "#6c584c", "#00b4d8", "#f72585",
    "#012a4a", "#1b4332",
)  # fmt: skip
"""Of the series in their order; those after the last begin again."""
ACROSS = 2  # panels side by side
WIDTH, HEIGHT = 7.6, 4.6  # inches of a panel
MARKED = (0.02, 0.35, 0.68)  # of the height: where labels of marks begin, in turn
TICKED = 12  # places on an axis that get a tick of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: y over x, in the order given; dashed where it is there to compare others with."""

    label: str
    x: tuple[float | str, ...]
    y: tuple[float, ...]
    dashed: bool = False

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or not self.x:
            raise ValueError(
                f"{self.label}: wanted as many x as y, at least one, "
                f"got {len(self.x)} and {len(self.y)}"
            )
        if not all(map(math.isfinite, self.y)):
            raise ValueError(f"{self.label}: wanted finite numbers, got {self.y}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A place on the x axis with a name, such as where two lines cross."""

    x: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One pair of axes. A logarithmic axis is to have no zero and nothing below."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False
    marks: tuple[Mark, ...] = ()

    def __post_init__(self) -> None:
        if not self.series:
            raise ValueError(f"{self.title}: wanted at least one series, got none")
        for axis, log, values in (
            ("x", self.log_x, [value for line in self.series for value in line.x]),
            ("y", self.log_y, [value for line in self.series for value in line.y]),
        ):
            if log and any(isinstance(value, str) or value <= 0 for value in values):
                raise ValueError(f"{self.title}: {axis}: wanted numbers above 0 on a log axis")


def draw_panels(panels: Sequence[Panel], title: str, kind: str) -> bytes:
    """Draw panels, two in a row, as a `kind` of METADATA. A label has one colour in all panels."""
    across = min(ACROSS, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(WIDTH * across, HEIGHT * down + 0.9), layout="constrained")
    figure.suptitle(title, fontsize=13, x=0.01, ha="left")
    places = figure.subplots(down, across, squeeze=False).ravel().tolist()
    labels = list(dict.fromkeys(line.label for panel in panels for line in panel.series))
    colours = {label: COLOURS[n % len(COLOURS)] for n, label in enumerate(labels)}
    handles: dict[str, Line2D] = {}
    for panel, axes in zip(panels, places, strict=False):
        handles = _draw(axes, panel, colours) | handles  # a label's first line is in the legend
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    figure.legend(
        handles=[handles[label] for label in labels], loc="outside lower center",
        ncols=min(5, len(labels)), frameon=False, fontsize=10,
    )  # fmt: skip
    out = BytesIO()
    with rc_context({"svg.hashsalt": "lpu-rack"}):  # its ids are random otherwise
        figure.savefig(out, dpi=110, format=kind, metadata=METADATA[kind])
    return out.getvalue()


def _draw(axes: Axes, panel: Panel, colours: dict[str, str]) -> dict[str, Line2D]:
    """Draw a panel; return its lines by label."""
    lines: dict[str, Line2D] = {}
    for line in panel.series:
        lines[line.label] = axes.plot(
            line.x, line.y, color=colours[line.label], linewidth=1.8, label=line.label,
            marker="" if line.dashed else "o", markersize=4,
            linestyle="--" if line.dashed else "-",
        )[0]  # fmt: skip
    axes.set_title(panel.title, fontsize=11, loc="left")
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    for axis, log, values in (
        (axes.xaxis, panel.log_x, {value for line in panel.series for value in line.x}),
        (axes.yaxis, panel.log_y, None),
    ):
        if log:
            axes.set(**{f"{axis.axis_name}scale": "log"})
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
            if values is not None and len(values) <= TICKED:
                axis.set_ticks(sorted(values))
                axis.set_minor_formatter(NullFormatter())
    for place, mark in enumerate(sorted(panel.marks, key=lambda mark: mark.x)):
        axes.axvline(mark.x, color="#8d99ae", linewidth=1, linestyle=":")
        axes.annotate(
            mark.label, (mark.x, MARKED[place % len(MARKED)]), xycoords=("data", "axes fraction"),
            rotation=90, fontsize=8, color="#5c677d", ha="right", va="bottom",
        )  # fmt: skip
    axes.grid(color="#e3e3e3", linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return lines
