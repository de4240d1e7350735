"""One step as a picture: stages down, cycles across; below it one layer of one chip, unit by unit.

A stage computes while any unit of its chips works. It exchanges while it only sends, or waits for
vectors on their way to it. Otherwise it is idle. Drawn with matplotlib, without a display.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from chip.ops.moves import Receive, Send
from chip.ops.program import Scheduled
from compiler.ir import ScheduledTransfer, StepSchedule
from compiler.pipeline import CompiledModel
from rack.reports.transfer_names import transfer_names

METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None},
}  # fmt: skip
"""Kinds of picture, with what to leave out of each because it changes from run to run."""

COLOURS = {"compute": "#2a6f97", "exchange": "#e09f3e", "idle": "#e9ecef"}
Span = tuple[int, int]
"""Half-open range of cycles."""

LABELLED = 34  # stages that get a label of their own
_LETTER = 0.0048  # of the picture's width: slices too narrow for their name go without


def union(spans: Iterable[Span]) -> list[Span]:
    """Merge spans into disjoint ones, in order; empty ones are dropped."""
    out: list[Span] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out


def without(spans: Sequence[Span], taken: Sequence[Span]) -> list[Span]:
    """Cut `taken` out of `spans`; both disjoint and in order."""
    out, at = [], 0
    for start, end in spans:
        while at < len(taken) and taken[at][1] <= start:
            at += 1
        place = at
        while place < len(taken) and taken[place][0] < end:
            if start < taken[place][0]:
                out.append((start, taken[place][0]))
            start = max(start, taken[place][1])
            place += 1
        if start < end:
            out.append((start, end))
    return out


def length(spans: Iterable[Span]) -> int:
    """Cycles of disjoint spans."""
    return sum(end - start for start, end in spans)


def activity(
    compiled: CompiledModel, schedule: StepSchedule
) -> list[tuple[str, dict[str, list[Span]]]]:
    """(label, state -> spans) of every stage and of the host; the states add up to the step."""
    host, rows = compiled.layout.chips, []
    moves: dict[int, list[ScheduledTransfer]] = {}
    for transfer in schedule.transfers:
        for node in {transfer.src, transfer.dst}:
            moves.setdefault(node, []).append(transfer)
    last = max(op.end for program in schedule.programs for op in program.operations)
    for group in compiled.partition.groups:
        ends = sorted({*group.layers[:1], *group.layers[-1:]})
        label = "-".join(map(str, ends))
        if group.has_head:
            label += " + head" if label else "head"
        rows.append((label, _states(group.chips, schedule, moves, [])))
    rows.append(("host", _states((host,), schedule, moves, [(last, schedule.cycles)])))
    return rows


def _states(
    nodes: Sequence[int], schedule: StepSchedule, moves: dict[int, list[ScheduledTransfer]],
    extra: Sequence[Span],
) -> dict[str, list[Span]]:  # fmt: skip
    computing = [
        (op.start, op.end)
        for node in nodes
        for op in schedule.programs[node].operations
        if not isinstance(op.op, Send | Receive)
    ]
    compute = union([*computing, *extra])
    moving = union((t.depart, t.arrive) for node in nodes for t in moves.get(node, ()))
    exchange = without(moving, compute)
    idle = without([(0, schedule.cycles)], union([*compute, *exchange]))
    return {"compute": compute, "exchange": exchange, "idle": idle}


def draw(compiled: CompiledModel, schedule: StepSchedule, machine: str, kind: str) -> bytes:
    """Draw a step as a `kind` of METADATA; the same schedule gives the same bytes."""
    rows = activity(compiled, schedule)
    lanes = _layer(compiled, schedule)
    tall, low = 1.2 + 0.22 * min(len(rows), LABELLED), 0.8 + 0.3 * len(lanes[1])
    figure = Figure(figsize=(15, tall + low + 0.8), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=[tall, low])
    clock = compiled.chip.clock_hz
    figure.suptitle(
        f"{compiled.config.name} {compiled.dtype}, {schedule.name}, on {machine}, layout "
        f"{compiled.layout}: {schedule.cycles:,} cycles = {schedule.cycles * 1e6 / clock:,.1f} µs",
        fontsize=13,
    )
    _draw_stages(top, rows, schedule.cycles)
    _draw_layer(bottom, *lanes)
    out = BytesIO()
    with rc_context({"svg.hashsalt": "lpu-rack"}):  # its ids are random otherwise
        figure.savefig(out, dpi=110, format=kind, metadata=METADATA[kind])
    return out.getvalue()


def _draw_stages(
    axes: Axes, rows: Sequence[tuple[str, dict[str, list[Span]]]], cycles: int
) -> None:
    for place, (_, states) in enumerate(rows):
        for state, spans in states.items():
            bars = [(start, end - start) for start, end in spans]
            axes.broken_barh(bars, (place - 0.42, 0.84), facecolors=COLOURS[state], linewidth=0)
    every = -(-len(rows) // LABELLED)  # of many rows, name one in so many
    named = list(range(0, len(rows), every))
    axes.set_yticks(named, [rows[place][0] for place in named], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    shares = axes.secondary_yaxis("right")
    shares.spines["right"].set_visible(False)
    shares.tick_params(axis="y", length=0)
    shares.set_yticks(
        named,
        [
            " ".join(f"{length(rows[at][1][s]) / cycles:>5.1%}" for s in ("compute", "exchange"))
            for at in named
        ],
        fontsize=9, family="monospace",
    )  # fmt: skip
    title = (
        "stages by their layers, then the host; right: shares of the step, computing and exchanging"
    )
    axes.set_title(title, fontsize=11, loc="left")
    _cycles_across(axes, 0, cycles)
    handles = [Patch(color=colour, label=state) for state, colour in COLOURS.items()]
    axes.legend(
        handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=9,
        frameon=False,
    )  # fmt: skip


def _cycles_across(axes: Axes, start: int, end: int) -> None:
    axes.set_xlim(start, end)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("cycle of the step")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _middle_layer(compiled: CompiledModel) -> tuple[int, int]:
    """(chip, layer) to look at closely: rank 0 of a middle stage, its middle layer."""
    groups = [group for group in compiled.partition.groups if len(group.layers)]
    group = groups[len(groups) // 2]
    return group.chips[0], group.layers[len(group.layers) // 2]


def _layer(
    compiled: CompiledModel, schedule: StepSchedule
) -> tuple[str, dict[str, list[tuple[int, int, str, str]]]]:
    """Return what is shown, and the slices (start, end, name, state) by lane."""
    chip, layer = _middle_layer(compiled)
    prefix, carried = f"layers.{layer}.", transfer_names(compiled.partition.graph, schedule)
    slices: dict[str, list[tuple[int, int, str, str]]] = {}
    for op in schedule.programs[chip].operations:
        name = carried[op.op.transfer] if isinstance(op.op, Send | Receive) else op.name
        if name.startswith(prefix):
            for lane, start, end, state in _lanes(op, compiled):
                slices.setdefault(lane, []).append((start, end, name, state))
    return f"layer {layer} on chip {chip}, unit by unit", slices


def _draw_layer(axes: Axes, title: str, slices: dict[str, list[tuple[int, int, str, str]]]) -> None:
    start = min(item[0] for lane in slices.values() for item in lane)
    end = max(item[1] for lane in slices.values() for item in lane)
    lanes = sorted(slices, key=lambda lane: (lane.startswith("C2C"), lane.endswith("in")))
    for place, lane in enumerate(lanes):
        axes.broken_barh(
            [(start, end - start)], (place - 0.42, 0.84), facecolors=COLOURS["idle"], linewidth=0
        )
        for first, last, name, state in slices[lane]:
            axes.broken_barh(
                [(first, last - first)], (place - 0.42, 0.84), facecolors=COLOURS[state],
                edgecolors="white", linewidth=0.5,
            )  # fmt: skip
            short = _short(name)
            if last - first > _LETTER * len(short) * (end - start):
                axes.text(
                    (first + last) / 2, place, short, ha="center", va="center", fontsize=7.5,
                    color="white",
                )  # fmt: skip
    axes.set_yticks(range(len(lanes)), lanes, fontsize=9)
    axes.set_ylim(len(lanes) - 0.4, -0.6)
    axes.set_title(title, fontsize=11, loc="left")
    _cycles_across(axes, start, end)


def _short(name: str) -> str:
    """Drop what the picture shows already: self_attn.o_proj is o_proj."""
    name = name.rpartition(".")[2]
    return {"input_layernorm": "norm", "post_attention_layernorm": "norm"}.get(name, name)


def _lanes(scheduled: Scheduled, compiled: CompiledModel) -> list[tuple[str, int, int, str]]:
    """(lane, start, end, state) of an operation; the planes of the MXM share a lane."""
    op, start, end = scheduled.op, scheduled.start, scheduled.end
    if isinstance(op, Send | Receive):
        link = compiled.network.links[op.link]
        if isinstance(op, Send):
            return [(f"C2C to {link.dst} out", start, end, "exchange")]
        return [(f"C2C from {link.src} in", start - link.slot_cycles, end, "exchange")]
    units = {"MXM" if unit.startswith("MXM") else unit for unit in op.units}
    return [(unit, start, end, "compute") for unit in sorted(units)]
