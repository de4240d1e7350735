"""A comparison of a rack and GPUs as a picture: five panels over the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rack.reports.plots import Mark, Panel, Series, draw_panels
from rack.reports.workloads import LPU

PANELS = (
    ("a user's speed", "tokens/s a user", "tokens_per_s_user", None),
    ("all users together", "tokens/s", "tokens_per_s", "throughput"),
    ("cost", "USD a million tokens", "usd_per_million_tokens", "cost"),
    ("energy", "J a token", "joules_per_token", "energy"),
)
"""Title, y, a key of a row, and what crosses there."""


def draw(report: dict[str, Any], kind: str) -> bytes:
    """Draw a report of `rack.compare`."""
    title = (
        f"{report['model']}, context {report['context']}: {report['dtype']} on "
        f"{report['hardware']} {report['layout']} ({report['chips']} chips) beside GPUs in "
        f"{report['gpu_dtype']}"
    )
    panels = [_panel(report, *panel) for panel in PANELS]
    return draw_panels([*panels, _intensity(report)], title, kind)


def _panel(
    report: dict[str, Any], title: str, y_label: str, key: str, crossed: str | None
) -> Panel:
    machines = {LPU: report["lpu"], **_labelled(report, report["gpu"])}
    return Panel(
        title=title, x_label="batch", y_label=y_label, log_x=True, log_y=True,
        series=tuple(
            Series(label=name, x=_batches(rows), y=tuple(row[key] for row in rows))
            for name, rows in machines.items()
        ),
        marks=_marks(report, crossed),
    )  # fmt: skip


def _marks(report: dict[str, Any], crossed: str | None) -> tuple[Mark, ...]:
    """Return the batches at which GPUs overtake the rack; those of one batch share a mark."""
    names: dict[int, list[str]] = {}
    for name, found in report["crossover_batch"].items():
        batch = found[crossed] if crossed else None
        if batch is not None and batch <= report["lpu"][-1]["batch"]:
            names.setdefault(batch, []).append(name)
    return tuple(
        Mark(x=batch, label=f"{', '.join(found)} from {batch}") for batch, found in names.items()
    )


def _intensity(report: dict[str, Any]) -> Panel:
    """Return operations a byte, once where GPUs have the same, and each GPU's ridge, dashed."""
    lines: dict[tuple[float, ...], Series] = {}
    ridges = []
    for label, found in _labelled(report, report["roofline"]["gpu"]).items():
        rows, ridge = found["intensity"], found["ridge_operations_per_byte"]
        values = tuple(row["operations_per_byte"] for row in rows)
        what = f"{report['model']} on GPUs"
        lines.setdefault(
            values, Series(label=f"{what} ({label})" if lines else what, x=_batches(rows), y=values)
        )
        ridges.append(Series(label=label, x=_batches(rows), y=(ridge,) * len(rows), dashed=True))
    return Panel(
        title="arithmetic intensity; dashed: each GPU's ridge", x_label="batch",
        y_label="operations a byte", log_x=True, log_y=True, series=(*lines.values(), *ridges),
    )  # fmt: skip


def _batches(rows: Sequence[dict[str, Any]]) -> tuple[int, ...]:
    return tuple(row["batch"] for row in rows)


def _labelled(report: dict[str, Any], rows: dict[str, Any]) -> dict[str, Any]:
    """Return GPUs' rows by what the legend calls them."""
    given = report["inputs"]["gpu"]
    return {f"{given[name]['chips']} x {name}": found for name, found in rows.items()}
