"""How the server stands load: `python benchmarks/serve.py rate|storm`.

`rate`: requests per second of the front end alone: timing executor, unpaced, one token, not
streaming, load generator beside it on the same machine. `storm`: many clients at once on a real
model, some leaving in mid-stream; every request must get exactly one complete answer or a
documented error, with the text that the same request got alone, and nothing may be left behind or
grow. With `--sequences` a rack has so many slots.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil

READY_SECONDS = 120.0
REQUEST_SECONDS = 120.0
LEAVE_EVERY = 4  # one request in so many leaves in mid-stream
SEEDS = 13  # so many different requests
RETRY_SECONDS = 1.0


@contextmanager
def server(*arguments: str) -> Iterator[tuple[str, psutil.Process]]:
    """Start a server; give its address and process."""
    command = [sys.executable, "-m", "rack.serve", *arguments, "--port", "0", "--log", "none"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines = iter(process.stderr.readline, "")
            ready = next((line for line in lines if line.startswith("ready:")), None)
            if ready is None:
                raise SystemExit(f"the server ended: {' '.join(command)}")
            yield ready.split()[-1], psutil.Process(process.pid)
        finally:
            process.terminate()


# --- rate -------------------------------------------------------------------------------------


async def _client(host: str, port: int, request: bytes, count: int, took: list[float]) -> None:
    """Send the same request again and again on one connection; as little work as can be."""
    reader, writer = await asyncio.open_connection(host, port)
    for _ in range(count):
        started = time.perf_counter()
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200"), head
        length = head.split(b"content-length:")[1].split(b"\r\n")[0]
        await reader.readexactly(int(length))
        took.append(time.perf_counter() - started)
    writer.close()
    await writer.wait_closed()


async def measure_rate(url: str, clients: int, requests: int) -> dict[str, float]:
    """Return requests per second and milliseconds per request."""
    host, _, port = url.removeprefix("http://").partition(":")
    model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
    messages = [{"role": "user", "content": "Hello"}]
    body = json.dumps({"model": model, "messages": messages, "max_tokens": 1}).encode()
    request = (
        f"POST /openai/v1/chat/completions HTTP/1.1\r\nhost: {host}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body
    took: list[float] = []
    started = time.perf_counter()
    each = requests // clients
    await asyncio.gather(*(_client(host, int(port), request, each, took) for _ in range(clients)))
    seconds = time.perf_counter() - started
    took.sort()
    return {
        "requests": len(took),
        "requests_per_second": round(len(took) / seconds, 1),
        "p50_ms": round(took[len(took) // 2] * 1e3, 2),
        "p99_ms": round(took[int(len(took) * 0.99)] * 1e3, 2),
    }


def rate(args: argparse.Namespace) -> None:
    """Print the rate of a few rounds, and the server's CPU time per request."""
    with server(args.model or "llama-8b", "--executor", "timing", "--max-queue", "1000") as (
        url, process,
    ):  # fmt: skip
        for _ in range(args.rounds):
            before = sum(process.cpu_times()[:2])
            out = asyncio.run(measure_rate(url, args.clients or 32, args.requests or 4000))
            cpu = (sum(process.cpu_times()[:2]) - before) / out["requests"]
            print(json.dumps(out | {"server_cpu_ms_per_request": round(cpu * 1e3, 3)}), flush=True)


# --- storm ------------------------------------------------------------------------------------


