"""`python -m rack.sweep MODEL --grid KEY=V,V,…`: a grid of plans or measurements, a row a point.

Rows are JSON Lines, in the grid's order. A sweep that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compiler.errors import CompilerError
from compiler.place.layout import parse_layout
from rack.commands.command import UsageError, at_least, command, show_placement
from rack.commands.flags import model_flags, output_flags, run_config, verb_parser
from rack.commands.sweep_points import bare, machine, row
from rack.errors import KNOWN_ERRORS, ConfigError, ProfileError
from rack.machines.changes import DERIVED, changed
from rack.reports.plots import draw_panels
from rack.run.config import KEYS, resolve
from rack.run.session import options_of, prepare
from rack.sweeps.columns import Plot, about, panel_of, parse_plot
from rack.sweeps.grid import OWN, Plan, Run, known, named, parse_axis, parts, read_sweep
from rack.sweeps.lanes import Processes, Row, in_order
from rack.sweeps.rows import Rows, adding, read_rows
from rack.sweeps.task import Task
from rack.system.output import STANDARD_OUTPUT, writing
from rack.system.progress import say, start_progress
from rack.system.provenance import code_version
from rack.system.shell import put

PICTURES = ("png", "svg")
EPILOG = (
    "KEY is a flag (layout, dtype, max-model-len, hardware, …), context, or a key of the machine's "
    f"profile (link.latency_ns, clock.drift_ppm, chip.clock_hz, …; {', '.join(DERIVED)}: "
    f"{'; '.join(DERIVED.values())}), with interconnect. in front or not."
)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.sweep`."""
    parser = verb_parser(
        "sweep", model_flags(needed=False), output_flags(json=False), epilog=EPILOG
    )
    group = parser.add_argument_group("points")
    group.add_argument(
        "--grid", action="append", default=[], metavar="KEY=V,V,…",
        help="an axis: every combination of all axes' values is a point; the last changes fastest",
    )  # fmt: skip
    group.add_argument(
        "--file", metavar="SWEEP.toml",
        help="axes in a table grid, and fixed keys: model, run, plot and any flag (experiments/)",
    )  # fmt: skip
    group.add_argument(
        "--run", choices=tuple(Run), default=None,
        help="plan: as rack.plan, nothing starts; bench: as rack.bench, a point at a time "
        f"(default {Run.PLAN})",
    )  # fmt: skip
    for run, counts in OWN.items():
        for name, default in counts.items():
            group.add_argument(
                f"--{name.replace('_', '-')}", type=int, metavar="N",
                help=f"as of rack.{run}" + (f" (default {default})" if default else ""),
            )  # fmt: skip
    group.add_argument(
        "--jobs", type=int, metavar="N",
        help="processes of this computer (default its cores); tasks of Ray, where RAY_ADDRESS "
        "names a cluster, are as many as it has CPUs",
    )  # fmt: skip
    files = parser.add_argument_group("files")
    files.add_argument(
        "-o", "--out", default=STANDARD_OUTPUT, metavar="FILE",
        help="rows, a JSON object a line; points that the file has are left out; - is standard "
        "output (default %(default)s)",
    )  # fmt: skip
    files.add_argument(
        "--plot", metavar="X,Y[,COLOUR]",
        help="draw column Y over column X, a line for each value of COLOUR, as FILE's name with "
        ".png and .svg",
    )  # fmt: skip
    return parser


@command(build_parser)
def main(args: argparse.Namespace) -> None:
    """Work on all points that the file does not have."""
    at_least(args, 1, "jobs", *(name for counts in OWN.values() for name in counts))
    plan, plot = _sweep(args)
    if plot is not None and args.out == STANDARD_OUTPUT:
        raise UsageError("--plot: wanted --out FILE, beside which pictures are written, got -")
    if plan.run is Run.BENCH and (args.jobs or 1) > 1:
        raise UsageError(f"--jobs: wanted 1 with --run bench, which measures, got {args.jobs}")
    tasks = _tasks(args, plan)
    if args.dry_run:
        _show(plan, tasks)
        return
    code = code_version()
    with adding(args.out, code) as rows:
        _work(args, plan, tasks, rows)
    if plot is not None:
        _draw(args.out, plot, {task.key for task in tasks})


