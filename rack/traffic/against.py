"""The same requests at a running server: are the emulated times those of the simulation?

Requests are posted one by one, in the order of their arrivals, each when the one before has ended;
and so they are simulated. What a server without `--pace` runs at the same time depends on when
requests reach it by the wall clock, which is no part of emulated time; of a request that runs alone
every cycle is determined, with or without pace.
"""

from __future__ import annotations

import http.client
import json
import random
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from compiler.errors import one_line
from compiler.files import printable, shown
from compiler.pipeline import CompiledModel
from rack.errors import ConfigError
from rack.traffic.request import Request
from rack.traffic.simulation import simulate

TIMEOUT_SECONDS = 3600.0  # of an answer: a paced server takes the emulated time
MOST_BYTES = 1 << 26  # of an answer

Ask = Callable[[str, dict[str, Any] | None], tuple[int, Any]]
"""(path, body to post or None to get) -> status and body of the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Cycles of a request from its slot to its last token; None where it was refused."""

    request: Request
    simulated_cycles: int | None
    served_cycles: int | None

    @property
    def equal(self) -> bool:
        return self.simulated_cycles == self.served_cycles


def server(url: str, key: str | None) -> Ask:
    """Return what asks a server. Raises ConfigError for no URL of one."""
    try:
        parts = urllib.parse.urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_valid = urllib.parse.SplitResult("", "", "", "", ""), False
    plain = url.isascii() and url.isprintable() and " " not in url
    if parts.scheme not in ("http", "https") or not parts.hostname or not (port_is_valid and plain):
        raise ConfigError(
            f"against: wanted the URL of a server (http://127.0.0.1:8000), got {shown(url)}"
        )
    base = url.rstrip("/").removesuffix("/v1")
    headers = {"content-type": "application/json"}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"

    def ask(path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{base}/v1/{path}", data, headers)
        try:
            status, answer = _answered(request)
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise ConfigError(
                f"against: {printable(url)}: wanted an answer, got {one_line(str(reason).strip())}"
            ) from None
        return status, _json(url, answer)

    return ask


def _answered(request: urllib.request.Request) -> tuple[int, bytes]:
    """Return status and bytes of the answer. Raises OSError, ValueError or HTTPException."""
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            return answer.status, answer.read(MOST_BYTES)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(MOST_BYTES)


def _json(url: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise ConfigError(
            f"against: {printable(url)}: wanted JSON, got {shown(data[:80])}"
        ) from None  # fmt: skip


def compare(
    compiled: CompiledModel, requests: Iterable[Request], ask: Ask
) -> Iterator[Pair]:  # fmt: skip
    """Serve requests one by one, and simulate them so. Raises ConfigError for another rack."""
    status, models = ask("models", None)
    if status != 200:
        raise ConfigError(f"against: wanted the server's models, got {_said(status, models)}")
    name, vocab = _name(models), compiled.config.vocab_size
    for outcome in simulate(compiled, _one_by_one(requests)):
        request = outcome.request
        rng = random.Random(request.number)  # prompts have nothing in common that could be reused
        status, body = ask("completions", {
            "model": name, "prompt": [rng.randrange(vocab) for _ in range(request.prompt_tokens)],
            "max_tokens": request.output_tokens, "ignore_eos": True,
        })  # fmt: skip
        cycles: int | None = None
        if status == 200:
            _check_same(compiled, body)
            cycles = _cycles(body, "prompt") + _cycles(body, "completion")
        elif outcome.end is not None:
            raise ConfigError(
                f"against: request {request.number}: wanted an answer, got {_said(status, body)}"
            )
        simulated = None
        if outcome.end is not None and outcome.admitted is not None:
            simulated = outcome.end - outcome.admitted
        yield Pair(request=request, simulated_cycles=simulated, served_cycles=cycles)


def _one_by_one(requests: Iterable[Request]) -> Iterator[Request]:
    """Let each request follow the one before."""
    before: int | None = None
    for request in requests:
        yield replace(request, arrival_s=0.0, session="one", after=before, delay_s=0.0)
        before = request.number


def _name(models: Any) -> str:
    """Return the name of the server's first model."""
    try:
        name = models["data"][0]["id"]
    except (LookupError, TypeError):
        name = None
    if not isinstance(name, str):
        wanted = "the server's models (data[0].id)"
        raise ConfigError(f"against: wanted {wanted}, got {shown(models)}")
    return name


def _check_same(compiled: CompiledModel, body: Any) -> None:
    """Refuse a server that runs other schedules."""
    found = _mark(body, "schedule_hash")
    if not isinstance(found, str):
        raise _no_mark("schedule_hash", found)
    if found != compiled.schedule_hash:
        raise ConfigError(
            f"against: wanted a server with the schedules {compiled.schedule_hash[:12]}, got "
            f"{one_line(found[:12])}: start it with the same model, machine and flags"
        )


def _cycles(body: Any, kind: str) -> int:
    found = _mark(body, "emulated_cycles", kind)
    if type(found) is not int:
        raise _no_mark(f"emulated_cycles.{kind}", found)
    return found


def _mark(body: Any, *keys: str) -> Any:
    """Return what an answer says of how it was made; None for what it does not."""
    for key in ("x_rack", *keys):
        body = body.get(key) if isinstance(body, dict) else None
    return body


def _no_mark(key: str, got: object) -> ConfigError:
    wanted = f"an answer of rack.serve with x_rack.{key}"
    return ConfigError(f"against: wanted {wanted}, got {shown(got)}")


def _said(status: int, body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else body
    return f"{status}: {shown(message)}"
