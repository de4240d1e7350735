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
from serve_kit import Served, asgi, chat, events, roomy, serving

from rack.serve.answers import ChatCompletion, ErrorBody, TextCompletion
from rack.serve.neutral import CHAT, RESPONSES, TEXT
from rack.serve.responses_api.answers import ResponseObject
from rack.text.judge import Limits

HASTY = Limits(cpu_seconds=0.5)
URLS = {
    "/v1/chat/completions": ChatCompletion,
    "/v1/completions": TextCompletion,
    "/v1/responses": ResponseObject,
}

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
ids = st.sampled_from(["c1", "c2"])
functions = st.fixed_dictionaries(
    {"name": st.sampled_from(["f", "g"]) | texts, "arguments": st.just('{"a": 1}') | texts}
)
calls = st.fixed_dictionaries(
    {"id": ids, "type": st.just("function"), "function": functions}, optional={"index": anything}
)
roles = st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"])
messages = st.lists(
    st.fixed_dictionaries(
        {"role": roles, "content": texts | parts | st.none()},
        optional={
            "name": texts | anything, "odd": anything, "reasoning": anything,
            "tool_calls": st.lists(calls, max_size=2) | anything, "tool_call_id": ids | anything,
        },
    ),
    max_size=4,
)  # fmt: skip
keywords = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["object", "string", "integer", "array", "odd"]) | anything,
        "multipleOf": st.sampled_from([7, 0.1, 0, -1, 62_615_533]) | anything,
        "pattern": st.sampled_from(["^a{3}$", "(", "(?=a)", "^(a|b)*x{1000}$"]) | anything,
        "enum": st.lists(scalars, max_size=3) | anything, "const": anything,
        "maxLength": st.integers(-1, 10**12), "minItems": st.integers(-1, 10**12),
        "required": st.lists(texts, max_size=2) | anything, "uniqueItems": st.booleans(),
        "additionalProperties": st.booleans() | anything, "format": texts,
        "$ref": st.sampled_from(["#", "#/$defs/a", "#/nowhere", "http://x"]) | anything,
        "x-guidance": anything,
    },
)  # fmt: skip
schemas = st.recursive(
    keywords,
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "type": st.just("object"), "items": inner,
            "properties": st.dictionaries(texts, inner, max_size=2),
            **{key: st.lists(inner, max_size=2) for key in ("anyOf", "allOf", "oneOf")},
            "$defs": st.dictionaries(st.just("a"), inner),
        },
    ),
    max_leaves=4,
)  # fmt: skip
texts_or_parts = texts | st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["input_text", "output_text", "input_image"]), "text": texts},
        optional={"annotations": anything, "odd": anything},
    )
    | anything,
    max_size=3,
)
items = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
            "content": texts_or_parts,
        },
        optional={
            "type": st.sampled_from(["message", "reasoning"]) | anything,
            "id": anything, "status": anything, "odd": anything,
        },
    )
    | st.fixed_dictionaries({"type": st.just("reasoning")}, optional={"summary": anything})
    | st.fixed_dictionaries(
        {"type": st.just("function_call"), "call_id": texts, "name": texts, "arguments": texts},
        optional={"id": anything, "status": anything},
    )
    | st.fixed_dictionaries(
        {"type": st.just("function_call_output"), "call_id": texts, "output": texts_or_parts}
    )
    | anything,
    max_size=4,
)  # fmt: skip
formats = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "json_object", "json_schema", "xml"])},
    optional={"json_schema": st.fixed_dictionaries({"name": texts, "schema": schemas | anything})},
)
offered = st.fixed_dictionaries(
    {"name": st.sampled_from(["f", "g", "h"])},
    optional={
        "description": texts, "parameters": schemas | anything, "strict": st.booleans(),
        "odd": anything,
    },
)  # fmt: skip
tools = st.lists(
    st.fixed_dictionaries({"type": st.just("function"), "function": offered | anything})
    | offered.map(lambda one: {"type": "function"} | one),  # as /responses has them
    max_size=3,
)
named = st.fixed_dictionaries({"name": st.sampled_from(["f", "g", "nobody"])})
choices = (
    st.sampled_from(["none", "auto", "required", "any"])
    | st.fixed_dictionaries({"type": st.just("function"), "function": named})
    | named.map(lambda one: {"type": "function"} | one)
)
PLAUSIBLE: dict[str, SearchStrategy[Any]] = {
    "temperature": st.floats(-1, 3) | st.integers(0, 2),
    "top_p": st.floats(-0.5, 1.5),
    "top_k": st.integers(-2, 400),
    "seed": st.integers(-1, 2**64),
    "stop": texts | st.lists(texts, max_size=5),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans()}),
    "max_tokens": st.integers(-1, 300) | st.integers(-1, 300).map(float),
    "max_completion_tokens": st.integers(-1, 300),
    "min_tokens": st.integers(-1, 20),
    "ignore_eos": st.booleans(),
    "user": texts,
    "service_tier": st.sampled_from(["auto", "on_demand", "flex", "performance", "gold"]),
    "tools": tools,
    "tool_choice": choices,
    "parallel_tool_calls": st.booleans(),
    "response_format": formats,
    "messages": messages,
    "prompt": texts | st.lists(st.integers(-1, 330) | texts, max_size=5),
    "model": st.sampled_from(["tiny", "gpt"]),
    "input": texts | items,
    "instructions": texts,
    "max_output_tokens": st.integers(-1, 300),
    "text": st.fixed_dictionaries(
        {"format": st.fixed_dictionaries(
            {"type": st.sampled_from(["text", "json_object", "json_schema", "xml"])},
            optional={"name": texts, "schema": schemas | anything, "strict": st.booleans()},
        )},
        optional={"verbosity": st.sampled_from(["medium", "low"])},
    ),
    "reasoning": st.fixed_dictionaries({}, optional={"effort": st.sampled_from(["none", "low"])}),
    "metadata": st.dictionaries(texts, texts | anything, max_size=3),
}  # fmt: skip
NAMES = {
    path: sorted({*PLAUSIBLE, *neutral})
    for path, neutral in zip(URLS, (CHAT, TEXT, RESPONSES), strict=True)
}
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": chat(),
    "/v1/completions": {"model": "tiny", "prompt": "hi", "max_tokens": 3},
    "/v1/responses": {"model": "tiny", "input": "hi", "max_output_tokens": 3},
}


