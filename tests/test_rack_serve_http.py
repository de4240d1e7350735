"""Around the model's answers: paths that are not there, browsers, packed bodies, slashes."""

import argparse
import asyncio
import datetime
import gzip
import json
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from serve_kit import Served, chat, serving, tiny

from compiler.model.presets import GROQ_NAMES
from rack.commands.serve import build_parser
from rack.serve.absent import why_absent
from rack.serve.app import PREFIXES, Bounds
from rack.serve.cors import parse_origins
from rack.serve.identity import identify
from rack.serve.keys import Keys
from rack.serve.limits import HEADERS, Limiter
from rack.serve.retired import RETIRED, Grade

CHAT = "/v1/chat/completions"
PAGE = "https://page.example"


def ask(scenario: Callable[[Served], Awaitable[Any]], **options: Any) -> Any:
    """Run a scenario against a server."""

    async def run() -> Any:
        async with serving(tiny("timing"), **options) as served:
            return await scenario(served)

    return asyncio.run(run())


ELSEWHERE = [
    ("POST", "/embeddings"), ("POST", "/audio/transcriptions"), ("POST", "/audio/translations"),
    ("POST", "/audio/speech"), ("POST", "/batches"), ("GET", "/batches/batch_1"),
    ("POST", "/batches/batch_1/cancel"), ("GET", "/files"), ("DELETE", "/files/file-1"),
    ("GET", "/files/file-1/content"), ("POST", "/fine_tuning/jobs"), ("GET", "/fine_tunings"),
    ("POST", "/images/generations"), ("POST", "/moderations"), ("POST", "/assistants"),
    ("GET", "/threads/thread_1/messages"), ("GET", "/vector_stores"), ("PUT", "/uploads/upload_1"),
    ("GET", "/realtime"), ("POST", "/conversations"), ("POST", "/embeddings/"),
]  # fmt: skip


def test_endpoints_of_the_real_ones_are_said_to_be_absent() -> None:
    async def scenario(served: Served) -> None:
        for prefix in PREFIXES:
            for method, path in ELSEWHERE:
                answer = await served.client.request(method, prefix + path, content=b"{")
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (404, "not_emulated"), path
                assert error["type"] == "invalid_request_error"
                assert error["message"] == (
                    f"Not Found: {method} {prefix}{path.rstrip('/')}; this emulator does inference "
                    "only: POST /chat/completions, /completions and /responses, GET /models and "
                    "/models/{id}"
                )

    ask(scenario)


def test_nothing_is_stored() -> None:
    async def scenario(served: Served) -> None:
        for method, path in (
            ("GET", "/v1/responses/resp_1"), ("DELETE", "/v1/responses/resp_1"),
            ("POST", "/openai/v1/responses/resp_1/cancel"), ("GET", "/v1/chat/completions/c"),
            ("GET", "/v1/chat/completions/c/messages"),
        ):  # fmt: skip
            error = (await served.client.request(method, path)).json()["error"]
            assert error["code"] == "not_emulated"
            assert error["message"].startswith(
                f"Not Found: {method} {path}; answers are not stored"
            )

    ask(scenario)


def test_what_none_of_them_has_is_just_not_there() -> None:
    for path in ("/v1/nope", "/embeddings", "/v1", "/v2/embeddings", "/health/embeddings"):
        assert why_absent(path, PREFIXES) is None


def test_a_retired_model_is_told_with_its_day() -> None:
    async def scenario(served: Served) -> list[httpx.Response]:
        name = "mixtral-8x7b-32768"
        asked = await served.client.post(CHAT, json=chat(model=name))
        responded = await served.client.post("/v1/responses", json={"model": name, "input": "a"})
        return [asked, responded, await served.client.get(f"/v1/models/{name}")]

    for answer in ask(scenario):
        assert answer.status_code == 404
        assert answer.json()["error"] == {
            "message": "The model `mixtral-8x7b-32768` was retired by GroqCloud on 20 March 2025; "
            "this server has `tiny`",
            "type": "invalid_request_error", "code": "model_not_found", "param": "model",
        }  # fmt: skip


