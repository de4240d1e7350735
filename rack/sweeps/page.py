"""One page of a sweep's rows: pictures and tables, in a file that needs no other and no network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jinja2

from rack.reports.plots import Panel, draw_panels
from rack.sweeps.columns import Plot, about, column, drawable, panel_of
from rack.sweeps.rows import code_told

Row = Mapping[str, Any]
MOST_LINES = 10  # of a picture
WHAT = {"plan": "plans", "bench": "measurements"}
RATES = {"plan": ("tokens_per_second",), "bench": ("emulated.decode_tokens_per_s",)}
COLUMNS = {
    "layout": ("layout",),
    "chips": ("chips",),
    "racks": ("racks",),
    "largest context": ("max_model_len",),
    "us a token": ("decode", "microseconds"),
    "tokens/s": ("decode", "tokens_per_second"),
    "cycles": ("decode", "cycles"),
    "x roofline": ("decode", "roofline_ratio"),
    "exchange, % of a token": ("decode", "parts", "exchange", "cycles"),
    "busiest link": ("decode", "busiest_link", "name"),
    "emulated tokens/s": ("emulated", "decode_tokens_per_s"),
    "emulated cycles a token": ("emulated", "decode_cycles"),
    "wall tokens/s": ("wall", "decode", "tokens_per_s"),
    "clocks, % of a token": ("synchronisation", "cost_fraction"),
    "schedule": ("schedule_hash",),
    "data": ("data_hash",),
}
"""Column of the table -> its path in a row. Columns that no row has are left out."""

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem;
  color: #1d2733; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
figure { margin: 1rem 0 } figure svg { width: 100%; max-width: 52rem; height: auto }
.table { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #e3e3e3; text-align: right }
th { position: sticky; top: 0; background: #fff } td.text, th.text { text-align: left }
code { font-size: .85em } .why { white-space: normal; min-width: 24rem }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p id="about">{{ about }}</p>
{% for svg in pictures %}<figure>{{ svg | safe }}</figure>
{% endfor %}
{% for table in tables %}<h2>{{ table.title }}</h2>
<div class="table"><table>
<thead><tr>{% for cell in table.head %}<th{{ " class=text" if cell.text }}>{{ cell.said }}</th>\
{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}<tr>{% for cell in row %}<td{{ " class=text" if cell.text }}>\
{{ cell.said }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>
{% endfor %}
<h2>Where the figures come from</h2>
<ul>
{% for line in sources %}<li>{{ line }}</li>
{% endfor %}</ul>
</body>
</html>
"""


def page(rows: Sequence[Row], plots: Sequence[Plot], title: str) -> str:
    """Return the page of rows. Without `plots` there is a picture for each axis.

    Raises ConfigError for a plot of columns that the rows do not have.
    """
    axes = _axes(rows)
    fit = [row for row in rows if "error" not in row]
    misfit = [row for row in rows if "error" in row]
    panels = [panel_of(plot, rows) for plot in plots] if plots else list(_panels(fit, axes))
    env = jinja2.Environment(autoescape=True, trim_blocks=False)
    return env.from_string(TEMPLATE).render(
        title=title,
        about=_counts(rows, fit),
        pictures=[_inline(panel, about(fit), number) for number, panel in enumerate(panels)],
        tables=[
            *([_table("Points that fit", fit, axes)] if fit else []),
            *([_misfits(misfit, axes)] if misfit else []),
        ],
        sources=list(_sources(rows)),
    )


def _axes(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row["point"]))


def _counts(rows: Sequence[Row], fit: Sequence[Row]) -> str:
    runs = [WHAT.get(run, run) for run in dict.fromkeys(row["run"] for row in rows)]
    return f"{len(rows)} points ({', '.join(runs)}), {len(fit)} of which fit"


