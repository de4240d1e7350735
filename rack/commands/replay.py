"""`python -m rack.replay MODEL --trace FILE`: a day of traffic in virtual time; starts nothing."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rich.table import Table

from compiler.files import shown as quoted
from rack.commands.command import UsageError, at_least, check_beside, model_command, show_placement
from rack.commands.flags import count, model_flags, output_flags, verb_parser
from rack.errors import ConfigError
from rack.reports.pictures import PICTURES, picture_kind
from rack.reports.tables import columns, shown
from rack.run.config import MOST_TOKENS, RunConfig
from rack.run.session import Prepared, Task, prepare
from rack.system.output import check_file, same_file, writing
from rack.system.progress import Progress, StartProgress, say, start_progress
from rack.system.provenance import code_version
from rack.system.shell import put
from rack.text.tokenizer import Tokenizer
from rack.traffic.against import Ask, Pair, compare, server
from rack.traffic.quantiles import PERCENTILES
from rack.traffic.report import TIMES, Tally
from rack.traffic.request import Request
from rack.traffic.rows import Rows
from rack.traffic.simulation import simulate
from rack.traffic.slo import KINDS, PRESETS, Slo, parse_slo
from rack.traffic.trace import DEFAULT_RATE, Trace, open_trace

MOST_REPLICAS = 256
MOST_SCALE = 1e6  # times the recorded rate, or less than it by as much
MOST_REQUESTS = 1 << 40
DEFAULT_QUEUE = 64  # as in rack.serve
CUT = "answers_cut_by_context"


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.replay`."""
    parser = verb_parser("replay", model_flags(), output_flags())
    group = parser.add_argument_group("trace")
    group.add_argument(
        "--trace", required=True, metavar="FILE",
        help="Azure, Mooncake, BurstGPT, ShareGPT, LLMServingSim, Vidur, Copilot agents; "
        "recognised by its header (docs/replay.md)",
    )  # fmt: skip
    group.add_argument(
        "--rate-scale", default="1", metavar="R,...",
        help="requests come R times as often as recorded; a run for each (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--rate", type=float, metavar="R",
        help="requests a second, drawn from --seed, for a trace without times: ShareGPT (default "
        f"{DEFAULT_RATE:g})",
    )  # fmt: skip
    group.add_argument(
        "--limit", type=count(MOST_REQUESTS), metavar="N", help="the first N requests (default all)"
    )
    group = parser.add_argument_group("service")
    group.add_argument(
        "--replicas", type=count(MOST_REPLICAS), default=1, metavar="N",
        help="racks; a request goes where the fewest run and wait (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--max-queue", type=count(MOST_TOKENS), default=DEFAULT_QUEUE, metavar="N",
        help="requests that may wait for a rack's slot; more are refused (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--slo", action="append", metavar="KIND=TIME,...",
        help=f"{', '.join(KINDS)}, such as ttft=450ms,tpot=40ms; or "
        f"{', '.join(f'{name} ({text})' for name, text in PRESETS.items())}; repeatable (default: "
        "these two)",
    )  # fmt: skip
    group = parser.add_argument_group("a running server")
    group.add_argument(
        "--against", metavar="URL",
        help="post the requests there, too, one after another, and compare emulated times",
    )  # fmt: skip
    group.add_argument("--api-key", metavar="KEY", help="key of that server")
    group = parser.add_argument_group("files")
    group.add_argument("--csv", metavar="FILE", help="write a row a request")
    group.add_argument(
        "--plot", action="append", metavar="FILE",
        help=f"draw it here, as {', '.join(PICTURES)}; repeatable",
    )  # fmt: skip
    return parser


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the flags ask for, checked."""

    scales: tuple[float, ...]
    slos: tuple[Slo, ...]
    pictures: dict[str, str]  # file -> kind
    ask: Ask | None
    csv: str | None
    limit: int | None
    replicas: int
    max_queue: int


@model_command(build_parser)
def main(args: argparse.Namespace, config: RunConfig) -> int:
    """Print the report; 1 where a server's times are others."""
    at_least(args, 1, "replicas", "limit")
    at_least(args, 0, "max_queue")
    asked = _asked(args)
    held = _Tokens()
    trace = open_trace(args.trace, held, rate=_rate(args.rate), seed=config.seed)
    with start_progress() as progress:
        prepared = prepare(config, runs=False, task=Task.GENERATE, progress=progress.report)
        if args.dry_run:
            progress.stop()
            show_placement(prepared, as_json=args.json)
            return 0
        held.tokenizer = prepared.tokenizer
        report = _head(prepared, trace, asked)
        if asked.ask is not None:
            report["against"] = _against(prepared, trace, asked, asked.ask, progress)
        report["runs"] = _runs(prepared, trace, asked, progress.report)
        report |= _tail(prepared)
        _notices(prepared, trace)
        for path, kind in asked.pictures.items():
            _draw(path, kind, report)
    put(json.dumps(report) if args.json else text_of(report))
    return 1 if report.get("against", {}).get("different") else 0


