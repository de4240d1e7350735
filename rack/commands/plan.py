"""`python -m rack.plan MODEL`: the size of a model, the cost of a token or sequence; no start."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from chip.ops.moves import Receive, Send
from compiler.analyse import PARTS, Analysis, analyse
from compiler.artifact import is_artifact
from compiler.codegen.table import has_instructions
from compiler.ir import StepSchedule
from compiler.model.frontend import resolve_model
from compiler.pipeline import (
    MAX_SEQUENCES,
    CompiledModel,
    Options,
    compile_model,
    lay_out,
    most_sequences,
)
from compiler.place.auto import choose_layout
from compiler.place.layout import parse_layout
from rack.commands.command import model_command, show_placement
from rack.commands.flags import cost_flags, model_flags, output_flags, prices_of, verb_parser
from rack.errors import ConfigError
from rack.machines.profile import load_hardware
from rack.reports.costs import (
    Prices,
    cost,
    cost_text,
    input_lines,
    inputs,
    reference,
    reference_lines,
)
from rack.reports.experts import expert_lines, expert_programs
from rack.reports.instructions import step_sizes
from rack.reports.sequences import sequences_lines, sequences_report
from rack.reports.tables import columns, shown
from rack.run.config import RunConfig
from rack.run.session import Prepared, options_of, prepare
from rack.system.provenance import code_version
from rack.system.shell import put

DEFAULT_CONTEXT = 512  # tokens in context for the figures per token
SMALL = 0.01  # share of a token from which on what bounds it is named


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.plan`."""
    parser = verb_parser("plan", model_flags(without=("sequences",)), cost_flags(), output_flags())
    group = parser.add_argument_group("step")
    group.add_argument(
        "--sequences", metavar="S|max", action=_Sequences,
        help="slots of the KV cache; max: as many as fit at --max-model-len (default 1)",
    )  # fmt: skip
    parser.set_defaults(most=False)
    group.add_argument(
        "--context",
        type=int,
        metavar="N",
        help=f"tokens in context, or of an encoder's sequence (default {DEFAULT_CONTEXT})",
    )
    group.add_argument(
        "--instructions", action="store_true",
        help="lower the step and show what its programs take (a minute for llama-8b)",
    )  # fmt: skip
    return parser