def _panels(fit: Sequence[Row], axes: Sequence[str]) -> Iterator[Panel]:
    """Yield token rates over each axis, a line for each value of another axis.

    Where there are more axes than two, each point of a line is the best of the others.
    """
    if not fit:
        return
    (rate, *_) = RATES.get(fit[0]["run"], ("tokens_per_second",))
    same = [row for row in fit if row["run"] == fit[0]["run"]]
    varied = {axis: len(set(map(str, _point(same, axis)))) for axis in axes}
    for axis in (axis for axis in axes if varied[axis] > 1):
        others = [one for one in axes if one != axis and 1 < varied[one] <= MOST_LINES]
        plot = Plot(x=axis, y=rate, colour=others[0] if others else None)
        best = _best(same, plot)
        rest = len(best) < len(same)
        panel = panel_of(plot, [{**row, "point": _only(row, plot)} for row in best])
        yield replace(panel, title=f"{plot}, the best of the other axes") if rest else panel


def _only(row: Row, plot: Plot) -> dict[str, Any]:
    return {key: value for key, value in row["point"].items() if key in (plot.x, plot.colour)}


def _point(rows: Sequence[Row], axis: str) -> list[Any]:
    return [row["point"].get(axis) for row in rows]


def _best(rows: Sequence[Row], plot: Plot) -> list[Row]:
    """Return the row with the largest y at each place of each line."""
    ys = column(rows, plot.y)
    best: dict[tuple[str, str], tuple[float, Row]] = {}
    for row, found in zip(rows, ys, strict=True):
        y = drawable(plot.y, found)
        at = str(row["point"].get(plot.x)), str(row["point"].get(plot.colour))
        if at not in best or y > best[at][0]:
            best[at] = y, row
    return [row for _, row in best.values()]


def _inline(panel: Panel, title: str, number: int) -> str:
    """Return a picture as an SVG element whose ids are its own."""
    svg = draw_panels([panel], title, "svg").decode()
    svg = svg[svg.index("<svg") :]
    for before in ('id="', 'href="#', "url(#"):
        svg = svg.replace(before, f"{before}p{number}-")
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)


def _cell(value: Any) -> dict[str, Any]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = "" if value is None else str(value)
        return {"text": True, "said": text[:12] if re.fullmatch("[0-9a-f]{64}", text) else text}
    said = f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
    return {"text": False, "said": said}


def _at(row: Row, path: Sequence[str]) -> Any:
    value: Any = row
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _value(row: Row, name: str, path: Sequence[str]) -> Any:
    value = _at(row, path)
    if "% of a token" not in name or not _is_number(value):
        return value
    if path[-1] != "cycles":
        return 100 * value
    whole = _at(row, ("decode", "cycles"))
    return 100 * (value / whole) if _is_number(whole) and whole else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _table(title: str, rows: Sequence[Row], axes: Sequence[str]) -> dict[str, Any]:
    shown = {
        name: path for name, path in COLUMNS.items()
        if name not in axes and any(_at(row, path) is not None for row in rows)
    }  # fmt: skip
    body = [
        [
            *(_cell(row["point"].get(axis)) for axis in axes),
            *(_cell(_value(row, name, path)) for name, path in shown.items()),
        ]
        for row in rows
    ]
    head = [
        {"said": name, "text": body[0][place]["text"]} for place, name in enumerate([*axes, *shown])
    ]  # fmt: skip
    return {"title": title, "head": head, "rows": body}


def _misfits(rows: Sequence[Row], axes: Sequence[str]) -> dict[str, Any]:
    body = [
        [*(_cell(row["point"].get(axis)) for axis in axes), _cell(row["error"]["message"])]
        for row in rows
    ]
    head = [{"said": name, "text": True} for name in (*axes, "why")]
    return {"title": "Points that do not fit", "head": head, "rows": body}


def _sources(rows: Sequence[Row]) -> Iterator[str]:
    """Say which profile, dtype and code the rows are of."""
    notices: dict[str, None] = {}
    for row in rows:
        if "error" not in row:
            notices |= dict.fromkeys(map(str, row["notices"]))
    yield from notices
    yield from dict.fromkeys(
        f"machine {row.get('hardware')}, digest {row['hardware_digest']}"
        for row in rows if "hardware_digest" in row
    )  # fmt: skip
    yield from dict.fromkeys(str(row["weights"]) for row in rows if "weights" in row)
    yield from dict.fromkeys(f"lpu-rack {code_told(row.get('code'))}" for row in rows)
