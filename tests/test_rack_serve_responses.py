"""POST /responses, in this process: every answer and event is what the openai SDK's types say."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, get_type_hints

import httpx
import openai.types.responses as sdk
import pytest
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from pydantic import TypeAdapter
from serve_kit import Served, Steps, chat, serving, tiny

from rack.errors import ChipFailedError
from rack.serve.neutral import RESPONSES
from rack.serve.responses_api.bodies import ResponsesRequest
from rack.serve.responses_api.objects import wants_metrics

PATH, CHAT = "/v1/responses", "/v1/chat/completions"
EVENT: TypeAdapter[Any] = TypeAdapter(sdk.ResponseStreamEvent)


def ask(scenario: Callable[[Served], Awaitable[Any]], **options: Any) -> Any:
    """Run a scenario against a server."""

    async def run() -> Any:
        async with serving(**options) as served:
            return await scenario(served)

    return asyncio.run(run())


def request(said: Any = "hi", **options: Any) -> dict[str, Any]:
    return {"model": "tiny", "input": said, "max_output_tokens": 4, "temperature": 0} | options


def post(body: Any, headers: dict[str, str] | None = None, **options: Any) -> httpx.Response:
    response: httpx.Response = ask(
        lambda s: s.client.post(PATH, content=json.dumps(body), headers=headers), **options
    )
    return response


def parse(text: str) -> list[dict[str, Any]]:
    """Parse the events of a stream; each is named as its type says, and numbered."""
    out = []
    for block in text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        out.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {out[-1]['type']}"
        EVENT.validate_python(out[-1])
    assert [event["sequence_number"] for event in out] == [*range(len(out))]
    return out


def test_the_answer_is_the_chats() -> None:
    async def scenario(served: Served) -> list[Any]:
        whole = await served.client.post("/openai" + PATH, json=request(user="me"))
        return [whole.json(), (await served.client.post(CHAT, json=chat())).json()]

    body, chatted = ask(scenario)
    response = sdk.Response.model_validate(body)
    assert re.fullmatch(r"resp_[0-9a-z]{26}", response.id)
    assert re.fullmatch(r"msg_[0-9a-z]{26}", body["output"][0]["id"])
    assert response.output_text == chatted["choices"][0]["message"]["content"]
    assert (response.status, response.error) == ("incomplete", None)
    assert body["output"][0]["status"] == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage is not None
    assert response.usage.input_tokens == chatted["usage"]["prompt_tokens"]
    assert response.usage.output_tokens == chatted["usage"]["completion_tokens"] == 4
    assert response.usage.total_tokens == chatted["usage"]["total_tokens"]
    echoed = ("model", "max_output_tokens", "temperature", "top_p", "user", "tool_choice", "store")
    assert [body[name] for name in echoed] == ["tiny", 4, 0, 1, "me", "auto", False]
    assert body["x_rack"]["data_hash"] == chatted["x_rack"]["data_hash"]
    assert body["x_groq"]["seed"] == 7
    assert body["metadata"] == {}


def test_an_answer_that_ends_is_completed() -> None:
    body = post(request(stop=["\ufffd"], max_output_tokens=200)).json()
    assert (body["status"], body["incomplete_details"]) == ("completed", None)
    assert body["output"][0]["status"] == "completed"


def test_items_are_the_messages_of_a_chat() -> None:
    said = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed"}
    part = {"type": "output_text", "text": "b", "annotations": [], "logprobs": []}
    items = [
        {"role": "developer", "content": "s"},
        {"role": "user", "content": [{"type": "input_text", "text": t} for t in ("a", "a")]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None},
        said | {"content": [part]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "phase": None},
        {"type": "message", "role": "user", "content": "c"},
    ]
    turns = [("system", "i"), ("system", "s"), ("user", "aa"), ("assistant", "b")]
    turns += [("assistant", "no"), ("user", "c")]

    async def scenario(served: Served) -> list[Any]:
        sent = request(items, instructions="i", temperature=0)
        messages = [{"role": role, "content": text} for role, text in turns]
        answers = [
            await served.client.post(PATH, json=sent),
            await served.client.post(CHAT, json=chat() | {"messages": messages}),
        ]
        return [answer.json()["x_rack"]["data_hash"] for answer in answers]

    own, chatted = ask(scenario)
    assert own == chatted


def test_stream() -> None:
    async def scenario(served: Served) -> list[httpx.Response]:
        bodies = (request(stream=True), request())
        return [await served.client.post(PATH, json=body) for body in bodies]

    streamed, whole = ask(scenario)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    events = parse(streamed.text)
    assert [event["type"] for event in events] == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.content_part.added", *["response.output_text.delta"] * 4,
        "response.output_text.done", "response.content_part.done", "response.output_item.done",
        "response.incomplete",
    ]  # fmt: skip
    text = "".join(event["delta"] for event in events[4:8])
    assert text == events[8]["text"] == events[9]["part"]["text"]
    ended, alone = events[-1]["response"], whole.json()
    assert events[0]["response"]["status"] == "in_progress"
    assert {event["response"]["id"] for event in (*events[:2], events[-1])} == {ended["id"]}
    assert ended["output"] == [events[10]["item"]]
    assert ended["output"][0]["content"] == alone["output"][0]["content"]
    assert {event["item_id"] for event in events[3:10]} == {ended["output"][0]["id"]}
    same = ("status", "incomplete_details", "usage", "model", "text")
    assert [ended[name] for name in same] == [alone[name] for name in same]
    assert ended["x_rack"]["emulated_cycles"] == alone["x_rack"]["emulated_cycles"]


def test_emulated_times_are_metadata_where_asked_for() -> None:
    async def scenario(served: Served) -> list[Any]:
        headers = {"Groq-Beta": "inference-metrics"}
        body = request(metadata={"who": "me"})
        with_them = await served.client.post(PATH, json=body, headers=headers)
        streamed = await served.client.post(PATH, json=body | {"stream": True}, headers=headers)
        without = await served.client.post(PATH, json=body)
        usage = (await served.client.post(CHAT, json=chat())).json()["usage"]
        return [with_them.json(), parse(streamed.text), without.json(), usage]

    with_them, events, without, usage = ask(scenario)
    names = ("completion_time", "prompt_time", "queue_time", "total_time")
    times = {name: f"{usage[name]:.9f}" for name in names}
    assert with_them["metadata"] == {"who": "me"} | times
    assert events[0]["response"]["metadata"] == without["metadata"] == {"who": "me"}
    assert events[-1]["response"]["metadata"] == {"who": "me"} | times


def test_the_header_may_ask_for_several_things() -> None:
    asked = ("inference-metrics", "other, inference-metrics", "other", None)
    assert [wants_metrics(header) for header in asked] == [True, True, False, False]


def test_json_schema() -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    schema |= {"additionalProperties": False}
    format_ = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    sent = request(text={"format": format_}, max_output_tokens=100)
    body = post(sent).json()
    assert json.loads(sdk.Response.model_validate(body).output_text)["a"] in ("x", "y")
    assert (body["status"], body["text"]["format"]) == ("completed", format_)


def test_a_failure_in_mid_stream_is_told_and_raised() -> None:
    error = ChipFailedError(chip=3, step="decode", what="gone", waiting_for="a message")

    async def scenario(served: Served) -> list[dict[str, Any]]:
        steps.release(3)  # the prompt and two tokens
        asked = asyncio.ensure_future(served.client.post(PATH, json=request(stream=True)))
        await steps.ran(3)
        await asyncio.to_thread(steps.waiting.wait)
        steps.fail_next = error
        steps.release(1)
        return parse((await asked).text)

    steps = Steps(permits=0)
    events = ask(scenario, steps=steps)
    failed, last = events[-2:]
    message = f"ChipFailedError: {error}"
    assert failed["type"] == "response.failed"
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"] == {"code": "server_error", "message": message}
    text = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
    assert failed["response"]["output"][0]["content"][0]["text"] == text != ""
    assert (last["type"], last["message"], last["code"]) == ("error", message, "rack_failed")
    assert last["error"]["message"] == message  # the SDKs raise what is here


def test_a_failure_before_the_stream_is_a_status() -> None:
    async def scenario(served: Served) -> httpx.Response:
        steps.fail_next = ChipFailedError(chip=3, step="prefill", what="gone", waiting_for="it")
        return await served.client.post(PATH, json=request(stream=True))

    steps = Steps()
    response = ask(scenario, steps=steps)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "rack_failed"


# Small, because the tiny model's context is 256 bytes and the functions are part of the prompt.
LETTER = {
    "type": "function", "name": "w",
    "parameters": {"properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]},
}  # fmt: skip
BARE = {"type": "function", "name": "r"}


NOT_DONE = {
    "previous_response_id": "resp_1",
    "store": True,
    "truncation": "auto",
    "include": ["reasoning.encrypted_content"],
    "safety_identifier": "me",
    "prompt_cache_key": "me",
    "prompt": {"id": "pmpt_1"},
    "background": True,
    "conversation": "conv_1",
    "top_logprobs": 2,
    "stream_options": {"include_obfuscation": True},
}


@pytest.mark.parametrize("name", NOT_DONE)
def test_what_is_not_done_is_refused_by_name(name: str) -> None:
    response = post(request(**{name: NOT_DONE[name]}))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, name)
    assert error["code"] == "unsupported_parameter"
    assert error["message"].startswith(f"`{name}` is not supported by this server")


def test_what_asks_for_nothing_is_accepted() -> None:
    async def scenario(served: Served) -> None:
        for name, values in RESPONSES.items():
            for value in (None, *values):
                answer = await served.client.post(PATH, json=request(**{name: value}))
                assert answer.status_code == 200, (name, value, answer.text)
        neutral: Any = {"effort": None, "summary": None}
        more = {"text": {"verbosity": "medium"}, "metadata": {}, "parallel_tool_calls": True}
        answer = await served.client.post(PATH, json=request(reasoning=neutral, **more))
        assert answer.status_code == 200

    ask(scenario, prepared=tiny("timing"))


def test_every_parameter_of_the_sdk_is_known() -> None:
    known = {*ResponsesRequest.model_fields, *RESPONSES}
    assert set(get_type_hints(ResponseCreateParamsBase)) <= known


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (request(3), "input", "input: wanted a text or a list of items, got int"),
        (request([]), "input", "input: List should have at least 1 item"),
        (request([3]), "input[0]", "input[0]: wanted a JSON object, got int"),
        (
            request([{"role": "user", "content": 3}]),
            "input[0].content",
            "input[0].content: wanted a text or a list of parts, got int",
        ),
        (
            request([{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}]),
            "input[0].content[0]",
            'input[0].content[0]: parts of the type "input_image" are not supported; wanted '
            "input_text or output_text or refusal",
        ),
        (
            request([{"role": "user", "content": [{"type": "input_text", "text": "a", "x": 1}]}]),
            "input[0].content[0].x",
            "unknown parameter `input[0].content[0].x`",
        ),
        (
            request([{"id": "msg_1"}]),
            "input[0]",
            'input[0]: items of the type "item_reference" are not supported; nothing is stored '
            "here: send the item itself",
        ),
        (
            request([{"type": "web_search_call", "id": "ws_1"}]),
            "input[0]",
            'input[0]: items of the type "web_search_call" are not supported; wanted message',
        ),
        (
            request([{"role": "odd", "content": "a"}]),
            "input[0].role",
            "input[0].role: Input should",
        ),
        (
            request(text={"format": {"type": "json_schema"}}),
            "text.format",
            "text.format: wanted name and schema with the type json_schema and only there",
        ),
        (
            request(text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "?"}}}),
            "text.format",
            "text.format: wanted a JSON schema that can be kept to, got",
        ),
        (request("a" * 300), "input", "input: 318 tokens leave no room in the context of 256"),
        (
            request(max_output_tokens=257),
            "max_output_tokens",
            "max_output_tokens: 257 is more than the context of 256",
        ),
        (
            request(max_output_tokens=0),
            "max_output_tokens",
            "max_output_tokens: wanted 1 or more, got 0",
        ),
        (
            request(tools=[{"type": "web_search"}]),
            "tools[0]",
            'tools[0]: tools of the type "web_search" are not supported; wanted function',
        ),
        (
            request(tools=[BARE, BARE]),
            "tools[1].name",
            "tools[1].name: wanted a name of its own, got 'r' again",
        ),
        (
            request(tools=[LETTER | {"parameters": {"type": "array"}}]),
            "tools[0].parameters",
            "tools[0].parameters: wanted the schema of an object",
        ),
        (
            request(tools=[LETTER | {"parameters": {"properties": {"a": {"type": "?"}}}}])
            | {"tool_choice": "required"},
            "tools[0].parameters",
            "tools[0].parameters: wanted ",
        ),
        (
            request(tools=[LETTER], tool_choice={"type": "function", "name": "odd"}),
            "tool_choice.name",
            "tool_choice.name: wanted one of the tools (w), got 'odd'",
        ),
        (request(tool_choice="required"), "tool_choice", "tool_choice: only with tools"),
        (
            request(tools=[LETTER], text={"format": {"type": "json_object"}}),
            "text.format",
            "text.format: json_object cannot be combined with tools",
        ),
        (
            request([{"type": "function_call_output", "call_id": "c", "output": "1"}]),
            "input[0].call_id",
            "input[0].call_id: wanted the call_id of an earlier function_call, got 'c'",
        ),
        (request(max_tokens=3), "max_tokens", "unknown parameter `max_tokens`"),
        (request(reasoning={"effort": "high"}), "reasoning.effort", "reasoning.effort: Input"),
        (request(metadata={"a": "b" * 513}), "metadata.a", "metadata.a: String should have at"),
        (request("\ud800"), "input", "text: wanted whole Unicode characters, got '\\ud800'"),
    ],
)
def test_refused(body: Any, param: str, message: str) -> None:
    response = post(body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert error["message"].startswith(message)
    assert error["type"] == "invalid_request_error"


def called(tools: Any, choice: Any, **options: Any) -> dict[str, Any]:
    sent = request(tools=tools, tool_choice=choice, max_output_tokens=None, **options)
    body: dict[str, Any] = post(sent).json()
    sdk.Response.model_validate(body)
    return body


def test_a_function_that_must_be_called_is_called() -> None:
    choice = {"type": "function", "name": "w"}
    body = called([LETTER], choice)
    (call,) = body["output"]
    assert (call["type"], call["name"], call["status"]) == ("function_call", "w", "completed")
    assert json.loads(call["arguments"])["a"] in ("x", "y")
    assert re.fullmatch(r"fc_[0-9a-z]{26}", call["id"])
    assert re.fullmatch(r"call_[0-9A-Za-z]{24}", call["call_id"])
    assert (body["status"], body["tool_choice"]) == ("completed", choice)
    assert body["tools"] == [LETTER | {"strict": None}]


def test_some_function_must_be_called() -> None:
    tools = [BARE, BARE | {"name": "s"}]
    body = called(tools, "required", parallel_tool_calls=False)
    (call,) = body["output"]
    assert call["name"] in ("r", "s")
    assert json.loads(call["arguments"]) == {}
    assert (body["tool_choice"], body["parallel_tool_calls"]) == ("required", False)
    assert body["tools"] == [one | {"parameters": None, "strict": None} for one in tools]


def test_no_function_may_be_called() -> None:
    body = called([LETTER], "none", ignore_eos=True)
    assert [item["type"] for item in body["output"]] == ["message"]
    assert (body["tool_choice"], len(body["tools"])) == ("none", 1)


def test_calls_are_streamed() -> None:
    async def scenario(served: Served) -> list[httpx.Response]:
        sent = request(tools=[LETTER], tool_choice="required", parallel_tool_calls=False)
        sent["max_output_tokens"] = None
        bodies = (sent | {"stream": True}, sent)
        return [await served.client.post(PATH, json=body) for body in bodies]

    streamed, whole = ask(scenario)
    events = parse(streamed.text)
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:3] == ["created", "in_progress", "output_item.added"]
    assert set(kinds[3:-3]) == {"function_call_arguments.delta"}
    assert kinds[-3:] == ["function_call_arguments.done", "output_item.done", "completed"]
    (call,) = events[-1]["response"]["output"]
    deltas = "".join(event["delta"] for event in events if "delta" in event)
    assert deltas == events[-3]["arguments"] == call["arguments"]
    assert call["arguments"] == whole.json()["output"][0]["arguments"]


def test_where_no_model_chooses_functions_are_called() -> None:
    async def scenario(served: Served) -> dict[str, Any]:
        sent = request(tools=[LETTER], max_output_tokens=None, parallel_tool_calls=False)
        answer: dict[str, Any] = (await served.client.post(PATH, json=sent)).json()
        return answer

    body = ask(scenario, prepared=tiny("timing"))
    assert body["status"] == "completed"
    assert {item["type"] for item in body["output"]} == {"function_call"}


def test_a_call_and_its_result_can_be_sent_back() -> None:
    async def scenario(served: Served) -> list[Any]:
        sent = request(tools=[BARE], tool_choice={"type": "function", "name": "r"})
        first = await served.client.post(PATH, json=sent | {"max_output_tokens": None})
        (call,) = first.json()["output"]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "1"}
        items = [{"role": "user", "content": "hi"}, call, result]
        second = await served.client.post(PATH, json=request(items, tools=[BARE]))
        function = {"name": "r", "arguments": call["arguments"]}
        calls = [{"id": "c", "type": "function", "function": function}]
        messages = [*chat()["messages"], {"role": "assistant", "tool_calls": calls}]
        messages.append({"role": "tool", "tool_call_id": "c", "content": "1"})
        tools = [{"type": "function", "function": {"name": "r"}}]
        body = chat() | {"messages": messages, "tools": tools}
        return [second.json(), (await served.client.post(CHAT, json=body)).json()]

    own, chatted = ask(scenario)
    assert own["x_rack"]["data_hash"] == chatted["x_rack"]["data_hash"]


def test_only_reasoning_is_no_chat() -> None:
    response = post(request([{"type": "reasoning", "summary": []}]))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "input")
    assert error["message"] == "input: wanted at least one message, got none"


def test_unknown_model() -> None:
    response = post(request(model="gpt"))
    assert response.status_code == 404
    assert response.json()["error"]["param"] == "model"