class _Sequences(argparse.Action):
    """Keep a number of slots as any verb does; note the word max apart."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
        option_string: str | None = None,
    ) -> None:  # fmt: skip
        namespace.most = values == "max"
        namespace.sequences = None if namespace.most else values


@model_command(build_parser)
def main(args: argparse.Namespace, config: RunConfig) -> None:
    """Print the plan, or the placement alone."""
    if args.context is not None and args.context < 1:
        raise ConfigError(f"context: wanted 1 or more, got {args.context}")
    prices = prices_of(args)
    if args.most:
        config = with_most_sequences(config)
    prepared = prepare(
        config, kinds="decode", contexts=(args.context or DEFAULT_CONTEXT,), runs=False
    )
    if args.dry_run:
        show_placement(prepared, as_json=args.json)
        return
    context = args.context or min(DEFAULT_CONTEXT, prepared.compiled.max_model_len)
    schedule = prepared.compiled.step_for(context)
    report = whole_report(prepared, schedule, prices)
    if args.instructions:
        report["instructions"] = instructions(prepared, schedule)
    if args.json:
        put(json.dumps(report))
    else:
        put(text_of(report))


def whole_report(
    prepared: Prepared, schedule: StepSchedule, prices: Prices
) -> dict[str, Any]:  # fmt: skip
    """Return the plan of one step: also its costs, and what there is to say of clocks and types."""
    report = plan_report(prepared, analyse(prepared.compiled, schedule))
    report["synchronisation"] = synchronisation(prepared, schedule)
    report["cost"] = costs(prepared, schedule, prices)
    if schedule.kind.decode:
        report["sequences"] = sequences_report(prepared.compiled, schedule.kind.bucket)
    if prepared.compiled.int4_group is not None:
        report["int4"] = int4_loads(prepared)
    if (experts := expert_programs(prepared.compiled, schedule)) is not None:
        report["experts"] = experts
    if names := estimated(prepared.compiled, schedule):
        report["estimated"] = names
    return report


def with_most_sequences(config: RunConfig) -> RunConfig:
    """Return the configuration with the most slots of its context that fit, and its layout.

    A layout is chosen as for one batch. Raises ConfigError where there are no slots to count.
    """
    if config.max_model_len is None:
        raise ConfigError("sequences: max wants --max-model-len N, the context of each sequence")
    if is_artifact(Path(config.model)):
        raise ConfigError("sequences: an artifact has the slots that it was compiled with, got max")
    model = resolve_model(config.model, config.weights, config.seed, config.layers).config
    if model.encoder is not None:
        raise ConfigError(f"sequences: wanted 1, as {model.name} is an encoder, got max")
    if not 1 <= config.batch <= MAX_SEQUENCES:
        raise ConfigError(f"batch: wanted 1 to {MAX_SEQUENCES}, got {config.batch}")
    hardware = load_hardware(config.hardware)
    options = options_of(replace(config, sequences=config.batch))
    if config.layout == "auto":
        layout = choose_layout(model, hardware, options, spares=config.spares)
    else:
        layout = parse_layout(config.layout)
    ground = lay_out(model, hardware, layout, options)
    most = most_sequences(
        ground.partition, ground.network, hardware.chip, options, config.max_model_len
    )
    return replace(config, sequences=most, layout=str(layout))


def plan_report(prepared: Prepared, analysis: Analysis) -> dict[str, Any]:
    """Return the plan as plain data; cycles and microseconds are emulated."""
    compiled, hardware = prepared.compiled, prepared.hardware
    memories = compiled.memories

    def spread(name: str) -> dict[str, int]:
        values = [getattr(memory, name) for memory in memories]
        return {"min": min(values), "max": max(values), "total": sum(values)}

    return {
        "model": compiled.config.name,
        "weights": prepared.model.weights_ref.describe(),
        "dtype": compiled.dtype,
        "hardware": hardware.name,
        "hardware_digest": hardware.digest(),
        "layout": str(compiled.layout),
        "chips": compiled.layout.chips,
        "racks": hardware.racks(compiled.layout.chips),
        "max_model_len": compiled.max_model_len,
        "prefill_chunk": compiled.prefill_chunk,
        "buckets": list(compiled.buckets),
        "sram_bytes_per_chip": {
            "capacity": compiled.chip.sram_bytes,
            "weights": spread("constant_bytes"),
            "kv_cache": spread("kv_bytes"),
            "buffers": spread("buffer_bytes"),
            "free": spread("free_bytes"),
        },
        **_step_report(compiled, analysis),
        "config": prepared.config.to_dict(),
        "notices": prepared.notices,
        "code": code_version(),
    }


def costs(prepared: Prepared, schedule: StepSchedule, prices: Prices) -> dict[str, Any]:
    """Return energy and money a million tokens: of one sequence alone, and of a full pipeline.

    Whether or not there are KV caches for so many sequences: `sequences` has the slots.
    """
    compiled, economics = prepared.compiled, prepared.hardware.economics
    interval = compiled.interval(schedule.name, schedule.name)
    tokens = schedule.kind.rows if schedule.kind.encode else 1
    alone, full = (
        tokens * compiled.chip.clock_hz / cycles for cycles in (schedule.cycles, interval)
    )
    chips = compiled.layout.chips
    return {
        "inputs": inputs(economics, chips, prices),
        "alone": cost(economics, chips, alone, prices).to_dict(),
        "pipeline_full": cost(economics, chips, full, prices).to_dict(),
        "in_flight_when_full": max(1, schedule.cycles // interval),
        "groqcloud": reference(compiled.config.name),
    }


def estimated(compiled: CompiledModel, schedule: StepSchedule) -> list[str]:
    """Return the opcodes of a step whose cycles are estimates: they have no instructions yet."""
    operations = (item.op for program in schedule.programs for item in program.operations)
    return sorted({
        op.opcode for op in operations
        if not isinstance(op, Send | Receive) and not has_instructions(op, compiled.chip)
    })  # fmt: skip


def int4_loads(prepared: Prepared) -> dict[str, Any]:
    """Return what int4 weights rest on: how the weight path unpacks them, and what that saves."""
    compiled, chip = prepared.compiled, prepared.compiled.chip
    return {
        "group": compiled.int4_group,
        "columns_per_vector": chip.mxm_int4_columns,
        "tile_load_cycles": -(-chip.weight_load_cycles // chip.mxm_int4_columns),
        "int8_tile_load_cycles": chip.weight_load_cycles,
        "source": prepared.hardware.sources["chip.mxm_int4_columns"].source,
    }


def synchronisation(prepared: Prepared, schedule: StepSchedule) -> dict[str, Any]:
    """Return the cost of straying clocks to a step, against the same machine with exact ones."""
    compiled, hardware = prepared.compiled, prepared.hardware
    network, cost = compiled.network, 0
    if network.clock.strays:
        exact = replace(hardware.clock, drift_ppm=0, jitter_mcycles=0)
        options = Options(
            dtype=compiled.dtype, int4_group=compiled.int4_group,
            max_model_len=compiled.max_model_len, top_k=compiled.top_k,
            prefill_chunk=compiled.prefill_chunk, buckets=compiled.buckets,
            binding=network.binding, sequences=compiled.sequences, batch=compiled.batch,
        )  # fmt: skip
        ideal = compile_model(
            compiled.config, replace(hardware, clock=exact), compiled.layout, options,
            kinds="decode", contexts=(schedule.kind.bucket,),
        )  # fmt: skip
        cost = schedule.cycles - ideal.steps[schedule.name].cycles
    slack = [link.slack_cycles for link in network.links]
    return {
        "drift_ppm": network.clock.drift_ppm,
        "jitter_cycles": network.clock.jitter_mcycles / 1000,
        "realign_cycles": network.clock.realign_cycles,
        "slack_cycles_per_hop": {"min": min(slack), "max": max(slack)},
        "stall_cycles": network.stall_cycles,
        "start_cycles": network.start_cycles,
        "stops": sum(len(program.realign) for program in schedule.programs),
        "cost_cycles": cost,
        "cost_fraction": cost / schedule.cycles,
    }


def instructions(prepared: Prepared, schedule: StepSchedule) -> dict[str, Any]:
    """Return the size of the step's programs as instructions, by chip. Raises LoweringError."""
    compiled = prepared.compiled
    sizes = step_sizes(compiled, schedule)
    weights = [memory.constant_bytes for memory in compiled.memories]
    total = [size.bytes for size in sizes]
    longest = max(
        (item for size in sizes for item in size.queue_bytes.items() if item[0] != "maps"),
        key=lambda item: item[1],
    )
    fetches = [size.fetching(schedule, compiled.chip) for size in sizes]
    most = max(fetches, key=lambda one: one.vectors / one.free_reads)
    return {
        "step": schedule.name,
        "bytes_per_chip": {"min": min(total), "max": max(total), "total": sum(total)},
        "share_of_weights": sum(total) / sum(weights),
        "instructions": sum(size.instructions for size in sizes),
        "longest_queue": {"name": longest[0], "bytes": longest[1]},
        "fetch": asdict(most),
    }


