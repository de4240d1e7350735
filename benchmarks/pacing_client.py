"""The client of `benchmarks/pacing.py`: a process of its own, so that it measures only the server.

Reads what to do as JSON from standard input and writes what it saw as JSON. Requests go over bare
sockets and are parsed afterwards: an HTTP library takes as long as what is measured.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
from typing import Any

DEADLINE_SECONDS = 600.0


def stream(address: str, body: bytes) -> tuple[bytes, list[tuple[int, float]]]:
    """Stream a request; what was read, and when the bytes up to each offset had come."""
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    host, port = address.rsplit(":", 1)
    read, times = bytearray(), []
    with socket.create_connection((host, int(port)), timeout=DEADLINE_SECONDS) as connection:
        sent = time.perf_counter()
        connection.sendall(head.encode() + body)
        while part := connection.recv(1 << 16):
            read += part
            times.append((len(read), time.perf_counter() - sent))
    return bytes(read), times


def seen(read: bytes, times: list[tuple[int, float]], tokens: int) -> dict[str, Any]:
    """Return when each token had come after the request began to be sent, and the last chunk."""
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
    """Run the clients, each with requests one after another."""
    task = json.load(sys.stdin)
    body, found = task["body"], []
    data = json.dumps(body).encode()

    def client() -> None:
        for _ in range(task["requests"]):
            found.append(stream(task["address"], data))

    threads = [threading.Thread(target=client) for _ in range(task["clients"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == task["clients"] * task["requests"], "a client failed"
    json.dump([seen(*one, body["max_tokens"]) for one in found], sys.stdout)


if __name__ == "__main__":
    main()