class _Tokens:
    """Counts the tokens of a text, once the model's tokenizer is there."""

    tokenizer: Tokenizer | None = None

    def __call__(self, text: str) -> int:
        assert self.tokenizer is not None
        return len(self.tokenizer.encode(text))


def _asked(args: argparse.Namespace) -> Asked:
    check_beside("--csv", args.csv)
    check_beside("--plot", *(args.plot or ()))
    pictures = {path: picture_kind(path) for path in args.plot or ()}
    for path in pictures:
        check_file(path, "a picture")
    if args.csv is not None:
        check_file(args.csv, "rows")
    _check_apart(args.trace, *filter(None, (args.csv,)), *pictures)
    return Asked(
        scales=_scales(args.rate_scale),
        slos=tuple(map(parse_slo, args.slo or PRESETS)),
        pictures=pictures,
        ask=None if args.against is None else server(args.against, args.api_key),
        csv=args.csv, limit=args.limit, replicas=args.replicas, max_queue=args.max_queue,
    )  # fmt: skip


def _check_apart(trace: str, *written: str) -> None:
    """Refuse to write over the trace, or two things to one file."""
    for number, path in enumerate(written):
        for other in (trace, *written[:number]):
            if same_file(path, other):
                raise UsageError(f"--csv, --plot: wanted files beside {other}, got {path}")


