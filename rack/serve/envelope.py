"""Around every request: its id, the rate-limit headers of its answer, and its log line."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rack.serve.logs import Call, RequestLog
from rack.serve.responses import new_id
from rack.serve.service import Service

_ECHOED = re.compile(rb"[\x21-\x7e]{1,128}")
"""Request ids that are given back: what cannot break a log or a header."""

_SLASHES = re.compile("/{2,}")


class Envelope:
    """An ASGI application around another. Handlers find their `Call` in the scope."""

    def __init__(self, app: ASGIApp, *, service: Service, log: RequestLog) -> None:
        self._app, self._limiter, self._log = app, service.limiter, log
        self._model = service.identity.names[0]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = _call(scope)
        scope = {**scope, "call": call, "path": _plain(scope["path"])}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *self._headers(call)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            self._log.write(call)

    def _headers(self, call: Call) -> list[tuple[bytes, bytes]]:
        out = [(b"x-request-id", call.request_id.encode("ascii"))]
        if call.key is not None:
            limits = self._limiter.headers(call.key, call.model or self._model)
            out += [(name.encode("ascii"), value.encode("ascii")) for name, value in limits.items()]
        return out


def _plain(path: str) -> str:
    """Return a path without slashes that say nothing: clients join a base URL and a path.

    A redirect to it would lose the body of a request with some clients.
    """
    return _SLASHES.sub("/", path).rstrip("/") or "/"


def _call(scope: Scope) -> Call:
    ours = new_id("req")
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return Call(
        request_id=given.decode("ascii") if _ECHOED.fullmatch(given) else ours,
        groq_id=ours, method=scope["method"], path=scope["path"],
    )  # fmt: skip
