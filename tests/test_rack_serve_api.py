"""The HTTP surface, in this process: shapes of answers, of streams, of errors."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from serve_kit import Served, asgi, chat, events, serving, tiny

from rack.errors import RequestError
from rack.run.completion import Picker
from rack.serve.app import Bounds
from rack.serve.keys import Keys

CHAT, TEXT = "/openai/v1/chat/completions", "/v1/completions"


def ask(scenario: Callable[[Served], Awaitable[Any]], **options: Any) -> Any:
    """Run a scenario against a server."""

    async def run() -> Any:
        async with serving(**options) as served:
            return await scenario(served)

    return asyncio.run(run())


def post(path: str, body: Any, **options: Any) -> httpx.Response:
    response: httpx.Response = ask(lambda s: s.client.post(path, json=body), **options)
    return response


def get(path: str, **options: Any) -> httpx.Response:
    response: httpx.Response = ask(lambda s: s.client.get(path), **options)
    return response


def test_chat_answer() -> None:
    response = post(CHAT, chat(user="someone", service_tier="auto", n=1, tools=[]))
    body = response.json()
    assert response.status_code == 200
    assert re.fullmatch(r"chatcmpl-[0-9a-f-]{36}", body["id"])
    assert body["object"] == "chat.completion"
    assert body["model"] == "tiny"
    assert re.fullmatch(r"fp_[0-9a-f]{10}", body["system_fingerprint"])
    assert re.fullmatch(r"req_[0-9a-z]{26}", body["x_groq"]["id"])
    assert response.headers["x-request-id"] == body["x_groq"]["id"]
    assert body["x_groq"]["seed"] == 7
    (choice,) = body["choices"]
    assert choice.keys() == {"index", "message", "logprobs", "finish_reason"}
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "length"
    assert body["service_tier"] == "on_demand"


def test_usage_is_emulated_time_and_x_rack_carries_the_marks() -> None:
    body = post(CHAT, chat()).json()
    usage, rack = body["usage"], body["x_rack"]
    cycles, clock = rack["emulated_cycles"], tiny().compiled.chip.clock_hz
    assert usage["prompt_time"] == round(cycles["prompt"] / clock, 9) > 0
    assert usage["completion_time"] == round(cycles["completion"] / clock, 9) > 0
    assert usage["total_time"] == round(usage["prompt_time"] + usage["completion_time"], 9)
    assert usage["queue_time"] == cycles["queue"] == 0
    assert usage["completion_tokens"] == 4
    assert usage["total_tokens"] == usage["prompt_tokens"] + 4
    assert (rack["executor"], rack["transport"], rack["weights"]) == ("fast", "local", "synthetic")
    assert rack["layers"] == "all"
    assert rack["layout"] == "1x1"
    assert rack["schedule_hash"] == tiny().compiled.schedule_hash
    assert len(rack["data_hash"]) == 64
    assert any("SYNTHETIC" in notice for notice in rack["notices"])
    assert set(rack["wall_seconds"]) == {"queue", "prompt", "completion"}


def test_timing_executor_marks_every_answer() -> None:
    async def scenario(served: Served) -> list[httpx.Response]:
        streamed = await served.client.post(CHAT, json=chat(stream=True))
        return [await served.client.post(CHAT, json=chat()), streamed]

    whole, streamed = ask(scenario, prepared=tiny("timing"))
    for rack in (whole.json()["x_rack"], events(streamed.text)[-2]["x_rack"]):
        assert (rack["executor"], rack["transport"]) == ("timing", "none")
        assert rack["data_hash"] is None
        assert any("TIMING" in notice for notice in rack["notices"])
    fast = post(CHAT, chat()).json()
    assert whole.json()["system_fingerprint"] != fast["system_fingerprint"]
    assert whole.json()["usage"] == fast["usage"]  # the same cycles


def test_chat_stream() -> None:
    async def scenario(served: Served) -> tuple[httpx.Response, httpx.Response]:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        streamed = await served.client.post(CHAT, json=chat(**options))
        return streamed, await served.client.post(CHAT, json=chat())

    response, whole = ask(scenario)
    assert response.headers["content-type"].startswith("text/event-stream")
    first, *middle, last, usage, done = events(response.text)
    assert done == "[DONE]"
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert first["x_groq"] == {"id": response.headers["x-request-id"], "seed": 7}
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle)
    assert text == whole.json()["choices"][0]["message"]["content"]
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["x_groq"]["usage"] == whole.json()["usage"]
    assert last["x_rack"]["data_hash"] == whole.json()["x_rack"]["data_hash"]
    assert (usage["choices"], usage["usage"]) == ([], whole.json()["usage"])
    assert {chunk["usage"] for chunk in (first, *middle, last)} == {None}
    assert len({chunk["id"] for chunk in (first, *middle, last, usage)}) == 1


def test_text_completion_whole_and_streamed() -> None:
    async def scenario(served: Served) -> list[httpx.Response]:
        body = {"model": "tiny", "prompt": "hi", "temperature": 0}
        ids = {**body, "prompt": [256, *b"hi"]}
        bodies = (body, {**body, "prompt": ["hi"]}, ids, {**ids, "prompt": [ids["prompt"]]})
        streamed = await served.client.post(TEXT, json=body | {"stream": True})
        return [streamed, *[await served.client.post(TEXT, json=body) for body in bodies]]

    streamed, *answers = ask(scenario)
    texts = [answer.json()["choices"][0]["text"] for answer in answers]
    assert len(set(texts)) == 1
    body = answers[0].json()
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    assert body["usage"]["completion_tokens"] == 16  # OpenAI's default
    *chunks, done = events(streamed.text)
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == texts[0]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-1])


def test_same_seed_same_answer() -> None:
    async def scenario(served: Served) -> list[str]:
        bodies = [chat(temperature=1, max_tokens=12, seed=seed) for seed in (None, 7, 8)]
        answers = [await served.client.post(CHAT, json=body) for body in bodies]
        return [answer.json()["choices"][0]["message"]["content"] for answer in answers]

    default, same, other = ask(scenario)
    assert default == same != other


def test_models() -> None:
    body = get("/v1/models", names=["my-model", "org/other"]).json()
    assert body["object"] == "list"
    assert [model["id"] for model in body["data"]] == ["tiny", "my-model", "org/other"]
    assert body["data"][0]["context_window"] == 256
    assert get("/openai/v1/models/org/other", names=["org/other"]).json()["id"] == "org/other"


def test_health_and_version() -> None:
    assert get("/health").json() == {"status": "ok"}
    assert get("/health/ready").json() == {"status": "ready", "racks": ["ready"]}
    body = get("/version").json()
    assert body["version"]
    assert body["system_fingerprint"].startswith("fp_")


def test_unknown_model() -> None:
    message = "The model `gpt` does not exist; this server has `tiny`"
    for response in (post(CHAT, chat(model="gpt")), get("/v1/models/gpt")):
        assert response.status_code == 404
        assert response.json()["error"] == {
            "message": message, "type": "invalid_request_error", "code": "model_not_found",
            "param": "model",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        (CHAT, chat(n=2), "n", "`n` is not supported by this server but for 1; leave it out"),
        (CHAT, chat("x" * 300), "messages", "messages: 318 tokens leave no room in the context of"),
        (
            CHAT,
            chat(max_tokens=257),
            "max_tokens",
            "max_tokens: 257 is more than the context of 256",
        ),
        (CHAT, chat("\ud800"), "messages", "text: wanted whole Unicode characters, got '\\ud800'"),
        (CHAT, chat() | {"messages": []}, "messages", "messages: wanted at least one message"),
        (
            TEXT,
            {"model": "tiny", "prompt": []},
            "prompt",
            "prompt: wanted some text or token ids, got none",
        ),
        (TEXT, {"model": "tiny", "prompt": [320]}, "prompt", "prompt: wanted token ids below 320"),
    ],
)
def test_refused(path: str, body: Any, param: str, message: str) -> None:
    async def scenario(served: Served) -> httpx.Response:
        return await served.client.post(path, content=json.dumps(body))

    response = ask(scenario)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["message"].startswith(message)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_api_key() -> None:
    async def scenario(served: Served) -> list[int]:
        headers = [{}, *[{"authorization": v} for v in ("Bearer no", "Basic key", "Bearer key")]]
        answers = [await served.client.get("/v1/models", headers=h) for h in headers]
        assert answers[0].json()["error"]["message"] == "Invalid API Key"
        assert answers[0].json()["error"]["code"] == "invalid_api_key"
        posted = await served.client.post(CHAT, json=chat())
        health = await served.client.get("/health/ready")
        return [a.status_code for a in (*answers, posted, health)]

    assert ask(scenario, keys=Keys([("me", "key")])) == [401, 401, 401, 200, 401, 200]
    assert post(CHAT, chat()).status_code == 200  # any or no key without one


def test_body_too_large() -> None:
    response = post(CHAT, chat("x" * 200), bounds=Bounds(body_bytes=100))
    assert response.status_code == 413
    assert response.json()["error"]["message"] == "the body is larger than 100 bytes"


def test_unknown_path_and_method() -> None:
    missing, method = get("/nope"), get(CHAT)
    assert (missing.status_code, method.status_code) == (404, 405)
    assert missing.json()["error"]["message"] == "Not Found: GET /nope"
    assert method.json()["error"]["message"] == f"Method Not Allowed: GET {CHAT}"
    assert method.headers["allow"] == "POST"


def test_tokenize_and_back() -> None:
    async def scenario(served: Served) -> None:
        client = served.client
        got = (await client.post("/tokenize", json={"prompt": "hé"})).json()
        assert got == {
            "count": 4, "max_model_len": 256, "tokens": [256, *"hé".encode()], "token_strs": None,
        }  # fmt: skip
        back = await client.post("/detokenize", json={"model": "tiny", "tokens": got["tokens"]})
        assert back.json() == {"prompt": "hé"}
        asked = await client.post(CHAT, json=chat())
        chatted = {"messages": chat()["messages"], "add_generation_prompt": True}
        count = (await client.post("/tokenize", json=chatted)).json()["count"]
        assert count == asked.json()["usage"]["prompt_tokens"]

    ask(scenario)


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "message"),
    [
        ("/tokenize", {}, 400, None, "the body: wanted one of prompt and messages"),
        ("/tokenize", {"prompt": "a", "messages": []}, 400, None, "the body: wanted one of"),
        ("/tokenize", {"prompt": "\ud800"}, 400, "prompt", "text: wanted whole Unicode"),
        ("/tokenize", {"prompt": "a", "model": "gpt"}, 404, "model", "The model `gpt` does not"),
        (
            "/tokenize",
            {"prompt": "a", "add_special_tokens": False},
            400,
            "add_special_tokens",
            "`add_special_tokens` is not supported by this server but for true",
        ),
        ("/detokenize", {"tokens": [320]}, 400, "tokens", "token id 320: wanted 0 to 319"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens", "token id -1: wanted 0 to 319"),
        ("/detokenize", {"tokens": ["a"]}, 400, "tokens[0]", "tokens[0]: Input should be a valid"),
        ("/detokenize", {"tokens": [], "model": "gpt"}, 404, "model", "The model `gpt` does not"),
    ],
)
def test_tokenize_refuses(
    path: str, body: Any, status: int, param: str | None, message: str
) -> None:
    response = ask(lambda s: s.client.post(path, content=json.dumps(body)))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert error["message"].startswith(message)


def test_counts_so_far_in_every_chunk() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    response = post(CHAT, chat(stream=True, stream_options=options))
    *chunks, usage, done = events(response.text)
    assert done == "[DONE]"
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [0, 1, 2, 3, 4, 4]
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {
        usage["usage"]["prompt_tokens"]
    }
    assert chunks[-1]["usage"]["total_tokens"] == usage["usage"]["total_tokens"]


def test_an_answer_can_be_sent_back_as_the_sdks_have_it() -> None:
    own = {"role": "assistant", "content": "a", "tool_calls": None, "refusal": None}
    messages = [*chat()["messages"], {**own, "annotations": []}, *chat()["messages"]]
    assert post(CHAT, chat() | {"messages": messages}).status_code == 200


def test_random_tokens_show_in_the_fingerprint_and_the_marks() -> None:
    timing = post(CHAT, chat(), prepared=tiny("timing")).json()
    assert timing["system_fingerprint"].startswith("fp_00000")
    assert timing["x_rack"]["tokens"] == "random"
    fast = post(CHAT, chat()).json()
    assert not fast["system_fingerprint"].startswith("fp_00000")
    assert (fast["x_rack"]["tokens"], fast["x_rack"]["pace"]) == ("model", "none")
    assert fast["x_rack"]["replicas"] == 1


def test_a_bug_is_a_500_in_our_shape() -> None:
    async def scenario(served: Served) -> tuple[int, bytes]:
        def broken() -> None:
            raise ZeroDivisionError("oh")

        served.runner.check_ready = broken  # type: ignore[method-assign]
        served.runner.stage = "broken"
        sent: list[Any] = []
        with pytest.raises(ZeroDivisionError):  # for the server's log
            await asgi(served.app, "GET", "/health/ready", sent=sent)
        return sent[0]["status"], sent[1]["body"]

    status, body = ask(scenario)
    assert status == 500
    assert json.loads(body)["error"]["message"] == "ZeroDivisionError: oh"


def test_what_shows_only_while_it_runs_is_a_400(monkeypatch: pytest.MonkeyPatch) -> None:
    errors, pick = [RequestError(param="stop", wanted="another", got="this")], Picker.pick

    def fails_once(*asked: Any) -> int:
        if errors:
            raise errors.pop()
        return pick(*asked)

    async def scenario(served: Served) -> None:
        refused = await served.client.post(CHAT, json=chat())
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "stop"
        assert (await served.client.post(CHAT, json=chat())).status_code == 200
        assert len(served.opened) == 1  # the rack was not at fault

    monkeypatch.setattr(Picker, "pick", fails_once)
    ask(scenario)
