"""The HTTP server on a real socket: slow clients, endless heads, huge bodies are cut off."""

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest
from serve_kit import DEADLINE_SECONDS, Served, chat, events, serving, tiny

from rack.serve.app import Bounds
from rack.serve.errors import ListenError
from rack.serve.server import (
    HEAD_BYTES,
    TICK_SECONDS,
    BoundedProtocol,
    Server,
    listen,
    waited_seconds,
)

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


def talk(
    running: Running, data: bytes, then: bytes = b""
) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Send a request; return status line, head and body. `then` waits for 100 Continue."""
    with running.connect() as sock:
        sock.sendall(data)
        got = b""
        if then:
            while b"\r\n\r\n" not in got:
                got += sock.recv(1 << 16)
            assert got == b"HTTP/1.1 100 Continue\r\n\r\n"
            sock.sendall(then)
            got = b""
        while part := sock.recv(1 << 16):
            got += part
    head, _, body = got.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    return status, dict(line.split(b": ", 1) for line in lines), body


def old(path: bytes, body: dict[str, Any]) -> bytes:
    """Give a request as an HTTP/1.0 client sends it."""
    content = json.dumps(body).encode()
    return b"POST %b HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (path, len(content), content)


@pytest.fixture(scope="module")
def patient() -> Iterator[Running]:
    with Running(BoundedProtocol) as running:
        yield running


def test_a_stream_to_an_old_client_is_not_chunked(patient: Running) -> None:
    status, head, body = talk(patient, old(b"/v1/chat/completions", chat(stream=True)))
    assert status == b"HTTP/1.1 200 OK"
    assert head[b"connection"] == b"close"
    assert not {b"transfer-encoding", b"content-length"} & {*head}
    *chunks, done = events(body.decode())
    assert done == "[DONE]"
    assert len(chunks) == 6
    status, head, body = talk(
        patient, old(b"/v1/responses", {"model": "tiny", "input": "a", "stream": True})
    )
    assert b"transfer-encoding" not in head
    assert body.startswith(b"event: response.created\ndata: {")


def test_an_old_client_gets_a_length_where_there_is_one(patient: Running) -> None:
    status, head, body = talk(patient, old(b"/v1/chat/completions", chat()))
    assert status == b"HTTP/1.1 200 OK"
    assert int(head[b"content-length"]) == len(body)
    assert json.loads(body)["object"] == "chat.completion"
    status, head, body = talk(patient, old(b"/v1/embeddings", {}))
    assert (status, int(head[b"content-length"])) == (b"HTTP/1.1 404 Not Found", len(body))


def test_answers_are_dated(patient: Running) -> None:
    for path in (b"/health", b"/nope", b"/v1/models/"):
        request = b"GET %b HTTP/1.1\r\nhost: rack\r\nconnection: close\r\n\r\n" % path
        _, head, _ = talk(patient, request)
        assert parsedate_to_datetime(head[b"date"].decode()).tzinfo is not None


def test_head_has_the_head_alone(patient: Running) -> None:
    for path, status in (
        (b"/v1/models/", b"200 OK"),
        (b"/v1/responses", b"405 Method Not Allowed"),
    ):
        request = b"%b " + path + b" HTTP/1.1\r\nhost: rack\r\nconnection: close\r\n\r\n"
        line, head, body = talk(patient, request % b"HEAD")
        assert (line, body) == (b"HTTP/1.1 " + status, b"")
        if status == b"200 OK":
            assert head[b"content-length"] == b"%d" % len(talk(patient, request % b"GET")[2])


def test_a_client_that_waits_to_be_told_to_go_on(patient: Running) -> None:
    content = json.dumps(chat()).encode()
    head = CHAT + b"expect: 100-continue\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    status, _, body = talk(patient, head % len(content), content)
    assert status == b"HTTP/1.1 200 OK"
    assert json.loads(body)["object"] == "chat.completion"


def test_how_long_bytes_have_waited_before_they_were_seen() -> None:
    """A busy event loop sees a request late; its time counts from when it came."""

    class Transport(asyncio.BaseTransport):
        def __init__(self, sock: Any) -> None:
            super().__init__({"socket": sock})

    class Told:
        def getsockopt(self, *options: int) -> bytes:
            assert options == (socket.IPPROTO_TCP, socket.TCP_INFO, 56)
            return b"\xff" * 52 + struct.pack("=I", 250)

    assert waited_seconds(Transport(Told())) == pytest.approx(0.250 - TICK_SECONDS)
    assert waited_seconds(Transport(None)) == 0.0
    ours, theirs = socket.socketpair()  # not TCP
    assert waited_seconds(Transport(ours)) == 0.0
    ours.close()
    theirs.close()
    with listen("127.0.0.1", 0)[0] as server:
        client = socket.create_connection(server.getsockname())
        there, _ = server.accept()
        client.sendall(b"x")
        sent = time.perf_counter()
        assert there.recv(1) == b"x"
        assert 0.0 <= waited_seconds(Transport(there)) <= time.perf_counter() - sent
        there.close()
        client.close()
