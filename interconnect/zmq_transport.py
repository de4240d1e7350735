"""The transport between processes and hosts: ZeroMQ over `ipc://` or `tcp://`.

A node binds one PULL socket and connects one PUSH socket to each peer when it first sends there,
so messages between two nodes stay in order. On the wire a message is one part, b"C" + control or
b"F" + header length (one byte) + header + payload: a second part would cost more than copying the
payload. Endpoints are learnt at start: bind, tell the others `endpoint`, `connect` theirs.

Rules. `tcp://` is always encrypted with the run's CURVE key: who has the key is a member of the
run, nobody else gets a message in. `ipc://` is plain, in a private directory. A transport has a
ZeroMQ context of its own (one chip process has one transport) and must be made after any fork:
sockets do not survive one.
"""

from __future__ import annotations

import math
import os
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from interconnect.errors import (
    FrameError,
    TransportClosedError,
    TransportError,
    UnknownPeerError,
)
from interconnect.frame import Frame, decode, decode_control, encode, encode_control
from interconnect.transport import Message

_IPC_PATH_BYTES = 107  # sockaddr_un.sun_path is 108 with its terminator
_LINGER_MS = 2000  # how long close waits for messages still leaving
_ZERO_COPY_BYTES = 64 * 1024  # below, copying is cheaper than tracking who owns the memory
_WAKE = "inproc://wake"


@dataclass(frozen=True, slots=True)
class RunKey:
    """The CURVE key pair of one run, for every node of it. Secret; picklable; made once a run."""

    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> RunKey:
        """Make a new key."""
        return cls(*zmq.curve_keypair())


class ZmqTransport:
    """One node's sockets; implements `interconnect.transport.Transport`.

    `bind` is "ipc://*" (a private directory, removed at close), "ipc://PATH" or "tcp://HOST:PORT",
    with * for any free port and a HOST that the others can reach; `key` is needed for tcp. Raises
    TransportError when it cannot bind.
    """

    def __init__(self, node: int, bind: str = "ipc://*", key: RunKey | None = None) -> None:
        self.node = node
        self._key = _needed_key(node, bind, key)
        self._peers: dict[int, str] = {}
        self._pushes: dict[int, zmq.Socket[bytes]] = {}
        self._send_lock = threading.Lock()
        self._receive_lock = threading.Lock()
        self._closed = False
        self._timeout_ms = -1  # what the socket has now
        self._folder = _private_folder() if bind == "ipc://*" else None
        if self._folder is not None:
            bind = f"ipc://{self._folder}/{node}"
        self._context = zmq.Context()
        self._pull = self._socket(zmq.PULL)
        try:
            self._pull.bind(_WAKE)
            self._secure(self._pull, bind, server=True)
            self._pull.bind(_bindable(node, bind))
        except (zmq.ZMQError, TransportError) as error:
            self._release()
            if isinstance(error, TransportError):
                raise
            raise TransportError(node=node, what=f"cannot bind {bind}: {error}") from error
        self.endpoint: str = self._pull.get_string(zmq.LAST_ENDPOINT)

    def connect(self, endpoints: Mapping[int, str]) -> None:
        """Learn where other nodes are. Connections are made when they are first needed.

        Raises TransportError for a second, different endpoint of a node, or one without a key.
        """
        for node, endpoint in endpoints.items():
            known = self._peers.get(node, endpoint)
            if known != endpoint:
                what = f"node {node} is at {known}, not at {endpoint} as well"
                raise TransportError(node=self.node, what=what)
            _needed_key(self.node, endpoint, self._key)
        self._peers.update(endpoints)

    def send(self, dst: int, message: Message) -> None:
        """See `Transport.send`."""
        if isinstance(message, Frame):
            header, payload = encode(message)
            data = b"".join((b"F", len(header).to_bytes(), header, payload))
        else:
            data = b"C" + encode_control(message)
        with self._send_lock:
            if self._closed:
                raise TransportClosedError(node=self.node, action="send")
            push = self._pushes.get(dst) or self._open(dst)
            push.send(data, copy=len(data) < _ZERO_COPY_BYTES)

    def receive(self, timeout_s: float | None) -> Message | None:
        """See `Transport.receive`; a payload is a view of the message as it came."""
        with self._receive_lock:
            if self._closed:
                raise TransportClosedError(node=self.node, action="receive")
            timeout_ms = -1 if timeout_s is None else math.ceil(timeout_s * 1000)
            if timeout_ms != self._timeout_ms:
                self._pull.rcvtimeo = self._timeout_ms = timeout_ms
            try:
                data = self._pull.recv()
            except zmq.Again:
                return None
            if self._closed:
                raise TransportClosedError(node=self.node, action="receive")
        return _message(data)

    def close(self) -> None:
        """See `Transport.close`; waits at most 2 s for messages that are still leaving."""
        with self._send_lock:
            if self._closed:
                return
            self._closed = True
        with self._context.socket(zmq.PUSH) as wake:  # for a thread that waits in receive
            wake.connect(_WAKE)
            wake.send(b"")
            with self._receive_lock:
                self._pull.close()
        self._release()

    def _release(self) -> None:
        for socket in (self._pull, *self._pushes.values()):
            socket.close()  # each lingers as long as it was told when made
        self._context.term()
        if self._folder is not None:
            (self._folder / str(self.node)).unlink(missing_ok=True)
            self._folder.rmdir()

    def _open(self, dst: int) -> zmq.Socket[bytes]:
        if dst not in self._peers:
            known = tuple(sorted(self._peers))
            raise UnknownPeerError(node=self.node, peer=dst, known=known)
        push = self._socket(zmq.PUSH)
        self._secure(push, self._peers[dst], server=False)
        push.connect(self._peers[dst])
        self._pushes[dst] = push
        return push

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket: zmq.Socket[Any] = self._context.socket(kind)
        socket.set_hwm(0)  # unlimited: links have no back-pressure, so neither may sockets
        socket.linger = _LINGER_MS
        return socket

    def _secure(self, socket: zmq.Socket[bytes], endpoint: str, *, server: bool) -> None:
        if self._key is None or not endpoint.startswith("tcp:"):
            return
        socket.curve_publickey, socket.curve_secretkey = self._key.public, self._key.secret
        if server:
            socket.curve_server = True
        else:
            socket.curve_serverkey = self._key.public


