"""The network of a test bed as a process: a switch whose cables have delay, loss and a rate.

The kernels of many computers have no `netem`; tap devices they all have. A machine's interface is a
tap device of this process, moved into the machine. What a machine sends is read here and given to
the machine that it is for, later, or not at all. Frames are lost by a seeded generator. A cable has
a rate in each direction, and a frame waits for those before it; nothing is lost for want of room.

    switch.py WEATHER DEVICE ...

Each line of standard input is another weather, answered by a line. Ends when standard input does.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import random
import select
import struct
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_FRAME_BYTES = 1 << 16
_MANY = bytes([1])  # of an address: the bit of those that are meant for several
_AT_ONCE = 64  # frames that are read of one device before the others


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """What happens to a frame between two machines."""

    delay_s: float = 0.0
    loss: float = 0.0  # the share of frames that are lost
    rate_bytes_s: float | None = None  # of a cable in one direction; None: as fast as it goes
    seed: int = 0

    def __post_init__(self) -> None:
        if self.delay_s < 0:
            raise ValueError(f"delay: wanted 0 or more seconds, got {self.delay_s}")
        if not 0 <= self.loss < 1:
            raise ValueError(f"loss: wanted a share of 0 to less than 1, got {self.loss}")
        if self.rate_bytes_s is not None and self.rate_bytes_s <= 0:
            raise ValueError(f"rate: wanted more than 0 bytes a second, got {self.rate_bytes_s}")

    def values(self) -> dict[str, Any]:
        """Return its fields, for JSON."""
        return asdict(self)


class Cables:
    """Which frame comes out of which cable, and when. No I/O: times are given."""

    def __init__(self, count: int, weather: Weather) -> None:
        self._ports: dict[bytes, int] = {}  # address -> the cable that it was seen behind
        self._count = count
        self._free_s = [0.0] * count  # when a cable towards a machine has sent what it was given
        self._waiting: list[tuple[float, int, int, bytes]] = []
        self._number = 0  # frames that come out at one time keep their order
        self.change(weather)

    def change(self, weather: Weather) -> None:
        """Let frames from now on have another weather."""
        self._weather, self._draw = weather, random.Random(weather.seed)

    def take(self, port: int, frame: bytes, now_s: float) -> None:
        """Take a frame that a machine has sent."""
        to, source = frame[:6], frame[6:12]
        self._ports[source] = port
        known = None if to[0] & _MANY[0] else self._ports.get(to)
        for out in range(self._count) if known is None else (known,):
            if out == port or (self._weather.loss and self._draw.random() < self._weather.loss):
                continue
            begin_s = max(now_s, self._free_s[out])
            rate = self._weather.rate_bytes_s
            self._free_s[out] = begin_s + (len(frame) / rate if rate else 0.0)
            self._number += 1
            due_s = self._free_s[out] + self._weather.delay_s
            heapq.heappush(self._waiting, (due_s, self._number, out, frame))

    def give(self, now_s: float) -> tuple[int, bytes] | None:
        """Return the next frame that is due, and its cable."""
        if not self._waiting or self._waiting[0][0] > now_s:
            return None
        _, _, out, frame = heapq.heappop(self._waiting)
        return out, frame

    def wait_s(self, now_s: float) -> float | None:
        """Return how long until a frame is due; None if none waits."""
        return max(0.0, self._waiting[0][0] - now_s) if self._waiting else None


def tap(name: str) -> int:
    """Make a tap device; return its file descriptor."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return fd


def carry(cables: Cables, devices: list[int]) -> None:
    """Carry frames until standard input ends."""
    poll = select.epoll()
    for fd in (0, *devices):
        poll.register(fd, select.EPOLLIN)
    ports = {fd: port for port, fd in enumerate(devices)}
    while True:
        wait_s = cables.wait_s(time.monotonic())
        for fd, _ in poll.poll(wait_s):
            if fd == 0:
                if not (line := sys.stdin.readline()):
                    return
                cables.change(Weather(**json.loads(line)))
                print("{}", flush=True)
                continue
            for _ in range(_AT_ONCE):
                try:
                    frame = os.read(fd, _FRAME_BYTES)
                except OSError:  # none left, or its machine is gone
                    break
                cables.take(ports[fd], frame, time.monotonic())
        while (due := cables.give(time.monotonic())) is not None:
            try:
                os.write(devices[due[0]], due[1])
            except OSError:  # a machine that is gone, or whose device is down, takes nothing
                continue


def main(argv: list[str]) -> int:
    """Be the switch."""
    devices = [tap(name) for name in argv[1:]]
    cables = Cables(len(devices), Weather(**json.loads(argv[0])))
    print("{}", flush=True)
    carry(cables, devices)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
