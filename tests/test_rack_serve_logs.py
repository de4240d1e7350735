"""Request ids and log lines: every request has one of each."""

import asyncio
import io
import json
from typing import Any

import httpx
import pytest
from serve_kit import Served, chat, serving

from rack.serve.logs import FLUSH_SECONDS, RequestLog, request_log

CHAT = "/v1/chat/completions"


def ask(scenario: Any) -> tuple[Any, list[dict[str, Any]]]:
    """Run a scenario; return its result and the log's lines."""
    out = io.StringIO()

    async def run() -> Any:
        log = RequestLog(out)
        async with serving(log=log) as served:
            result = await scenario(served)
            log.flush()
            return result

    result = asyncio.run(run())
    return result, [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_line_a_request() -> None:
    async def scenario(served: Served) -> list[httpx.Response]:
        client = served.client
        return [
            await client.post(CHAT, json=chat("secret text")),
            await client.post(CHAT, json=chat(stream=True)),
            await client.post(CHAT, json=chat(n=2)),
            await client.get("/nope"),
        ]

    answers, (whole, streamed, refused, missing) = ask(scenario)
    body = answers[0].json()
    assert whole["event"] == "request"
    assert whole["request_id"] == whole["groq_id"] == body["x_groq"]["id"]
    assert (whole["method"], whole["path"], whole["status"]) == ("POST", CHAT, 200)
    assert (whole["model"], whole["key"], whole["finish_reason"]) == ("tiny", "anyone", "length")
    assert whole["prompt_tokens"] == body["usage"]["prompt_tokens"]
    assert whole["completion_tokens"] == 4
    assert whole["emulated_cycles"] == body["x_rack"]["emulated_cycles"]
    assert whole["wall_seconds"] > 0
    assert whole["time"].endswith("+00:00")
    assert "secret" not in json.dumps(whole)
    assert (streamed["status"], streamed["completion_tokens"]) == (200, 4)
    assert (refused["status"], refused["error"]) == (400, "unsupported_parameter")
    assert "model" not in refused
    assert (missing["status"], missing["path"]) == (404, "/nope")


def test_request_ids_are_echoed_and_on_every_answer() -> None:
    async def scenario(served: Served) -> list[httpx.Response]:
        headers = {"x-request-id": "mine-1"}
        return [
            await served.client.post(CHAT, json=chat(), headers=headers),
            await served.client.get("/nope", headers=headers),
            await served.client.get("/health"),
        ]

    (whole, missing, health), lines = ask(scenario)
    assert whole.headers["x-request-id"] == missing.headers["x-request-id"] == "mine-1"
    assert whole.json()["x_groq"]["id"].startswith("req_")
    assert lines[0]["request_id"] == "mine-1"
    assert lines[0]["groq_id"] == whole.json()["x_groq"]["id"]
    assert health.headers["x-request-id"] == lines[2]["request_id"]


@pytest.mark.parametrize("odd", ["a b", "x" * 129, "", "\x7f"])
def test_odd_request_ids_are_not_echoed(odd: str) -> None:
    async def scenario(served: Served) -> httpx.Response:
        return await served.client.get("/health", headers={"x-request-id": odd})

    answer, _ = ask(scenario)
    assert answer.headers["x-request-id"].startswith("req_")


def test_lines_are_written_without_being_asked_for() -> None:
    out = io.StringIO()

    async def run() -> None:
        async with serving(log=RequestLog(out)) as served:
            await served.client.get("/health")
            assert out.getvalue() == ""
            written = asyncio.Event()
            asyncio.get_running_loop().call_later(2 * FLUSH_SECONDS, written.set)
            await written.wait()

    asyncio.run(run())
    assert json.loads(out.getvalue())["path"] == "/health"


def test_no_log(capsys: pytest.CaptureFixture[str]) -> None:
    async def run() -> None:
        for kind in ("none", "json"):
            log = request_log(kind)
            async with serving(log=log) as served:
                await served.client.get("/health")
            log.flush()

    asyncio.run(run())
    assert len(capsys.readouterr().err.splitlines()) == 1
