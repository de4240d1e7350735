"""The routes. Handlers read bytes and write bytes; checking and answering is done elsewhere.

Starlette alone: bodies are validated by `schemas` (a 400 names the parameter, as the API has it)
and the document at /openapi.json is made from the same models by `openapi`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rack.run.completion import TokenEvent
from rack.serve import metrics
from rack.serve.absent import why_absent
from rack.serve.cors import cross_origin
from rack.serve.door import Doorway
from rack.serve.envelope import GONE, Envelope
from rack.serve.errors import ApiError, BusyError, GoneError, busy
from rack.serve.inflate import too_large, unpack
from rack.serve.keys import Keys
from rack.serve.logs import Call, RequestLog
from rack.serve.openapi import document
from rack.serve.reading import Parse, detokenize, tokenize
from rack.serve.responses import Answer, dumps
from rack.serve.responses_api.events import stream as stream_responses
from rack.serve.responses_api.objects import Reply, wants_metrics
from rack.serve.responses_api.parse import as_sent, asked_of, parse_request
from rack.serve.runner import Finished
from rack.serve.schemas import Parsed, parse_chat, parse_text
from rack.serve.service import Service, Ticket, closed, collect, stream

MAX_BODY_BYTES = 4 << 20
BODY_SECONDS = 30.0
ARRIVED = "lpu_rack.arrived_seconds"
"""Where the server leaves in the scope when a request had arrived, by `time.perf_counter`."""
PREFIXES = ("/openai/v1", "/v1")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a client may take."""

    body_bytes: int = MAX_BODY_BYTES
    body_seconds: float = BODY_SECONDS


def build_app(
    service: Service, *, keys: Keys | None = None, log: RequestLog | None = None,
    bounds: Bounds | None = None, origins: Sequence[str] = (),
) -> ASGIApp:  # fmt: skip
    """Return the application; pages of `origins` (`*`: of all) may use it from a browser."""
    surface = _Surface(service, keys or Keys(), bounds or Bounds())
    routes = surface.routes()
    app: ASGIApp = Starlette(
        routes=routes,
        exception_handlers={
            ApiError: _api_error, HTTPException: _http_error, GoneError: _gone,
            ClientDisconnect: _gone, Exception: _bug,
        },
    )  # fmt: skip
    app = Doorway(app, service.door)
    if origins:
        app = cross_origin(app, origins)
    paths = [route.path for route in routes]
    return Envelope(app, service=service, log=log or RequestLog(), paths=paths)


class _Form(Protocol):
    """An answer in the form of its route."""

    def whole(self, results: Sequence[tuple[Sequence[str], Finished]]) -> dict[str, Any]: ...


A = TypeVar("A", bound=_Form)


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
                Route(f"{prefix}/responses", self._respond, methods=["POST"]),
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
        read = await self._read(request, parse_chat)
        return await self._complete(request, *read, _as_it_is, stream)

    async def _text(self, request: Request) -> Response:
        self._authorize(request)
        read = await self._read(request, parse_text)
        return await self._complete(request, *read, _as_it_is, stream)

    async def _respond(self, request: Request) -> Response:
        self._authorize(request)
        metrics = wants_metrics(request.headers.get("groq-beta"))

        def reply(answer: Answer) -> Reply:
            return Reply(request=asked_of(answer.parsed), chat=answer, metrics=metrics)

        read = await self._read(request, parse_request)
        try:
            return await self._complete(request, *read, reply, stream_responses)
        except ApiError as error:
            raise as_sent(error) from None

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
            states = self._service.check_running()
        except BusyError as error:
            raise busy(error) from None
        return _json({"status": "ready", "racks": states})

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
                        raise too_large(limit)
                    parts.append(part)
        except TimeoutError:
            raise ApiError(
                408, f"the body did not arrive within {self._bounds.body_seconds:g} seconds",
                code="request_timeout",
            ) from None  # fmt: skip
        _call(request).arrived_seconds = request.scope.get(ARRIVED, time.perf_counter())
        return unpack(b"".join(parts), request.headers.get("content-encoding"), limit)

    async def _read(self, request: Request, parse: Parse) -> tuple[Parsed, Sequence[Sequence[int]]]:
        """Read a request for a completion, and its prompts as ids. Raises ApiError."""
        return await self._service.read(parse, await self._body(request))

    async def _complete(
        self, request: Request, parsed: Parsed, prompts: Sequence[Sequence[int]],
        shape: Callable[[Answer], A],
        events: Callable[[list[TokenEvent | Finished], Sequence[Ticket], A], AsyncIterator[bytes]],
    ) -> Response:  # fmt: skip
        """Answer a checked request: whole, or as a stream once its first token is there.

        `shape` gives the answer the form that the route wants, `events` writes its stream.
        """
        call = _call(request)
        call.model = parsed.model
        assert call.key is not None
        if parsed.tools is not None or parsed.schema is not None:
            parsed = await _unless_gone(request.receive, self._service.hold(parsed))
        tickets = self._service.admit(parsed, prompts, call.key, call.arrived_seconds)
        answer = shape(Answer(
            parsed=parsed, identity=self._service.identity, request_id=call.groq_id,
            prompt_tokens=tickets[0].meter.prompt_tokens,
        ))  # fmt: skip
        watch = asyncio.ensure_future(_watch(request.receive, tickets))

        def close() -> None:
            watch.cancel()
            call.details |= closed(tickets)

        streaming = False
        try:
            if parsed.stream:
                first = await tickets[0].events()
                streaming = True
                return _EventStream(events(first, tickets, answer), close)
            return _json(answer.whole([await collect(ticket) for ticket in tickets]))
        finally:
            if not streaming:
                close()


def _as_it_is(answer: Answer) -> Answer:
    return answer


async def _disconnected(receive: Receive) -> None:
    """Return when the client goes."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _watch(receive: Receive, tickets: Sequence[Ticket]) -> None:
    """Tell the tickets when their client goes."""
    await _disconnected(receive)
    for ticket in tickets:
        ticket.leave()


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do some work, but cancel it when the client goes. Raises GoneError then."""
    gone, done = asyncio.ensure_future(_disconnected(receive)), asyncio.ensure_future(work)
    try:
        await asyncio.wait((gone, done), return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise GoneError("the client has left")
        return done.result()
    finally:
        gone.cancel()
        done.cancel()
        await asyncio.gather(gone, done, return_exceptions=True)


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
    message = f"{error.detail}: {request.method} {request.scope['path']}"
    code = "unknown_url" if error.status_code == 404 else None
    if error.status_code == 404 and (why := why_absent(request.scope["path"], PREFIXES)):
        message, code = f"{message}; {why}", "not_emulated"
    refused = ApiError(error.status_code, message, code=code)
    return _json(refused.body(), error.status_code, dict(error.headers or {}))


async def _gone(request: Request, error: Exception) -> Response:
    """Note that the client left; nobody reads this answer."""
    return Response(status_code=GONE)


async def _bug(request: Request, error: Exception) -> Response:
    """Answer for a bug of ours; the framework raises it again, so that it is logged."""
    bug = ApiError(500, f"{type(error).__name__}: {error}", kind="internal_server_error")
    return _json(bug.body(), 500)
