"""`python -m rack.bench MODEL`: wall figures against this machine's memory, and emulated figures.

One run measures everything: read bandwidth of all cores, start-up by stage, prefill, decode, the
chips' time by part, memory of every process. Figures are medians over the repeats. With
`--sequences S --batch B` as many sequences are then decoded at once, in steps of B rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from chip.kernels import BEST, INSTRUCTION_SETS
from chip.kernels import load as load_kernels
from compiler.model.operation import GraphOp
from compiler.pipeline import CompiledModel
from rack.commands.command import at_least, model_command, show_placement
from rack.commands.flags import model_flags, output_flags, verb_parser
from rack.errors import ConfigError
from rack.machines.hardware import Hardware
from rack.run.anew import until_done
from rack.run.completion import Completion
from rack.run.config import RunConfig
from rack.run.host_memory import fit_to_memory
from rack.run.rounds import Rounds
from rack.run.session import Prepared, Session, Task, of_task, prepare
from rack.run.shared import sram_in_use
from rack.system.progress import say, start_progress
from rack.system.provenance import code_version
from rack.system.shell import put
from rack.text.sampler import SamplingParams

PROMPT_TOKENS = 128
READ_BYTES = 256 << 20  # per core and pass: far beyond any cache
READ_PASSES = 5


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.bench`."""
    parser = verb_parser("bench", model_flags(), output_flags())
    group = parser.add_argument_group("measurement")
    group.add_argument(
        "--prompt-tokens", type=int, metavar="N",
        help=f"tokens to prefill (default {PROMPT_TOKENS}, or as many as the context has room for)",
    )  # fmt: skip
    group.add_argument(
        "--decode-tokens", type=int, default=16, metavar="N",
        help="tokens per completion (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--repeats", type=int, default=3, metavar="N",
        help="completions; medians are reported (default %(default)s)",
    )  # fmt: skip
    return parser


@model_command(build_parser)
def main(args: argparse.Namespace, config: RunConfig) -> None:
    """Print the measured figures, or the placement alone."""
    at_least(args, 1, "prompt_tokens", "decode_tokens", "repeats")
    if args.dry_run:
        show_placement(of_task(Task.GENERATE, prepare(config, runs=False)), as_json=args.json)
        return
    report = measure(config, args.prompt_tokens, args.decode_tokens, args.repeats)
    put(json.dumps(report) if args.json else text_of(report))


