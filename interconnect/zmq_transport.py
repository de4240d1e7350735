"""The transport between processes and hosts: ZeroMQ over `ipc://` or `tcp://`.

A node binds one PULL socket and connects one PUSH socket to each peer when it first sends there,
so messages between two nodes stay in order. On the wire a message is one part: b"C" + control, or
b"F" + header length (one byte) + header + payload. A second part would cost more than a copy of the
payload. Endpoints are learnt at start: bind, tell the others `endpoint`, `connect` theirs.

Between processes of one host (`ipc://`, or `tcp://` at one address; the sender is named as one)
frames go through shared rings (interconnect/rings.py) where the native part is built; what does not
fit leaves a mark there and comes as b"S" + sender (four bytes) + message. A ring that is full even
for a mark gets it when the sender next sends or receives, so nobody waits for a reader that takes
nothing: it may be dead.

Rules. `tcp://` is always encrypted with the run's CURVE key: who has the key is a member of the
run, nobody else gets a message in. `ipc://` is plain, in a private directory. A transport has a
ZeroMQ context of its own (one chip process has one transport) and must be made after any fork:
sockets do not survive one.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import zmq

from interconnect.errors import (
    FrameError,
    TransportClosedError,
    TransportError,
    UnknownPeerError,
)
from interconnect.frame import Frame, decode, decode_control, encode, encode_control
from interconnect.private_folder import SOCKET_PATH_BYTES, PrivateFolder
from interconnect.rings import Inbox, Outbox, Part, Ports, RingsAddress, available
from interconnect.transport import Message

_LINGER_MS = 2000  # how long close waits for messages still leaving
_ZERO_COPY_BYTES = 64 * 1024  # below, copying is cheaper than tracking who owns the memory
_WAKE = "inproc://wake"
_OWED_SECONDS = 0.002  # how often a full ring is tried again


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
    TransportError when it cannot bind. `senders` are the nodes whose frames may come through rings.
    """

    def __init__(
        self, node: int, bind: str = "ipc://*", key: RunKey | None = None,
        senders: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.node = node
        self._key = _needed_key(node, bind, key)
        self._peers: dict[int, str] = {}
        self._pushes: dict[int, zmq.Socket[bytes]] = {}
        self._send_lock = threading.Lock()
        self._receive_lock = threading.Lock()
        self._closed = False
        self._timeout_ms = -1  # what the socket has now
        self._more = True  # whether it may have messages that its file does not tell of
        self._inbox: Inbox | None = None
        self._outboxes: dict[int, Outbox] = {}
        self.ports: Ports | None = None  # for moves at native speed
        self._owed: dict[int, int] = {}  # peer -> marks that its full ring has yet to get
        self._spilled: dict[int, deque[Message]] = defaultdict(deque)  # sender -> by the socket
        self._awaited: int | None = None  # whose mark was read, while its message has not come
        self._folder = PrivateFolder() if bind == "ipc://*" else None
        if self._folder is not None:
            bind = f"ipc://{self._folder.path}/{node}"
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
        if available():
            if senders:
                self._inbox = Inbox(senders)
                self._fd = int(self._pull.getsockopt(zmq.FD))
                self._poller = zmq.Poller()
                self._poller.register(self._pull, zmq.POLLIN)
                self._poller.register(self._inbox.pipe_fd, zmq.POLLIN)
            self.ports = Ports(self._inbox)

    @property
    def rings(self) -> RingsAddress | None:
        """The address of this node's rings, for its senders; None where it has none."""
        return None if self._inbox is None else self._inbox.address

    def connect(
        self, endpoints: Mapping[int, str], rings: Mapping[int, RingsAddress] | None = None,
        replaced: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """Learn where other nodes are. Connections are made when they are first needed.

        Rings are for nodes of this host, and where this process cannot open them, or with other
        hosts, frames go through sockets. `replaced` nodes have a new process, which sends nothing
        before this has returned: nothing more comes from, or goes to, the one before. Raises
        TransportError for a second, different endpoint of a node that was not replaced, or one
        without a key.
        """
        if replaced:
            with self._send_lock, self._receive_lock:
                for node in replaced:
                    self._forget(node)
        with self._send_lock:
            for node, endpoint in endpoints.items():
                known = self._peers.get(node, endpoint)
                if known != endpoint:
                    what = f"node {node} is at {known}, not at {endpoint} as well"
                    raise TransportError(node=self.node, what=what)
                _needed_key(self.node, endpoint, self._key)
            self._peers.update(endpoints)
            for node, address in (rings or {}).items():
                here = _host(self._peers.get(node, "")) == _host(self.endpoint)
                if here and self.node in address.senders:
                    with contextlib.suppress(OSError, ValueError):
                        self._outboxes[node] = Outbox(self.node, address)
                        self._open_port(node)

    def _open_port(self, node: int) -> None:
        """Let native moves write to a peer's ring."""
        if self.ports is not None:
            self.ports.join(node, self._outboxes[node])

    def _shut_port(self, node: int) -> None:
        if self.ports is not None:
            self.ports.leave(node)

    def _forget(self, node: int) -> None:
        """Close what leads to a node's process, drop what it has left, and wait for no more."""
        self._peers.pop(node, None)
        self._owed.pop(node, None)
        self._spilled.pop(node, None)
        if self._awaited == node:
            self._awaited = None
        if self._inbox is not None:
            self._inbox.skip(node)
        if (push := self._pushes.pop(node, None)) is not None:
            push.close(linger=0)
        if (outbox := self._outboxes.pop(node, None)) is not None:
            self._shut_port(node)
            outbox.close()

    def send(self, dst: int, message: Message) -> None:
        """See `Transport.send`."""
        parts: list[Part]
        if isinstance(message, Frame):
            header, payload = encode(message)
            parts = [b"F", len(header).to_bytes(), header, payload]
        else:
            parts = [b"C", encode_control(message)]
        with self._send_lock:
            if self._closed:
                raise TransportClosedError(node=self.node, action="send")
            outbox = self._outboxes.get(dst)
            if outbox is not None:
                if not self._owes(dst) and outbox.put(parts):
                    return
                self._owed[dst] = self._owed.get(dst, 0) + 1  # so that order is kept
                self._shut_port(dst)
                self._owes(dst)
                parts = [b"S", self.node.to_bytes(4), *parts]
            data = b"".join(parts)
            push = self._pushes.get(dst) or self._open(dst)
            push.send(data, 0, copy=len(data) < _ZERO_COPY_BYTES)

    def _owes(self, dst: int) -> bool:
        """Put the marks that a peer's ring has yet to get; say whether some are left."""
        while left := self._owed.get(dst, 0):
            if not self._outboxes[dst].put(None):
                return True
            self._owed[dst] = left - 1
        if self._owed.pop(dst, None) is not None:
            self._open_port(dst)
        return False

    def _pay(self) -> bool:
        """Try every ring that was full again; say whether one still is."""
        with self._send_lock:
            for dst in () if self._closed else tuple(self._owed):
                self._owes(dst)
            return bool(self._owed)

    def receive(self, timeout_s: float | None) -> Message | None:
        """See `Transport.receive`; a payload is a view of the message as it came."""
        with self._receive_lock:
            if self._inbox is None and not self._owed:
                return self._from_socket(timeout_s)
            return self._from_either(timeout_s)

    @property
    def stopped(self) -> bool:
        """Whether a mark was read whose message has not come: all rings wait for it."""
        return self._awaited is not None

    def expect(self, sender: int) -> Message | None:
        """Wait until a sender's ring has a message, which stays there, and return None.

        Returns a message that has to be taken meanwhile: one of the socket, or of a crowded ring.
        """
        with self._receive_lock:
            return self._from_either(None, sender)

    def take(self, sender: int) -> Message | None:
        """Take the next message of a sender's ring; None where it is empty, or has stopped."""
        with self._receive_lock:
            if self._closed:
                raise TransportClosedError(node=self.node, action="receive")
            return self._from_rings(sender)

    def _from_either(self, timeout_s: float | None, sender: int | None = None) -> Message | None:
        """Return the next message; if a sender is expected, None as soon as its ring has one."""
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        inbox = self._inbox
        while True:
            if self._closed:
                raise TransportClosedError(node=self.node, action="receive")
            if sender is None or inbox is None or self._awaited is not None:
                message = self._from_rings()
            elif inbox.holds(sender):
                return None
            else:
                crowded = inbox.crowded()
                message = None if crowded is None else self._from_rings(crowded)
            if message is not None:
                return message
            left = until - time.monotonic()
            if self._owed and self._pay():
                left = min(left, _OWED_SECONDS)
            if left <= 0:
                return self._from_socket(0)
            if (message := self._sleep(left, sender)) is not None:
                return message

    def _from_rings(self, of: int | None = None) -> Message | None:
        """Return the next message of the rings, or of one sender's, or what a mark waits for."""
        inbox = self._inbox
        if inbox is not None and self._awaited is None:
            got = inbox.take() if of is None else inbox.take_of(of)
            if got is None:
                return None
            sender, data = got
            if data is not None:
                return _message(data)
            self._awaited = sender
        if self._awaited is None or not (came := self._spilled.get(self._awaited)):
            return None
        self._awaited = None
        return came.popleft()

    def _sleep(self, seconds: float, sender: int | None = None) -> Message | None:
        """Wait until something may have come; return it, if it came by the socket."""
        inbox = self._inbox
        if inbox is None or self._awaited is not None:
            return self._from_socket(None if seconds == math.inf else seconds)
        if sender is not None:
            if self._more and (message := self._from_socket(0)) is not None:
                return message
            ms = -1 if seconds == math.inf else math.ceil(seconds * 1000)
            _, self._more = inbox.wait_for(sender, self._fd, ms)
            return None
        if inbox.listen() or not inbox.may_sleep():
            return None
        woken = self._poller.poll(None if seconds == math.inf else math.ceil(seconds * 1000))
        inbox.awake()
        by_socket = any(what is self._pull for what, _ in woken)
        return self._from_socket(0) if by_socket else None

    def _from_socket(self, timeout_s: float | None) -> Message | None:
        if self._closed:
            raise TransportClosedError(node=self.node, action="receive")
        timeout_ms = -1 if timeout_s is None else math.ceil(timeout_s * 1000)
        if timeout_ms != self._timeout_ms:
            self._pull.rcvtimeo = self._timeout_ms = timeout_ms
        try:
            data = self._pull.recv()
        except zmq.Again:
            self._more = False
            return None
        self._more = True
        if self._closed:
            raise TransportClosedError(node=self.node, action="receive")
        if data[:1] != b"S":
            return _message(data)
        # Its mark has not been seen yet, or is being waited for.
        self._spilled[int.from_bytes(data[1:5])].append(_message(data[5:]))
        return self._from_socket(0) if timeout_s == 0 else None

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
                if self.ports is not None:
                    self.ports.close()
                if self._inbox is not None:
                    self._inbox.close()
        for outbox in self._outboxes.values():
            outbox.close()
        self._release()

    def _release(self) -> None:
        for socket in (self._pull, *self._pushes.values()):
            socket.close()  # each lingers as long as it was told when made
        self._context.term()
        if self._folder is not None:
            self._folder.close()

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


def _host(endpoint: str) -> str:
    """Return what the endpoints of one host's nodes have in common: its address, for tcp."""
    return endpoint.rpartition(":")[0] if endpoint.startswith("tcp:") else endpoint[:4]


def _bindable(node: int, bind: str) -> str:
    """Refuse what ZeroMQ would take, but no peer could use."""
    scheme, _, address = bind.partition("://")
    if scheme not in ("ipc", "tcp") or not address:
        what = f"cannot bind {bind!r}: wanted ipc://* or ipc://PATH or tcp://HOST:PORT"
        raise TransportError(node=node, what=what)
    length = len(os.fsencode(address))
    if scheme == "ipc" and length > SOCKET_PATH_BYTES:
        what = f"cannot bind {bind}: {length} bytes of path, at most {SOCKET_PATH_BYTES} allowed"
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
