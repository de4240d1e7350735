"""`python -m rack.bench MODEL`: wall figures against this machine's memory, emulated ones beside.

Everything is measured in one run: read bandwidth of all cores, start-up by stage, prefill, decode,
where the chips' time went, memory of every process. Medians over the repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from chip.kernels import BEST, INSTRUCTION_SETS
from chip.kernels import load as load_kernels
from compiler.graph import Kind
from compiler.pipeline import CompiledModel
from rack.config import RunConfig, add_flags, parse
from rack.engine import Completion
from rack.progress import say, start_progress
from rack.provenance import code_version
from rack.sampler import SamplingParams
from rack.session import Prepared, Session, prepare
from rack.shell import put, verb

READ_BYTES = 256 << 20  # per core and pass: far beyond any cache
READ_PASSES = 5


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.bench`."""
    parser = argparse.ArgumentParser(
        prog="python -m rack.bench",
        description="Measure decode, prefill, start-up and memory in one run.",
    )
    add_flags(parser)
    parser.add_argument("--prompt-tokens", type=int, default=128, help="tokens to prefill")
    parser.add_argument("--decode-tokens", type=int, default=16, help="tokens per completion")
    parser.add_argument("--repeats", type=int, default=3, help="completions; medians are reported")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 1 refused or failed, 2 bad usage."""
    parser = build_parser()
    args, config = parse(parser, argv)
    if min(args.prompt_tokens, args.decode_tokens, args.repeats) < 1:
        parser.error("--prompt-tokens, --decode-tokens and --repeats: wanted at least 1")
    report = measure(config, args.prompt_tokens, args.decode_tokens, args.repeats)
    put(json.dumps(report) if args.json else text_of(report))
    return 0


def read_bandwidth() -> list[float]:
    """Bytes per second that all cores together read from memory, in each of a few passes."""
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
    """Read an array once, by the native reader's several streams where it was built."""
    if BEST is None:
        np.bitwise_or.reduce(data)
    else:
        from chip.kernels import _native

        _native.read_words(INSTRUCTION_SETS[BEST], data.view(np.int8))


def products(compiled: CompiledModel) -> tuple[int, int]:
    """Weight elements that a decode step reads, and multiply-adds of one prefill row."""
    graph = compiled.partition.graph
    layers = sum(
        op.features * op.in_features for ops in graph.layers for op in ops if op.kind is Kind.LINEAR
    )
    head = sum(op.features * op.in_features for op in graph.head if op.kind is Kind.LINEAR)
    return layers + head, layers


def measure(config: RunConfig, prompt: int, decode: int, repeats: int) -> dict[str, Any]:
    """Measure a run; returns what is printed. Raises KNOWN_ERRORS."""
    stages: dict[str, float] = {}
    started = time.perf_counter()
    prepared = prepare(config)
    stages["compiled"] = time.perf_counter() - started
    for notice in prepared.notices:
        say(notice)
    limit = prepared.compiled.max_model_len
    prompt = min(prompt, limit - decode - 1)
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
            runs, reads = [], read_bandwidth()
            for _ in range(repeats):  # memory's speed changes on a shared machine: keep it close
                runs.append(session.engine.generate(tokens, params).run())
                reads += read_bandwidth()
            after = session.rack.times()
            memory = _memory(prepared)
    spent = {part: after[part] - before.get(part, 0.0) for part in after}
    bandwidth = statistics.median(reads)
    return _report(prepared, bandwidth, (ready, stages), runs, spent, memory)


def _memory(prepared: Prepared) -> dict[str, Any]:
    """Proportional set sizes of this process and all it started, in MB."""
    me = psutil.Process()
    sizes = {}
    for process in (me, *me.children(recursive=True)):
        try:
            sizes[f"{process.pid} {process.name()}"] = process.memory_full_info().pss / 1e6
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    memories = prepared.compiled.memories
    sram = sum(memory.sram_bytes - memory.free_bytes for memory in memories) / 1e6
    total = sum(sizes.values())
    return {
        "total_mb": total,
        "sram_in_use_mb": sram,
        "beyond_sram_mb": total - sram,
        "beyond_sram_mb_per_chip": (total - sram) / len(memories),
        "by_process_mb": sizes,
    }


def _report(
    prepared: Prepared,
    bandwidth: float,
    startup: tuple[float, dict[str, float]],
    runs: list[Completion],
    spent: dict[str, float],
    memory: dict[str, Any],
) -> dict[str, Any]:
    compiled = prepared.compiled
    item = 1 if compiled.dtype == "int8" else 2
    elements, per_row = products(compiled)
    token_s = statistics.median(s for run in runs for s in run.wall_decode_seconds)
    prefill_s = statistics.median(run.wall_prefill_seconds for run in runs)
    rows = len(runs[0].prompt_token_ids) - 1
    clock = compiled.chip.clock_hz
    return {
        "model": compiled.config.name,
        "dtype": compiled.dtype,
        "layout": str(compiled.layout),
        "hardware": prepared.hardware.name,
        "transport": prepared.config.transport,
        "kernels": load_kernels().name,
        "cores": len(os.sched_getaffinity(0)),
        "read_gb_per_s": bandwidth / 1e9,
        "decode": {
            "tokens_per_s": 1 / token_s,
            "ms_per_token": token_s * 1e3,
            "gb_per_s": elements * item / token_s / 1e9,
            "ratio_to_read_bandwidth": elements * item / token_s / bandwidth,
        },
        "prefill": {
            "tokens": rows,
            "tokens_per_s": rows / prefill_s if rows else 0.0,
            "gmac_per_s": per_row * rows / prefill_s / 1e9 if rows else 0.0,
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
    """Return the report for a person."""
    decode, prefill, memory = report["decode"], report["prefill"], report["memory"]
    parts = ", ".join(f"{k} {v:.2f} s" for k, v in report["chip_seconds_by_part"].items())
    stages = ", ".join(f"{k} at {v:.1f} s" for k, v in report["startup_stages_s"].items())
    return "\n".join(
        [
            f"{report['model']} {report['dtype']} on {report['hardware']} {report['layout']}, "
            f"{report['transport']}, kernels {report['kernels']}, {report['cores']} cores",
            f"memory read       {report['read_gb_per_s']:.1f} GB/s",
            f"decode            {decode['tokens_per_s']:.2f} tok/s, {decode['gb_per_s']:.1f} GB/s "
            f"of weights, {decode['ratio_to_read_bandwidth']:.2f} of the read bandwidth",
            f"prefill           {prefill['tokens']} tokens, {prefill['tokens_per_s']:.1f} tok/s, "
            f"{prefill['gmac_per_s']:.0f} GMAC/s",
            f"start-up          {report['startup_s']:.1f} s ({stages})",
            f"chips' time       {parts}",
            f"memory            {memory['total_mb']:.0f} MB, {memory['sram_in_use_mb']:.0f} MB of "
            f"SRAM in use, {memory['beyond_sram_mb_per_chip']:.0f} MB a chip beyond",
            f"emulated          {report['emulated']['decode_cycles']} cycles a token, "
            f"{report['emulated']['decode_tokens_per_s']:.1f} tok/s",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
