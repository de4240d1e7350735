"""The output items of POST /responses and the events that tell of them."""

from typing import Any

from openai.types.responses import ResponseOutputItem, ResponseStreamEvent
from pydantic import TypeAdapter

from rack.serve.responses_api.output import Output
from rack.text.tool_calls import Arguments, Begun, Piece, Text

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ITEM: TypeAdapter[Any] = TypeAdapter(ResponseOutputItem)

ADDED, DONE = "response.output_item.added", "response.output_item.done"
MESSAGE = [
    "response.output_text.done", "response.content_part.done", DONE,
]  # fmt: skip
CALL = [
    ADDED, "response.function_call_arguments.delta", "response.function_call_arguments.delta",
    "response.function_call_arguments.done", DONE,
]  # fmt: skip


def run(*pieces: Piece, status: str = "completed") -> tuple[list[Any], Output]:
    """Give the events, each checked against the SDK's types, and the output."""
    output = Output()
    changes = [change for piece in pieces for change in output.add(piece)]
    changes += output.end(status)
    events = [
        {"type": kind, "sequence_number": number} | fields
        for number, (kind, fields) in enumerate(changes)
    ]
    for event in events:
        EVENT.validate_python(event)
    for item in output.items:
        ITEM.validate_python(item)
    return events, output


def kinds(events: list[Any]) -> list[str]:
    return [event["type"] for event in events]


def test_text_then_two_calls() -> None:
    calls = [Begun(0, "f"), Arguments(0, '{"a"'), Arguments(0, ":1}")]
    calls += [Begun(1, "g"), Arguments(1, "{"), Arguments(1, "}")]
    events, output = run(Text("let "), Text("me"), *calls)
    assert kinds(events) == [
        ADDED, "response.content_part.added", *["response.output_text.delta"] * 2, *MESSAGE,
        *CALL, *CALL,
    ]  # fmt: skip
    message, first, second = output.items
    assert message["content"][0]["text"] == "let me"
    assert (first["name"], first["arguments"]) == ("f", '{"a":1}')
    assert (second["name"], second["arguments"]) == ("g", "{}")
    assert {item["status"] for item in output.items} == {"completed"}
    assert first["id"].startswith("fc_")
    assert first["call_id"].startswith("call_")
    assert first["call_id"] != second["call_id"]
    begun = [event["item"] for event in events if event["type"] == ADDED]
    assert [item["status"] for item in begun] == ["in_progress"] * 3
    assert begun[0]["content"] == []
    assert begun[1]["arguments"] == ""
    assert [event["item"] for event in events if event["type"] == DONE] == output.items
    indexes = [event["output_index"] for event in events]
    assert indexes == [0] * 7 + [1] * 5 + [2] * 5
    for event in events:
        if "item_id" in event:
            assert event["item_id"] == output.items[event["output_index"]]["id"]


def test_text_after_a_call_is_another_message() -> None:
    _, output = run(Begun(0, "f"), Arguments(0, "{}"), Text("so"))
    assert [item["type"] for item in output.items] == ["function_call", "message"]


def test_an_empty_answer_is_an_empty_message() -> None:
    events, output = run()
    assert kinds(events) == [ADDED, "response.content_part.added", *MESSAGE]
    assert output.items[0]["content"][0]["text"] == ""


def test_only_what_was_cut_off_is_incomplete() -> None:
    _, output = run(Text("a"), Begun(0, "f"), Arguments(0, "{"), status="incomplete")
    assert [item["status"] for item in output.items] == ["completed", "incomplete"]


def test_what_is_open_can_be_seen() -> None:
    output = Output()
    for piece in (Text("a"), Begun(0, "f"), Arguments(0, '{"')):
        list(output.add(piece))
    assert [item["status"] for item in output.items] == ["completed", "incomplete"]
    assert output.items[1]["arguments"] == '{"'
