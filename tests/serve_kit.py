"""What the server's tests share: a tiny model in this process, a rack that waits to be told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import httpx
from starlette.types import ASGIApp

from compiler.model.presets import PRESETS
from rack.run.config import RunConfig
from rack.run.session import Prepared, Session, prepare
from rack.run.steps import Rack, Recovery, StepOrder
from rack.serve.app import build_app
from rack.serve.dispatch import Dispatcher
from rack.serve.grammars import Grammars
from rack.serve.identity import identify
from rack.serve.limits import Limiter
from rack.serve.metrics import Metrics
from rack.serve.pacing import Unpaced
from rack.serve.reader import ReadBounds, reader_of
from rack.serve.runner import Runner
from rack.serve.service import Service
from rack.system.progress import Progress
from rack.text.constrain import Words
from rack.text.judge import Judge, Limits

DEADLINE_SECONDS = 30.0


@cache
def tiny(executor: str = "fast", sequences: int = 1, layout: str = "1x1", **more: Any) -> Prepared:
    """Compile the tiny preset in this process, for one chip unless told otherwise."""
    return prepare(RunConfig(
        model="tiny", layout=layout, transport="local", executor=executor, seed=7,
        sequences=sequences, **more,
    ))  # fmt: skip


@cache
def roomy(executor: str = "timing") -> Prepared:
    """Compile the tiny preset with a context of 2,048 tokens: tools take room in a prompt."""
    config = RunConfig(model="roomy", layout="1x1", transport="local", executor=executor, seed=7)
    PRESETS["roomy"] = replace(PRESETS["tiny"], name="roomy", max_position_embeddings=2048)
    try:
        return prepare(config)
    finally:
        del PRESETS["roomy"]


class Steps:
    """Stands in front of a rack's steps: counts them, holds them back, makes them fail."""

    def __init__(self, permits: int | None = None) -> None:
        self.done = 0
        self.fail_next: Exception | None = None
        self.waiting = threading.Event()  # set while a step waits for a permit
        self._changed = threading.Condition()
        self._permits = None if permits is None else threading.Semaphore(permits)

    def release(self, count: int) -> None:
        assert self._permits is not None
        self._permits.release(count)

    def hold(self) -> None:
        """Hold back the steps to come."""
        self._permits = threading.Semaphore(0)

    def end(self) -> None:
        """Let a step go on that still waits; its request has been cancelled."""
        if self._permits is not None:
            self.release(1)

    async def ran(self, count: int) -> None:
        """Wait until this many steps ran."""

        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(lambda: self.done >= count, DEADLINE_SECONDS)

        assert await asyncio.to_thread(wait), "deadline passed"

    def stand_before(self, rack: Rack) -> None:
        """Stand in front of a rack."""
        start = rack.start

        def held(order: StepOrder) -> None:
            if self._permits is not None and not self._permits.acquire(blocking=False):
                self.waiting.set()
                assert self._permits.acquire(timeout=DEADLINE_SECONDS), "no permit came"
                self.waiting.clear()
            error, self.fail_next = self.fail_next, None
            if error is not None:
                raise error
            start(order)
            with self._changed:
                self.done += 1
                self._changed.notify_all()

        rack.start = held  # type: ignore[method-assign]


@dataclass
class Served:
    """A server in this process."""

    app: ASGIApp
    runner: Runner
    client: httpx.AsyncClient
    opened: list[Session]
    fatal: list[Exception]
    grammars: Grammars
    losses: list[tuple[str, float]]
    said: list[str]
    service: Service
    recoveries: list[Recovery]
    ready: threading.Event = field(default_factory=threading.Event)

    async def until_ready(self) -> None:
        await until(self.ready)
        self.ready.clear()


async def until(event: threading.Event) -> None:
    """Wait for an event of another thread."""
    assert await asyncio.to_thread(event.wait, DEADLINE_SECONDS), "deadline passed"


@asynccontextmanager
async def serving(
    prepared: Prepared | None = None, *, steps: Steps | None = None, wait: bool = True,
    max_queue: int = 8, opening: Callable[[Progress], None] = lambda report: None,
    names: Sequence[str] = (), limiter: Limiter | None = None, pauses: Sequence[float] = (0.0,),
    judge_limits: Limits | None = None, pacer: Unpaced | None = None,
    read: ReadBounds | None = None, prefix_cache: bool = False, **options: Any,
) -> AsyncIterator[Served]:  # fmt: skip
    """Serve a model in this process; on leaving, the rack's thread must have ended."""
    prepared = prepared or tiny()
    opened: list[Session] = []
    fatal: list[Exception] = []
    ready = threading.Event()

    def open_session(report: Progress) -> Session:
        opening(report)
        session = Session(prepared, report)
        if steps is not None:
            steps.stand_before(session.rack)
        opened.append(session)
        return session

    losses: list[tuple[str, float]] = []
    recoveries: list[Recovery] = []

    def recovered(recovery: Recovery) -> None:
        recoveries.append(recovery)
        service.metrics.recovered(recovery)

    runner = Runner(
        open_session, max_queue=max_queue, on_ready=ready.set, on_given_up=fatal.append,
        on_failure=lambda error, pause: losses.append((str(error), pause)), pauses=pauses,
        pacer=pacer, reuse=prefix_cache, on_recovery=recovered,
    )  # fmt: skip
    identity = identify(prepared, names, prefix_cache=prefix_cache)
    racks = Dispatcher([runner])
    words = Words.of(prepared.tokenizer)
    grammars = Grammars(prepared.tokenizer, Judge(words, judge_limits))
    said: list[str] = []
    service = Service(
        identity=identity, racks=racks, metrics=Metrics(identity, racks, said.append),
        limiter=limiter or Limiter(lambda key, model: {}), grammars=grammars,
        reader=reader_of(prepared, read),
    )  # fmt: skip
    app = build_app(service, **options)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://rack") as client:
        served = Served(
            app, runner, client, opened, fatal, grammars, losses, said, service, recoveries, ready
        )
        runner.start()
        try:
            if wait:
                await served.until_ready()
            yield served
        finally:
            await asyncio.to_thread(service.close)
            assert await asyncio.to_thread(runner.stop, DEADLINE_SECONDS), "the rack did not stop"


def chat(text: str = "hi", **options: Any) -> dict[str, Any]:
    """Return a chat request for the tiny model."""
    message = {"role": "user", "content": text}
    return {"model": "tiny", "messages": [message], "max_tokens": 4, "temperature": 0} | options


def events(body: str) -> list[Any]:
    """Parse server-sent events; [DONE] stays a string."""
    out: list[Any] = []
    for block in body.split("\n\n")[:-1]:
        prefix, data = block[:6], block[6:]
        assert prefix == "data: "
        out.append(data if data == "[DONE]" else json.loads(data))
    return out


async def asgi(
    app: ASGIApp, method: str, path: str, body: bytes = b"", *, sent: list[Any] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Make a request without any client in between; return status, headers and body.

    `sent` is filled with the raw messages, also where the application raises.
    """
    sent = [] if sent is None else sent
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(),
        "headers": [], "query_string": b"", "root_path": "", "scheme": "http",
        "http_version": "1.1", "server": ("rack", 80), "client": ("me", 1),
        "asgi": {"version": "3.0", "spec_version": "2.3"},
    }  # fmt: skip
    messages: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]
    never = asyncio.Event()

    async def receive() -> Any:
        if messages:
            return messages.pop()
        return await never.wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    got = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], got, b"".join(message["body"] for message in sent[1:])