def _step_report(compiled: CompiledModel, analysis: Analysis) -> dict[str, Any]:
    """Return what the step costs: under "decode", or "encode" of an encoder.

    A sequence's cycles are its latency; another may follow it after the interval.
    """
    clock_hz, step = compiled.chip.clock_hz, compiled.steps[analysis.step]

    def time_of(cycles: int) -> dict[str, Any]:
        return {"cycles": cycles, "microseconds": cycles * 1e6 / clock_hz}

    interval = compiled.cycles_until(step.name, step.name)
    rates: dict[str, Any] = {"tokens_per_second": clock_hz / analysis.cycles}
    if step.kind.encode:
        rates = {
            "tokens": step.kind.rows, "interval": time_of(interval),
            "sequences_per_second": clock_hz / interval,
        }  # fmt: skip
    report = _part_report(analysis, time_of)
    return {"encode" if step.kind.encode else "decode": {**report, **rates}}


def _part_report(
    analysis: Analysis, time_of: Callable[[int], dict[str, Any]]
) -> dict[str, Any]:  # fmt: skip
    busiest = [("unit", analysis.unit), *([("link", analysis.link)] if analysis.link else [])]
    return {
        "step": analysis.step,
        **time_of(analysis.cycles),
        "parts": {part: time_of(cycles) for part, cycles in analysis.parts.items()},
        "bounds": {bound: time_of(cycles) for bound, cycles in analysis.bounds.items()},
        "roofline_cycles": analysis.roofline_cycles,
        "roofline_ratio": analysis.roofline_ratio,
        "stream_bytes": analysis.stream_bytes,
        **{
            f"busiest_{kind}": {
                "name": item.name,
                "busy_cycles": item.cycles,
                "busy_fraction": item.cycles / analysis.cycles,
            }
            for kind, item in busiest
        },
    }


