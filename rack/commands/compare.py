"""`python -m rack.compare MODEL`: the rack beside GPUs, by batch; starts nothing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from rich.table import Table

from compiler.files import shown as quoted
from rack.commands.command import UsageError, at_least, check_beside, model_command, show_placement
from rack.commands.flags import (
    cost_flags,
    count,
    model_flags,
    numbers,
    output_flags,
    prices_of,
    verb_parser,
)
from rack.errors import ConfigError
from rack.machines.gpu import Gpu, GpuDtype, gpu_names, load_gpu
from rack.reports.comparison import (
    MOST_BATCH,
    Side,
    compare,
    gpu_load,
    gpu_machine,
    gpu_roofline,
    rack_machine,
    rack_roofline,
)
from rack.reports.costs import input_lines, reference, reference_lines
from rack.reports.gpu_time import SIZES
from rack.reports.lpu_batches import Pipeline, crowd, prompt_tokens_per_s
from rack.reports.pictures import PICTURES, picture_kind
from rack.reports.tables import columns, shown
from rack.reports.workloads import LPU, verdicts
from rack.run.config import RunConfig
from rack.run.session import Prepared, Task, of_task, prepare
from rack.system.output import check_file, writing
from rack.system.progress import say, start_progress
from rack.system.provenance import code_version
from rack.system.shell import put

DEFAULT_CONTEXT = 512  # as in rack.plan
DEFAULT_GPUS = "a100-80,h100-sxm,h200"
DEFAULT_BATCHES = "1,2,4,8,16,32,64,128,256"
LONGEST = 1 << 24  # no model has a longer context


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.compare`."""
    parser = verb_parser(
        "compare", model_flags(without=("sequences", "batch")), cost_flags(), output_flags()
    )
    group = parser.add_argument_group("comparison")
    group.add_argument(
        "--gpu", default=DEFAULT_GPUS, metavar="NAME,...",
        help=f"{', '.join(gpu_names())}, or FILE.toml (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--gpu-tp", type=int, choices=SIZES, default=None,
        help="GPUs that the model is split over (default: the fewest that hold it)",
    )  # fmt: skip
    group.add_argument(
        "--gpu-dtype", choices=[str(dtype) for dtype in GpuDtype], default=str(GpuDtype.FP16),
        help="weights on GPUs, and products where there is a unit for it, else fp16; with fp8 and "
        "int8 the KV cache, too; mxfp4: experts alone (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--batch", dest="batches", default=DEFAULT_BATCHES, metavar="N,...",
        help="sequences in flight (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--context", type=count(LONGEST), metavar="N",
        help=f"tokens in each sequence's context (default {DEFAULT_CONTEXT})",
    )  # fmt: skip
    group.add_argument(
        "--plot", action="append", metavar="FILE",
        help=f"draw it here, as {', '.join(PICTURES)}; repeatable",
    )  # fmt: skip
    return parser


@model_command(build_parser)
def main(args: argparse.Namespace, config: RunConfig) -> None:
    """Print the comparison, and draw it."""
    at_least(args, 1, "context")
    batches = _batches(args.batches)
    check_beside("--plot", *(args.plot or ()))
    kinds = {path: picture_kind(path) for path in args.plot or ()}
    for path in kinds:
        check_file(path, "a picture")
    prices, gpus = prices_of(args), _gpus(args.gpu)
    with start_progress() as progress:
        asked = args.context or DEFAULT_CONTEXT
        prepared = prepare(
            config, kinds="decode", contexts=(asked,), runs=False, task=Task.GENERATE,
            progress=progress.report,
        )  # fmt: skip
        of_task(Task.GENERATE, prepared)
        if args.dry_run:
            progress.stop()
            show_placement(prepared, as_json=args.json)
            return
        context = args.context or min(DEFAULT_CONTEXT, prepared.compiled.max_model_len)
        prepared.compiled.step_for(context)  # CompilerError where the context has no room
        found = crowd(
            prepared.compiled, prepared.hardware, context,
            partial(progress.report, "compiling for many"),
        )  # fmt: skip
        rack = rack_machine(found, prepared.hardware)
        sides = _sides(args, prepared, gpus, context)
        prompts = prompt_tokens_per_s(
            prepared.compiled, prepared.hardware, context,
            partial(progress.report, "compiling prompts"),
        )  # fmt: skip
        report = {
            **_head(prepared, args, context, found, prompts),
            **compare(rack, sides, batches, prices),
            "roofline": {
                "lpu": rack_roofline(prepared.hardware, prepared.compiled.dtype),
                "gpu": {
                    side.gpu.name: gpu_roofline(side.gpu, side.load, batches) for side in sides
                },
            },
            "workloads": verdicts(
                prepared.compiled.config, prepared.hardware, rack, sides, prompts, prices
            ),
            **_tail(prepared),
        }  # fmt: skip
        for path, kind in kinds.items():
            _draw(path, kind, report)
    put(json.dumps(report) if args.json else text_of(report))


