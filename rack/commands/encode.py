"""`python -m rack.encode MODEL --text …`: one sequence through an encoder, on the terminal."""

from __future__ import annotations

import argparse
import io
import json
import time
from typing import Any

import numpy as np

from rack.commands.command import UsageError, model_command, show_placement
from rack.commands.flags import model_flags, output_flags, verb_parser
from rack.errors import RequestError
from rack.run.config import RunConfig
from rack.run.encoding import Encoded, check_sequence, encode
from rack.run.host_memory import executor_asked_for, fit_to_memory
from rack.run.session import Prepared, Task, open_rack, prepare
from rack.run.steps import Rack
from rack.system.output import check_file, writing
from rack.system.progress import say, start_progress
from rack.system.provenance import code_version
from rack.system.shell import put

SHOWN = 4  # values of a token's state that are printed


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.encode`."""
    parser = verb_parser("encode", model_flags(), output_flags())
    group = parser.add_argument_group("sequence")
    given = group.add_mutually_exclusive_group(required=True)
    given.add_argument("--text", metavar="TEXT", help="text, for the model's tokenizer")
    given.add_argument("--tokens", metavar="ID,ID,...", help="token ids as they are")
    group.add_argument(
        "--types", metavar="ID,ID,...", help="each token's type (segment); default all 0"
    )
    parser.add_argument_group("files").add_argument(
        "-o", "--output", metavar="FILE", help="write the hidden states here, as NumPy's .npy"
    )
    return parser


@model_command(build_parser)
def main(args: argparse.Namespace, config: RunConfig) -> None:
    """Print what came of a sequence, or its placement."""
    started = time.perf_counter()
    tokens, types = _ids("--tokens", args.tokens), _ids("--types", args.types)
    if args.output is not None:
        check_file(args.output, "hidden states")
    if args.dry_run:
        show_placement(prepare(config, runs=False, task=Task.ENCODE), as_json=args.json)
        return
    prepared = prepare(config, task=Task.ENCODE, text=args.text is not None)
    if tokens is None:
        tokens = prepared.tokenizer.encode(args.text)
    check_sequence(prepared.compiled, tokens, types)
    prepared, shortage = fit_to_memory(prepared, asked_for=executor_asked_for(args))
    if args.output is not None and prepared.config.executor == "timing":
        raise RequestError(
            param="output", wanted="an executor with data", got="timing, which has no hidden states"
        )
    for notice in prepared.notices:
        say(notice)
    if shortage:
        say(f"NOTE: {shortage}")
    with start_progress() as progress:
        rack = open_rack(prepared, progress.report)
        try:
            progress.stop()
            ready = time.perf_counter() - started
            encoded, saturated = encode(rack, tokens, types), rack.saturated()
        finally:
            rack.close()
    wall = time.perf_counter() - started - ready
    if args.output is not None:
        _write(args.output, encoded)
    report = result(prepared, rack, tokens, encoded, saturated)
    report["wall"] = {"ready_seconds": ready, "encode_seconds": wall}
    for recovery in encoded.recoveries:
        say(recovery.told)
    put(json.dumps(report) if args.json else text_of(report, encoded))


def _ids(flag: str, text: str | None) -> list[int] | None:
    """Read a list of ids. Raises UsageError."""
    if text is None:
        return None
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"{flag}: wanted numbers with commas between, got {text!r:.80}") from None


def _write(path: str, encoded: Encoded) -> None:
    assert encoded.hidden is not None, "the executor has data"
    file = io.BytesIO()
    np.save(file, encoded.hidden)
    with writing(path, "hidden states") as out:
        out.write(file.getvalue())


def result(
    prepared: Prepared, rack: Rack, tokens: list[int], encoded: Encoded, saturated: int
) -> dict[str, Any]:
    """Return what came of a sequence as plain data; hidden states by shape and hash."""
    compiled = rack.compiled
    clock_hz = compiled.chip.clock_hz
    return {
        "token_ids": tokens,
        "hidden": {
            "shape": [len(tokens), compiled.config.hidden_size],
            "dtype": "float32",
            "data_hash": encoded.data_hash,
        },
        "emulated": {
            "step": encoded.step,
            "cycles": encoded.cycles,
            "seconds": encoded.cycles / clock_hz,
            "clock_hz": clock_hz,
        },
        "recoveries": [recovery.to_dict() for recovery in encoded.recoveries],
        "schedule_hash": compiled.schedule_hash,
        "saturated": saturated,
        "executor": prepared.config.executor,
        "layout": str(compiled.layout),
        "max_model_len": compiled.max_model_len,
        "weights": prepared.model.weights_ref.describe(),
        "config": prepared.config.to_dict(),
        "notices": prepared.notices,
        "code": code_version(),
    }


def text_of(report: dict[str, Any], encoded: Encoded) -> str:
    """Return the report for a person."""
    emulated, hidden = report["emulated"], report["hidden"]
    rows, columns = hidden["shape"]
    lines = [
        f"{rows} tokens, step {emulated['step']}, layout {report['layout']}: "
        f"{emulated['cycles']:,} cycles = {emulated['seconds'] * 1e6:.2f} us",
        f"hidden states [{rows}, {columns}] float32, data_hash {hidden['data_hash']}",
    ]
    if encoded.hidden is not None:
        for token, row in zip(report["token_ids"], encoded.hidden, strict=True):
            values = " ".join(f"{value:9.5f}" for value in row[:SHOWN])
            lines.append(f"{token:>8}  {values} ...")
    return "\n".join(lines)