def _scales(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(1 / MOST_SCALE <= scale <= MOST_SCALE for scale in found):
        wanted = f"numbers from {1 / MOST_SCALE:g} to {MOST_SCALE:g} with commas"
        raise ConfigError(f"rate-scale: wanted {wanted}, got {quoted(text)}")
    if len({*found}) < len(found):
        raise ConfigError(f"rate-scale: wanted each once, got {quoted(text)}")
    return found


def _rate(rate: float | None) -> float | None:
    if rate is not None and not (math.isfinite(rate) and 1 / MOST_SCALE <= rate <= MOST_SCALE):
        wanted = f"{1 / MOST_SCALE:g} to {MOST_SCALE:g} requests a second"
        raise ConfigError(f"rate: wanted {wanted}, got {rate:g}")
    return rate


def _fitted(
    prepared: Prepared, requests: Iterator[Request], counts: Counter[str]
) -> Iterator[Request]:
    """Cut answers off where the context ends, as a rack does."""
    context = prepared.compiled.max_model_len
    for request in requests:
        room = context - request.prompt_tokens
        if 0 < room < request.output_tokens:
            counts[CUT] += 1
            request = replace(request, output_tokens=room)
        yield request


def _runs(
    prepared: Prepared, trace: Trace, asked: Asked, progress: Progress
) -> list[dict[str, Any]]:
    """Replay the trace at each rate, and write the rows of all."""
    compiled = prepared.compiled
    with contextlib.ExitStack() as stack:
        add: Callable[..., None] | None = None
        if asked.csv is not None:
            rows = Rows(stack.enter_context(writing(asked.csv, "rows")), compiled.chip.clock_hz)
            rows.head()
            add = rows.add
        return [_run(prepared, trace, asked, scale, add, progress) for scale in asked.scales]


def _run(
    prepared: Prepared, trace: Trace, asked: Asked, scale: float,
    add: Callable[..., None] | None, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    counts = Counter[str]()
    tally = Tally(prepared.compiled, asked.replicas, asked.slos)
    found = trace.requests(
        counts, scale=scale, limit=asked.limit, told=partial(progress, f"replaying x {scale:g}")
    )
    for outcome in simulate(
        prepared.compiled, _fitted(prepared, found, counts), replicas=asked.replicas,
        max_queue=asked.max_queue,
    ):  # fmt: skip
        tally.take(outcome)
        if add is not None:
            add(outcome, scale)
    return {"rate_scale": scale, "passed_over": dict(counts), **tally.report()}


def _against(
    prepared: Prepared, trace: Trace, asked: Asked, ask: Ask, progress: StartProgress
) -> dict[str, Any]:
    """Compare with a running server, request by request."""
    found = trace.requests(
        Counter(), limit=asked.limit, told=partial(progress.report, "asking the server")
    )
    different = list[Pair]()
    requests = 0
    for pair in compare(prepared.compiled, _fitted(prepared, found, Counter()), ask):
        requests += 1
        if not pair.equal:
            different.append(pair)
    return {
        "requests": requests,
        "equal": requests - len(different),
        "different": [
            {
                "number": pair.request.number, "id": pair.request.id,
                "simulated_cycles": pair.simulated_cycles, "served_cycles": pair.served_cycles,
            }
            for pair in different
        ],
    }  # fmt: skip


def _head(prepared: Prepared, trace: Trace, asked: Asked) -> dict[str, Any]:
    compiled = prepared.compiled
    return {
        "model": compiled.config.name,
        "hardware": prepared.hardware.name,
        "hardware_digest": prepared.hardware.digest(),
        "layout": str(compiled.layout),
        "chips": compiled.layout.chips,
        "dtype": compiled.dtype,
        "max_model_len": compiled.max_model_len,
        "replicas": asked.replicas,
        "sequences": compiled.sequences,
        "batch": compiled.batch,
        "max_queue": asked.max_queue,
        "trace": {"file": trace.path, "format": trace.format.name},
    }


def _tail(prepared: Prepared) -> dict[str, Any]:
    return {
        "schedule_hash": prepared.compiled.schedule_hash,
        "config": prepared.config.to_dict(),
        "notices": prepared.notices,
        "code": code_version(),
    }


def _notices(prepared: Prepared, trace: Trace) -> None:
    for notice in prepared.notices:
        say(f"NOTE: {notice}")
    if trace.format.ignored is not None:
        say(f"NOTE: {trace.format.name}: {trace.format.ignored}")
    if not trace.format.timed and prepared.tokenizer.kind == "bytes":
        say("NOTE: a byte counts as a token: no tokenizer.json (--tokenizer DIR)")


def text_of(report: dict[str, Any]) -> str:
    """Return the report as text."""
    head = (
        f"{report['model']} {report['dtype']} on {report['hardware']} {report['layout']}, "
        f"{report['replicas']} x {report['chips']} chips, {report['sequences']} slots each, "
        f"context {report['max_model_len']:,}: {report['trace']['format']}"
    )
    parts: list[Table | str] = [head]
    for run in report["runs"]:
        parts += [_counts(run), _times(run), _promises(run), _loads(run), _saturation(run)]
    if (against := report.get("against")) is not None:
        parts.append(_agreement(against))
    return shown(*parts)


def _counts(run: dict[str, Any]) -> str:
    refused = run["refused"]
    said = [
        f"rate x {run['rate_scale']:g}: {run['requests']:,} requests in {run['arrivals_s']:,.6g} s"
        + _per_s(run["offered_requests_per_s"], "requests offered"),
        f"{run['completed']:,} completed in {run['duration_s']:,.6g} s"
        + _per_s(run["requests_per_s"], "requests")
        + _per_s(run["output_tokens_per_s"], "output tokens"),
        f"{sum(refused.values()):,} refused ({refused['prompt_beyond_context']:,} prompts beyond "
        f"the context, {refused['queue_full']:,} with a full queue)",
        *(f"{value:,} {name.replace('_', ' ')}" for name, value in run["passed_over"].items()),
    ]  # fmt: skip
    return "; ".join(said)


def _per_s(rate: float | None, what: str) -> str:
    return "" if rate is None else f", {rate:,.4g} {what}/s"


def _times(run: dict[str, Any]) -> Table:
    names = ["mean", *(f"p{percentile:g}" for percentile in PERCENTILES)]
    out = columns("ms", *names)
    for time, told in TIMES.items():
        found = run[time]
        near = "" if found["exact"] else " (within 0.05 %)"
        out.add_row(told + near, *(_figure(found[name]) for name in names))
    return out


def _promises(run: dict[str, Any]) -> Table:
    kept = (f"{kind} kept" for kind in KINDS)
    out = columns("SLO", "limits", "met", *kept, "goodput, requests/s")
    for slo in run["slo"]:
        limits = (f"{kind} {limit:g} s" for kind, limit in slo["limits_s"].items() if limit)
        out.add_row(
            slo["name"], ", ".join(limits), _share(slo["attainment"]),
            *(_share(slo["kept"][kind]) for kind in KINDS),
            _figure(slo["goodput_requests_per_s"]),
        )  # fmt: skip
    return out


def _loads(run: dict[str, Any]) -> Table:
    out = columns("load", "mean", "most", "of")
    for key, told in (
        ("waiting", "requests waiting"), ("slots", "slots taken"),
        ("tokens_in_flight", "tokens in flight"),
    ):  # fmt: skip
        load = run[key]
        of = f"{load['capacity']:,} ({_share(load['occupancy'])})" if "capacity" in load else ""
        out.add_row(told, _figure(load["mean"]), _figure(load["most"]), of)
    return out


def _saturation(run: dict[str, Any]) -> str:
    found = run["saturation"]
    return f"{found['verdict']}: {found['why']}"


def _agreement(against: dict[str, Any]) -> str:
    said = f"server: {against['equal']:,} of {against['requests']:,} requests took the same cycles"
    if against["different"]:
        first = against["different"][0]
        said += (
            f"; request {first['number']} ({quoted(first['id'])}) took {first['served_cycles']}, "
            f"simulated {first['simulated_cycles']}"
        )
    return said


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.4g} %"


def _draw(path: str, kind: str, report: dict[str, Any]) -> None:
    from rack.traffic.picture import draw  # heavy, and only this needs it

    with writing(path, "a picture") as file:
        file.write(draw(report, kind))
    say(f"{path}: {report['trace']['format']} on {report['model']}")