def test_a_retired_model_that_is_served_is_served() -> None:
    name = "llama-3.1-8b-instant"
    answer = ask(lambda s: s.client.post(CHAT, json=chat(model=name)), names=[name])
    assert (answer.status_code, answer.json()["model"]) == (200, name)
    still = {"openai/gpt-oss-20b", "openai/gpt-oss-120b"}  # on GroqCloud
    assert {one for names in GROQ_NAMES.values() for one in names} - still <= set(RETIRED)


def test_a_preset_has_its_ids_for_names() -> None:
    compiled = tiny().compiled
    for preset, ids in GROQ_NAMES.items():
        named = replace(compiled, config=replace(compiled.config, name=preset))
        assert identify(replace(tiny(), compiled=named)).names == (preset, *ids)


def test_retired_models() -> None:
    days = {
        "llama-3.1-70b-versatile": (2025, 1, 24),
        "gemma2-9b-it": (2025, 10, 8),
        "llama-3.3-70b-versatile": (2026, 8, 16),
    }
    for name, day in days.items():
        assert RETIRED[name].day == datetime.date(*day)
        assert RETIRED[name].grade is Grade.A
    assert all(row.source for row in RETIRED.values())


def test_pages_of_allowed_origins_may_ask() -> None:
    async def scenario(served: Served) -> None:
        client, origin = served.client, {"origin": PAGE}
        wants = {"access-control-request-method": "POST"}
        wants["access-control-request-headers"] = "authorization, content-type, x-stainless-os"
        preflight = await client.options(CHAT, headers=origin | wants)  # without a key
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == PAGE
        assert "POST" in preflight.headers["access-control-allow-methods"]
        allowed = preflight.headers["access-control-allow-headers"]
        assert allowed == wants["access-control-request-headers"]
        assert preflight.headers["x-request-id"].startswith("req_")
        key = origin | {"authorization": "Bearer key"}
        answers = [
            await client.post(CHAT, json=chat(), headers=key),
            await client.post(CHAT, json=chat(stream=True), headers=key),
            await client.post(CHAT, json=chat(n=2), headers=key),
            await client.post(CHAT, json=chat(), headers=origin),
            await client.post("/v1/embeddings", headers=origin),
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 400, 401, 404]
        for answer in answers:
            assert answer.headers["access-control-allow-origin"] == PAGE
            exposed = answer.headers["access-control-expose-headers"].split(", ")
            assert {"x-request-id", "retry-after", *HEADERS} == set(exposed)
        assert HEADERS[0] in answers[0].headers
        other = {"origin": "https://other.example"}
        refused = await client.options(CHAT, headers=other | wants)
        assert refused.status_code == 400
        for answer in (refused, await client.get("/health", headers=other)):
            assert "access-control-allow-origin" not in answer.headers

    limiter = Limiter(lambda key, model: {"requests_per_day": 9, "tokens_per_minute": 9999})
    ask(scenario, origins=(PAGE,), keys=Keys([("me", "key")]), limiter=limiter)


def test_pages_of_all_origins() -> None:
    answer = ask(lambda s: s.client.get("/health", headers={"origin": PAGE}), origins=("*",))
    assert answer.headers["access-control-allow-origin"] == "*"


def test_no_page_may_ask_unless_told() -> None:
    async def scenario(served: Served) -> list[httpx.Response]:
        headers = {"origin": PAGE, "access-control-request-method": "POST"}
        preflight = await served.client.options(CHAT, headers=headers)
        return [preflight, await served.client.post(CHAT, json=chat(), headers=headers)]

    preflight, asked = ask(scenario)
    assert (preflight.status_code, asked.status_code) == (405, 200)
    assert not [name for name in asked.headers if name.startswith("access-control")]


def test_origins_are_read() -> None:
    assert parse_origins("https://a.example, http://localhost:3000") == (
        "https://a.example", "http://localhost:3000",
    )  # fmt: skip
    assert parse_origins("*") == ("*",)
    for bad in ("a.example", "https://a.example/", "", "https://a.example,,", "https://a b"):
        with pytest.raises(argparse.ArgumentTypeError, match="wanted origins such as https://"):
            parse_origins(bad)


def packed(body: Any, **options: Any) -> tuple[bytes, dict[str, str]]:
    return gzip.compress(json.dumps(body).encode(), **options), {"content-encoding": "gzip"}


