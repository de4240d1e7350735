"""An operation's instructions as a picture: the chip's units down, west to east; cycles across.

Each unit has lanes of its own. A lane is filled in the cycles in which its queues issue: to the
height of the share that issue, where it stands for several queues. An ALU's lane is pale while its
register keeps a result. Drawn with matplotlib, which has no display to open here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from chip.floorplan import SXM_QUEUES, Role, Unit, plane_of
from chip.isa.control import Receive, Send
from chip.isa.instructions import ABC, ACC, IW, LW, Alu, AluOp, Instruction, Read, Transpose, Write
from chip.isa.issue import Issue
from chip.spec import ChipSpec
from compiler.codegen.core.uses import of_issues
from rack.reports.timeline import METADATA

SIDES = ("west", "east")
WIDE = {AluOp.MAX, AluOp.MIN, AluOp.EXP, AluOp.RSQRT, AluOp.TANH}
COLOURS = {
    "MXM: weights load (LW)": "#9d7fc1",
    "MXM: weights installed (IW)": "#2b1055",
    "MXM: activation to its slot (ABC)": "#c77dff",
    "MXM: activation multiplied (ABC)": "#6a2c91",
    "MXM: product added up (ACC)": "#b5179e",
    "MXM: sums leave (ACC)": "#f72585",
    "SXM: lanes permuted": "#e09f3e",
    "SXM: vectors transposed": "#9c5a12",
    "SXM: C2C send, receive": "#6c584c",
    "MEM: read": "#52a675",
    "MEM: write": "#1b4332",
    "VXM: add, multiply, compare": "#2a6f97",
    "VXM: maximum, exp, rsqrt, tanh": "#012a4a",
    "VXM: convert": "#00b4d8",
    "VXM: copy": "#8ecae6",
    "VXM: register keeps a result": "#c9dfeb",
}
"""What a colour means; hues tell units apart."""
KEPT = "VXM: register keeps a result"
GROUND = "#f6f6f6"


@dataclass(frozen=True, slots=True)
class Lane:
    """One line of the picture; `queues` instruction queues share it."""

    unit: str
    label: str
    queues: int


@dataclass(frozen=True, slots=True)
class Bar:
    """Cycles [start, end) of a lane, filled from its foot up to a share of its height."""

    start: int
    end: int
    share: float
    meaning: str


def lanes_of(spec: ChipSpec) -> list[Lane]:
    """Return the picture's lanes, as the units lie from west to east."""
    bulk = spec.slices // spec.hemispheres - spec.near_slices
    near = (
        (f"{spec.feed_slices} feed slices", spec.feed_slices),
        ("work slice" if spec.work_slices == 1 else f"{spec.work_slices} work slices",
         spec.work_slices),
    )  # fmt: skip

    def side(number: int) -> list[Lane]:
        name = SIDES[number]
        planes = [2 * number, 2 * number + 1]
        return [
            *(Lane(f"MXM {name}", f"plane {plane} {what}", 1)
              for plane in planes for what in ("weights", "array", "sums")),
            Lane(f"SXM {name}", f"{SXM_QUEUES} queues", SXM_QUEUES),
            Lane(f"MEM {name}", f"{bulk} bulk slices", bulk),
            *(Lane(f"MEM {name}", label, count) for label, count in near if count),
        ]  # fmt: skip

    alus = [Lane("VXM", f"ALU {number}", 1) for number in range(spec.vxm_alus)]
    east = side(1)
    return [*side(0), *alus, *reversed(east[6:]), *east[:6]]


def lane_of(issue: Issue, spec: ChipSpec) -> tuple[str, str]:
    """Return the unit and the label of an issue's lane, without the number of its slices."""
    queue = issue.queue
    if queue.unit is Unit.VXM:
        return "VXM", f"ALU {queue.number}"
    unit = f"{queue.unit} {SIDES[queue.hemisphere]}"
    if queue.unit is Unit.MXM:
        plane, role = plane_of(queue)
        names = {Role.LOAD: "weights", Role.FEED: "array", Role.DRAIN: "sums"}
        return unit, f"plane {plane} {names[role]}"
    if queue.unit is Unit.MEM:
        if queue.number < spec.work_slices:
            return unit, "work slice" if spec.work_slices == 1 else "work slices"
        return unit, "feed slices" if queue.number < spec.near_slices else "bulk slices"
    return unit, "queues"