class Storm:
    """What many clients got. A `patient` one that is refused asks again, as the SDKs do."""

    def __init__(self, url: str, model: str, *, patient: bool = False) -> None:
        self.url, self.model, self.patient = url, model, patient
        self.asked_again = 0
        self.outcomes: Counter[str] = Counter()
        self.texts: dict[int, str] = {}  # by seed: equal requests must have equal answers

    async def ask_alone(self) -> None:
        """Make every kind of request once, one after the other: the texts that others must get."""
        async with httpx.AsyncClient(base_url=self.url, timeout=REQUEST_SECONDS) as client:
            for number in range(0, 2 * SEEDS, 2):  # even ones do not stream
                assert await self._ask(client, number) == "whole"

    async def run(self, clients: int, requests: int) -> None:
        """Have `requests` requests made by `clients` at a time."""
        numbers = iter(range(requests))
        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(
            base_url=self.url, timeout=REQUEST_SECONDS, limits=limits
        ) as client:

            async def one_client() -> None:
                for number in numbers:
                    while (outcome := await self._ask(client, number)) == "refused":
                        if not self.patient:
                            break
                        self.asked_again += 1
                        await asyncio.sleep(RETRY_SECONDS)
                    self.outcomes[outcome] += 1

            await asyncio.gather(*(one_client() for _ in range(clients)))

    async def _ask(self, client: httpx.AsyncClient, number: int) -> str:
        """Make one request; return what became of it. AssertionError for anything else."""
        seed = number % SEEDS
        body: dict[str, Any] = {
            "model": self.model, "prompt": "Once upon a time", "seed": seed,
            "max_tokens": 4 + seed, "stream": number % 2 == 1, "ignore_eos": True,
        }  # fmt: skip
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                error = json.loads(await response.aread())["error"]
                assert response.status_code == 503, error
                assert error["code"] == "service_unavailable"
                assert response.headers["retry-after"]
                return "refused"
            if not body["stream"]:
                answer = json.loads(await response.aread())
                assert answer["usage"]["completion_tokens"] == 4 + seed
                return self._same(seed, answer["choices"][0]["text"], "whole")
            return await self._read_stream(response, seed, leave=number % LEAVE_EVERY == 1)

    async def _read_stream(self, response: httpx.Response, seed: int, *, leave: bool) -> str:
        pieces, finishes, done = [], [], 0
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                done += 1
            elif line:
                choice = json.loads(line.removeprefix("data: "))["choices"][0]
                pieces.append(choice["text"])
                finishes.append(choice["finish_reason"])
                if leave:
                    return "left"
        assert (done, finishes[-1]) == (1, "length")
        assert len(pieces) == 4 + seed or len(pieces) == 5 + seed
        return self._same(seed, "".join(pieces), "streamed")

    def _same(self, seed: int, text: str, outcome: str) -> str:
        assert self.texts.setdefault(seed, text) == text
        return outcome


def storm(args: argparse.Namespace) -> None:
    """Print what a storm did, and what it left behind."""
    if args.model is None:
        raise SystemExit("storm: wanted --model, the folder of a small trained model")
    clients, requests = args.clients or 200, args.requests or 2000
    arguments = (
        "--transport", "local", "--layout", "1x1", "--max-queue", str(clients),
        "--sequences", str(args.sequences),
    )  # fmt: skip
    with server(args.model, *arguments) as (url, process):
        model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        for _ in range(args.rounds):
            one = Storm(url, model, patient=True)
            asyncio.run(one.ask_alone())
            started = time.perf_counter()
            asyncio.run(one.run(clients, requests))
            out = {
                **one.outcomes,
                "asked_again": one.asked_again,
                "seconds": round(time.perf_counter() - started, 1),
                "rss_mb": round(process.memory_info().rss / 1e6, 1),
                "sockets": len(process.net_connections()),
                "threads": process.num_threads(),
                "processes": 1 + len(process.children(recursive=True)),
            }
            print(json.dumps(out), flush=True)


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("rate", "storm"))
    parser.add_argument("--model", help="a preset or a folder")
    parser.add_argument("--clients", type=int, help="at a time (rate: 32, storm: 200)")
    parser.add_argument("--requests", type=int, help="in a round (rate: 4000, storm: 2000)")
    parser.add_argument("--sequences", type=int, default=1, help="slots of the rack (storm)")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    {"rate": rate, "storm": storm}[args.what](args)


if __name__ == "__main__":
    main()