def read_bandwidth() -> list[float]:
    """Return the bytes per second that all cores together read from memory, for a few passes."""
    cores = len(os.sched_getaffinity(0))
    data = [np.ones(READ_BYTES // 8, np.uint64) for _ in range(cores)]
    passes = []
    for _ in range(READ_PASSES):
        threads = [threading.Thread(target=_read, args=(part,)) for part in data]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        passes.append(cores * READ_BYTES / (time.perf_counter() - started))
    return passes


def _read(data: NDArray[np.uint64]) -> None:
    """Read an array once; the native reader, if it was built, reads it in several streams."""
    if BEST is None:
        np.bitwise_or.reduce(data)
    else:
        from chip.kernels import _native

        _native.read_words(INSTRUCTION_SETS[BEST], data.view(np.int8))


def products(compiled: CompiledModel) -> tuple[int, int]:
    """Return the weight elements of a decode step, and the multiply-adds of one prefill row."""
    graph = compiled.partition.graph
    layers = sum(_multiplied(op) for ops in graph.layers for op in ops)
    head = sum(_multiplied(op) for op in graph.head)
    return layers + head, layers


def _multiplied(op: GraphOp) -> int:
    """Return the weight elements that one row is multiplied by: of experts, the chosen ones."""
    times = 1 if op.experts is None else op.experts.chosen
    return times * op.features * op.in_features if op.is_product else 0


def room(prompt: int | None, decode: int, limit: int) -> int:
    """Return the count of prompt tokens: as asked for, or as fit. Raises ConfigError.

    The context holds one token more: the prompt's last, with which decode begins.
    """
    context, left = f"(the context is {limit}, see --max-model-len)", limit - decode - 1
    if left < 1:
        raise ConfigError(f"decode_tokens: wanted at most {limit - 2} {context}, got {decode}")
    if prompt is not None and prompt > left:
        raise ConfigError(
            f"prompt_tokens: wanted at most {left} beside {decode} decode tokens {context}, got "
            f"{prompt}"
        )
    return min(PROMPT_TOKENS, left) if prompt is None else prompt


def measure(
    config: RunConfig, prompt: int | None, decode: int, repeats: int,
    hardware: Hardware | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure a run, on `hardware` if it is given; return the report. Raises KNOWN_ERRORS."""
    stages: dict[str, float] = {}
    started = time.perf_counter()
    prepared = of_task(Task.GENERATE, prepare(config, hardware=hardware))
    stages["compiled"] = time.perf_counter() - started
    for notice in prepared.notices:
        say(notice)
    prompt = room(prompt, decode, prepared.compiled.max_model_len)
    fit_to_memory(prepared, asked_for=True)
    has_data = config.executor != "timing"
    with start_progress() as progress:

        def report(stage: str, done: int, total: int) -> None:
            progress.report(stage, done, total)
            if done == total:
                stages[stage] = time.perf_counter() - started

        with Session(prepared, report) as session:
            ready = time.perf_counter() - started
            progress.stop()
            params = SamplingParams(max_tokens=decode, ignore_eos=True)
            tokens = [3 + i % 64 for i in range(prompt + 1)]  # below any vocabulary's size
            session.engine.generate(tokens[:2], params).run()  # touches every page once
            before = session.rack.times()
            runs, reads = [], read_bandwidth() if has_data else []
            for _ in range(repeats):  # memory's speed changes on a shared machine: keep it close
                runs.append(session.engine.generate(tokens, params).run())
                reads += read_bandwidth() if has_data else []
            after = session.rack.times()
            memory = _memory(prepared)
            many = _together(session, tokens, params, runs[0], repeats)
    spent = {part: after[part] - before.get(part, 0.0) for part in after}
    bandwidth = statistics.median(reads) if reads else None
    return _report(prepared, bandwidth, (ready, stages), runs, many, spent, memory)


def _together(
    session: Session, prompt: list[int], params: SamplingParams, alone: Completion, repeats: int
) -> float | None:
    """Return the tokens per second of all slots at once; None where there is only one.

    Every sequence has the prompt of the one that ran alone, and must say what that said.
    """
    sequences = session.rack.compiled.sequences
    if sequences == 1:
        return None

    def rounds() -> tuple[list[Completion], Rounds]:
        made = [session.engine.generate(prompt, params) for _ in range(sequences)]
        return made, Rounds(session.rack, made)

    speeds: list[float] = []

    def measure() -> None:
        """Take the speeds that are wanted still; after a fault, whose round is none of them."""
        rounds()[1].fill()
        while len(speeds) < repeats:
            made, one = rounds()
            speed = sequences * len(alone.token_ids) / one.decode()
            assert {each.data_hash for each in made} == {alone.data_hash}
            speeds.append(speed)

    until_done(session.rack, measure)
    return statistics.median(speeds)


def _memory(prepared: Prepared) -> dict[str, Any]:
    """Return the proportional set sizes of this process and its descendants, in MB."""
    me = psutil.Process()
    sizes = {}
    for process in (me, *me.children(recursive=True)):
        try:
            sizes[f"{process.pid} {process.name()}"] = process.memory_full_info().pss / 1e6
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    used = sram_in_use(
        prepared.compiled, prepared.model.weights_ref, prepared.config.transport,
        stored=prepared.images is not None,
    )  # fmt: skip
    sram = 0.0 if prepared.config.executor == "timing" else used / 1e6
    total = sum(sizes.values())
    return {
        "total_mb": total,
        "sram_in_use_mb": sram,
        "beyond_sram_mb": total - sram,
        "beyond_sram_mb_per_chip": (total - sram) / len(prepared.compiled.memories),
        "by_process_mb": sizes,
    }


def _bytes_of_weight(compiled: CompiledModel) -> float:
    """Return the bytes that are read for a weight; with int4 ones a group's scales count."""
    if compiled.int4_group is not None:
        return 0.5 + 4 / compiled.int4_group
    return 1 if compiled.dtype == "int8" else 2


def _report(
    prepared: Prepared,
    bandwidth: float | None,
    startup: tuple[float, dict[str, float]],
    runs: list[Completion],
    many: float | None,
    spent: dict[str, float],
    memory: dict[str, Any],
) -> dict[str, Any]:
    compiled = prepared.compiled
    item = _bytes_of_weight(compiled)
    elements, per_row = products(compiled)
    has_data = bandwidth is not None  # else nothing is read and nothing multiplied
    token_s = statistics.median(s for run in runs for s in run.wall_decode_seconds)
    prefill_s = statistics.median(run.wall_prefill_seconds for run in runs)
    rows = len(runs[0].prompt_token_ids) - 1
    clock = compiled.chip.clock_hz
    return {
        "model": compiled.config.name,
        "weights": prepared.model.weights_ref.describe(),
        "dtype": compiled.dtype,
        "layout": str(compiled.layout),
        "hardware": prepared.hardware.name,
        "transport": prepared.config.transport if has_data else "none",
        "executor": prepared.config.executor,
        "kernels": load_kernels().name if has_data else None,
        "cores": len(os.sched_getaffinity(0)),
        "read_gb_per_s": bandwidth / 1e9 if bandwidth else None,
        "decode": {
            "sequences": compiled.sequences,
            "batch": compiled.batch,
            "tokens_per_s": many or 1 / token_s,
            "one_sequence_tokens_per_s": 1 / token_s,
            "ratio_to_one_sequence": many * token_s if many else 1.0,
            "ms_per_token": token_s * 1e3,
            "gb_per_s": elements * item / token_s / 1e9 if has_data else None,
            "ratio_to_read_bandwidth": elements * item / token_s / bandwidth if bandwidth else None,
        },
        "prefill": {
            "tokens": rows,
            "tokens_per_s": rows / prefill_s,
            "gmac_per_s": per_row * rows / prefill_s / 1e9 if has_data else None,
        },
        "startup_s": startup[0],
        "startup_stages_s": startup[1],
        "chip_seconds_by_part": spent,
        "memory": memory,
        "emulated": {
            "decode_cycles": runs[0].decode_cycles[0],
            "decode_tokens_per_s": clock / runs[0].decode_cycles[0],
            "prefill_seconds": runs[0].prompt_seconds,
        },
        "schedule_hash": compiled.schedule_hash,
        "data_hash": runs[0].data_hash,
        "config": prepared.config.to_dict(),
        "notices": prepared.notices,
        "code": code_version(),
    }


def text_of(report: dict[str, Any]) -> str:
    """Return the report as text; without data it has no bandwidth."""
    decode, prefill, memory = report["decode"], report["prefill"], report["memory"]
    stages = ", ".join(f"{k} at {v:.1f} s" for k, v in report["startup_stages_s"].items())
    head = f"{report['model']} {report['dtype']} on {report['hardware']} {report['layout']}"
    decoded = f"decode            {decode['one_sequence_tokens_per_s']:.2f} tok/s"
    together = []
    if decode["sequences"] > 1:
        together = [
            f"{decode['sequences']:<4} sequences    {decode['tokens_per_s']:.2f} tok/s in all, "
            f"steps of {decode['batch']}: {decode['ratio_to_one_sequence']:.2f} times one's"
        ]
    prefilled = f"prefill           {prefill['tokens']} tokens, {prefill['tokens_per_s']:.1f} tok/s"
    started = f"start-up          {report['startup_s']:.1f} s ({stages})"
    taken = f"memory            {memory['total_mb']:.0f} MB"
    emulated = (
        f"emulated          {report['emulated']['decode_cycles']} cycles a token, "
        f"{report['emulated']['decode_tokens_per_s']:.1f} tok/s"
    )
    if report["read_gb_per_s"] is None:
        head += ", timing executor: no data, wall figures are the emulator's own"
        return "\n".join([head, decoded, *together, prefilled, started, taken, emulated])
    parts = ", ".join(f"{k} {v:.2f} s" for k, v in report["chip_seconds_by_part"].items())
    return "\n".join([
        f"{head}, {report['transport']}, kernels {report['kernels']}, {report['cores']} cores",
        report["weights"],
        f"memory read       {report['read_gb_per_s']:.1f} GB/s",
        f"{decoded}, {decode['gb_per_s']:.1f} GB/s of weights, "
        f"{decode['ratio_to_read_bandwidth']:.2f} of the read bandwidth",
        *together,
        f"{prefilled}, {prefill['gmac_per_s']:.0f} GMAC/s",
        started,
        f"chips' time       {parts}",
        f"{taken}, {memory['sram_in_use_mb']:.0f} MB of SRAM in use, "
        f"{memory['beyond_sram_mb_per_chip']:.0f} MB a chip beyond",
        emulated,
    ])  # fmt: skip
