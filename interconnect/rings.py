"""Messages between processes of one host through memory they share (docs/decisions/0004).

A node has an `Inbox`: memory of its own with one ring per sender. A sender opens that memory by its
address and checks its token. The address is a `/proc` path, so a process that dies leaves nothing
behind. The reader polls for a moment, then sleeps on a pipe; a writer writes to the pipe only while
the reader sleeps. A message that does not fit leaves a mark in the ring and goes another way. Order
is kept: at a mark the reader waits for that message.

Needs the native part and Linux; `available()` says whether they are there.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

try:
    from interconnect import _rings
except ImportError:  # built without a compiler
    _rings = None  # type: ignore[assignment]

Part = bytes | bytearray | memoryview

PAGE = 4096
CAPACITY = 1 << 20
"""Bytes of a ring; pages count only once touched."""
MEMORY, LEAST = 8 << 20, 1 << 16
"""Of a node's rings together, at most, as long as each has the least: where many may send, each has
less."""
LOOK_NS = 50_000
"""How long a reader looks before it sleeps: about what waking it costs."""
PATIENCE, SELDOM = 4, 32
"""After so many looks in vain, a reader looks only at every so many waits: where many chips share
a core, what it waits for is further away than that."""


def available() -> bool:
    """Whether processes of this host can share rings."""
    return _rings is not None and sys.platform == "linux"


class RingsAddress(NamedTuple):
    """Where a node's rings are: its process, two of its file descriptors, proof, senders."""

    pid: int
    memory_fd: int
    pipe_fd: int
    token: bytes
    senders: list[int]


class Inbox:
    """The reader's side. Close it when done; messages still in it are lost."""

    def __init__(self, senders: Sequence[int], capacity: int | None = None) -> None:
        self.senders = list(senders)
        self._place = {sender: place for place, sender in enumerate(self.senders)}
        if capacity is None:
            share = MEMORY // max(1, len(self.senders)) // PAGE * PAGE
            capacity = min(CAPACITY, max(LEAST, share))
        token = secrets.token_bytes(16)
        size = PAGE + len(self.senders) * (PAGE + capacity)
        self._memory_fd = os.memfd_create("lpu-rings", os.MFD_CLOEXEC)
        os.ftruncate(self._memory_fd, size)
        self.memory = mmap.mmap(self._memory_fd, size)
        _rings.lay_out(self.memory, token, len(self.senders), capacity)
        self.pipe_fd, self._ring_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.address = RingsAddress(
            os.getpid(), self._memory_fd, self._ring_fd, token, self.senders
        )
        self._next = self._bell = 0
        self._waits = self._in_vain = 0

    def take(self) -> tuple[int, bytes | None] | None:
        """Return (sender, message), with None for a message that went another way; None if empty.

        Senders take turns.
        """
        got = _rings.take(self.memory, self._next)
        if isinstance(got, int):
            self._bell = got
            return None
        index, message = got
        self._next = index + 1
        return self.senders[index], message

    def skip(self, sender: int) -> None:
        """Drop what is in a sender's ring, if it has one; its writer must be dead."""
        if sender in self.senders:
            _rings.skip(self.memory, self.senders.index(sender))

    def take_of(self, sender: int) -> tuple[int, bytes | None] | None:
        """Return the next message of one sender, as `take` does."""
        got = _rings.take_of(self.memory, self._place[sender])
        return None if isinstance(got, int) else (sender, got[1])

    def holds(self, sender: int) -> bool:
        """Say whether a sender's ring has a message."""
        return _rings.holds(self.memory, self._place[sender])

    def wait_for(self, sender: int, socket_fd: int, ms: int = -1) -> tuple[bool, bool]:
        """Look for a moment, then sleep, until a sender's ring has a message.

        Returns whether it has one, and whether the socket can be read, which ends the wait as well;
        so do a crowded ring and the end of `ms`.
        """
        looked, there, readable = _rings.wait_for(
            self.memory, self._place[sender], self._look_ns(), self.pipe_fd, socket_fd, ms
        )
        self._looked(looked)
        return there, readable

    def crowded(self) -> int | None:
        """Return a sender whose ring is more than half full, or None."""
        place = _rings.full(self.memory)
        return None if place is None else self.senders[place]

    def listen(self) -> bool:
        """Look for a moment whether something has come since `take` found nothing."""
        return self._looked(_rings.listen(self.memory, self._bell, self._look_ns()))

    def _look_ns(self) -> int:
        self._waits += 1
        return LOOK_NS if self._in_vain < PATIENCE or self._waits % SELDOM == 0 else 0

    def _looked(self, found: bool) -> bool:
        self._in_vain = 0 if found else self._in_vain + 1
        return found

    def may_sleep(self) -> bool:
        """Ask to be woken through `pipe_fd`; False if something has come meanwhile."""
        return bool(_rings.sleep(self.memory, self._bell, True))

    def awake(self) -> None:
        """Take the wish to be woken back, and what woke us."""
        _rings.sleep(self.memory, self._bell, False)
        with contextlib.suppress(BlockingIOError):
            os.read(self.pipe_fd, 4096)

    def close(self) -> None:
        """Give the memory and the pipe back; writers keep what they have mapped."""
        self.memory.close()
        for fd in (self._memory_fd, self.pipe_fd, self._ring_fd):
            os.close(fd)


