"""`python -m rack.generate MODEL --prompt …`: one completion on the terminal."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from rack.commands.command import model_command, show_placement
from rack.commands.flags import count, model_flags, output_flags, verb_parser
from rack.errors import RequestError
from rack.run.completion import Completion
from rack.run.config import MOST_TOKENS, RunConfig
from rack.run.context import check_room
from rack.run.host_memory import executor_asked_for, fit_to_memory
from rack.run.session import Prepared, Session, Task, of_task, prepare
from rack.system.progress import say, start_progress
from rack.system.provenance import code_version
from rack.system.shell import put
from rack.text.sampler import SamplingParams


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.generate`."""
    parser = verb_parser("generate", model_flags(), output_flags())
    group = parser.add_argument_group("completion")
    group.add_argument("--prompt", required=True, metavar="TEXT", help="text to continue")
    group.add_argument("--chat", action="store_true", help="apply the chat template")
    group.add_argument(
        "--max-tokens", type=count(MOST_TOKENS), metavar="N",
        help="completion tokens at most (default: as many as the context has room for)",
    )  # fmt: skip
    group.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default)"
    )
    group.add_argument(
        "--top-p", type=float, default=1.0, metavar="P",
        help="sample among the likeliest tokens that share P together (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--top-k", type=count(MOST_TOKENS), default=0, metavar="K",
        help="sample among the K likeliest tokens; 0 is all (default)",
    )  # fmt: skip
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="stop string; up to four"
    )
    group.add_argument("--ignore-eos", action="store_true", help="go on after end of sequence")
    return parser


@model_command(build_parser)
def main(args: argparse.Namespace, config: RunConfig) -> None:
    """Print the completion, or its placement."""
    started = time.perf_counter()
    params = SamplingParams(
        temperature=args.temperature, top_p=args.top_p, top_k=args.top_k, seed=config.seed,
        max_tokens=args.max_tokens, stop=tuple(args.stop), ignore_eos=args.ignore_eos,
    )  # fmt: skip
    if args.dry_run:
        show_placement(of_task(Task.GENERATE, prepare(config, runs=False)), as_json=args.json)
        return
    prepared = of_task(Task.GENERATE, prepare(config))
    for notice in prepared.notices:
        say(notice)
    prepared, shortage = fit_to_memory(prepared, asked_for=executor_asked_for(args))
    if shortage:
        say(f"NOTE: {shortage}")
    if not args.prompt:
        raise RequestError(param="prompt", wanted="some text", got="none")
    tokenizer = prepared.tokenizer
    messages = [{"role": "user", "content": args.prompt}]
    prompt = tokenizer.apply_chat_template(messages) if args.chat else tokenizer.encode(args.prompt)
    check_room(prepared, len(prompt))
    with start_progress() as progress, Session(prepared, progress.report) as session:
        progress.stop()
        ready_seconds = time.perf_counter() - started
        completion = session.engine.generate(prompt, params)
        for event in completion:
            if not args.json:
                put(event.text, end="")
        wall_seconds = time.perf_counter() - started - ready_seconds
        if args.json:
            put(json.dumps(result(prepared, session, completion, ready_seconds, wall_seconds)))
        else:
            put("")
            _summary(prepared, completion, wall_seconds)


def result(
    prepared: Prepared, session: Session, completion: Completion, ready: float, wall: float
) -> dict[str, Any]:
    """Return the machine-readable form of a completion (docs/design.md, section 8)."""
    config = prepared.config
    decode = completion.wall_decode_seconds
    return {
        "text": completion.text,
        "token_ids": completion.token_ids,
        "prompt_token_ids": completion.prompt_token_ids,
        "finish_reason": completion.finish_reason,
        "emulated": {
            "prompt_cycles": completion.prompt_cycles,
            "decode_cycles": completion.decode_cycles,
            "prompt_seconds": completion.prompt_seconds,
            "completion_seconds": completion.completion_seconds,
            "clock_hz": prepared.compiled.chip.clock_hz,
        },
        "wall": {
            "ready_seconds": ready,
            "prefill_seconds": completion.wall_prefill_seconds,
            "decode_seconds": sum(decode),
            "total_seconds": wall,
        },
        "recoveries": [recovery.to_dict() for recovery in completion.recoveries],
        "schedule_hash": completion.schedule_hash,
        "data_hash": completion.data_hash,
        "saturated": session.rack.saturated(),
        "corrected_vectors": session.rack.corrected_vectors(),
        "executor": session.rack.executor,
        "transport": session.rack.transport,
        "layout": str(prepared.compiled.layout),
        "max_model_len": prepared.compiled.max_model_len,
        "weights": prepared.model.weights_ref.describe(),
        "config": config.to_dict(),
        "notices": prepared.notices,
        "code": code_version(),
    }


def _summary(prepared: Prepared, completion: Completion, wall_seconds: float) -> None:
    compiled, tokens = prepared.compiled, len(completion.token_ids)
    cycles = sum(completion.decode_cycles)
    say(
        f"{compiled.config.name} {compiled.dtype} on {compiled.target_name} {compiled.layout}, "
        f"context {compiled.max_model_len}: {len(completion.prompt_token_ids)} prompt tokens, "
        f"{tokens} completion tokens ({completion.finish_reason})"
    )
    say(
        f"emulated: prompt {completion.prompt_cycles} cycles = "
        f"{completion.prompt_seconds * 1e6:.1f} us, completion {cycles} cycles = "
        f"{completion.completion_seconds * 1e6:.1f} us, "
        f"{tokens / completion.completion_seconds:.1f} tokens/s"
    )
    say(f"wall: {wall_seconds:.2f} s, {tokens / wall_seconds:.2f} tokens/s")
    for recovery in completion.recoveries:
        say(recovery.told)
    say(f"schedule_hash {completion.schedule_hash}\ndata_hash {completion.data_hash}")