def _sweep(args: argparse.Namespace) -> tuple[Plan, Plot | None]:
    """Return the sweep from file and flags, and what to draw. Raises UsageError."""
    try:
        run, fixed, axes = read_sweep(args.file) if args.file else (None, {}, ())
        plot = fixed.pop("plot", None)
        if args.plot is not None:
            plot = args.plot
        run = Run(args.run) if args.run else run or Run.PLAN
        fixed = {key: v for key, v in fixed.items() if getattr(args, known(key, run), None) is None}
        axes = (*axes, *map(parse_axis, args.grid))
        plan = Plan(run=run, fixed=fixed, axes=axes)
        for axis in axes:
            name = known(axis.key, run)
            if getattr(args, name, None) is not None:
                raise UsageError(f"--{name.replace('_', '-')}: wanted no flag beside an axis of it")
        for other in Run:
            for name in OWN[other]:
                if other is not run and getattr(args, name) is not None:
                    flag = name.replace("_", "-")
                    raise UsageError(f"--{flag}: wanted --run {other}, got {run}")
        return plan, None if plot is None else parse_plot(plot)
    except ConfigError as error:
        raise UsageError(str(error)) from error


def _tasks(args: argparse.Namespace, plan: Plan) -> list[Task]:
    """Resolve every point before there is any work. Raises UsageError."""
    given = {name: getattr(args, name) for name in KEYS}
    asked = {name: getattr(args, name) or default for name, default in OWN[plan.run].items()}
    counts = {name: count for name, count in asked.items() if count is not None}
    machines: dict[object, str] = {}
    tasks: list[Task] = []
    keys: dict[str, dict[str, Any]] = {}
    for point in plan.points():
        try:
            flags, keyed, own = parts({**plan.fixed, **point}, plan.run)
            flags = given | flags
            if flags["model"] is None:
                raise ConfigError("model: wanted MODEL, or model in the file, got nothing")
            read = resolve if tasks else run_config  # which tells of foreign variables, once
            config = read(argparse.Namespace(**flags, config=args.config))
            options_of(config)
            if config.layout != "auto":
                parse_layout(config.layout)
            changes = bare(changed(keyed))
            if (config.hardware, changes) not in machines:
                machines[config.hardware, changes] = machine(config.hardware, changes).name
        except (CompilerError, ConfigError, ProfileError) as error:
            raise UsageError(str(error)) from error
        task = Task(
            run=plan.run, point=point, config=config, changes=changes,
            counts=tuple((counts | own).items()),
        )  # fmt: skip
        if (other := keys.setdefault(task.key, point)) is not point:
            raise UsageError(f"grid: wanted points that differ, got {dict(other)} and {point}")
        tasks.append(task)
    return tasks


def _show(plan: Plan, tasks: list[Task]) -> None:
    """Print where each point's model would lie: `--dry-run`."""
    keys = [axis.key for axis in plan.axes]
    for task in tasks:
        if len(tasks) > 1:
            put(f"{named(keys, task.point)}:")
        hardware = machine(task.config.hardware, task.changes)
        try:
            prepared = prepare(task.config, kinds="estimate", runs=False, hardware=hardware)
            show_placement(prepared)
        except KNOWN_ERRORS as error:
            if len(tasks) == 1:
                raise
            put(f"does not fit: {error}")


def _work(args: argparse.Namespace, plan: Plan, tasks: list[Task], rows: Rows) -> None:
    missing = [task for task in tasks if task.key not in rows.there]
    done, misfits = len(tasks) - len(missing), 0
    with start_progress() as progress:
        progress.report("points", done, len(tasks))
        for found in _rows(args, plan, missing):
            rows.add(found)
            done, misfits = done + 1, misfits + ("error" in found)
            progress.report("points", done, len(tasks))
    told = f", {misfits} of them do not fit" if misfits else ""
    say(f"{args.out}: {len(tasks)} points, {len(missing)} new{told}")


def _rows(args: argparse.Namespace, plan: Plan, tasks: list[Task]) -> Iterator[Row]:
    """Yield the rows of tasks in order, worked on here or in a cluster."""
    cluster = plan.run is Run.PLAN and bool(os.environ.get("RAY_ADDRESS"))
    jobs = min(len(tasks), args.jobs or len(os.sched_getaffinity(0)))
    if not cluster and (jobs < 2 or plan.run is Run.BENCH):
        yield from map(row, tasks)
        return
    lanes: Processes | Any
    if cluster:
        from rack.run.cluster import RayTasks  # imports ray: only where it is used

        lanes = RayTasks(row)
    else:
        lanes = Processes(row, jobs)
    with lanes:
        yield from in_order(lanes, tasks)


def _draw(out: str, plot: Plot, keys: set[str]) -> None:
    found = [row for row in read_rows(out) if row["key"] in keys]
    panel = panel_of(plot, found)
    for kind in PICTURES:
        path = str(Path(out).with_suffix(f".{kind}"))
        with writing(path, "a picture") as file:
            file.write(draw_panels([panel], about(found), kind))
        say(f"{path}: {plot}")
