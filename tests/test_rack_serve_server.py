"""The HTTP server on a real socket: slow clients, endless heads, huge bodies are cut off."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serve_kit import DEADLINE_SECONDS, Served, chat, serving, tiny

from rack.serve.app import Bounds
from rack.serve.errors import ListenError
from rack.serve.server import HEAD_BYTES, BoundedProtocol, Server, listen

CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nhost: rack\r\n"


class Impatient(BoundedProtocol):
    """So that a test need not wait for a minute."""

    message_seconds = stall_seconds = 0.2


class Running:
    """A server in a thread, with its own event loop."""

    def __init__(self, protocol: type[BoundedProtocol] = Impatient, **options: Any) -> None:
        (self._sock,) = listen("127.0.0.1", 0)
        self.port = self._sock.getsockname()[1]
        self._up = threading.Event()
        self._protocol, self._options = protocol, options
        self.served: Served | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        async with serving(tiny("timing"), **self._options) as self.served:
            self._server = Server(
                self.served.app, after_startup=self._up.set, before_shutdown=lambda: None,
                protocol=self._protocol,
            )  # fmt: skip
            await self._server._serve([self._sock])

    def __enter__(self) -> "Running":
        self._thread.start()
        assert self._up.wait(DEADLINE_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.finish()
        self._thread.join(DEADLINE_SECONDS)
        assert not self._thread.is_alive()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_SECONDS)

    def works(self) -> bool:
        url = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        return httpx.post(url, json=chat(), timeout=DEADLINE_SECONDS).status_code == 200


@pytest.fixture(scope="module")
def impatient() -> Iterator[Running]:
    with Running(bounds=Bounds(body_bytes=1000, body_seconds=0.1)) as running:
        yield running


def received(sock: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    out = b""
    try:
        while part := sock.recv(65536):
            out += part
    except ConnectionResetError:
        pass
    return out


@pytest.mark.parametrize("sent", [b"", CHAT[:20], CHAT])
def test_a_head_that_does_not_come(impatient: Running, sent: bytes) -> None:
    with impatient.connect() as sock:
        sock.sendall(sent)
        assert received(sock) == b""
    assert impatient.works()


def test_a_body_that_does_not_come(impatient: Running) -> None:
    with impatient.connect() as sock:
        sock.sendall(CHAT + b"content-length: 100\r\n\r\n{")
        head, _, body = received(sock).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    message = json.loads(body)["error"]["message"]
    assert message == "the body did not arrive within 0.1 seconds"
    assert impatient.works()


def test_a_body_without_end(impatient: Running) -> None:
    with impatient.connect() as sock:
        sock.sendall(CHAT + b"transfer-encoding: chunked\r\n\r\n")
        answer = b""
        sock.sendall(b"3e8\r\n" + b" " * 1000 + b"\r\n" + b"1\r\n \r\n")
        answer = sock.recv(65536)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"the body is larger than 1000 bytes" in answer + received(sock)
    assert impatient.works()


def test_a_head_without_end(impatient: Running) -> None:
    with impatient.connect() as sock:
        sock.sendall(CHAT)
        try:
            for _ in range(10 * HEAD_BYTES // 1000):
                sock.sendall(b"x-more: " + b"y" * 990 + b"\r\n")
        except (ConnectionResetError, BrokenPipeError):
            pass
        assert received(sock) == b""
    assert impatient.works()


class Watched(Impatient):
    """Tells when a connection has ended."""

    lost = threading.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lost.set()


def test_answers_that_are_not_read() -> None:
    """Once the buffers of both sides are full, the client is cut off."""
    with Running(Watched) as running, running.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: rack\r\n\r\n" * 1000)
        assert Watched.lost.wait(DEADLINE_SECONDS)
        assert running.works()


def test_keep_alive_and_pipelining() -> None:
    body = json.dumps(chat()).encode()
    one = CHAT + b"content-length: %d\r\n\r\n" % len(body) + body
    with Running(BoundedProtocol) as running, running.connect() as sock:
        sock.sendall(one * 3)
        out = b""
        while out.count(b"HTTP/1.1 200 OK") < 3:
            part = sock.recv(65536)
            assert part
            out += part


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", 70000, "port 70000: wanted a port from 0 to 65535; choose another --port"),
        ("no such host", 0, "cannot listen on no such host port 0: "),
        ("a..b", 0, "cannot listen on a..b port 0: "),
    ],
)
def test_an_address_that_cannot_be(host: str, port: int, message: str) -> None:
    with pytest.raises(ListenError) as caught:
        listen(host, port)
    assert message in str(caught.value)


def test_both_families_are_served() -> None:
    (sock,) = listen("::", 0)
    with sock:
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, sock.getsockname()[1]), DEADLINE_SECONDS):
                pass


def resolves_to(*hosts: str) -> Any:
    """A resolver that gives these addresses for every name."""
    return lambda host, port, type: [
        (socket.AF_INET, type, 6, "", (address, port)) for address in hosts
    ]


def test_every_address_of_a_name_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = ("127.0.0.1", "127.0.0.2", "127.0.0.1", "203.0.113.7")
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to(*hosts))
    taken = listen("rack", 0)
    try:
        names = [sock.getsockname() for sock in taken]
        assert names == [(host, names[0][1]) for host in ("127.0.0.1", "127.0.0.2")]
        with pytest.raises(ListenError, match="Address already in use"):
            listen("rack", names[0][1])
    finally:
        for sock in taken:
            sock.close()
    for sock in listen("rack", names[0][1]):  # the refused call has left nothing taken
        sock.close()


def test_no_address_of_a_name_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to("203.0.113.7"))
    with pytest.raises(ListenError, match="rack port 0: Cannot assign requested address"):
        listen("rack", 0)
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to())
    with pytest.raises(ListenError, match="rack port 0: wanted an address, got none"):
        listen("rack", 0)