class Outbox:
    """A writer's side of one ring. Raises OSError or ValueError where `address` is not for us."""

    def __init__(self, sender: int, address: RingsAddress) -> None:
        self.index = address.senders.index(sender)
        fd = os.open(f"/proc/{address.pid}/fd/{address.memory_fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            self.memory = mmap.mmap(fd, 0)
        finally:
            os.close(fd)
        if self.memory[:16] != address.token:
            self.memory.close()
            raise ValueError(f"rings: process {address.pid} is another one than {sender} was told")
        path = f"/proc/{address.pid}/fd/{address.pipe_fd}"
        self.pipe_fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def put(self, parts: Sequence[Part] | None) -> bool:
        """Put a message made of `parts`, or a mark for None; False when there is no room."""
        done = _rings.put(self.memory, self.index, parts)
        if done == 2:
            # A full pipe wakes the reader as well; one that is gone reads nothing any more.
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                os.write(self.pipe_fd, b"\0")
        return bool(done)

    def close(self) -> None:
        """Unmap the peer's memory."""
        self.memory.close()
        os.close(self.pipe_fd)


WORDS = 4
"""Of a link that ends here: busy_until and carried vectors (`LinkModel`), and the step and transfer
of the frame that was taken last; all 0 before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """A program's send: vectors at an address of the chip's memory to a node, by a link."""

    node: int
    link: int
    transfer: int
    vectors: int
    address: int
    cycle: int  # of the program, as all below
    row: int  # whose hash share goes along


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiving:
    """A program's receive. `word`: where the link's WORDS begin."""

    node: int
    link: int
    transfer: int
    vectors: int
    address: int
    first_cycle: int
    last_cycle: int
    window_cycles: int
    word: int
    slot_cycles: int
    latency_cycles: int


class Ports:
    """The rings at a node, its own and its peers', as native moves use them.

    Close it before the rings' memory.
    """

    def __init__(self, inbox: Inbox | None) -> None:
        self.senders = [] if inbox is None else inbox.senders
        self._ports = _rings.Ports(None if inbox is None else inbox.memory)

    def join(self, node: int, outbox: Outbox) -> None:
        """Write to a node's ring from now on, in place of another one of that node."""
        self._ports.join(node, outbox.memory, outbox.index, outbox.pipe_fd)

    def leave(self, node: int) -> None:
        """Write to a node's ring no more."""
        self._ports.leave(node)

    def moves(
        self, memory: memoryview, words: array[int], moves: Sequence[Sending | Receiving]
    ) -> _rings.Moves:
        """Bind moves that follow one another. `words`: WORDS for each link that ends here."""
        return _rings.Moves(self._ports, memory, words, [self._plain(move) for move in moves])

    def _plain(self, move: Sending | Receiving) -> tuple[int, ...]:
        what = (move.link, move.transfer, move.vectors, move.address)
        if isinstance(move, Sending):
            return True, move.node, *what, move.cycle, move.cycle, move.row
        return (
            False, self.senders.index(move.node), *what, move.first_cycle, move.last_cycle,
            move.word, move.window_cycles, move.slot_cycles, move.latency_cycles,
        )  # fmt: skip

    def close(self) -> None:
        """Let go of all memory."""
        self._ports.close()


def rings_address(values: Sequence[Any]) -> RingsAddress:
    """Return an address that travelled as a list."""
    return RingsAddress(*values)
