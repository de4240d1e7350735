"""Request ids and log lines: every request has one of each."""

import asyncio
import io
import json
import logging
import re
from typing import Any

import httpx
import pytest
from serve_kit import Served, chat, serving

from rack.serve.logs import FLUSH_SECONDS, Notices, RequestLog, request_log

CHAT = "/v1/chat/completions"


def ask(scenario: Any, **options: Any) -> tuple[Any, list[dict[str, Any]]]:
    """Run a scenario; return its result and the log's lines."""
    out = io.StringIO()

    async def run() -> Any:
        log = RequestLog(out, **options)
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

    (whole, missing, health), lines = ask(scenario, probes=True)
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
            await served.client.get("/version")
            assert out.getvalue() == ""
            written = asyncio.Event()
            asyncio.get_running_loop().call_later(2 * FLUSH_SECONDS, written.set)
            await written.wait()

    asyncio.run(run())
    assert json.loads(out.getvalue())["path"] == "/version"


def test_no_log(capsys: pytest.CaptureFixture[str]) -> None:
    async def run() -> None:
        for kind in ("none", "json", "text"):
            log = request_log(kind)
            async with serving(log=log) as served:
                await served.client.get("/version")
            log.flush()

    asyncio.run(run())
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_what_asks_every_few_seconds_is_left_out() -> None:
    async def scenario(served: Served) -> None:
        for path in ("/health", "/health/ready", "/metrics", "/version"):
            assert (await served.client.get(path)).status_code == 200

    _, lines = ask(scenario)
    assert [line["path"] for line in lines] == ["/version"]
    _, lines = ask(scenario, probes=True)
    assert len(lines) == 4


def test_readable_lines() -> None:
    out = io.StringIO()

    async def run() -> None:
        log = RequestLog(out, form="text")
        async with serving(log=log) as served:
            await served.client.post(CHAT, json=chat(), headers={"x-request-id": "mine"})
            await served.client.get("/no%0Asuch")
            log.flush()

    asyncio.run(run())
    done, missing = out.getvalue().splitlines()
    assert re.fullmatch(
        r"\S+\+00:00 POST /v1/chat/completions 200 \d+\.\d ms request_id=mine groq_id=req_\w+ "
        r"key=anyone model=tiny prompt_tokens=20 completion_tokens=4 finish_reason=length "
        r"queue_cycles=0 prompt_cycles=\d+ completion_cycles=\d+",
        done,
    )
    assert re.fullmatch(
        r"\S+ GET /no\\nsuch 404 \d+\.\d ms request_id=req_\w+ groq_id=\S+", missing
    )


def library(notices: Notices) -> None:
    """Log and warn as libraries do, under a handler of ours."""
    with notices.heard():
        logging.getLogger("lib").info("too small to be said")
        try:
            raise ValueError("inside")
        except ValueError:
            logging.getLogger("lib").exception("went %s", "wrong")
    logging.getLogger("lib").setLevel(logging.CRITICAL)
    logging.getLogger("lib").error("after")
    logging.getLogger("lib").setLevel(logging.NOTSET)


def test_notices_are_readable_or_json() -> None:
    text, lines = io.StringIO(), io.StringIO()
    for notices in (Notices(text), Notices(lines, form="json")):
        notices.say("a notice")
        notices.say("ready: here", "ready", port=1)
        library(notices)
    said = text.getvalue().splitlines()
    assert said[:3] == ["a notice", "ready: here", "error: went wrong"]
    assert said[3] == "Traceback (most recent call last):"
    assert said[-1] == "ValueError: inside"
    notice, ready, logged = map(json.loads, lines.getvalue().splitlines())
    assert (notice["event"], notice["message"]) == ("notice", "a notice")
    assert (ready["event"], ready["port"]) == ("ready", 1)
    assert (logged["level"], logged["logger"], logged["message"]) == ("error", "lib", "went wrong")
    assert logged["traceback"].endswith("ValueError: inside\n")
    assert all(line["time"] for line in (notice, ready, logged))
