"""How messages get from node to node: the contract, and the transport inside one process.

A node is a chip (0..n_chips-1) or the host (n_chips). Between two nodes messages stay in order;
nothing is lost, limited or pushed back. When `send` returns, the caller may reuse the payload's
memory: a mutable payload is copied, `bytes` are not. A message for a closed node is dropped, as in
a socket; the code that watches nodes reports the loss.

One thread receives on a transport at a time; any may send or close.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace
from typing import Protocol, TypeAlias

from interconnect.errors import TransportClosedError, TransportError, UnknownPeerError
from interconnect.frame import Control, Frame, decode_control, encode_control

Message: TypeAlias = Frame | Control


class Transport(Protocol):
    """One node's way to all others."""

    def send(self, dst: int, message: Message) -> None:
        """Pass a message on without waiting; UnknownPeerError, TransportClosedError."""

    def receive(self, timeout_s: float | None) -> Message | None:
        """Take the next message; None after `timeout_s`. Zero never waits, None waits for ever.

        Raises TransportClosedError, also when another thread closes the transport meanwhile, and
        FrameError for bytes that are not a message.
        """

    def close(self) -> None:
        """Give everything back; a second call does nothing."""


class _Mailbox:
    """Messages for one node, and the condition that says there are some."""

    def __init__(self) -> None:
        self.messages: deque[Message] = deque()
        self.changed = threading.Condition()
        self.closed = False


class LocalHub:
    """The mailboxes of the nodes in one process; `transport(node)` joins one."""

    def __init__(self) -> None:
        self._boxes: dict[int, _Mailbox] = {}
        self._lock = threading.Lock()

    def transport(self, node: int) -> LocalTransport:
        """Join a node; TransportError when it has joined before."""
        with self._lock:
            if node in self._boxes:
                raise TransportError(node=node, what="has joined this hub already")
            box = self._boxes[node] = _Mailbox()
        return LocalTransport(node, box, self._boxes)


class LocalTransport:
    """A node among others of its process. Made by `LocalHub.transport`."""

    def __init__(self, node: int, box: _Mailbox, boxes: dict[int, _Mailbox]) -> None:
        self.node = node
        self._box = box
        self._boxes = boxes

    def send(self, dst: int, message: Message) -> None:
        """See `Transport.send`."""
        if self._box.closed:
            raise TransportClosedError(node=self.node, action="send")
        box = self._boxes.get(dst)
        if box is None:
            known = tuple(sorted(self._boxes))
            raise UnknownPeerError(node=self.node, peer=dst, known=known)
        own = _detach(message)
        with box.changed:
            if not box.closed:
                box.messages.append(own)
                box.changed.notify()

    def receive(self, timeout_s: float | None) -> Message | None:
        """See `Transport.receive`."""
        box = self._box
        with box.changed:
            box.changed.wait_for(lambda: box.closed or box.messages, timeout_s)
            if box.closed:
                raise TransportClosedError(node=self.node, action="receive")
            return box.messages.popleft() if box.messages else None

    def close(self) -> None:
        """See `Transport.close`."""
        with self._box.changed:
            self._box.closed = True
            self._box.messages.clear()
            self._box.changed.notify_all()


def _detach(message: Message) -> Message:
    """Return the message as the far end of a socket would see it, sharing nothing mutable."""
    if isinstance(message, Control):
        return decode_control(encode_control(message))
    if isinstance(message.payload, bytes):
        return message
    return replace(message, payload=bytes(message.payload))
