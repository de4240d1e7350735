"""Before there is anything to serve: the address answers, and says what it waits for."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from serve_kit import DEADLINE_SECONDS, asgi, chat, serving
from server_process import ROOT

from rack.serve.front import Front
from rack.serve.logs import RequestLog

LONG = ("llama-8b", "--executor", "timing", "--layout", "8x4+4")  # compiles for many seconds


def test_everything_is_answered_while_there_is_nothing_to_serve() -> None:
    front = Front(RequestLog())
    front.stage = "compiling llama-70b 3/18"

    async def run() -> None:
        status, _, body = await asgi(front, "GET", "/health")
        assert (status, json.loads(body)) == (200, {"status": "ok"})
        for path in ("/health/ready", "/v1/chat/completions", "/v1/models", "/metrics", "/nope"):
            status, headers, body = await asgi(front, "POST", path, b"{}")
            error = json.loads(body)["error"]
            assert (status, error["code"]) == (503, "service_unavailable")
            assert error["message"] == "the rack is not ready (compiling llama-70b 3/18)"
            assert headers["retry-after"] == "5"
            assert headers["x-request-id"].startswith("req_")
        async with serving() as served:
            front.hand_on(served.app)
            status, _, body = await asgi(
                front, "POST", "/v1/chat/completions", json.dumps(chat()).encode()
            )
            assert status == 200

    asyncio.run(run())


@contextmanager
def starting(*arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A server that has begun to compile, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rack.serve", *LONG, "--port", str(port), *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        try:
            assert "compiling llama-8b" in process.stderr.readline()
            yield process, f"http://127.0.0.1:{port}"
        finally:
            if process.poll() is None:
                process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_compiles_ends_it_quietly(how: signal.Signals) -> None:
    with starting() as (process, url):
        assert httpx.get(f"{url}/health", timeout=DEADLINE_SECONDS).status_code == 200
        ready = httpx.get(f"{url}/health/ready", timeout=DEADLINE_SECONDS)
        assert ready.status_code == 503
        message = ready.json()["error"]["message"]
        assert message.startswith("the rack is not ready (compiling llama-8b ")
        process.send_signal(how)
        _, rest = process.communicate(timeout=DEADLINE_SECONDS)
        assert (process.returncode, rest) == (0, "")


@pytest.mark.slow
def test_an_address_that_is_taken_is_refused_before_anything_is_compiled() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "rack.serve", *LONG, "--port", str(port)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot listen on 127.0.0.1 port {port}: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_all_lines_are_json_where_that_is_asked_for() -> None:
    command = [sys.executable, "-m", "rack.serve", "tiny", "--executor", "timing", "--port", "0"]
    with subprocess.Popen(
        [*command, "--log", "json", "--layout", "1x1"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(json.loads(line))
            if lines[-1]["event"] == "ready":
                break
        url = f"http://{lines[-1]['host']}:{lines[-1]['port']}"
        httpx.post(f"{url}/v1/chat/completions", json=chat(), timeout=DEADLINE_SECONDS)
        process.send_signal(signal.SIGTERM)
        lines += map(json.loads, process.stderr)
        assert process.wait(DEADLINE_SECONDS) == 0
    assert [line["event"] for line in lines if line["event"] != "notice"] == [
        "progress", "progress", "ready", "request",
    ]  # fmt: skip
    failed = subprocess.run(
        [*command, "--log", "json", "--layout", "3x"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert failed.returncode == 1
    (line,) = failed.stderr.splitlines()
    assert json.loads(line)["event"] == "error"
    assert json.loads(line)["message"].startswith("layout")


@pytest.mark.slow
def test_what_a_server_holds_is_out_of_the_collector_s_sight() -> None:
    """A collection while requests run walks what they made, not the compiled model."""
    code = (
        "import gc; from rack.system.garbage import collect_once;"
        "from rack.run.config import RunConfig;"
        "from rack.run.session import prepare;"
        "p = prepare(RunConfig(model='tiny', executor='timing', layout='1x1')); collect_once();"
        "print(len(gc.get_objects()), gc.get_freeze_count())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    seen, frozen = map(int, done.stdout.split())
    assert seen < 1000 < 10_000 < frozen
