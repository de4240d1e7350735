"""The HTTP server: uvicorn, with bounds on how long a client may take, and a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from rack.serve.app import ARRIVED
from rack.serve.errors import ListenError

MESSAGE_SECONDS = 60.0
"""What a request may take to arrive, from the connection's start or its own first byte."""
STALL_SECONDS = 60.0
"""How long a client may leave an answer unread."""
HEAD_BYTES = 64 << 10
TICK_SECONDS = 0.01  # the coarsest clock that the kernel keeps such times by (HZ=100)
_LAST_DATA_RECEIVED = 52  # offset in Linux' struct tcp_info: milliseconds, as a u32
IDLE_SECONDS = 65  # longer than clients and proxies keep connections, so that they close first


_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end the server, without those that were ignored at its start (nohup)."""
_DRAINS = signal.SIGTERM


class UnchunkedCycle(RequestResponseCycle):
    """The answer to an HTTP/1.0 client, which knows no chunks: a closed connection ends it."""

    _endless = False

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            names = [name.lower() for name, _ in message.get("headers", ())]
            self._endless = b"content-length" not in names
            if self._endless:
                self.chunked_encoding = False
        elif self._endless and message["type"] == "http.response.body":
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class BoundedProtocol(HttpToolsProtocol):
    """Cuts off clients that send or read too slowly, or send a head without end."""

    message_seconds, stall_seconds = MESSAGE_SECONDS, STALL_SECONDS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._has_head, self._head_bytes = False, 0
        self._stalled: asyncio.TimerHandle | None = None
        self._late: asyncio.TimerHandle | None = None
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expected()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if not self._has_head and self._head_bytes > HEAD_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect()

    def on_headers_complete(self) -> None:
        self._has_head = True
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0":
            self.cycle.__class__ = UnchunkedCycle  # uvicorn has no other place to say so

    def on_message_complete(self) -> None:
        scope: Any = self.scope
        scope[ARRIVED] = time.perf_counter() - waited_seconds(self.transport)
        self._has_head, self._head_bytes = False, 0
        self._expected()
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

    def _expect(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(self.message_seconds, self.transport.abort)

    def _expected(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def waited_seconds(transport: asyncio.BaseTransport) -> float:
    """Return how long the bytes that came last have waited in the kernel, rather less than more.

    So long has a busy event loop not seen a request; 0 where the system does not say.
    """
    try:
        options = (socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECEIVED + 4)
        found = transport.get_extra_info("socket").getsockopt(*options)
        (milliseconds,) = struct.unpack_from("=I", found, _LAST_DATA_RECEIVED)
    except (AttributeError, OSError, struct.error):
        return 0.0
    return max(0.0, float(milliseconds) / 1e3 - TICK_SECONDS)


def listen(host: str, port: int) -> list[socket.socket]:
    """Take every address of a host, so that nobody else can while the chips start.

    `::` takes IPv4 too. A port 0 is the same free one for all. Addresses that this machine does not
    have are left out, unless none is left. Raises ListenError.
    """
    if not 0 <= port < 1 << 16:  # getaddrinfo would take it modulo that
        raise ListenError(host=host, port=port, why="wanted a port from 0 to 65535")
    taken: list[socket.socket] = []
    missing = ListenError(host=host, port=port, why="wanted an address, got none")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, address in dict.fromkeys((family, address) for family, *_, address in found):
            if taken and not port:
                port = taken[0].getsockname()[1]
            try:
                taken.append(_take(family, (address[0], port, *address[2:])))
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                missing = ListenError(host=host, port=port, why=error.strerror or str(error))
    except (OSError, UnicodeError) as error:  # UnicodeError: what is no host's name
        for sock in taken:
            sock.close()
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ListenError(host=host, port=port, why=why) from None
    if not taken:
        raise missing
    return taken


def _take(family: int, address: tuple[Any, ...]) -> socket.socket:
    every = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(address, family=family, backlog=1024, dualstack_ipv6=every)


class Server(uvicorn.Server):
    """Serves until a signal or `finish`.

    `after_startup` runs once signals are caught, so that nothing is started that a signal could
    leave behind; `before_shutdown` ends open streams, which the server waits for. After a SIGTERM
    `drained` is asked, ten times a second, whether it may end; a second signal ends it at once.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        after_startup: Callable[[], None],
        before_shutdown: Callable[[], None],
        drained: Callable[[], bool] = lambda: True,
        protocol: type[BoundedProtocol] = BoundedProtocol,
    ) -> None:
        options: dict[str, Any] = {"http": protocol, "ws": "none"}
        config = uvicorn.Config(
            app, log_config=None, log_level="error", access_log=False, lifespan="off",
            timeout_graceful_shutdown=10, timeout_keep_alive=IDLE_SECONDS, server_header=False,
            **options,
        )  # fmt: skip
        super().__init__(config)
        self._after_startup, self._before_shutdown = after_startup, before_shutdown
        self._drained, self._draining = drained, False

    def finish(self) -> None:
        """Stop serving; callable from any thread."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Turn signals into a clean end; uvicorn's own would kill the process with them after."""
        heeded = [one for one in _SIGNALS if signal.getsignal(one) != signal.SIG_IGN]
        before = {one: signal.signal(one, self.handle_exit) for one in heeded}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == _DRAINS and not self._draining:
            self._draining = True
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if self._draining and self._drained():
            self.should_exit = True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._after_startup()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._before_shutdown()
        await super().shutdown(sockets)
