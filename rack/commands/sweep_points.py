"""Work on one point of a sweep: compile and look, or measure. Runs in processes of its own.

Points share what they have in common, in the process that works on them: the ground of a layout on
a machine (weights dealt and placed) among contexts, templates and their laws among all points, the
whole step among contexts of one bucket. Every step is verified.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from compiler.artifact import is_artifact
from compiler.errors import CapacityError, CompilerError
from compiler.model.config import ModelConfig
from compiler.model.frontend import resolve_model
from compiler.pipeline import Ground, Options, compile_on, lay_out
from compiler.place.auto import choose_layout, smallest_layout
from compiler.place.layout import Layout, parse_layout
from rack.commands.bench import measure
from rack.commands.plan import DEFAULT_CONTEXT, whole_report
from rack.errors import KNOWN_ERRORS, ConfigError
from rack.machines.changes import Value
from rack.machines.hardware import Hardware
from rack.machines.profile import load_hardware
from rack.reports.costs import Prices
from rack.run.config import RunConfig
from rack.run.session import options_of, prepare
from rack.sweeps.grid import Run
from rack.sweeps.task import Task

GROUNDS = 8  # kept; one of a large model takes tens of megabytes
REPORTS = 64  # kept, of buckets
Changes = tuple[tuple[str, Value | tuple[int, ...]], ...]
WALL = (
    "read_gb_per_s", "decode", "prefill", "startup_s", "startup_stages_s", "chip_seconds_by_part",
    "memory", "cores", "kernels",
)  # fmt: skip
"""Keys of a measurement that are about this computer, not about the machine."""


def row(task: Task) -> dict[str, Any]:
    """Return a point's row; one that does not fit says why."""
    try:
        found = _planned(task) if task.run is Run.PLAN else _measured(task)
    except KNOWN_ERRORS as error:
        return task.failed(error)
    return {**task.head(), **dict(task.counts), **found}


class _Site(NamedTuple):
    model: ModelConfig
    hardware: Hardware
    layout: Layout
    ground: Ground


def bare(changes: Mapping[str, Value]) -> Changes:
    """Return changes of a machine as what can be hashed."""
    flat = ((key, tuple(v) if isinstance(v, list) else v) for key, v in changes.items())
    return tuple(sorted(flat))


def machine(name: str, changes: Changes) -> Hardware:
    """Return a machine with changed keys. Raises ProfileError."""
    return load_hardware(
        name, {key: list(v) if isinstance(v, tuple) else v for key, v in changes}
    )  # fmt: skip


def _planned(task: Task) -> dict[str, Any]:
    """Return what `rack.plan --json` says of a point, and the hash of its schedule."""
    buckets = _site(task.config, task.changes).ground.buckets
    context = dict(task.counts).get("context") or min(DEFAULT_CONTEXT, buckets[-1])
    bucket = next((size for size in buckets if size >= context), None)
    if bucket is None:
        raise CompilerError(
            f"context: wanted at most {buckets[-1]}, which is what fits, got {context}"
        )
    report = _report(task.config, task.changes, bucket)
    return {"context": context, **report, "config": task.config.to_dict()}


@lru_cache(maxsize=REPORTS)
def _report(config: RunConfig, changes: Changes, bucket: int) -> dict[str, Any]:
    model, hardware, layout, ground = _site(config, changes)
    compiled = compile_on(
        ground, model, hardware, layout, kinds="decode", contexts=(bucket,), forks=False
    )
    prepared = prepare(config, runs=False, hardware=hardware, compiled=compiled)
    report = whole_report(prepared, compiled.step_for(bucket), Prices())
    parts = {"stages": layout.stages, "group": layout.group, "head": layout.head}
    return {**report, **parts, "schedule_hash": compiled.schedule_hash}


@lru_cache(maxsize=GROUNDS)
def _site(config: RunConfig, changes: Changes) -> _Site:
    if is_artifact(Path(config.model)):
        raise ConfigError(f"model: wanted a model to compile, got the artifact {config.model}")
    model = resolve_model(config.model, config.weights, config.seed, config.layers).config
    hardware, options = machine(config.hardware, changes), options_of(config)
    layout = (
        _chosen(model, hardware, options)
        if config.layout == "auto"
        else parse_layout(config.layout)
    )
    try:
        ground = lay_out(model, hardware, layout, options)
    except CapacityError as error:
        fits = _smallest(model, hardware, options)
        raise error.advise(str(fits) if fits else None) from None
    return _Site(model, hardware, layout, ground)


@lru_cache(maxsize=REPORTS)
def _chosen(model: ModelConfig, hardware: Hardware, options: Options) -> Layout:
    return choose_layout(model, hardware, options)


@lru_cache(maxsize=REPORTS)
def _smallest(model: ModelConfig, hardware: Hardware, options: Options) -> Layout | None:
    return smallest_layout(model, hardware, options)


def _measured(task: Task) -> dict[str, Any]:
    """Return what `rack.bench --json` says of a point; wall figures stand apart."""
    counts = dict(task.counts)
    report = measure(
        task.config, counts.get("prompt_tokens"), counts["decode_tokens"], counts["repeats"],
        machine(task.config.hardware, task.changes),
    )  # fmt: skip
    wall = {key: report.pop(key) for key in WALL}
    return {**report, "wall": wall}
