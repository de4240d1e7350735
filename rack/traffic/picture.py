"""A replay as a picture: against the rate where there are several, and over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rack.reports.plots import Panel, Series, draw_panels
from rack.traffic.quantiles import PERCENTILES
from rack.traffic.report import TIMES

Run = dict[str, Any]
SHOWN = ("p50", "p99")
LOADS = (
    ("waiting", "requests waiting for a slot", "requests"),
    ("slots", "slots taken", "slots"),
    ("tokens_in_flight", "tokens in flight", "tokens"),
)


def draw(report: dict[str, Any], kind: str) -> bytes:
    """Draw a report of `rack.replay`."""
    runs = report["runs"]
    panels = _against_rate(runs) or [_percentiles(runs[0])]
    panels += [_load(runs, *one) for one in LOADS]
    title = (
        f"{report['model']} on {report['hardware']} {report['layout']}, {report['replicas']} x "
        f"{report['sequences']} slots: {runs[0]['requests']:,} requests "
        f"({report['trace']['format']})"
    )
    return draw_panels(panels, title, kind)


def _name(run: Run) -> str:
    return f"x {run['rate_scale']:g}"


def _against_rate(runs: Sequence[Run]) -> list[Panel]:
    """Return the panels over the offered rate; none for a single rate."""
    rated = sorted(
        (run for run in runs if run["offered_requests_per_s"] is not None),
        key=lambda run: float(run["offered_requests_per_s"]),
    )
    if len(rated) < 2:
        return []
    rates = tuple(run["offered_requests_per_s"] for run in rated)
    names = [slo["name"] for slo in rated[0]["slo"]]

    def over(title: str, y_label: str, series: Sequence[Series]) -> Panel:
        return Panel(
            title=title, x_label="requests/s offered", y_label=y_label, series=tuple(series),
            log_x=True,
        )  # fmt: skip

    attained = [
        Series(label=name, x=rates, y=tuple(100 * run["slo"][n]["attainment"] for run in rated))
        for n, name in enumerate(names)
    ]  # fmt: skip
    good = [
        Series(label=name, x=rates,
               y=tuple(run["slo"][n]["goodput_requests_per_s"] or 0.0 for run in rated))
        for n, name in enumerate(names)
    ]  # fmt: skip
    good.append(Series(label="offered", x=rates, y=rates, dashed=True))
    panels = [
        over("requests that meet every limit", "%", attained),
        over("goodput; dashed: offered", "requests/s", good),
    ]
    for time in ("ttft_ms", "tpot_ms"):
        found = [
            Series(label=name, x=rates, y=tuple(run[time][name] for run in rated))
            for name in SHOWN if all(run[time][name] is not None for run in rated)
        ]  # fmt: skip
        if found:
            panels.append(over(TIMES[time], "ms", found))
    return panels


def _percentiles(run: Run) -> Panel:
    """Return all times of a run by percentile."""
    names = [f"p{percentile:g}" for percentile in PERCENTILES]
    series = [
        Series(label=told, x=tuple(names), y=tuple(run[time][name] for name in names))
        for time, told in TIMES.items()
        if run[time]["mean"] is not None and run[time]["p50"] > 0  # the axis has no zero
    ]
    none = Series(label="no request was completed", x=tuple(names), y=(1.0,) * len(names))
    return Panel(
        title=f"times, {_name(run)}", x_label="percentile", y_label="ms", log_y=True,
        series=tuple(series) or (none,),
    )  # fmt: skip


def _load(runs: Sequence[Run], key: str, title: str, y_label: str) -> Panel:
    """Return a load over time; that of several runs over the share of each run's time."""
    several = len(runs) > 1
    series = []
    for run in runs:
        whole = (run["duration_s"] or 1.0) / 100 if several else 1.0
        found = run[key]["over_time"]
        series.append(
            Series(
                label=_name(run), x=tuple(at["s"] / whole for at in found),
                y=tuple(at["mean"] for at in found),
            )
        )  # fmt: skip
    return Panel(
        title=title, x_label="% of the run's time" if several else "s", y_label=y_label,
        series=tuple(series),
    )  # fmt: skip
