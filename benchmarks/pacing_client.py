"""The client of `benchmarks/pacing.py`: a process of its own, so that it measures only the server.

Reads what to do as JSON from standard input and writes what it saw as JSON. Requests go over bare
sockets and are parsed afterwards: an HTTP library takes as long as what is measured.
"""

from __future__ import annotations

import gc
import json
import re
import selectors
import socket
import sys
import time
from typing import Any

DEADLINE_SECONDS = 600.0


class Stream:
    """A request under way: what was read, and when the bytes up to each offset had come."""

    def __init__(self, address: str, body: bytes) -> None:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: {address}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        host, port = address.rsplit(":", 1)
        self.read, self.times = bytearray(), list[tuple[int, float]]()
        self.connection = socket.create_connection((host, int(port)), timeout=DEADLINE_SECONDS)
        self._sent = time.perf_counter()
        self.connection.sendall(head.encode() + body)

    def take(self) -> bool:
        """Read what is there; False at the end."""
        part = self.connection.recv(1 << 16)
        self.read += part
        self.times.append((len(self.read), time.perf_counter() - self._sent))
        if not part:
            self.connection.close()
        return bool(part)


def run(address: str, body: bytes, clients: int, requests: int) -> list[Stream]:
    """Let clients each make requests one after another; one thread serves them all."""
    ended: list[Stream] = []
    left = [requests] * clients
    with selectors.DefaultSelector() as selector:

        def begin(client: int) -> None:
            left[client] -= 1
            stream = Stream(address, body)
            selector.register(stream.connection, selectors.EVENT_READ, (client, stream))

        for client in range(clients):
            begin(client)
        while len(ended) < clients * requests:
            ready = selector.select(DEADLINE_SECONDS)
            assert ready, "nothing came"
            for key, _ in ready:
                client, stream = key.data
                if not stream.take():
                    selector.unregister(key.fileobj)
                    ended.append(stream)
                    if left[client]:
                        begin(client)
    return ended


def seen(stream: Stream, tokens: int) -> dict[str, Any]:
    """Return when each token had come after the request began to be sent, and the last chunk."""
    read, times = bytes(stream.read), stream.times
    events = list(re.finditer(rb"data: ({.*?})\n\n", read, re.DOTALL))
    assert len(events) == tokens + 1, f"{len(events) - 1} of {tokens} tokens: {read[-500:]!r}"
    came, place = [], 0
    for one in events[:-1]:
        while times[place][0] < one.end():
            place += 1
        came.append(times[place][1])
    last = json.loads(events[-1][1])
    return {"came": came, "x_rack": last["x_rack"], "usage": last["x_groq"]["usage"]}


def main() -> None:
    """Do what standard input says."""
    task = json.load(sys.stdin)
    data = json.dumps(task["body"]).encode()
    gc.disable()
    ended = run(task["address"], data, task["clients"], task["requests"])
    json.dump([seen(one, task["body"]["max_tokens"]) for one in ended], sys.stdout)


if __name__ == "__main__":
    main()
