"""Request bodies: what is accepted, and that everything else is refused by name."""

import json
from typing import Any

import pytest

from rack.sampler import SamplingParams
from rack.serve.errors import ApiError
from rack.serve.neutral import CHAT as NEUTRAL_CHAT
from rack.serve.neutral import MESSAGE
from rack.serve.neutral import TEXT as NEUTRAL_TEXT
from rack.serve.schemas import Parsed, parse_chat, parse_text

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "m", "prompt": "hi"}


def parsed_chat(**extra: Any) -> Parsed:
    return parse_chat(json.dumps(CHAT | extra).encode(), 7)


def refusal(body: bytes | dict[str, Any], parse: Any = parse_chat) -> ApiError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(ApiError) as caught:
        parse(raw, 7)
    assert caught.value.status == 400
    return caught.value


def test_defaults() -> None:
    assert parsed_chat().params == SamplingParams(temperature=1.0, seed=7)
    text = parse_text(json.dumps(TEXT).encode(), 7)
    assert text.params.max_tokens == 16
    assert (text.messages, text.prompt, text.stream) == (None, "hi", False)


def test_everything_given() -> None:
    got = parsed_chat(
        temperature=0, top_p=0.5, top_k=5, seed=3, stop="a", max_completion_tokens=9, min_tokens=2,
        ignore_eos=True, stream=True, stream_options={"include_usage": True}, user="me",
        service_tier="on_demand", max_tokens=9,
    )  # fmt: skip
    assert got.params == SamplingParams(
        temperature=0.0, top_p=0.5, top_k=5, seed=3, stop=("a",), max_tokens=9, min_tokens=2,
        ignore_eos=True,
    )  # fmt: skip
    assert got.stream
    assert got.include_usage


def test_null_is_not_given() -> None:
    names = ("temperature", "top_p", "seed", "stop", "stream", "stream_options", "max_tokens", "n")
    assert parsed_chat(**dict.fromkeys(names)) == parsed_chat()


def test_no_top_k_in_the_way_of_vllm() -> None:
    assert parsed_chat(top_k=-1).params.top_k == 0


def test_content_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = parsed_chat(messages=[{"role": "system", "content": parts}]).messages
    assert messages == ({"role": "system", "content": "ab"},)


@pytest.mark.parametrize("name", sorted(NEUTRAL_CHAT))
def test_chat_neutral_values_only(name: str) -> None:
    for value in (None, *NEUTRAL_CHAT[name]):
        assert parsed_chat(**{name: value}) == parsed_chat()
    error = refusal(CHAT | {name: "something"})
    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert error.message.startswith(f"`{name}` is not supported by this server")


@pytest.mark.parametrize("name", sorted(NEUTRAL_TEXT))
def test_text_neutral_values_only(name: str) -> None:
    for value in (None, *NEUTRAL_TEXT[name]):
        assert parse_text(json.dumps(TEXT | {name: value}).encode(), 7).prompt == "hi"
    assert refusal(TEXT | {name: "something"}, parse_text).param == name


def test_true_is_not_one() -> None:
    assert refusal(CHAT | {"n": True}).param == "n"


@pytest.mark.parametrize(
    ("extra", "param", "message"),
    [
        ({"speed": 1}, "speed", "unknown parameter `speed`"),
        ({"model": None}, "model", "model: Input should be a valid string"),
        ({"temperature": 3}, "temperature", "temperature: wanted a number from 0 to 2, got 3.0"),
        ({"stream": 1}, "stream", "stream: Input should be a valid boolean"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens: wanted 1 or more, got 0"),
        ({"stop": ["a"] * 5}, "stop", "stop: wanted up to 4 strings, none empty"),
        ({"seed": -1}, "seed", "seed: wanted an integer in 0..2^64-1, got -1"),
        ({"stream_options": {}}, "stream_options", "stream_options: only with stream: true"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens",
         "max_tokens: 1 differs from max_completion_tokens 2; give one of them"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "messages.0.name",
         "`messages.0.name` is not supported by this server; leave it out"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         "messages.0.content", "messages.0.content: wanted a string or a list of {"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role",
         "messages.0.role: Input should be 'system', 'user' or 'assistant'"),
    ],
)  # fmt: skip
def test_refused_by_name(extra: dict[str, Any], param: str, message: str) -> None:
    error = refusal(CHAT | extra)
    assert error.param == param
    assert error.message.startswith(message)


@pytest.mark.parametrize(
    ("given", "schema"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, '{"type": "object"}'),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "strict": True}},
            '{"type": "object"}',
        ),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}, "{}"),
    ],
)
def test_response_format(given: Any, schema: str | None) -> None:
    assert parsed_chat(response_format=given).params.json_schema == schema


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"type": "xml"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format"),
        ({"type": "text", "json_schema": {"name": "x"}}, "response_format"),
        ({"type": "json_schema", "json_schema": {}}, "response_format.json_schema.name"),
        ("json", "response_format"),
    ],
)
def test_response_format_refused(given: Any, param: str) -> None:
    assert refusal(CHAT | {"response_format": given}).param == param


@pytest.mark.parametrize("name", sorted(MESSAGE))
def test_neutral_values_in_messages(name: str) -> None:
    plain = {"role": "user", "content": "hi"}
    for value in (None, *MESSAGE[name]):
        assert parsed_chat(messages=[plain | {name: value}]) == parsed_chat()
    error = refusal(CHAT | {"messages": [plain | {name: "something"}]})
    assert (error.param, error.code) == (f"messages.0.{name}", "unsupported_parameter")


def test_two_prompts_are_refused() -> None:
    error = refusal(TEXT | {"prompt": ["a", "b"]}, parse_text)
    assert error.message == "prompt: wanted one prompt, got 2"
    error = refusal(TEXT | {"prompt": [1, True]}, parse_text)
    assert error.message == "prompt: wanted a string or a list of token ids"
    for empty in ("", [], [""]):
        error = refusal(TEXT | {"prompt": empty}, parse_text)
        assert error.message == "prompt: wanted some text or token ids, got none"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is not valid JSON: Expecting property name"),
        (b"\xff", "the body is not valid JSON: "),
        (b"[" * 100_000, "the body is not valid JSON: "),
        (b'{"temperature": NaN}', "the body is not valid JSON: NaN is not a JSON number"),
        (b"[]", "the body: wanted a JSON object, got list"),
    ],
)
def test_malformed(body: bytes, message: str) -> None:
    assert refusal(body).message.startswith(message)
