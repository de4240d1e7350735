"""`python -m rack.serve MODEL`: a server that the groq and openai SDKs use unchanged."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from functools import partial
from pathlib import Path

from rack.commands.command import UsageError, model_command, show_placement
from rack.commands.flags import count, model_flags, output_flags, verb_parser
from rack.run.config import MOST_TOKENS, RunConfig
from rack.run.host_memory import executor_asked_for
from rack.run.session import Task, of_task, prepare, shared_by_racks
from rack.serve.cors import parse_origins
from rack.serve.keys import Keys, load_keys
from rack.serve.logs import FORMS, Notices
from rack.serve.server import listen
from rack.serve.serving import ServeOptions, Serving
from rack.system.progress import StartProgress
from rack.system.shell import line_of

MOST_REPLICAS = 256
MOST_DRAIN_SECONDS = 24 * 3600


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.serve`."""
    parser = verb_parser(
        "serve", model_flags(), output_flags(json=False),
        epilog="Requests without a seed use --seed: the same request gives the same answer.",
    )  # fmt: skip
    group = parser.add_argument_group("address and access")
    group.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (%(default)s)"
    )
    group.add_argument(
        "--port", type=count(65_535), default=8000, metavar="N",
        help="port, 0 for a free one (%(default)s)",
    )  # fmt: skip
    group.add_argument("--api-key", metavar="KEY", help="refuse requests without this key")
    group.add_argument(
        "--api-keys", type=Path, metavar="FILE", help="refuse requests without a key of this file"
    )
    group.add_argument(
        "--limits", type=Path, metavar="FILE.toml", help="rate limits per key and model"
    )
    group.add_argument(
        "--allowed-origins", type=parse_origins, default=(), metavar="ORIGIN[,...]|*",
        help="let web pages of these origins use the server (none)",
    )  # fmt: skip
    group = parser.add_argument_group("service")
    group.add_argument(
        "--max-queue", type=count(MOST_TOKENS), default=64, metavar="N",
        help="requests that may wait for a slot; more are answered 503 (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--replicas", type=count(MOST_REPLICAS), default=1, metavar="N",
        help="racks; a request goes where the fewest run and wait (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--drain-seconds", type=count(MOST_DRAIN_SECONDS), default=25, metavar="S",
        help="how long requests may go on after SIGTERM, while new ones are answered 503 "
        "(%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--prefix-cache", action="store_true",
        help="a prompt goes on from what a free slot holds of it, in whole prefill chunks",
    )  # fmt: skip
    group.add_argument(
        "--pace", choices=("none", "emulated"), default="none",
        help="emulated: a token comes no earlier than its emulated time says (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--served-model-name", action="append", default=[], metavar="NAME",
        help="answer to this model name too; may be repeated",
    )  # fmt: skip
    group = parser.add_argument_group("log")
    group.add_argument(
        "--log", choices=FORMS, default="text",
        help="lines on standard error: all readable, all JSON, or none for requests (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--log-probes", action="store_true", help="log health checks and scrapes of /metrics too"
    )
    return parser


@model_command(build_parser)
def main(args: argparse.Namespace, config: RunConfig) -> int:
    """Run the server, or show the placement; return 1 if a rack did not close in time."""
    if args.max_queue < 0:
        raise UsageError(f"--max-queue: wanted 0 or more, got {args.max_queue}")
    if args.replicas < 1:
        raise UsageError(f"--replicas: wanted 1 or more, got {args.replicas}")
    if args.drain_seconds < 0:
        raise UsageError(f"--drain-seconds: wanted 0 or more, got {args.drain_seconds}")
    notices = Notices(sys.stderr, form="json" if args.log == "json" else "text")
    try:
        return _run(args, config, notices)
    except Exception as error:
        line = line_of(error)
        if notices.form == "text" or line is None:
            raise
        notices.say(line, "error", message=line)
        return 1


def _run(args: argparse.Namespace, config: RunConfig, notices: Notices) -> int:
    if args.dry_run:
        show_placement(of_task(Task.GENERATE, prepare(config, runs=False)))
        return 0
    keys = _keys(args)
    told = partial(_tell_stage, notices) if notices.form == "json" else None
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(sock) for sock in listen(args.host, args.port)]
        stack.enter_context(notices.heard())
        stack.enter_context(shared_by_racks(config))
        progress = stack.enter_context(StartProgress(told))
        return Serving(_options(args), config, sockets, keys, progress, notices).run()


def _options(args: argparse.Namespace) -> ServeOptions:
    return ServeOptions(
        host=args.host, names=args.served_model_name, limits=args.limits,
        origins=args.allowed_origins, max_queue=args.max_queue, replicas=args.replicas,
        drain_seconds=args.drain_seconds, prefix_cache=args.prefix_cache, pace=args.pace,
        log=args.log, log_probes=args.log_probes,
        executor_asked_for=executor_asked_for(args, os.environ),
    )  # fmt: skip


def _tell_stage(notices: Notices, stage: str, done: int, total: int) -> None:
    notices.say("", "progress", stage=stage, done=done, total=total)


def _keys(args: argparse.Namespace) -> Keys:
    """Read the file of keys. Raises ConfigError."""
    named = [] if args.api_key is None else [("api-key", args.api_key)]
    return Keys(named + (load_keys(args.api_keys) if args.api_keys else []))
