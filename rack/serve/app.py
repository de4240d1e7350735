"""The routes. Handlers read bytes and write bytes; checking and answering is done elsewhere.

Starlette alone: bodies are validated by `schemas` (a 400 names the parameter, as the API has it)
and the document at /openapi.json is made from the same models by `openapi`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rack.serve import metrics
from rack.serve.envelope import GONE, Envelope
from rack.serve.errors import ApiError, BusyError, GoneError, busy
from rack.serve.keys import Keys
from rack.serve.logs import Call, RequestLog
from rack.serve.openapi import document
from rack.serve.reading import Parse, detokenize, tokenize
from rack.serve.responses import Answer, dumps
from rack.serve.schemas import parse_chat, parse_text
from rack.serve.service import Service, Ticket, collect, stream

MAX_BODY_BYTES = 4 << 20
BODY_SECONDS = 30.0
PREFIXES = ("/openai/v1", "/v1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a client may take."""

    body_bytes: int = MAX_BODY_BYTES
    body_seconds: float = BODY_SECONDS


def build_app(
    service: Service, *, keys: Keys | None = None, log: RequestLog | None = None,
    bounds: Bounds | None = None,
) -> ASGIApp:  # fmt: skip
    """Return the application."""
    surface = _Surface(service, keys or Keys(), bounds or Bounds())
    routes = surface.routes()
    app = Starlette(
        routes=routes,
        exception_handlers={
            ApiError: _api_error, HTTPException: _http_error, GoneError: _gone,
            ClientDisconnect: _gone, Exception: _bug,
        },
    )  # fmt: skip
    paths = [route.path for route in routes]
    return Envelope(app, service=service, log=log or RequestLog(), paths=paths)


class _Surface:
    """The handlers."""

    def __init__(self, service: Service, keys: Keys, bounds: Bounds) -> None:
        self._service, self._keys, self._bounds = service, keys, bounds
        self._document = dumps(document(service.identity, prefixes=PREFIXES, keyed=keys.wanted))

    def routes(self) -> list[Route]:
        """Return all routes."""
        out = []
        for prefix in PREFIXES:
            out += [
                Route(f"{prefix}/chat/completions", self._chat, methods=["POST"]),
                Route(f"{prefix}/completions", self._text, methods=["POST"]),
                Route(f"{prefix}/models", self._models, methods=["GET"]),
                Route(f"{prefix}/models/{{name:path}}", self._model, methods=["GET"]),
            ]
        return [
            *out,
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/detokenize", self._detokenize, methods=["POST"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/health/ready", self._ready, methods=["GET"]),
            Route("/version", self._version, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
            Route("/openapi.json", self._openapi, methods=["GET"]),
        ]

    async def _chat(self, request: Request) -> Response:
        self._authorize(request)
        return await self._complete(request, parse_chat)

    async def _text(self, request: Request) -> Response:
        self._authorize(request)
        return await self._complete(request, parse_text)

    async def _models(self, request: Request) -> Response:
        self._authorize(request)
        return _json(self._service.identity.models())

    async def _model(self, request: Request) -> Response:
        self._authorize(request)
        return _json(self._service.identity.model(request.path_params["name"]))

    async def _tokenize(self, request: Request) -> Response:
        self._authorize(request)
        identity = self._service.identity
        model, ids = await self._service.reader.run(tokenize, await self._body(request))
        if model is not None:
            identity.check_model(model)
        limit, tokens = identity.prepared.compiled.max_model_len, list(ids)
        return _json(
            {"count": len(tokens), "max_model_len": limit, "tokens": tokens, "token_strs": None}
        )

    async def _detokenize(self, request: Request) -> Response:
        self._authorize(request)
        model, text = await self._service.reader.run(detokenize, await self._body(request))
        if model is not None:
            self._service.identity.check_model(model)
        return _json({"prompt": text})

    async def _health(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def _ready(self, request: Request) -> Response:
        try:
            self._service.racks.check_ready()
        except BusyError as error:
            raise busy(error) from None
        return _json({"status": "ready"})

    async def _version(self, request: Request) -> Response:
        return _json(self._service.identity.version())

    async def _metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.expose(), media_type=metrics.CONTENT_TYPE)

    async def _openapi(self, request: Request) -> Response:
        return Response(self._document, media_type="application/json")

    def _authorize(self, request: Request) -> None:
        _call(request).key = self._keys.check(request.headers.get("authorization"))

    async def _body(self, request: Request) -> bytes:
        """Read a body within the bounds; of what is larger no more is kept. Raises ApiError."""
        limit, parts, size = self._bounds.body_bytes, [], 0
        try:
            async with asyncio.timeout(self._bounds.body_seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > limit:
                        raise ApiError(
                            413, f"the body is larger than {limit} bytes", code="request_too_large"
                        )
                    parts.append(part)
        except TimeoutError:
            raise ApiError(
                408, f"the body did not arrive within {self._bounds.body_seconds:g} seconds",
                code="request_timeout",
            ) from None  # fmt: skip
        _call(request).arrived_seconds = time.perf_counter()
        return b"".join(parts)

    async def _complete(self, request: Request, parse: Parse) -> Response:
        """Answer a request: whole, or as a stream once its first token is there."""
        call, body = _call(request), await self._body(request)
        parsed, prompt = await self._service.read(parse, body)
        call.model = parsed.model
        assert call.key is not None
        ticket = self._service.admit(parsed, prompt, call.key, call.arrived_seconds)
        answer = Answer(
            parsed=parsed, identity=self._service.identity, request_id=call.groq_id,
            prompt_tokens=ticket.meter.prompt_tokens,
        )  # fmt: skip
        watch = asyncio.ensure_future(_watch(request.receive, ticket))

        def close() -> None:
            watch.cancel()
            call.details |= ticket.close()

        streaming = False
        try:
            if parsed.stream:
                first = await ticket.events()
                streaming = True
                return _EventStream(stream(first, ticket, answer), close)
            text, totals = await collect(ticket)
            return _json(answer.whole(text, totals))
        finally:
            if not streaming:
                close()


async def _watch(receive: Receive, ticket: Ticket) -> None:
    """Tell the ticket when its client goes."""
    while (await receive())["type"] != "http.disconnect":
        pass
    ticket.leave()


class _EventStream(Response):
    """Server-sent events; `close` is called however the stream ends."""

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        self.body = b""
        self.status_code, self.background = 200, None
        self._events, self._close = events, close
        self.raw_headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for data in self._events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except GoneError:
            pass  # nobody reads what would be sent
        finally:
            self._close()


def _call(request: Request) -> Call:
    call: Call = request.scope["call"]
    return call


def _json(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(dumps(body), status, headers, media_type="application/json")


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    _call(request).details["error"] = error.code or error.kind
    return _json(error.body(), error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer 404 and 405 of the router in our shape."""
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: {request.method} {request.url.path}"
    code = "unknown_url" if error.status_code == 404 else None
    refused = ApiError(error.status_code, message, code=code)
    return _json(refused.body(), error.status_code, dict(error.headers or {}))


async def _gone(request: Request, error: Exception) -> Response:
    """Note that the client left; nobody reads this answer."""
    return Response(status_code=GONE)


async def _bug(request: Request, error: Exception) -> Response:
    """Answer for a bug of ours; the framework raises it again, so that it is logged."""
    bug = ApiError(500, f"{type(error).__name__}: {error}", kind="internal_server_error")
    return _json(bug.body(), 500)
