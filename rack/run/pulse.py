"""The heartbeat of a rack: every chip's process says again and again that it lives.

It is heard in a thread of its own and on a socket of its own, whether steps run or not. A process
that has died, was stopped, or whose machine is gone, falls silent. (One that lives and yet does not
get on is found by the step's deadline.)

Silence and deadlines are counted by a clock that stands still while this process does: if it was
stopped, or the whole machine was, no chip is to blame.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from interconnect.errors import InterconnectError
from interconnect.frame import Control
from interconnect.transport import Transport
from interconnect.zmq_transport import RunKey, ZmqTransport

BEAT_SECONDS = 0.4
SILENT_SECONDS = 1.5
"""After so long without a beat a chip counts as silent: three in a row have not come."""
_LOOK_SECONDS = 0.2
_PAUSE_SECONDS = 0.5  # a longer pause between two looks is ours, and counts as this long
_END_SECONDS = 5.0
_BEAT = "beat"


@contextlib.contextmanager
def beating(transport: Transport, to: int, process: int) -> Iterator[None]:
    """Send node `to` the beats of a process, from a thread, until the end or the socket's."""
    ended = threading.Event()
    beat = Control(_BEAT, {"process": process})

    def beats() -> None:
        with contextlib.suppress(InterconnectError):  # the socket was closed
            while not ended.is_set():
                transport.send(to, beat)
                ended.wait(BEAT_SECONDS)

    thread = threading.Thread(target=beats, name="beats", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_END_SECONDS)


class Pulse:
    """The host's side: when each process was last heard."""

    def __init__(self, node: int, bind: str, key: RunKey | None) -> None:
        self._transport = ZmqTransport(node, bind, key)
        self.endpoint = self._transport.endpoint
        self._lock = threading.Lock()
        self._heard: dict[int, float] = {}
        self._ticked, self._seconds = time.monotonic(), 0.0  # the clock's last look, and its time
        self._looked = self._returned = 0.0  # when all that had come was taken
        self._thread = threading.Thread(target=self._listen, name="pulse", daemon=True)
        self._thread.start()

    def now(self) -> float:
        """Return the seconds of the clock, which stands still while this process does."""
        with self._lock:
            return self._now()

    def _now(self) -> float:
        return self._seconds + min(time.monotonic() - self._ticked, _PAUSE_SECONDS)

    def _tick(self) -> None:
        with self._lock:
            self._seconds, self._ticked = self._now(), time.monotonic()

    def watch(self, process: int) -> None:
        """Begin to count a process's silence, from now on."""
        with self._lock:
            self._heard[process] = self._now()

    def forget(self, process: int) -> None:
        """Count its silence no more."""
        with self._lock:
            self._heard.pop(process, None)

    def silence(self, process: int) -> float:
        """Return the seconds since a process was last heard, as far as was listened; 0 if none."""
        with self._lock:
            return max(0.0, self._looked - self._heard.get(process, self._looked))

    @property
    def returned(self) -> float:
        """When, by the clock, a process was last heard again that had been silent."""
        with self._lock:
            return self._returned

    def _listen(self) -> None:
        with contextlib.suppress(InterconnectError):  # closed
            while True:
                message = self._transport.receive(0)
                if message is None:
                    with self._lock:
                        self._looked = self._now()
                    message = self._transport.receive(_LOOK_SECONDS)
                self._tick()
                if isinstance(message, Control) and message.kind == _BEAT:
                    self._hear(message.values["process"])

    def _hear(self, process: int) -> None:
        with self._lock:
            if process in self._heard:
                now = self._now()
                if now - self._heard[process] > SILENT_SECONDS:
                    self._returned = now
                self._heard[process] = now

    def close(self) -> None:
        """Listen no more."""
        self._transport.close()
        self._thread.join(_END_SECONDS)