def _needed_key(node: int, endpoint: str, key: RunKey | None) -> RunKey | None:
    if key is None and endpoint.startswith("tcp:"):
        raise TransportError(node=node, what=f"{endpoint} needs the run's key")
    return key


def _private_folder() -> Path:
    """Make a directory for this user alone, whose name leaves room for a socket's."""
    folder = tempfile.mkdtemp(prefix="lpu-")  # mode 0700
    if len(os.fsencode(folder)) > _IPC_PATH_BYTES - 20:  # TMPDIR may be deep
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="lpu-", dir="/tmp")
    return Path(folder)


def _bindable(node: int, bind: str) -> str:
    """Refuse what ZeroMQ would take, but no peer could use."""
    scheme, _, address = bind.partition("://")
    if scheme not in ("ipc", "tcp") or not address:
        what = f"cannot bind {bind!r}: wanted ipc://* or ipc://PATH or tcp://HOST:PORT"
        raise TransportError(node=node, what=what)
    length = len(os.fsencode(address))
    if scheme == "ipc" and length > _IPC_PATH_BYTES:
        what = f"cannot bind {bind}: {length} bytes of path, at most {_IPC_PATH_BYTES} allowed"
        raise TransportError(node=node, what=what)
    if scheme == "tcp" and address.rpartition(":")[0] in ("*", "0.0.0.0", "[::]"):
        what = f"cannot bind {bind}: wanted an address that peers can reach"
        raise TransportError(node=node, what=what)
    return bind


def _message(data: bytes) -> Message:
    if data[:1] == b"F" and len(data) > 1:
        view, end = memoryview(data), 2 + data[1]
        return decode(view[2:end], view[end:])
    if data[:1] == b"C":
        return decode_control(memoryview(data)[1:])
    raise FrameError(what="message", wanted="a frame or a control message", got=repr(data[:32]))
