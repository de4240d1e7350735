"""Many clients at once, some leaving in mid-stream: one answer each, and nothing left behind."""

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_process import DEADLINE_SECONDS, server

from benchmarks.serve import SEEDS, Storm

pytestmark = pytest.mark.slow
REQUESTS = 240


def ended(url: str) -> dict[str, float]:
    """Return how many requests ended in which way."""
    text = httpx.get(f"{url}/metrics").text
    families = {one.name: one for one in text_string_to_metric_families(text)}
    samples = families["vllm:request_success"].samples
    return {s.labels["finished_reason"]: s.value for s in samples if s.name.endswith("_total")}


def until(condition: Callable[[], bool]) -> None:
    """Ask again and again until a condition holds."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "deadline passed"


@pytest.mark.parametrize(
    "racks",
    [
        ("--replicas", "2"), ("--sequences", "8"),
        ("--sequences", "8", "--prefix-cache", "--prefill-chunk", "4"),
    ],
)  # fmt: skip
def test_a_storm(stories260k: Path, racks: tuple[str, ...]) -> None:
    arguments = ("--transport", "local", "--layout", "1x1", "--max-queue", "20", *racks)
    with server(str(stories260k), *arguments) as running:
        process = psutil.Process(running.process.pid)
        threads, children = process.num_threads(), process.children()
        storm = Storm(running.url, "stories260K")
        asyncio.run(storm.ask_alone())
        asyncio.run(storm.run(clients=60, requests=REQUESTS))
        got = storm.outcomes
        assert sum(got.values()) == REQUESTS
        assert set(got) == {"whole", "streamed", "left", "refused"}  # queues are shorter than 60
        assert len(storm.texts) > 1
        # The server hears of the last clients' leaving a little later.
        until(lambda: sum(ended(running.url).values()) == SEEDS + REQUESTS - got["refused"])
        by_reason = ended(running.url)
        assert by_reason["error"] == 0
        assert by_reason["length"] >= got["whole"] + got["streamed"]
        until(lambda: all(c.status == psutil.CONN_LISTEN for c in process.net_connections()))
        assert process.num_threads() == threads
        assert process.children() == children  # that read requests
        assert running.end(signal.SIGTERM) == 0
