"""Measure how well `--pace emulated` keeps to emulated time: |actual - emulated|, in milliseconds.

`python benchmarks/pacing.py [MODEL] [--prompt-tokens N ...] [--clients N] [--rate R] [--json]`, on
an idle machine. The timing executor serves MODEL in one process, clients are in another; there are
as many racks as clients. With --rate the clock is scaled until a decode step takes 1/R seconds.

release    when the rack gives a token out, against its request's arrival there; no HTTP
interval   when a client has read a token, against the first one: what inter-token latency sees
total      when a client has read a token, against when it began to send the request
request    the same of each request's last token
first      the same of the first request that the server ever got, cold
unreported what is left of `request` without the slip that the answer itself reports
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from compiler.model.presets import PRESETS
from rack.run.config import RunConfig
from rack.run.engine import Engine
from rack.run.session import Prepared, Session, prepare
from rack.run.timing_rack import TimingRack
from rack.serve.pacing import Pacer
from rack.serve.runner import Failed, Finished, QueuedRequest, Runner
from rack.system.provenance import code_version
from rack.text.sampler import SamplingParams

DEADLINE_SECONDS = 600.0
CLIENT = Path(__file__).parent / "pacing_client.py"
SHORT_CONTEXT = 512  # compiled for where all requests fit in it
SCALED = """name = "scaled"
inherits = "{inherits}"
[chip]
clock_hz = {{ value = {clock_hz}, source = "assumption: scaled to a token rate" }}
"""


def prepare_at(
    model: str, hardware: str, context: int | None, rate: float | None, folder: Path
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
        last = prepared.compiled.max_model_len
        clock_hz = round(prepared.compiled.step(1, last, decode=True).cycles * rate)
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
            QueuedRequest(
                prompt, params, lambda e: isinstance(e, Finished | Failed) and ended.put(e)
            )
        )
        assert isinstance(ended.get(timeout=DEADLINE_SECONDS), Finished)
    finally:
        runner.stop(DEADLINE_SECONDS)
    assert params.max_tokens is not None
    return late[-params.max_tokens :]


@contextmanager
def server(prepared: Prepared, replicas: int) -> Iterator[str]:
    """Serve in another process; gives its address."""
    config, compiled = prepared.config, prepared.compiled
    command = [
        *(sys.executable, "-m", "rack.serve", config.model, "--port", "0", "--pace", "emulated"),
        *("--executor", "timing", "--hardware", config.hardware, "--prefill-chunk", "16"),
        *("--max-model-len", str(compiled.max_model_len), "--layout", str(compiled.layout)),
        *("--log", "none", "--replicas", str(replicas)),
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


def ask(
    address: str, model: str, prompt: Sequence[int], max_tokens: int, clients: int, requests: int
) -> list[dict[str, Any]]:
    """Let clients in another process stream requests; what each request saw."""
    body = {
        "model": model, "prompt": list(prompt), "max_tokens": max_tokens, "ignore_eos": True,
        "stream": True,
    }  # fmt: skip
    task = {"address": address, "body": body, "clients": clients, "requests": requests}
    done = subprocess.run(
        [sys.executable, str(CLIENT)], input=json.dumps(task), text=True, capture_output=True,
        timeout=DEADLINE_SECONDS, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"the client failed:\n{done.stderr}")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def figures(errors: Sequence[float]) -> dict[str, float]:
    """Return percentiles of absolute errors, in milliseconds."""
    values = np.abs(np.array(errors)) * 1e3
    out = {f"p{p}": float(np.percentile(values, p)) for p in (50, 90, 99)}
    return {**out, "max": float(values.max())}


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    lines = (
        Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    )
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(), "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2), "python": platform.python_version(),
        "code": code_version(),
    }  # fmt: skip


def measure(
    prepared: Prepared, address: str, options: argparse.Namespace, prompt_tokens: int
) -> dict[str, Any]:
    """Run all measurements with prompts of one length."""
    prompt, max_tokens = [1 + i % 200 for i in range(prompt_tokens)], options.max_tokens
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=1.0)
    name, clients = prepared.compiled.config.name, options.clients
    first = ask(address, name, prompt, max_tokens, 1, 1)
    found = ask(address, name, prompt, max_tokens, clients, options.requests)
    due = emulated_seconds(prepared, prompt, params)
    came = [np.array(one["came"]) for one in found]
    assert all((got >= due).all() for got in came), "a token came before its emulated time"
    late = [float(got[-1] - due[-1]) for got in came]
    reported = [one["x_rack"]["slipped_seconds"]["total"] for one in found]
    errors = {
        "release": [e for _ in came for e in release_errors(prepared, prompt, params)]
        if clients == 1 else [],
        "interval": [float(e) for got in came for e in (got - got[0]) - (due - due[0])],
        "total": [float(e) for got in came for e in got - due],
        "request": late,
        "first": [float(first[0]["came"][-1] - due[-1])],
        "unreported": [a - b for a, b in zip(late, reported, strict=True)],
    }  # fmt: skip
    return {
        "model": name, "hardware": prepared.compiled.target_name, "machine": machine(),
        "layout": str(prepared.compiled.layout), "clients": clients,
        "prompt_tokens": prompt_tokens, "tokens": len(found) * max_tokens,
        "tokens_per_second": float(1 / statistics.median(np.diff(due))),
        "prompt_ms": float((due[0] - np.diff(due)[0]) * 1e3), "request_ms": float(due[-1] * 1e3),
        "error_ms": {kind: figures(values) for kind, values in errors.items() if values},
    }  # fmt: skip


def main() -> None:
    """Print the tables, or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="llama-8b", help="preset (%(default)s)")
    parser.add_argument("--hardware", default="lesson", help="profile (%(default)s)")
    parser.add_argument("--context", type=int, help="tokens at most; default: 512 or the machine's")
    parser.add_argument("--rate", type=float, help="tokens/s to scale the clock to")
    parser.add_argument("--clients", type=int, default=1, help="at once, and racks (%(default)s)")
    parser.add_argument("--requests", type=int, default=10, help="of each client (%(default)s)")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[64], help="lengths")
    parser.add_argument("--max-tokens", type=int, default=400, help="of each (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    longest = max(options.prompt_tokens) + options.max_tokens
    short = min(SHORT_CONTEXT, PRESETS[options.model].max_position_embeddings)
    context = options.context or (short if longest <= short else None)
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare_at(options.model, options.hardware, context, options.rate, Path(folder))
        gc.freeze()
        found = []
        with server(prepared, options.clients) as address:
            for prompt_tokens in options.prompt_tokens:
                found.append(measure(prepared, address, options, prompt_tokens))
                if not options.json:
                    show(found[-1])
    if options.json:
        print(json.dumps(found[0] if len(found) == 1 else found, indent=1))


def show(found: dict[str, Any]) -> None:
    """Print one table."""
    print(
        f"{found['model']} on {found['hardware']} {found['layout']}, {found['clients']} clients, "
        f"prompts of {found['prompt_tokens']}: {found['tokens_per_second']:.0f} tokens/s emulated, "
        f"prompt {found['prompt_ms']:.1f} ms, request {found['request_ms']:.1f} ms, "
        f"{found['tokens']} tokens; {found['machine']}"
    )
    for kind, values in found["error_ms"].items():
        shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
        print(f"|actual - emulated|, {kind:10}  {shown}  ms", flush=True)


if __name__ == "__main__":
    main()
