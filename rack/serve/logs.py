"""Structured logs: a JSON line per HTTP request on standard error, with its request id.

Keys appear by name only, and nothing of a prompt or an answer appears at all.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

FLUSH_SECONDS = 0.05


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
    """Writes the lines, several at once where requests come fast; `stream` None writes nothing."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._lines: list[str] = []

    def write(self, call: Call) -> None:
        """Take a request that has ended; on the event loop, which writes it soon."""
        if self._stream is None:
            return
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
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
        self._lines.append(json.dumps({k: v for k, v in line.items() if v is not None}) + "\n")
        if len(self._lines) == 1:
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)

    def flush(self) -> None:
        """Write what was taken: one write, so that other threads' lines do not get in between."""
        text, self._lines = "".join(self._lines), []
        if self._stream is not None and text:
            self._stream.write(text)
            self._stream.flush()


def request_log(kind: str) -> RequestLog:
    """Return the log for `--log json` or `--log none`."""
    return RequestLog(sys.stderr if kind == "json" else None)
