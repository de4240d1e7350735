"""What the server says on standard error: readable lines, or JSON lines, never a mixture.

A line per HTTP request with its request id (health checks and scrapes are left out unless asked
for), and notices: progress, warnings, errors, what libraries log. Keys appear by name only, and
nothing of a prompt or an answer appears at all.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

from rack.system.progress import silence

FLUSH_SECONDS = 0.05
FORMS = ("text", "json", "none")  # of lines for requests; notices are text where it is none
PROBES = frozenset({"/health", "/health/ready", "/metrics"})
"""What orchestrators and Prometheus ask for every few seconds."""


@dataclass(slots=True, kw_only=True)
class Call:
    """One HTTP request as it goes along: what its log line and its headers are made from."""

    request_id: str  # the client's own where it sent one
    groq_id: str  # `x_groq.id` of the answer
    method: str
    path: str
    status: int | None = None  # None: the client left before an answer began
    key: str | None = None
    model: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    started_seconds: float = field(default_factory=time.perf_counter)
    arrived_seconds: float = 0.0  # when all of its body was there


class RequestLog:
    """Writes a line per request, several at once where requests come fast.

    `stream` None writes nothing; `form` is "json" or "text"; `probes` writes health checks and
    scrapes too.
    """

    def __init__(
        self, stream: TextIO | None = None, *, form: str = "json", probes: bool = False
    ) -> None:
        self._stream, self._probes = stream, probes
        self._line = _json_line if form == "json" else _request_line
        self._lines: list[str] = []

    def write(self, call: Call) -> None:
        """Take a request that has ended; on the event loop, which writes it soon."""
        if self._stream is None or (call.path in PROBES and not self._probes):
            return
        line = {
            "time": _now(),
            "event": "request",
            "request_id": call.request_id,
            "groq_id": call.groq_id,
            "method": call.method,
            "path": call.path,
            "status": call.status,
            "wall_seconds": round(time.perf_counter() - call.started_seconds, 6),
            "key": call.key,
            "model": call.model,
            **call.details,
        }
        self._lines.append(self._line({k: v for k, v in line.items() if v is not None}) + "\n")
        if len(self._lines) == 1:
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)

    def flush(self) -> None:
        """Write what was taken: one write, so that other threads' lines do not get in between."""
        text, self._lines = "".join(self._lines), []
        if self._stream is not None and text:
            _write(self._stream, text)


class Notices(logging.Handler):
    """Everything else that is said, and the handler of what libraries log (warnings and up)."""

    def __init__(self, stream: TextIO, *, form: str = "text") -> None:
        super().__init__(logging.WARNING)
        self._stream, self.form = stream, form

    def say(self, text: str, event: str = "notice", **fields: Any) -> None:
        """Say something; `event` and `fields` are what a program reads in place of the text."""
        if self.form == "json":
            line = {"time": _now(), "event": event, **(fields or {"message": text})}
            text = _json_line(line)
        _write(self._stream, text + "\n")

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Take what libraries log while the context is open."""
        root = logging.getLogger()
        root.addHandler(self)
        logging.captureWarnings(True)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            root.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Say what a library logs."""
        error = record.exc_info[1] if record.exc_info else None
        trace = "".join(traceback.format_exception(error)) if error is not None else ""
        message, level = record.getMessage(), record.levelname.lower()
        fields = {"level": level, "logger": record.name, "message": message}
        self.say(
            f"{level}: {message}" + (f"\n{trace.rstrip()}" if trace else ""), "log",
            **fields, **({"traceback": trace} if trace else {}),
        )  # fmt: skip


def request_log(form: str, *, probes: bool = False) -> RequestLog:
    """Return the log for `--log text`, `json` or `none`."""
    return RequestLog(None if form == "none" else sys.stderr, form=form, probes=probes)


def _write(stream: TextIO, text: str) -> None:
    """Write lines; where nobody can read them, requests go on without."""
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        silence(stream)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _json_line(line: dict[str, Any]) -> str:
    return json.dumps(line)


def _request_line(line: dict[str, Any]) -> str:
    """Write a request as a person reads it: what was asked, what came of it, then the rest."""
    status = line.pop("status", "-")
    head = (
        f"{line.pop('time')} {line.pop('method')} {_visible(line.pop('path'))} {status} "
        f"{line.pop('wall_seconds') * 1e3:.1f} ms"
    )
    cycles = line.pop("emulated_cycles", {})
    line |= {f"{part}_cycles": count for part, count in cycles.items()}
    del line["event"]
    return " ".join([head, *(f"{key}={_visible(str(value))}" for key, value in line.items())])


def _visible(text: str) -> str:
    """Escape what would break a line."""
    return text.encode("unicode_escape").decode("ascii")