def _batches(text: str) -> list[int]:
    found = numbers(text, "batch", MOST_BATCH, "sequences")
    if min(found) < 1:
        raise ConfigError(f"batch: wanted at least 1, got {min(found)}")
    if found != sorted({*found}):
        raise ConfigError(f"batch: wanted rising numbers, got {quoted(text)}")
    return found


def _gpus(text: str) -> list[Gpu]:
    found = [load_gpu(name) for name in text.split(",")]
    names = [gpu.name for gpu in found]
    if LPU in names:
        raise UsageError(f"--gpu: wanted another name than that of the rack, got {LPU}")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--gpu: wanted each once, got {name} {names.count(name)} times")
    return found


def _sides(
    args: argparse.Namespace, prepared: Prepared, gpus: Sequence[Gpu], context: int
) -> list[Side]:
    dtype, out = GpuDtype(args.gpu_dtype), []
    for gpu in gpus:
        load = gpu_load(gpu, prepared.compiled.config, dtype, context, args.gpu_tp)
        out.append(Side(gpu=gpu, load=load, machine=gpu_machine(gpu, load)))
        if (unit := gpu.products_in(dtype)) is not dtype and dtype is not GpuDtype.MXFP4:
            say(f"NOTE: {gpu.name} has no unit for {dtype}: stored in it, multiplied in {unit}")
    return out


def _head(
    prepared: Prepared, args: argparse.Namespace, context: int, found: Pipeline, prompts: float
) -> dict[str, Any]:
    compiled = prepared.compiled
    return {
        "model": compiled.config.name,
        "hardware": prepared.hardware.name,
        "hardware_digest": prepared.hardware.digest(),
        "layout": str(compiled.layout),
        "chips": compiled.layout.chips,
        "dtype": compiled.dtype,
        "gpu_dtype": args.gpu_dtype,
        "context": context,
        "pipeline": {
            "alone_cycles": found.alone_cycles,
            "interval_cycles": found.interval_cycles,
            "in_flight_when_full": found.paces[0].full_at,
            "kv_caches_that_fit": found.places,
            "prompt_tokens_per_s": prompts,
            "steps": [asdict(pace) for pace in found.paces],
        },
    }


def _tail(prepared: Prepared) -> dict[str, Any]:
    return {
        "groqcloud": reference(prepared.compiled.config.name),
        "config": prepared.config.to_dict(),
        "notices": prepared.notices,
        "code": code_version(),
    }