@st.composite
def bodies(draw: st.DrawFn, path: str) -> bytes:
    """Give a good body with some fields changed, added or taken away; now and then only bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=40) | anything.map(lambda value: json.dumps(value).encode()))
    body = dict(GOOD[path])
    if "chat" in path:
        often = [(), ("tools",), ("tools", "tool_choice"), ("messages",)]
        for name in draw(st.sampled_from(often)):
            body[name] = draw(PLAUSIBLE[name])
    for name in draw(st.lists(st.sampled_from(NAMES[path]) | st.text(max_size=9), max_size=4)):
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
        self._context = serving(roomy(), names=["tiny"], judge_limits=HASTY)
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
    elif not headers["content-type"].startswith("text/event-stream"):
        TypeAdapter(URLS[path]).validate_json(body)
    elif URLS[path] is ResponseObject:
        datas = [json.loads(block.split("\n")[1][6:]) for block in body.decode().split("\n\n")[:-1]]
        assert [data["sequence_number"] for data in datas] == [*range(len(datas))]
        assert datas[-1]["type"] in ("response.completed", "response.incomplete")
        TypeAdapter(ResponseObject).validate_python(datas[-1]["response"])
    else:
        *chunks, done = events(body.decode())
        assert done == "[DONE]"
        finishes = [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]]
        ends = [finish for finish in finishes if finish is not None]
        assert finishes[-1] is not None
        assert set(ends) <= {"stop", "length", "tool_calls"}


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
