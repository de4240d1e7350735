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
from collections.abc import Sequence
from typing import Any, NamedTuple

try:
    from interconnect import _rings
except ImportError:  # built without a compiler
    _rings = None  # type: ignore[assignment]

Part = bytes | bytearray | memoryview

PAGE = 4096
CAPACITY = 1 << 20
"""Bytes of a ring; pages count only once touched."""
LOOK_NS = 50_000
"""How long a reader looks before it sleeps: about what waking it costs."""


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
        capacity = capacity or CAPACITY
        token = secrets.token_bytes(16)
        size = PAGE + len(self.senders) * (PAGE + capacity)
        self._memory_fd = os.memfd_create("lpu-rings", os.MFD_CLOEXEC)
        os.ftruncate(self._memory_fd, size)
        self._memory = mmap.mmap(self._memory_fd, size)
        _rings.lay_out(self._memory, token, len(self.senders), capacity)
        self.pipe_fd, self._ring_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.address = RingsAddress(
            os.getpid(), self._memory_fd, self._ring_fd, token, self.senders
        )
        self._next = self._bell = 0

    def take(self) -> tuple[int, bytes | None] | None:
        """Return (sender, message), with None for a message that went another way; None if empty.

        Senders take turns.
        """
        got = _rings.take(self._memory, self._next)
        if isinstance(got, int):
            self._bell = got
            return None
        index, message = got
        self._next = index + 1
        return self.senders[index], message

    def skip(self, sender: int) -> None:
        """Drop what is in a sender's ring, if it has one; its writer must be dead."""
        if sender in self.senders:
            _rings.skip(self._memory, self.senders.index(sender))

    def listen(self) -> bool:
        """Look for a moment whether something has come since `take` found nothing."""
        return bool(_rings.listen(self._memory, self._bell, LOOK_NS))

    def may_sleep(self) -> bool:
        """Ask to be woken through `pipe_fd`; False if something has come meanwhile."""
        return bool(_rings.sleep(self._memory, self._bell, True))

    def awake(self) -> None:
        """Take the wish to be woken back, and what woke us."""
        _rings.sleep(self._memory, self._bell, False)
        with contextlib.suppress(BlockingIOError):
            os.read(self.pipe_fd, 4096)

    def close(self) -> None:
        """Give the memory and the pipe back; writers keep what they have mapped."""
        self._memory.close()
        for fd in (self._memory_fd, self.pipe_fd, self._ring_fd):
            os.close(fd)


class Outbox:
    """A writer's side of one ring. Raises OSError or ValueError where `address` is not for us."""

    def __init__(self, sender: int, address: RingsAddress) -> None:
        self._index = address.senders.index(sender)
        fd = os.open(f"/proc/{address.pid}/fd/{address.memory_fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            self._memory = mmap.mmap(fd, 0)
        finally:
            os.close(fd)
        if self._memory[:16] != address.token:
            self._memory.close()
            raise ValueError(f"rings: process {address.pid} is another one than {sender} was told")
        path = f"/proc/{address.pid}/fd/{address.pipe_fd}"
        self._pipe_fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def put(self, parts: Sequence[Part] | None) -> bool:
        """Put a message made of `parts`, or a mark for None; False when there is no room."""
        done = _rings.put(self._memory, self._index, parts)
        if done == 2:
            # A full pipe wakes the reader as well; one that is gone reads nothing any more.
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                os.write(self._pipe_fd, b"\0")
        return bool(done)

    def close(self) -> None:
        """Unmap the peer's memory."""
        self._memory.close()
        os.close(self._pipe_fd)


def rings_address(values: Sequence[Any]) -> RingsAddress:
    """Return an address that travelled as a list."""
    return RingsAddress(*values)
