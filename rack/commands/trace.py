"""`python -m rack.trace MODEL -o trace.json.gz`: a schedule on a time line; starts nothing.

It shows one decode step, steps by name (`--step`, repeatable), or a whole request
(`--prompt-tokens`, `--max-tokens`) as the engine runs it. `-o` writes Chrome trace events for
ui.perfetto.dev, `--png` draws the first step.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from gzip import GzipFile
from typing import Any, BinaryIO

from rack.commands.command import UsageError, at_least, model_command, show_placement
from rack.commands.flags import model_flags, output_flags, verb_parser
from rack.errors import ConfigError, RequestError
from rack.reports.pictures import PICTURES, picture_kind
from rack.reports.trace_events import Event, PlacedStep, TraceEvents
from rack.run.config import RunConfig
from rack.run.engine import Engine
from rack.run.session import Prepared, Task, of_task, prepare
from rack.run.steps import StepOrder
from rack.run.timing_rack import TimingRack
from rack.system.output import check_file, same_file, writing
from rack.system.progress import say
from rack.system.provenance import code_version
from rack.text.sampler import SamplingParams

DEFAULT_CONTEXT = 512  # tokens in context of the decode step, as in rack.plan
LONGEST = 1 << 20  # no model has a longer context


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.trace`."""
    parser = verb_parser("trace", model_flags(), output_flags(json=False))
    group = parser.add_argument_group("files")
    group.add_argument(
        "-o", "--output", metavar="FILE", help="trace.json or trace.json.gz; - is standard output"
    )
    group.add_argument(
        "--png", metavar="FILE", help=f"draw the first step here, as {', '.join(PICTURES)}"
    )
    group = parser.add_argument_group("what is shown")
    what = group.add_mutually_exclusive_group()
    what.add_argument(
        "--context", type=int, metavar="N",
        help=f"a decode step with N tokens in context (default {DEFAULT_CONTEXT})",
    )  # fmt: skip
    what.add_argument(
        "--step", action="append", metavar="NAME", help="decode/512, prefill16/512; repeatable"
    )
    what.add_argument("--prompt-tokens", type=int, metavar="N", help="a whole request instead")
    group.add_argument(
        "--max-tokens", type=int, default=4, metavar="N",
        help="tokens that it generates (default %(default)s)",
    )  # fmt: skip
    return parser


@model_command(build_parser)
def main(args: argparse.Namespace, config: RunConfig) -> None:
    """Write the trace and the picture, or show the placement."""
    if args.output is None and args.png is None and not args.dry_run:
        raise UsageError("nothing to write: wanted -o FILE, --png FILE or both")
    if None not in (args.output, args.png) and (
        args.output == args.png or same_file(args.output, args.png)
    ):
        raise UsageError(f"-o and --png: wanted two places, got {args.png} twice")
    at_least(args, 1, "context", "prompt_tokens", "max_tokens")
    if args.output is not None:
        check_file(args.output)
    if args.png is not None:
        kind = picture_kind(args.png)
        check_file(args.png, "a picture")
    prepared, steps = _steps(args, config)
    if args.dry_run:
        show_placement(prepared)
        return
    if args.output is not None:
        written = write_trace(args.output, prepared, steps)
        end = max(base + schedule.cycles for schedule, base in steps)
        say(f"{args.output}: {len(steps)} steps, {end:,} cycles, {written:,} events")
    if args.png is not None:
        from rack.reports.timeline import draw  # heavy, and only this needs it

        schedule = steps[0][0]
        picture = draw(prepared.compiled, schedule, prepared.hardware.name, kind)
        with writing(args.png, "a picture") as file:
            file.write(picture)
        say(f"{args.png}: {schedule.name}")


def _steps(args: argparse.Namespace, config: RunConfig) -> tuple[Prepared, list[PlacedStep]]:
    if args.prompt_tokens:
        longest = min(args.prompt_tokens + args.max_tokens, LONGEST)
        prepared = prepare(config, contexts=range(1, longest + 1), runs=False)
        of_task(Task.GENERATE, prepared)
        return prepared, request_steps(prepared, args.prompt_tokens, args.max_tokens)
    if args.step:
        prepared = prepare(config, runs=False)
        steps, base = [], 0
        for name in args.step:
            schedule = prepared.compiled.steps.get(name)
            if schedule is None:
                known = ", ".join(prepared.compiled.steps)
                raise ConfigError(f"step: wanted one of {known}, got {name!r}")
            steps.append((schedule, base))
            base += schedule.cycles
        return prepared, steps
    prepared = prepare(
        config, kinds="decode", contexts=(args.context or DEFAULT_CONTEXT,), runs=False
    )
    context = args.context or min(DEFAULT_CONTEXT, prepared.compiled.max_model_len)
    return prepared, [(prepared.compiled.step_for(context), 0)]


class _Recorder(TimingRack):
    """Notes which steps the engine runs, and when each begins."""

    def __init__(self, prepared: Prepared) -> None:
        super().__init__(prepared.compiled)
        self.steps: list[PlacedStep] = []

    def start(self, order: StepOrder) -> None:
        self.steps.append((self.compiled.steps[order.name], order.base))
        super().start(order)


def request_steps(prepared: Prepared, prompt_tokens: int, max_tokens: int) -> list[PlacedStep]:
    """Return the steps that the engine runs for a request, with their base cycles.

    Raises RequestError if the prompt leaves no room in the context.
    """
    limit = prepared.compiled.max_model_len
    if prompt_tokens >= limit:
        raise RequestError(
            param="prompt", wanted=f"fewer tokens than the context of {limit}",
            got=f"{prompt_tokens} tokens",
        )  # fmt: skip
    recorder = _Recorder(prepared)
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    Engine(recorder, prepared.tokenizer).generate([0] * prompt_tokens, params).run()
    return recorder.steps


def write_trace(path: str, prepared: Prepared, steps: Sequence[PlacedStep]) -> int:
    """Write the events of `steps`, gzipped if the name ends in .gz; return their number.

    The same schedule gives the same bytes. Raises ConfigError if the file cannot be written.
    """
    compiled = prepared.compiled
    head: dict[str, Any] = {
        "displayTimeUnit": "ns",
        "otherData": {
            "model": compiled.config.name,
            "weights": prepared.model.weights_ref.describe(),
            "dtype": compiled.dtype,
            "hardware": prepared.hardware.name,
            "hardware_digest": prepared.hardware.digest(),
            "layout": str(compiled.layout),
            "clock_hz": compiled.chip.clock_hz,
            "steps": [[schedule.name, base, schedule.cycles] for schedule, base in steps],
            "code": code_version(),
        },
    }
    with writing(path) as raw, _text(raw, path.endswith(".gz")) as file:
        return _write(file, head, TraceEvents(compiled, steps).events())


def _write(file: BinaryIO | GzipFile, head: dict[str, Any], events: Iterator[Event]) -> int:
    """Write one event a line, so that memory does not grow with the trace."""
    file.write(json.dumps(head)[:-1].encode() + b', "traceEvents": [')
    count = 0
    for event in events:
        line = json.dumps(event, separators=(",", ":"))
        file.write(f"{',' if count else ''}\n{line}".encode())
        count += 1
    file.write(b"\n]}\n")
    return count


@contextmanager
def _text(raw: BinaryIO, zipped: bool) -> Iterator[BinaryIO | GzipFile]:
    """Wrap a new file; a gzip has no name and time in it, so its bytes are always equal."""
    if not zipped:
        yield raw
        return
    with GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as file:
        yield file
