"""`--pace emulated` as clients see it: no token before its emulated time, and the benchmark of it.

Nothing here bounds how late a token may be: that depends on the machine (benchmarks/pacing.py).
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import accumulate

import httpx
import pytest
from server_process import DEADLINE_SECONDS, ROOT, ServerProcess, server

from rack.run.config import RunConfig
from rack.run.engine import Engine
from rack.run.session import prepare
from rack.run.timing_rack import TimingRack
from rack.text.sampler import SamplingParams

pytestmark = pytest.mark.slow
PROMPT, MAX_TOKENS = list(range(1, 41)), 30


@pytest.fixture(scope="module")
def paced() -> Iterator[ServerProcess]:
    flags = ("--executor", "timing", "--layout", "1x1", "--pace", "emulated", "--log", "none")
    with server("tiny", *flags) as running:
        yield running


def due_seconds() -> list[float]:
    """When each token of the request below is due after its arrival."""
    prepared = prepare(RunConfig(model="tiny", executor="timing", layout="1x1"))
    params = SamplingParams(max_tokens=MAX_TOKENS, ignore_eos=True)
    engine = Engine(TimingRack(prepared.compiled), prepared.tokenizer)
    done = engine.generate(PROMPT, params).run()
    hz = prepared.compiled.chip.clock_hz
    return [(done.prompt_cycles + cycles) / hz for cycles in accumulate(done.decode_cycles)]


def test_no_token_comes_before_its_emulated_time(paced: ServerProcess) -> None:
    body = {
        "model": "tiny", "prompt": PROMPT, "max_tokens": MAX_TOKENS, "ignore_eos": True,
        "stream": True,
    }  # fmt: skip
    came, last = [], ""
    sent = time.perf_counter()
    with httpx.stream(
        "POST", f"{paced.url}/v1/completions", json=body, timeout=DEADLINE_SECONDS
    ) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                came.append(time.perf_counter() - sent)
                last = line
    chunk = json.loads(last[6:])
    assert chunk["choices"][0]["finish_reason"] == "length"
    assert chunk["x_rack"]["pace"] == "emulated"
    due = due_seconds()
    assert len(came) == MAX_TOKENS + 1  # a chunk a token, and the one with the totals
    assert all(when >= wanted for when, wanted in zip(came, due, strict=False))


def test_a_whole_answer_takes_no_less_than_it_says(paced: ServerProcess) -> None:
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 200, "ignore_eos": True}
    sent = time.perf_counter()
    answer = httpx.post(f"{paced.url}/v1/completions", json=body, timeout=DEADLINE_SECONDS)
    assert time.perf_counter() - sent >= answer.json()["usage"]["total_time"] > 0


def test_the_benchmark() -> None:
    command = [sys.executable, "benchmarks/pacing.py", "tiny", "--rate", "2000", "--json"]
    few = ["--context", "256", "--requests", "1", "--prompt-tokens", "4", "--max-tokens", "20"]
    done = subprocess.run(
        [*command, *few], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tokens"] == 20
    assert 1000 < found["tokens_per_second"] < 4000
    for kind in ("release", "interval", "total"):
        figures = found["error_ms"][kind]
        assert 0 <= figures["p50"] <= figures["p90"] <= figures["p99"] <= figures["max"]
