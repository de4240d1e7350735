"""From the items of POST /responses to the chat that they stand for."""

import json
from typing import Any

import pytest

from rack.serve.errors import ApiError
from rack.serve.responses_api.parse import as_sent, parse_responses


def messages(items: Any, **options: Any) -> list[dict[str, Any]]:
    body = json.dumps({"model": "tiny", "input": items} | options).encode()
    _, parsed = parse_responses(body, 7)
    assert parsed.messages is not None
    return [dict(message) for message in parsed.messages]


def said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


def call(number: int) -> dict[str, Any]:
    return {
        "type": "function_call", "id": f"fc_{number}", "call_id": f"call_{number}",
        "name": f"f{number}", "arguments": "{}", "status": "completed",
    }  # fmt: skip


def result(number: int, output: Any = "done") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": f"call_{number}", "output": output}


def called(*numbers: int) -> list[dict[str, Any]]:
    return [
        {"id": f"call_{n}", "type": "function", "function": {"name": f"f{n}", "arguments": "{}"}}
        for n in numbers
    ]


def gave(number: int) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call_{number}", "content": "done"}


def test_a_text_is_the_users() -> None:
    assert messages("a") == [said("user", "a")]
    assert messages("a", instructions="i") == [said("system", "i"), said("user", "a")]


def test_calls_side_by_side_are_one_message() -> None:
    parts = [{"type": "input_text", "text": "do"}, {"type": "input_text", "text": "ne"}]
    items = [said("user", "a"), call(1), call(2), result(1), result(2, parts)]
    assert messages(items) == [
        said("user", "a"),
        {"role": "assistant", "content": None, "tool_calls": called(1, 2)},
        gave(1), gave(2),
    ]  # fmt: skip


def test_calls_one_after_the_other_are_messages_of_their_own() -> None:
    reasoning = {"type": "reasoning", "summary": []}
    items = [said("user", "a"), call(1), result(1), reasoning, call(2), result(2)]
    assert messages(items) == [
        said("user", "a"),
        {"role": "assistant", "content": None, "tool_calls": called(1)}, gave(1),
        {"role": "assistant", "content": None, "tool_calls": called(2)}, gave(2),
    ]  # fmt: skip


def test_a_call_belongs_to_the_text_before_it() -> None:
    items = [said("user", "a"), said("assistant", "let me see"), call(1), result(1)]
    assert messages(items)[1] == said("assistant", "let me see") | {"tool_calls": called(1)}


@pytest.mark.parametrize(
    ("item", "param"),
    [
        (call(1) | {"arguments": {}}, "input[0].arguments"),
        ({"type": "function_call", "call_id": "c", "name": "f"}, "input[0].arguments"),
        (result(1, [{"type": "input_image"}]), "input[0].output[0]"),
        (call(1) | {"odd": 1}, "input[0].odd"),
        (result(1), "input[0].call_id"),
    ],
)
def test_refusals_name_the_place(item: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        messages([item])
    assert caught.value.param == param


def test_errors_of_the_chat_are_told_in_the_words_of_the_request() -> None:
    error = ApiError(400, "max_tokens: too many", param="max_tokens", code="c", kind="k")
    told = as_sent(error)
    assert (told.message, told.param) == ("max_output_tokens: too many", "max_output_tokens")
    assert (told.status, told.code, told.kind) == (400, "c", "k")
    for chats, ours in (
        ("response_format", "text.format"),
        ("response_format.json_schema.schema", "text.format.schema"),
        ("tools[2].function.parameters", "tools[2].parameters"),
        ("temperature", "temperature"),
    ):
        assert as_sent(ApiError(400, f"{chats}: bad", param=chats)).message == f"{ours}: bad"
    other = ApiError(503, "starting", headers={"retry-after": "5"})
    assert as_sent(other) is other