def text_of(report: dict[str, Any]) -> str:
    """Return the report as text."""
    encodes = "encode" in report
    decode = report["encode" if encodes else "decode"]
    rows = "whole sequences" if encodes else f"a prefill chunk of {report['prefill_chunk']}"
    head = (
        f"{report['model']} {report['dtype']} on {report['hardware']}: layout {report['layout']}, "
        f"{report['chips']} chips, {report['racks']} racks; largest context that fits "
        f"{report['max_model_len']} tokens beside {rows}"
    )
    lines = [f"a token is bound by {_bounds(decode)}"]
    for kind in ("link", "unit"):
        item = decode.get(f"busiest_{kind}")
        text = f"{item['name']}, busy {item['busy_fraction']:.1%} of the step" if item else "none"
        lines.append(f"busiest {kind}: {text}")
    clocks = report["synchronisation"]
    if clocks["drift_ppm"] or clocks["jitter_cycles"]:
        slack = clocks["slack_cycles_per_hop"]
        lines.append(
            f"synchronisation: {clocks['cost_cycles']:,} cycles, {clocks['cost_fraction']:.2%} of "
            f"the step, for +-{clocks['drift_ppm']} ppm: {slack['min']}-{slack['max']} cycles of "
            f"slack a hop, {clocks['stops']} stops of {clocks['stall_cycles']} cycles or more; "
            f"a request starts in {clocks['start_cycles']:,} cycles"
        )
    if "sequences" in report:
        lines += sequences_lines(report["sequences"])
    if "int4" in report:
        lines.append(_int4_line(report["int4"]))
    if "experts" in report:
        lines += expert_lines(report["experts"])
    if "estimated" in report:
        names = ", ".join(report["estimated"])
        lines.append(f"estimates: cycles of {names}, which have no instructions yet")
    lines.append(
        f"stream roofline: {decode['roofline_cycles']:,} cycles; the schedule takes "
        f"{decode['roofline_ratio']:.2f} times that; {_rate(decode)}"
    )
    lines += _cost_lines(report["cost"], report)
    lines += [f"NOTE: {notice}" for notice in report["notices"]]
    return shown(head, _memory_table(report), _cycles_table(decode), *lines)


def _cost_lines(found: dict[str, Any], report: dict[str, Any]) -> list[str]:
    return [
        *input_lines(f"{report['hardware']}'s chip", found["inputs"]),
        f"one sequence alone: {cost_text(found['alone'])}",
        f"pipeline full, {found['in_flight_when_full']} sequences or more (if they fit): "
        f"{cost_text(found['pipeline_full'])}",
        *reference_lines(report["model"], found["groqcloud"]),
    ]


def _int4_line(loads: dict[str, Any]) -> str:
    return (
        f"int4 weights, a scale for {loads['group']} input rows: a tile of 320 x 320 loads in "
        f"{loads['tile_load_cycles']} cycles, int8 in {loads['int8_tile_load_cycles']}; "
        f"{loads['source']}"
    )


def _rate(step: dict[str, Any]) -> str:
    if "tokens_per_second" in step:
        return f"{step['tokens_per_second']:.1f} tokens/s"
    return (
        f"another sequence every {step['interval']['microseconds']:.2f} us, "
        f"{step['sequences_per_second']:.1f} sequences/s"
    )


def _bounds(decode: dict[str, Any]) -> str:
    """Return what the critical path is spent on, most first; the small ones together."""
    shares = {name: row["cycles"] / decode["cycles"] for name, row in decode["bounds"].items()}
    large = {name: share for name, share in shares.items() if share >= SMALL}
    rest = sum(shares.values()) - sum(large.values())
    shown = [f"{name} {share:.1%}" for name, share in large.items()]
    return ", ".join([*shown, f"others {rest:.1%}"] if rest else shown)


def _memory_table(report: dict[str, Any]) -> Table:
    out = columns("SRAM per chip", "min bytes", "max bytes", "all chips")
    capacity = report["sram_bytes_per_chip"]["capacity"]
    for name in ("weights", "kv_cache", "buffers", "free"):
        row = report["sram_bytes_per_chip"][name]
        out.add_row(name, *(f"{row[key]:,}" for key in ("min", "max", "total")))
    if programs := report.get("instructions"):
        row = programs["bytes_per_chip"]
        cells = (f"{row[key]:,}" for key in ("min", "max", "total"))
        out.add_row(f"program of {programs['step']} (in no region)", *cells)
    out.add_row("capacity", f"{capacity:,}", f"{capacity:,}", f"{capacity * report['chips']:,}")
    return out


def _cycles_table(decode: dict[str, Any]) -> Table:
    each = f"per sequence of {decode['tokens']} tokens" if "tokens" in decode else "per token"
    out = columns(f"{each}, {decode['step']}", "cycles", "us", "share")
    for part in PARTS:
        row = decode["parts"][part]
        share = row["cycles"] / decode["cycles"]
        out.add_row(part, f"{row['cycles']:,}", f"{row['microseconds']:.2f}", f"{share:.1%}")
    out.add_row("all", f"{decode['cycles']:,}", f"{decode['microseconds']:.2f}", "100.0%")
    return out