def meaning(instruction: Instruction) -> str:
    """Return what an instruction's colour means."""
    if isinstance(instruction, Alu):
        if instruction.op is AluOp.COPY:
            return "VXM: copy"
        if instruction.op.value.startswith("CVT"):
            return "VXM: convert"
        wide = instruction.op in WIDE
        return "VXM: maximum, exp, rsqrt, tanh" if wide else "VXM: add, multiply, compare"
    if isinstance(instruction, ABC):
        to_slot = instruction.stream is not None and instruction.slot is not None
        return f"MXM: activation {'to its slot' if to_slot else 'multiplied'} (ABC)"
    if isinstance(instruction, ACC):
        return "MXM: sums leave (ACC)" if instruction.out else "MXM: product added up (ACC)"
    for kinds, name in (
        (LW, "MXM: weights load (LW)"), (IW, "MXM: weights installed (IW)"),
        (Read, "MEM: read"), (Write, "MEM: write"), (Transpose, "SXM: vectors transposed"),
        ((Send, Receive), "SXM: C2C send, receive"),
    ):  # fmt: skip
        if isinstance(instruction, kinds):
            return name
    return "SXM: lanes permuted"


def bars(issues: Sequence[Issue], spec: ChipSpec) -> dict[Lane, list[Bar]]:
    """Return what is drawn in each lane that has something to show, in the picture's order."""
    kept: dict[int, list[Bar]] = {}
    for use in of_issues("picture", issues, spec):
        kept.setdefault(use.alu, []).append(Bar(use.landed, use.last + 1, 1.0, KEPT))
    out: dict[Lane, list[Bar]] = {}
    for lane in lanes_of(spec):
        if own := [issue for issue in issues if _belongs(lane, *lane_of(issue, spec))]:
            registers = kept[own[0].queue.number] if lane.unit == "VXM" else []
            out[lane] = [*registers, *_filled(own, lane)]
    return out


def _belongs(lane: Lane, unit: str, label: str) -> bool:
    return lane.unit == unit and lane.label.lstrip("0123456789 ") == label.lstrip("0123456789 ")


def _filled(issues: Iterable[Issue], lane: Lane) -> Iterator[Bar]:
    """Yield a lane's issues as bars; of a cycle's meanings, the rarer stands on the others."""
    cycles: dict[int, Counter[str]] = {}
    for issue in issues:
        for n in range(issue.n):
            found = cycles.setdefault(issue.cycle + n * issue.d, Counter())
            found[meaning(issue.instruction)] += 1
    for cycle, found in sorted(cycles.items()):
        height = sum(found.values())
        for what, count in found.most_common():
            yield Bar(cycle, cycle + 1, min(1.0, height / lane.queues), what)
            height -= count


def draw(issues: Sequence[Issue], spec: ChipSpec, title: str, kind: str) -> bytes:
    """Draw an operation's instructions as a `kind` of METADATA; equal issues give equal bytes."""
    lanes = bars(issues, spec)
    figure = Figure(figsize=(16, 2.2 + 0.24 * len(lanes)), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=13, loc="left")
    _draw_lanes(axes, lanes)
    used = {bar.meaning for found in lanes.values() for bar in found}
    handles = [Patch(color=colour, label=what) for what, colour in COLOURS.items() if what in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    out = BytesIO()
    with rc_context({"svg.hashsalt": "lpu-rack"}):  # its ids are random otherwise
        figure.savefig(out, dpi=110, format=kind, metadata=METADATA[kind])
    return out.getvalue()


def _draw_lanes(axes: Axes, lanes: dict[Lane, list[Bar]]) -> None:
    start = min(bar.start for found in lanes.values() for bar in found)
    end = max(bar.end for found in lanes.values() for bar in found)
    places, at, before = list[float](), 0.0, ""
    for lane in lanes:
        at += 0.5 * (before not in ("", lane.unit))
        places.append(at)
        at, before = at + 1, lane.unit
    for found, place in zip(lanes.values(), places, strict=True):
        foot = place + 0.43
        axes.broken_barh([(start, end - start)], (place - 0.43, 0.86), facecolors=GROUND)
        for bar in found:
            high = 0.86 * bar.share
            axes.broken_barh(
                [(bar.start, bar.end - bar.start)], (foot - high, high),
                facecolors=COLOURS[bar.meaning], linewidth=0,
            )  # fmt: skip
    axes.set_yticks(places, [lane.label for lane in lanes], fontsize=8)
    axes.set_ylim(at - 0.3, -0.7)
    for unit in dict.fromkeys(lane.unit for lane in lanes):
        own = [p for lane, p in zip(lanes, places, strict=True) if lane.unit == unit]
        axes.text(1.005, sum(own) / len(own), unit, fontsize=10, va="center",
                  transform=axes.get_yaxis_transform())  # fmt: skip
    axes.set_xlim(start, end)
    axes.set_xlabel("cycle of the operation")
    axes.grid(axis="x", color="#d0d0d0", linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
