"""`python -m rack.serve MODEL`: a server that the groq and openai SDKs use unchanged."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

from rack.config import MOST_TOKENS, RunConfig, add_flags, count, parse
from rack.memory import executor_asked_for, fit_to_memory
from rack.placement import add_dry_run, placement
from rack.progress import StartProgress, say, start_progress
from rack.serve.app import build_app
from rack.serve.cors import parse_origins
from rack.serve.dispatch import Dispatcher
from rack.serve.grammars import Grammars
from rack.serve.identity import Identity, identify
from rack.serve.keys import Keys, load_keys
from rack.serve.limits import Limiter, load_limits
from rack.serve.logs import request_log
from rack.serve.metrics import Metrics
from rack.serve.pacing import Pacer
from rack.serve.runner import Runner
from rack.serve.server import Server, listen
from rack.serve.service import Service
from rack.session import Progress, Session, prepare, shared_by_racks
from rack.shell import line_of, put, verb

MOST_REPLICAS = 256
CLOSE_SECONDS = 30.0  # what closing chips may take, beyond the step that is under way


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.serve`."""
    parser = argparse.ArgumentParser(
        prog="python -m rack.serve",
        description="Serve an emulated rack with the API of GroqCloud and OpenAI.",
        epilog="Requests without a seed use --seed: the same request gives the same answer.",
    )
    add_flags(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument(
        "--port", type=count(65_535), default=8000, help="port, 0 for a free one (%(default)s)"
    )
    parser.add_argument("--api-key", default=None, help="refuse requests without this key")
    parser.add_argument(
        "--api-keys", type=Path, metavar="FILE", help="refuse requests without a key of this file"
    )
    parser.add_argument(
        "--limits", type=Path, metavar="FILE.toml", help="rate limits per key and model"
    )
    parser.add_argument(
        "--allowed-origins", type=parse_origins, default=(), metavar="ORIGIN[,...]|*",
        help="let web pages of these origins use the server (none)",
    )  # fmt: skip
    parser.add_argument(
        "--max-queue", type=count(MOST_TOKENS), default=64,
        help="requests that may wait for a rack; more are answered 503 (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--replicas", type=count(MOST_REPLICAS), default=1,
        help="racks; a request goes to the shortest queue",
    )  # fmt: skip
    parser.add_argument(
        "--pace", choices=("none", "emulated"), default="none",
        help="emulated: a token comes no earlier than its emulated time says (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--log", choices=("json", "none"), default="json", help="a line per request (%(default)s)"
    )
    parser.add_argument(
        "--served-model-name", action="append", default=[], metavar="NAME",
        help="answer to this model name too; may be repeated",
    )  # fmt: skip
    add_dry_run(parser)
    return parser


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Run the server; 0 ended cleanly, 1 refused or failed, 2 bad usage."""
    parser = build_parser()
    args, config = parse(parser, argv)
    if args.max_queue < 0:
        parser.error(f"--max-queue: wanted 0 or more, got {args.max_queue}")
    if args.replicas < 1:
        parser.error(f"--replicas: wanted 1 or more, got {args.replicas}")
    return _run(args, config)


def _run(args: argparse.Namespace, config: RunConfig) -> int:
    prepared = prepare(config, runs=not args.dry_run)
    if args.dry_run:
        put(placement(prepared))
        return 0
    prepared, notice = fit_to_memory(
        prepared, asked_for=executor_asked_for(args, os.environ), racks=args.replicas
    )
    identity = identify(
        prepared, args.served_model_name, [notice] if notice else [],
        pace=args.pace, replicas=args.replicas,
    )  # fmt: skip
    keys, limiter = _guards(args, identity)
    for text in identity.notices:
        say(f"NOTE: {text}")
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(sock) for sock in listen(args.host, args.port)]
        stack.enter_context(shared_by_racks(config))
        progress = stack.enter_context(start_progress())
        return _Serving(args, identity, sockets, progress).run(keys, limiter)


def _guards(args: argparse.Namespace, identity: Identity) -> tuple[Keys, Limiter]:
    """Read the files of keys and limits. Raises ConfigError."""
    named = [] if args.api_key is None else [("api-key", args.api_key)]
    keys = Keys(named + (load_keys(args.api_keys) if args.api_keys else []))
    if args.limits is None:
        return keys, Limiter(lambda key, model: {})
    return keys, Limiter(load_limits(args.limits, keys.names, identity.names))


class _Serving:
    """The racks and the server in front of them, from start to end."""

    def __init__(
        self, args: argparse.Namespace, identity: Identity, sockets: list[socket.socket],
        progress: StartProgress,
    ) -> None:  # fmt: skip
        self._args, self._identity, self._sockets = args, identity, sockets
        self._progress, self._errors = progress, list[Exception]()
        self._lock, self._settled = threading.Lock(), set[int]()
        self._racks = Dispatcher([self._runner(number) for number in range(args.replicas)])

    def run(self, keys: Keys, limiter: Limiter) -> int:
        """Serve until a signal, or until no rack is left and none can be started."""
        metrics = Metrics(self._identity, self._racks)
        grammars = Grammars(self._identity.prepared.tokenizer)
        service = Service(
            identity=self._identity, racks=self._racks, limiter=limiter, metrics=metrics,
            grammars=grammars,
        )  # fmt: skip
        log = request_log(self._args.log)
        app = build_app(service, keys=keys, log=log, origins=self._args.allowed_origins)
        self._server = Server(
            app, after_startup=self._racks.start, before_shutdown=self._racks.request_stop
        )
        try:
            self._server.run(sockets=self._sockets)
        finally:
            log.flush()
            grammars.close()
            config = self._identity.prepared.config
            ended = self._racks.stop(config.step_timeout_s + CLOSE_SECONDS)
        if self._errors:
            raise self._errors[0]
        if not ended:
            say("error: a rack did not close in time; processes of it may be left")
        return 0 if ended else 1

    def _runner(self, number: int) -> Runner:
        clock_hz = self._identity.prepared.compiled.chip.clock_hz
        return Runner(
            lambda report: self._open(number, report),
            max_queue=self._args.max_queue,
            pacer=Pacer(clock_hz) if self._args.pace == "emulated" else None,
            on_ready=lambda: self._on_ready(number),
            on_failure=lambda error, pause: self._on_failure(number, error, pause),
            on_given_up=lambda error: self._on_given_up(number, error),
        )

    def _open(self, number: int, report: Progress) -> Session:
        name = f"rack {number}: " if self._args.replicas > 1 else ""

        def both(stage: str, done: int, total: int) -> None:
            report(stage, done, total)
            self._progress.report(name + stage, done, total)

        return Session(self._identity.prepared, both)

    def _on_ready(self, number: int) -> None:
        with self._lock:
            if number in self._settled:
                say(f"rack {number} is ready again")
            self._settle(number)

    def _settle(self, number: int) -> None:
        """Count a rack that has started, or never will; say that we are ready with the last one."""
        if number not in self._settled:
            self._settled.add(number)
            if len(self._settled) == self._args.replicas:
                self._progress.stop()
                say(usage(self._identity, self._args.host, self._sockets[0].getsockname()[1]))

    def _on_failure(self, number: int, error: Exception, pause: float) -> None:
        when = f"in {pause:.0f} s" if pause else "now"
        say(f"error: rack {number}: {failure(error)}; starting it again {when}")

    def _on_given_up(self, number: int, error: Exception) -> None:
        """Go on with the racks that are left; end where none is."""
        with self._lock:
            if self._racks.given_up:
                self._errors.append(error)
                self._server.finish()
                return
            say(f"error: rack {number}: {failure(error)}; given up, going on without it")
            self._settle(number)


def failure(error: Exception) -> str:
    """Return the cause of a failure in a line; a fault of ours is printed with its trace too."""
    line = line_of(error)
    if line is None:
        traceback.print_exception(error)
        line = f"{type(error).__name__}: {error}"
    return " ".join(line.split())


def usage(identity: Identity, host: str, port: int) -> str:
    """Return what a newcomer needs to see once the rack is ready."""
    shown = f"[{host}]" if ":" in host else host
    url, compiled = f"http://{shown}:{port}", identity.prepared.compiled
    name = identity.names[-1]
    return (
        f"ready: {', '.join(identity.names)} ({compiled.dtype}, {compiled.layout}, context "
        f"{compiled.max_model_len}, {identity.prepared.config.executor} executor) on {url}\n"
        f"  groq:    GROQ_BASE_URL={url}\n"
        f"  openai:  OPENAI_BASE_URL={url}/openai/v1\n"
        f"  curl {url}/openai/v1/chat/completions -d '"
        f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello"}}]}}\''
    )


if __name__ == "__main__":
    sys.exit(main())