def text_of(report: dict[str, Any]) -> str:
    """Return the comparison as text."""
    found = report["pipeline"]
    head = (
        f"{report['model']}, {report['context']} tokens in context: {report['dtype']} on "
        f"{report['hardware']} {report['layout']}, {report['chips']} chips, beside GPUs in "
        f"{report['gpu_dtype']}; decoding alone, no prompts in between"
    )
    lines = [
        f"{report['hardware']}: a token alone takes {found['alone_cycles']:,} cycles; the pipeline "
        f"is full with {found['in_flight_when_full']} sequences, and takes a step every "
        f"{found['interval_cycles']:,} cycles; KV caches fit for {found['kv_caches_that_fit']:,}, "
        "others wait: a --layout of more chips has room for more",
        *(
            f"  steps of {step['rows']} sequences: {step['cycles']:,} cycles, one every "
            f"{step['interval_cycles']:,}"
            for step in found["steps"][1:]
        ),
    ]
    lines += [_crossing(report, name) for name in report["gpu"]]
    lines += [_ridge(report, name) for name in report["gpu"]]
    rack = report["roofline"]["lpu"]
    lines.append(
        f"LPU chip: ridge {rack['ridge_over_streams']:.1f} operations a byte over the streams, "
        f"{rack['ridge_over_sram']:.1f} over SRAM; a token has {rack['intensity']:g}, at any batch"
    )
    costs = report["inputs"]
    lines += input_lines(f"{report['hardware']}'s chip", costs["lpu"])
    for name, given in costs["gpu"].items():
        lines += input_lines(name, given)
    lines += reference_lines(report["model"], report["groqcloud"])
    lines += [f"NOTE: {notice}" for notice in report["notices"]]
    return shown(head, _rates(report), _verdicts(report["workloads"]), *lines)


def _rates(report: dict[str, Any]) -> Table:
    out = columns(
        "batch", "machine", "chips", "in flight", "ms a token", "tokens/s a user", "tokens/s",
        "USD a million", "J a token",
    )  # fmt: skip
    chips = {LPU: report["chips"]}
    chips |= {name: given["chips"] for name, given in report["inputs"]["gpu"].items()}
    for rows in zip(report["lpu"], *report["gpu"].values(), strict=True):
        for (name, number), row in zip(chips.items(), rows, strict=True):
            out.add_row(
                str(row["batch"]), name, str(number), str(row["in_flight"]),
                f"{row['tpot_ms']:,.3f}", f"{row['tokens_per_s_user']:,.1f}",
                f"{row['tokens_per_s']:,.0f}", f"{row['usd_per_million_tokens']:,.4g}",
                f"{row['joules_per_token']:,.3g}",
            )  # fmt: skip
        out.add_section()
    return out


def _verdicts(works: Sequence[dict[str, Any]]) -> Table:
    out = columns("work", "batch", "needs", "verdict", "judged by", "figures")
    for work in works:
        needs = work.get("needs_tokens_per_s_user")
        better = f", {work['times']:,.3g} times as good as {work['next']}" if work["next"] else ""
        if work["cannot"] and not better:
            better = ", the only one that can"
        figures = ", ".join(
            f"{name} {value:,.4g}"
            + (f" ({work['cannot'][name]})" if name in work["cannot"] else "")
            for name, value in work["figures"].items()
        )
        out.add_row(
            work["workload"], str(work.get("batch", "")),
            f"{needs:g} tokens/s a user; {work['why']}" if needs else work["why"],
            f"{work['verdict']}{better}", work["judged_by"], figures,
        )  # fmt: skip
    return out


def _crossing(report: dict[str, Any], name: str) -> str:
    found = report["crossover_batch"][name]
    told = ", ".join(
        f"in {what} {'not' if batch is None else f'from batch {batch:,} on'}"
        for what, batch in found.items()
    )
    return f"{name} overtakes the rack: {told} (looked for up to {MOST_BATCH:,})"


def _ridge(report: dict[str, Any], name: str) -> str:
    found = report["roofline"]["gpu"][name]
    batch = found["compute_bound_batch"]

    def told(value: int | None) -> str:
        return "at no batch, as KV caches take longer" if value is None else f"from batch {value:,}"

    return (
        f"{name}: ridge {found['ridge_operations_per_byte']:.1f} operations a byte by the data "
        f"sheet, {found['ridge_as_measured']:.1f} as measured; bound by its products "
        f"{told(batch['data_sheet'])} by the data sheet, {told(batch['as_measured'])} as measured"
    )


def _draw(path: str, kind: str, report: dict[str, Any]) -> None:
    from rack.reports.comparison_picture import draw  # heavy, and only this needs it

    with writing(path, "a picture") as file:
        file.write(draw(report, kind))
    say(f"{path}: {report['model']} beside {', '.join(report['gpu'])}")
