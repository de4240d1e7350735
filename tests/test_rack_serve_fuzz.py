"""Whatever comes in, a well-formed answer or error goes out, and the next good request works."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from pydantic import TypeAdapter
from serve_kit import Served, asgi, chat, events, serving, tiny

from rack.serve.answers import ChatCompletion, ErrorBody, TextCompletion
from rack.serve.neutral import CHAT, TEXT

URLS = {"/v1/chat/completions": ChatCompletion, "/v1/completions": TextCompletion}

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-1, 300), st.just(2**64),
    st.floats(), st.text(max_size=20), st.characters(categories=["Cs"]),
)  # fmt: skip
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
texts = st.text(max_size=30)
parts = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}), max_size=3)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "tool"]), "content": texts | parts},
        optional={"name": anything, "tool_calls": anything, "odd": anything},
    ),
    max_size=4,
)  # fmt: skip
schemas = st.sampled_from(
    [{"type": "object"}, {"type": "integer"}, {"$ref": "#/nowhere"}, {"type": "odd"}, {}]
)
formats = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "json_object", "json_schema", "xml"])},
    optional={"json_schema": st.fixed_dictionaries({"name": texts, "schema": schemas | anything})},
)
PLAUSIBLE: dict[str, SearchStrategy[Any]] = {
    "temperature": st.floats(-1, 3) | st.integers(0, 2),
    "top_p": st.floats(-0.5, 1.5),
    "top_k": st.integers(-2, 400),
    "seed": st.integers(-1, 2**64),
    "stop": texts | st.lists(texts, max_size=5),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans()}),
    "max_tokens": st.integers(-1, 300),
    "max_completion_tokens": st.integers(-1, 300),
    "min_tokens": st.integers(-1, 20),
    "ignore_eos": st.booleans(),
    "user": texts,
    "service_tier": st.sampled_from(["auto", "on_demand", "flex"]),
    "response_format": formats,
    "messages": messages,
    "prompt": texts | st.lists(st.integers(-1, 330), max_size=5) | st.lists(texts, max_size=2),
    "model": st.sampled_from(["tiny", "gpt"]),
}
NAMES = sorted({*PLAUSIBLE, *CHAT, *TEXT})


@st.composite
def bodies(draw: st.DrawFn, path: str) -> bytes:
    """Give a good body with some fields changed, added or taken away; now and then only bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=40) | anything.map(lambda value: json.dumps(value).encode()))
    body = chat() if "chat" in path else {"model": "tiny", "prompt": "hi", "max_tokens": 3}
    for name in draw(st.lists(st.sampled_from(NAMES) | st.text(max_size=9), max_size=4)):
        if draw(st.integers(0, 9)) == 0:
            body.pop(name, None)
        else:
            body[name] = draw(PLAUSIBLE.get(name, anything) | anything)
    text = json.dumps(body).encode()
    return text[: draw(st.integers(0, len(text)))] if draw(st.integers(0, 19)) == 0 else text


class Here:
    """A server on an event loop of its own, for tests that are not coroutines."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._context = serving(tiny("timing"))
        self.served: Served = self._runner.run(self._context.__aenter__())

    def post(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        return self._runner.run(asgi(self.served.app, "POST", path, body))

    def close(self) -> None:
        self._runner.run(self._context.__aexit__(None, None, None))
        self._runner.close()


@pytest.fixture(scope="module")
def here() -> Iterator[Here]:
    server = Here()
    yield server
    server.close()


def check(path: str, status: int, headers: dict[str, str], body: bytes) -> None:
    """Check an answer of any kind against the documented shapes."""
    assert headers["x-request-id"].startswith("req_")
    if status != 200:
        assert status in (400, 404), body
        error = TypeAdapter(ErrorBody).validate_json(body).error
        assert error.message
        assert error.type == "invalid_request_error"
    elif headers["content-type"].startswith("text/event-stream"):
        *chunks, done = events(body.decode())
        assert done == "[DONE]"
        finishes = [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]]
        assert finishes[-1] in ("stop", "length")
        assert set(finishes[:-1]) <= {None}
    else:
        TypeAdapter(URLS[path]).validate_json(body)


@pytest.mark.parametrize("path", URLS)
def test_fuzzed_bodies(here: Here, path: str, pytestconfig: pytest.Config) -> None:
    examples = pytestconfig.getoption("--fuzz-examples") // len(URLS)
    statuses: list[int] = []

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=examples < 1000,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(bodies(path))
    def fuzz(body: bytes) -> None:
        status, headers, answer = here.post(path, body)
        statuses.append(status)
        check(path, status, headers, answer)

    fuzz()
    assert 0.05 < statuses.count(200) / len(statuses) < 0.95  # neither all bad nor all good
    good = here.post("/v1/chat/completions", json.dumps(chat()).encode())
    assert good[0] == 200
    check("/v1/chat/completions", *good)
