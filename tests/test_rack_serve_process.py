"""The real thing: `python -m rack.serve` as a process: signals, ports, what is refused at start."""

import asyncio
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import DEADLINE_SECONDS, TINY, server
from verb_process import Verb

from rack.commands.serve import main
from rack.errors import ChipFailedError
from rack.serve import serving

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_open_streams_and_the_process(how: signal.Signals) -> None:
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 250, "ignore_eos": True, "stream": True}
    with (
        server(*TINY) as running,
        httpx.stream("POST", f"{running.url}/v1/completions", json=body, timeout=60) as stream,
    ):
        lines = (line for line in stream.iter_lines() if line)
        assert "error" not in next(lines)
        running.process.send_signal(how)
        rest = list(lines)
        assert rest[-1] == "data: [DONE]" or "the server is stopping" in rest[-1]
        assert running.process.wait(DEADLINE_SECONDS) == 0


def test_an_idle_chip_that_dies_is_replaced_and_the_other_rack_answers(tmp_path: Path) -> None:
    words = ("tiny", "--transport", "process", "--layout", "2x1", "--replicas", "2", "--port", "0")
    running = Verb(tmp_path, "-m", "rack.serve", *words)
    try:
        url = running.said("ready: ").split()[-1]
        assert httpx.get(f"{url}/health/ready").json()["racks"] == ["ready", "ready"]
        chips = running.others()
        assert len(chips) == 4
        chips[0].kill()
        line = running.said("error: rack ")
        number = line.split()[2].rstrip(":")
        assert "between steps: its process ended (exit code -9); waiting for nothing" in line
        assert "starting it again now" in line
        body = {"model": "tiny", "prompt": "hi", "max_tokens": 2}
        got = httpx.post(f"{url}/v1/completions", json=body, timeout=DEADLINE_SECONDS)
        assert got.status_code == 200
        running.said(f"rack {number} is ready again")
        assert httpx.get(f"{url}/health/ready").json()["racks"] == ["ready", "ready"]
        assert len(running.others()) == 4
        running.process.send_signal(signal.SIGHUP)  # the terminal is closed
        assert running.process.wait(DEADLINE_SECONDS) == 0
        running.nothing_is_left()
    finally:
        running.kill()


def test_a_chip_that_dies_under_eight_streams_ends_each_and_the_rack_is_ready_again(
    tmp_path: Path,
) -> None:
    words = ("--transport", "process", "--layout", "2x1", "--sequences", "8", "--port", "0")
    running = Verb(tmp_path, "-m", "rack.serve", "tiny", *words)

    async def killed(url: str) -> list[list[Any]]:
        began = [asyncio.Event() for _ in range(8)]

        async def stream(client: httpx.AsyncClient, number: int) -> list[Any]:
            body = {
                "model": "tiny", "prompt": "hi", "max_tokens": 250, "ignore_eos": True,
                "stream": True, "seed": number,
            }  # fmt: skip
            seen: list[Any] = []
            async with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if line:
                        seen.append(json.loads(line.removeprefix("data: ")))
                        began[number].set()
            return seen

        async with httpx.AsyncClient(timeout=DEADLINE_SECONDS) as client:
            tasks = [asyncio.create_task(stream(client, number)) for number in range(8)]
            await asyncio.gather(*(event.wait() for event in began))
            running.others()[0].kill()
            return await asyncio.gather(*tasks)

    try:
        url = running.said("ready: ").split()[-1]
        for seen in asyncio.run(killed(url)):
            *tokens, last = seen
            assert not any("error" in token for token in tokens)
            assert last["error"]["code"] == "rack_failed"
            assert "its process ended (exit code -9)" in last["error"]["message"]
        running.said("rack 0 is ready again")
        body = {"model": "tiny", "prompt": "hi", "max_tokens": 2}
        got = httpx.post(f"{url}/v1/completions", json=body, timeout=DEADLINE_SECONDS)
        assert got.status_code == 200
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(DEADLINE_SECONDS) == 0
        running.nothing_is_left()
    finally:
        running.kill()


def test_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([*TINY, "--port", str(port)]) == 1
    wanted = f"error: cannot listen on 127.0.0.1 port {port}: Address already in use"
    assert wanted in capsys.readouterr().err


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no-such-model"]) == 1
    assert capsys.readouterr().err.startswith("error: model 'no-such-model': wanted a preset")
    with pytest.raises(SystemExit) as caught:
        main([*TINY, "--max-queue", "-1"])
    assert caught.value.code == 2
    assert "--max-queue: wanted 0 or more, got -1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*TINY, "--replicas", "0"])
    assert "--replicas: wanted 1 or more, got 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*TINY, "--drain-seconds", "-1"])
    assert "--drain-seconds: wanted 0 or more, got -1" in capsys.readouterr().err
    for flag in ("--limits", "--api-keys"):
        assert main([*TINY, flag, "/no/such/file"]) == 1
        assert "error: /no/such/file: wanted a" in capsys.readouterr().err


def test_dry_run_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--dry-run"]) == 0
    assert "tiny" in capsys.readouterr().out


def test_a_rack_that_does_not_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ChipFailedError(chip=3, step="start", what="no answer", waiting_for="hello")

    monkeypatch.setattr(serving, "Session", fail)
    assert main([*TINY, "--port", "0"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "error: chip 3, start: no answer; waiting for hello"


def test_too_little_memory(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rack.run.host_memory.free_bytes", lambda: 1000)
    assert main([*TINY, "--executor", "fast"]) == 1
    assert "error: executor: fast needs" in capsys.readouterr().err
    assert os.environ.get("LPU_RACK_EXECUTOR") is None


@pytest.mark.ray
def test_two_racks_on_ray_answer_alike(stories260k: Path) -> None:
    arguments = ("--transport", "ray", "--layout", "1x1", "--replicas", "2")
    body = {"model": "stories260K", "prompt": "Once upon a time", "temperature": 0}

    async def ask(url: str) -> list[dict[str, Any]]:
        async with httpx.AsyncClient(timeout=DEADLINE_SECONDS) as client:
            posts = [client.post(f"{url}/v1/completions", json=body) for _ in range(4)]
            return [answer.json() for answer in await asyncio.gather(*posts)]

    with server(str(stories260k), *arguments) as running:
        answers = asyncio.run(ask(running.url))
        assert len({answer["x_rack"]["data_hash"] for answer in answers}) == 1
        assert {answer["x_rack"]["replicas"] for answer in answers} == {2}
        assert running.end(signal.SIGTERM) == 0


def test_keys_and_limits_from_files(tmp_path: Path) -> None:
    keys, limits = tmp_path / "keys", tmp_path / "limits.toml"
    keys.write_text("alice secret-a\nbob secret-b\n")
    limits.write_text("[default]\nrequests_per_day = 1\n[keys.bob]\nrequests_per_day = 2\n")
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 1}
    with server(*TINY, "--api-keys", str(keys), "--limits", str(limits)) as running:
        got = [
            httpx.post(
                f"{running.url}/v1/completions", json=body, timeout=DEADLINE_SECONDS,
                headers={"authorization": f"Bearer {key}"},
            ).status_code
            for key in ("secret-a", "secret-a", "secret-b", "secret-b", "secret-b", "secret-c")
        ]  # fmt: skip
        assert got == [200, 429, 200, 200, 429, 401]
        assert running.end(signal.SIGTERM) == 0