def test_a_gzip_body_is_unpacked() -> None:
    async def scenario(served: Served) -> None:
        content, headers = packed(chat())
        half = len(json.dumps(chat())) // 2
        text = json.dumps(chat()).encode()
        members = gzip.compress(text[:half]) + gzip.compress(text[half:])
        for body, encoding in (
            (content, "gzip"), (content, " X-GZIP "), (members, "gzip"), (text, "identity"),
            (text, ""),
        ):  # fmt: skip
            sent = {"content-encoding": encoding}
            answer = await served.client.post(CHAT, content=body, headers=sent)
            assert answer.status_code == 200, answer.text
        answer = await served.client.post("/tokenize", content=content, headers=headers)
        assert answer.status_code == 400  # read as JSON; a chat is not its body

    ask(scenario)


def test_a_bomb_is_not_unpacked() -> None:
    sizes = []

    async def scenario(served: Served) -> httpx.Response:
        bomb = gzip.compress(bytes(64 << 20))
        sizes.append(len(bomb))
        return await served.client.post(CHAT, content=bomb, headers={"content-encoding": "gzip"})

    answer = ask(scenario, bounds=Bounds(body_bytes=1 << 20))
    assert sizes[0] < 1 << 20
    assert answer.status_code == 413
    assert answer.json()["error"]["message"] == f"the body is larger than {1 << 20} bytes"


@pytest.mark.parametrize(
    ("body", "encoding", "status", "message"),
    [
        (b"{}", "gzip", 400, "the body is not valid gzip: Error -3"),
        (gzip.compress(b"{}")[:-3], "gzip", 400, "the body is not valid gzip: it ends too early"),
        (b"", "gzip", 400, "the body is not valid gzip: it ends too early"),
        (zlib.compress(b"{}"), "deflate", 415, "Content-Encoding `deflate`: wanted gzip or"),
        (b"{}", "br", 415, "Content-Encoding `br`: wanted gzip or identity"),
        (b"{}", "gzip, gzip", 415, "Content-Encoding `gzip, gzip`: wanted gzip or identity"),
    ],
)
def test_other_packed_bodies_are_refused(
    body: bytes, encoding: str, status: int, message: str
) -> None:
    headers = {"content-encoding": encoding}
    answer = ask(lambda s: s.client.post(CHAT, content=body, headers=headers))
    assert answer.status_code == status
    assert answer.json()["error"]["message"].startswith(message)
    if status == 415:
        assert answer.headers["accept-encoding"] == "gzip, identity"


@pytest.mark.parametrize("form", ["{}/", "{}//", "/{}", "//{}/"])
def test_slashes_that_say_nothing(form: str) -> None:
    async def scenario(served: Served) -> None:
        for path in (
            "/v1/models", "/openai/v1/models/org/other", "/health", "/health/ready", "/version",
            "/metrics", "/openapi.json",
        ):  # fmt: skip
            answer = await served.client.get("http://rack" + form.format(path))
            assert answer.status_code == 200, path
        for path, body in (
            (CHAT, chat()),
            ("/v1/completions", {"model": "tiny", "prompt": "a"}),
            ("/v1/responses", {"model": "tiny", "input": "a"}),
            ("/tokenize", {"prompt": "a"}),
            ("/detokenize", {"tokens": [1]}),
        ):
            answer = await served.client.post("http://rack" + form.format(path), json=body)
            assert answer.status_code == 200, path

    ask(scenario, names=["org/other"])


def test_a_slash_after_a_wrong_method() -> None:
    answer = ask(lambda s: s.client.get(f"{CHAT}/"))
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_the_flag_for_origins(capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser()
    assert parser.parse_args(["tiny"]).allowed_origins == ()
    given = parser.parse_args(["tiny", "--allowed-origins", f"{PAGE},http://localhost:3000"])
    assert given.allowed_origins == (PAGE, "http://localhost:3000")
    with pytest.raises(SystemExit):
        parser.parse_args(["tiny", "--allowed-origins", "page.example"])
    said = "argument --allowed-origins: wanted origins such as https://example.org, or *, got 'page"
    assert said in capsys.readouterr().err
