"""A transport that injects faults: for tests, and to see what a run notices.

Each fault names a link and the number of a frame sent on it; the first frame is 1. Several faults
may hit one frame; they apply in the order given. Control messages pass untouched.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from interconnect.errors import LinkError
from interconnect.frame import Frame
from interconnect.transport import Message, Transport


@dataclass(frozen=True, slots=True)
class _Fault:
    link: int
    nth: int

    def __post_init__(self) -> None:
        if self.nth < 1:
            raise LinkError(field="fault nth", wanted="an integer >= 1", got=self.nth)


@dataclass(frozen=True, slots=True)
class Drop(_Fault):
    """Lose the frame."""


@dataclass(frozen=True, slots=True)
class Duplicate(_Fault):
    """Send the frame twice."""


@dataclass(frozen=True, slots=True)
class Shift(_Fault):
    """Say that the frame left `cycles` later, or earlier when negative (not before cycle 0)."""

    cycles: int


@dataclass(frozen=True, slots=True)
class Resize(_Fault):
    """Cut the payload, or fill it with zeros, to `bytes`; the header stays."""

    bytes: int


Fault: TypeAlias = Drop | Duplicate | Shift | Resize


class FaultyTransport:
    """Passes everything to `inner`, and applies the faults to what is sent."""

    def __init__(self, inner: Transport, faults: Sequence[Fault]) -> None:
        self._inner = inner
        self._faults = tuple(faults)
        self._sent: Counter[int] = Counter()
        self._fired: list[Fault] = []
        self._lock = threading.Lock()

    @property
    def fired(self) -> tuple[Fault, ...]:
        """The faults applied so far, in order: a test asserts that its fault took place."""
        return tuple(self._fired)

    def send(self, dst: int, message: Message) -> None:
        """See `Transport.send`."""
        if not isinstance(message, Frame):
            self._inner.send(dst, message)
            return
        with self._lock:  # also keeps the frames of a link in the order they were counted
            self._sent[message.link] += 1
            frames = [message]
            for fault in self._faults:
                if (fault.link, fault.nth) == (message.link, self._sent[message.link]):
                    frames = [out for frame in frames for out in _apply(fault, frame)]
                    self._fired.append(fault)
            for frame in frames:
                self._inner.send(dst, frame)

    def receive(self, timeout_s: float | None) -> Message | None:
        """See `Transport.receive`."""
        return self._inner.receive(timeout_s)

    def close(self) -> None:
        """See `Transport.close`."""
        self._inner.close()


def _apply(fault: Fault, frame: Frame) -> list[Frame]:
    match fault:
        case Drop():
            return []
        case Duplicate():
            return [frame, frame]
        case Shift(cycles=cycles):
            return [replace(frame, depart_cycle=max(0, frame.depart_cycle + cycles))]
        case Resize(bytes=size):
            return [replace(frame, payload=bytes(frame.payload)[:size].ljust(size, b"\0"))]
