"""Measure how well `--pace emulated` keeps to emulated time: |actual - emulated| of every token.

`python benchmarks/pacing.py [MODEL] [--rate TOKENS_PER_SECOND] [--json]`, on an idle machine. The
timing executor serves MODEL; with --rate its clock is scaled until a decode step takes 1/rate
seconds. Three errors, because each has its use:

release   when the rack gives a token out, against its request's arrival there; no HTTP
interval  when a client has read a token, against the first one: what inter-token latency sees
total     when a client has read a token, against when it began to send the request
"""

from __future__ import annotations

import argparse
import json
import queue
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from rack.config import RunConfig
from rack.engine import Engine
from rack.sampler import SamplingParams
from rack.serve.pacing import Pacer
from rack.serve.runner import Failed, Finished, Job, Runner
from rack.session import Prepared, Session, prepare
from rack.timing import TimingRack

DEADLINE_SECONDS = 120.0
SCALED = """name = "scaled"
inherits = "{inherits}"
[chip]
clock_hz = {{ value = {clock_hz}, source = "assumption: scaled to a token rate" }}
"""


def prepare_at(
    model: str, hardware: str, context: int, rate: float | None, folder: Path
) -> Prepared:
    """Compile for the timing executor, on a profile whose clock gives the rate if one is asked."""

    def compiled(profile: str) -> Prepared:
        return prepare(
            RunConfig(
                model=model, executor="timing", hardware=profile, max_model_len=context,
                prefill_chunk=16,
            )
        )  # fmt: skip

    prepared = compiled(hardware)
    if rate is None:
        return prepared
    for _ in range(2):  # links keep their rate, so cycles change a little with the clock
        clock_hz = round(prepared.compiled.step(1, context, decode=True).cycles * rate)
        profile = folder / "scaled.toml"
        profile.write_text(SCALED.format(inherits=hardware, clock_hz=clock_hz), encoding="utf-8")
        prepared = compiled(str(profile))
    return prepared


def emulated_seconds(prepared: Prepared, prompt: Sequence[int], params: SamplingParams) -> Any:
    """Return when each token of a request is due after its arrival: [tokens]."""
    done = Engine(TimingRack(prepared.compiled), prepared.tokenizer).generate(prompt, params).run()
    cycles = np.array(list(accumulate(done.decode_cycles)), np.float64) + done.prompt_cycles
    return cycles / prepared.compiled.chip.clock_hz


def release_errors(
    prepared: Prepared, prompt: Sequence[int], params: SamplingParams
) -> list[float]:
    """Run a request on a paced rack without a server; how late each token was given out."""
    late: list[float] = []
    ready, ended = threading.Event(), queue.Queue[Any]()
    pacer = Pacer(prepared.compiled.chip.clock_hz, late=late.append)
    runner = Runner(
        lambda report: Session(prepared, report), max_queue=0, pacer=pacer, on_ready=ready.set
    )
    runner.start()
    try:
        assert ready.wait(DEADLINE_SECONDS), "the rack did not start"
        runner.submit(
            Job(prompt, params, lambda e: isinstance(e, Finished | Failed) and ended.put(e))
        )
        assert isinstance(ended.get(timeout=DEADLINE_SECONDS), Finished)
    finally:
        runner.stop(DEADLINE_SECONDS)
    assert params.max_tokens is not None
    return late[-params.max_tokens :]


@contextmanager
def server(prepared: Prepared) -> Iterator[str]:
    """Serve in another process; gives its address."""
    config = prepared.config
    command = [
        *(sys.executable, "-m", "rack.serve", config.model, "--port", "0", "--pace", "emulated"),
        *(
            "--executor",
            "timing",
            "--hardware",
            config.hardware,
            "--prefill-chunk",
            "16",
            "--log",
            "none",
        ),
        *(
            "--max-model-len",
            str(prepared.compiled.max_model_len),
            "--layout",
            str(prepared.compiled.layout),
        ),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("ready:"):
                break
        else:
            raise SystemExit("the server did not start:\n" + "".join(lines))
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        try:
            yield line.split()[-1].removeprefix("http://")
        finally:
            process.terminate()
            process.wait(DEADLINE_SECONDS)


def arrivals(address: str, model: str, prompt: Sequence[int], max_tokens: int) -> Any:
    """Stream a request; when each token was read, after the request began to be sent: [tokens].

    Over a bare socket, and parsed afterwards: an HTTP library takes as long as what is measured.
    """
    body = json.dumps({
        "model": model, "prompt": list(prompt), "max_tokens": max_tokens, "ignore_eos": True,
        "stream": True,
    })  # fmt: skip
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    host, port = address.split(":")
    read = bytearray()
    times = []  # when the byte at this offset, and those before it, had come
    with socket.create_connection((host, int(port)), timeout=DEADLINE_SECONDS) as connection:
        sent = time.perf_counter()
        connection.sendall((head + body).encode())
        while part := connection.recv(1 << 16):
            read += part
            times.append((len(read), time.perf_counter() - sent))
    ends = [found.end() for found in re.finditer(rb"data: {.*?\n\n", read, re.DOTALL)]
    assert len(ends) == max_tokens + 1, f"{len(ends) - 1} of {max_tokens} tokens: {read[-500:]!r}"
    return np.array([next(when for size, when in times if size >= end) for end in ends[:-1]])


def figures(errors: Sequence[float]) -> dict[str, float]:
    """Return percentiles of absolute errors, in milliseconds."""
    values = np.abs(np.array(errors)) * 1e3
    out = {f"p{p}": float(np.percentile(values, p)) for p in (50, 90, 99)}
    return {**out, "max": float(values.max())}


def measure(
    prepared: Prepared, requests: int, prompt_tokens: int, max_tokens: int
) -> dict[str, Any]:
    """Run all three measurements on one compiled model."""
    prompt = [1 + i % 200 for i in range(prompt_tokens)]
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=1.0)
    due = emulated_seconds(prepared, prompt, params)
    errors: dict[str, list[float]] = {"release": [], "interval": [], "total": []}
    name = prepared.compiled.config.name
    for _ in range(requests):
        errors["release"] += release_errors(prepared, prompt, params)
    with server(prepared) as address:
        arrivals(address, name, prompt, max_tokens)  # the first pays for imports
        for _ in range(requests):
            got = arrivals(address, name, prompt, max_tokens)
            errors["total"] += list(got - due)
            errors["interval"] += list((got - got[0]) - (due - due[0]))
            assert (got >= due).all(), "a token came before its emulated time"
    return {
        "model": name, "layout": str(prepared.compiled.layout), "tokens": requests * max_tokens,
        "tokens_per_second": float(1 / statistics.median(np.diff(due))),
        "prompt_ms": float((due[0] - np.diff(due)[0]) * 1e3),
        "error_ms": {kind: figures(values) for kind, values in errors.items()},
    }  # fmt: skip


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="llama-8b", help="preset (%(default)s)")
    parser.add_argument("--hardware", default="lesson", help="profile (%(default)s)")
    parser.add_argument("--context", type=int, default=512, help="tokens at most (%(default)s)")
    parser.add_argument("--rate", type=float, help="tokens/s to scale the clock to")
    parser.add_argument("--requests", type=int, default=10, help="one after another (%(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="of each (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=400, help="of each (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare_at(
            options.model, options.hardware, options.context, options.rate, Path(folder)
        )
        found = measure(prepared, options.requests, options.prompt_tokens, options.max_tokens)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(
        f"{found['model']} {found['layout']}: {found['tokens_per_second']:.0f} tokens/s emulated, "
        f"prompt {found['prompt_ms']:.1f} ms, {found['tokens']} tokens"
    )
    for kind, values in found["error_ms"].items():
        shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
        print(f"|actual - emulated|, {kind:8}  {shown}  ms")


if __name__ == "__main__":
    main()
