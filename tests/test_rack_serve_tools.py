"""Functions that are called: answers, streams, and what a schema can cost the server."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import jsonschema
import psutil
import pytest
from serve_kit import DEADLINE_SECONDS, Served, events, roomy, serving
from test_rack_serve_runner import RawClient, settled
from test_rack_text_judge import ENDLESS

from rack.run.session import Prepared
from rack.serve.answers import ChatCompletion
from rack.serve.grammars import MOST_WAITING

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
STOP = {"type": "function", "function": {"name": "stop", "description": "Stops"}}
USER = {"role": "user", "content": "hi"}


def asked(**options: Any) -> dict[str, Any]:
    body = {"model": "roomy", "messages": [USER], "tools": [WEATHER, STOP], "max_tokens": 300}
    return body | options


def run(scenario: Callable[[Served], Awaitable[Any]], prepared: Prepared | None = None) -> Any:
    async def main() -> Any:
        async with serving(prepared or roomy()) as served:
            return await scenario(served)

    return asyncio.run(main())


def posts(*bodies: dict[str, Any], path: str = CHAT, executor: str = "timing") -> list[Any]:
    async def scenario(served: Served) -> list[Any]:
        return [await served.client.post(path, json=body) for body in bodies]

    answers: list[Any] = run(scenario, roomy(executor))
    return answers


def check_calls(choice: dict[str, Any]) -> list[str]:
    """Check that a choice is nothing but good calls; return their names."""
    message = choice["message"]
    assert (message["role"], message["content"]) == ("assistant", None)
    assert choice["finish_reason"] == "tool_calls"
    for call in message["tool_calls"]:
        assert call.keys() == {"id", "type", "function"}
        assert call["id"].startswith("call_")
        assert len(call["id"]) == 29
        arguments = json.loads(call["function"]["arguments"])
        if call["function"]["name"] == "weather":
            jsonschema.validate(arguments, SCHEMA | {"additionalProperties": False})
        else:
            assert arguments == {}
    assert len({call["id"] for call in message["tool_calls"]}) == len(message["tool_calls"])
    return [call["function"]["name"] for call in message["tool_calls"]]


NAMED = {"type": "function", "function": {"name": "stop"}}


@pytest.mark.parametrize("executor", ["timing", "fast"])
def test_required_and_named_calls_keep_to_their_schemas(executor: str) -> None:
    count = 16 if executor == "timing" else 3
    bodies = [asked(tool_choice="required", seed=seed) for seed in range(count)]
    one = [asked(tool_choice="required", parallel_tool_calls=False, seed=s) for s in range(count)]
    answers = posts(*bodies, *one, asked(tool_choice=NAMED), executor=executor)
    assert {answer.status_code for answer in answers} == {200}
    done = [a.json()["choices"][0] for a in answers]
    names = [check_calls(one) for one in done if one["finish_reason"] != "length"]
    assert names[-1] == ["stop"]
    if executor == "timing":  # synthetic weights may go on to the limit
        assert {name for called in names for name in called} == {"weather", "stop"}
        assert {len(called) for called in names[count:]} == {1}
        assert max(map(len, names)) > 1
    for answer in answers:
        ChatCompletion.model_validate(answer.json())


def test_where_no_model_chooses_functions_are_called_until_there_is_a_result() -> None:
    (first,) = posts(asked())
    message = first.json()["choices"][0]["message"]
    check_calls(first.json()["choices"][0])
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "rain"}
        for call in message["tool_calls"]
    ]
    after = asked(messages=[USER, message, *results], max_tokens=4)
    free = [asked(**given, max_tokens=4) for given in ({"ignore_eos": True}, {"min_tokens": 2})]
    for answer in posts(after, asked(tool_choice="none", max_tokens=4), *free):
        choice = answer.json()["choices"][0]
        assert choice["message"].keys() == {"role", "content"}
        assert choice["finish_reason"] == "length"
        assert answer.json()["usage"]["completion_tokens"] == 4


def test_a_stream_of_calls_adds_up_to_the_answer() -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    bodies = [asked(tool_choice="required", seed=seed) for seed in range(3)]
    pairs = posts(*[body | extra for body in bodies for extra in ({}, options)])
    for whole, streamed in zip(pairs[::2], pairs[1::2], strict=True):
        first, *middle, last, usage, done = events(streamed.text)
        assert done == "[DONE]"
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": None}
        calls: list[dict[str, Any]] = []
        for chunk in middle:
            (delta,) = chunk["choices"][0]["delta"].pop("tool_calls")
            assert chunk["choices"][0]["delta"] == {}
            if delta["index"] == len(calls):
                assert delta.keys() == {"index", "id", "type", "function"}
                calls.append(delta)
            else:
                assert delta.keys() == {"index", "function"}
                assert delta["function"].keys() == {"arguments"}
                assert delta["index"] == len(calls) - 1
                calls[-1]["function"]["arguments"] += delta["function"]["arguments"]
        message = whole.json()["choices"][0]["message"]
        assert [call["function"] for call in calls] == [
            call["function"] for call in message["tool_calls"]
        ]
        assert last["choices"][0]["finish_reason"] == "tool_calls"
        assert usage["usage"] == whole.json()["usage"]
        assert len(middle) > 3 or not calls[0]["function"]["arguments"].strip("{}")


def test_a_call_that_is_cut_off_is_not_finished() -> None:
    (answer,) = posts(asked(tool_choice="required", max_tokens=3))
    choice = answer.json()["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("length", '{"n')


def test_random_json_for_a_response_format() -> None:
    schema = {"name": "x", "schema": SCHEMA}
    formats = [{"type": "json_object"}, {"type": "json_schema", "json_schema": schema}]
    bodies = [asked(tools=None, response_format=one) for one in formats]
    any_, exact = posts(*bodies)
    assert type(json.loads(any_.json()["choices"][0]["message"]["content"])) is dict
    value = json.loads(exact.json()["choices"][0]["message"]["content"])
    jsonschema.validate(value, SCHEMA | {"additionalProperties": False})
    assert exact.json()["choices"][0]["finish_reason"] == "stop"


def bad(parameters: dict[str, Any], **options: Any) -> dict[str, Any]:
    function = {"name": "g", "parameters": parameters}
    return asked(tools=[WEATHER, {"type": "function", "function": function}], **options)


def test_bad_schemas_are_refused_by_name() -> None:
    endless = {"properties": {"a": ENDLESS}}
    choice = {"tool_choice": "required"}
    free = {"tool_choice": "required", "ignore_eos": True}
    big_schema = {"name": "big", "schema": {"enum": ["x" * (1 << 20)]}}
    big_format = {"type": "json_schema", "json_schema": big_schema}
    bogus, big, long, held = posts(
        bad({"properties": {"a": {"type": "bogus"}}}, **choice), bad(endless, **choice),
        asked(tools=None, response_format=big_format), asked(**free),
    )  # fmt: skip
    for answer in (bogus, big):
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "tools[1].function.parameters"
    assert bogus.json()["error"]["message"].endswith("got Invalid type: bogus")
    assert "its multipleOf may be the cause (62615533)" in big.json()["error"]["message"]
    assert long.json()["error"]["message"].startswith(
        "response_format: wanted schemas of up to 1048576 bytes in all, got 10"
    )
    assert held.json()["error"]["message"] == (
        "ignore_eos: wanted none with tools that must be called, which say themselves where they "
        "end, got True"
    )


def test_a_model_that_writes_freely_needs_no_schema_that_can_be_kept_to() -> None:
    (answer,) = posts(bad({"properties": {"a": {"not": {}}}}, max_tokens=4), executor="fast")
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"].keys() == {"role", "content"}


def test_others_are_served_while_a_hostile_schema_is_tried() -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": ENDLESS}}

    async def scenario(served: Served) -> None:
        hostile = asyncio.create_task(
            served.client.post(CHAT, json=asked(tools=None, response_format=format_))
        )
        await settled_over_time(lambda: judging(served))
        assert (await served.client.get("/health")).status_code == 200
        plain = await served.client.post(CHAT, json=asked(tools=None, max_tokens=3))
        assert plain.status_code == 200
        assert not hostile.done()
        answer = await hostile
        assert answer.status_code == 400
        again = await served.client.post(CHAT, json=asked(tools=None, response_format=format_))
        assert again.json() == answer.json()

    run(scenario)


def judging(served: Served) -> bool:
    """Whether a schema is being built now."""
    judge = served.grammars._judge
    process = None if judge is None else judge._process
    return process is not None and bool(psutil.Process(process.pid).children())


async def settled_over_time(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():
            await asyncio.sleep(0.001)


def test_a_client_that_leaves_ends_the_work_on_its_schema() -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": ENDLESS}}

    async def scenario(served: Served) -> None:
        client = RawClient(served, model="roomy", response_format=format_)
        call = client.start()
        await settled_over_time(lambda: judging(served))
        client.gone.set()
        await call
        assert client.sent[0]["status"] == 499
        assert not judging(served)
        assert (await served.client.post(CHAT, json=asked())).status_code == 200

    run(scenario)


def test_only_so_many_wait_for_their_schemas() -> None:
    async def scenario(served: Served) -> None:
        served.grammars._waiting = MOST_WAITING
        answer: httpx.Response = await served.client.post(CHAT, json=asked())
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == (
            "32 requests wait for their schemas to be compiled"
        )

    run(scenario)


def test_several_prompts() -> None:
    body = {"model": "roomy", "prompt": ["a", [98], "c"], "max_tokens": 4, "temperature": 0}
    options = {"stream": True, "stream_options": {"include_usage": True}}
    many, streamed, *single = posts(
        body, body | options, *[body | {"prompt": one} for one in body["prompt"]], path=TEXT,  # type: ignore[attr-defined]
        executor="fast",
    )  # fmt: skip
    choices = many.json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    alone = [answer.json() for answer in single]
    assert [choice["text"] for choice in choices] == [a["choices"][0]["text"] for a in alone]
    usage = many.json()["usage"]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert usage[name] == sum(answer["usage"][name] for answer in alone)
    cycles = many.json()["x_rack"]["emulated_cycles"]
    assert cycles["prompt"] == sum(a["x_rack"]["emulated_cycles"]["prompt"] for a in alone)
    assert len(many.json()["x_rack"]["data_hash"]) == 64
    *chunks, last, done = events(streamed.text)
    assert done == "[DONE]"
    assert last["usage"] == usage
    texts = {0: "", 1: "", 2: ""}
    ends = []
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
        if choice["finish_reason"] is not None:
            ends.append((choice["index"], "x_rack" in chunk))
    assert list(texts.values()) == [choice["text"] for choice in choices]
    assert ends == [(0, False), (1, False), (2, True)]


def test_prompts_that_do_not_fit_into_the_queue_are_refused_together() -> None:
    async def scenario(served: Served) -> None:
        body = {"model": "roomy", "prompt": ["a"] * 100, "max_tokens": 1}
        answer = await served.client.post(TEXT, json=body)
        assert answer.status_code == 503
        await settled(lambda: not served.runner.running and not served.runner._waiting)
        assert (await served.client.post(TEXT, json=body | {"prompt": "a"})).status_code == 200

    run(scenario)


def test_the_limit_is_named_as_it_was_given() -> None:
    body = {"model": "roomy", "messages": [USER], "max_completion_tokens": 5000}
    (answer,) = posts(body)
    assert answer.json()["error"]["param"] == "max_completion_tokens"
    assert answer.json()["error"]["message"] == (
        "max_completion_tokens: 5000 is more than the context of 2048; roomy has no more positions"
    )


def test_tiers_and_seeds_are_told_as_they_were_asked_for() -> None:
    bodies = [
        {"model": "roomy", "messages": [USER], "max_tokens": 2} | extra
        for extra in ({"service_tier": "flex", "seed": -5}, {"seed": (1 << 64) - 5})
    ]
    negative, positive = (answer.json() for answer in posts(*bodies))
    assert negative["service_tier"] == "flex"
    assert (negative["x_groq"]["seed"], positive["x_groq"]["seed"]) == (-5, (1 << 64) - 5)
    assert negative["choices"] == positive["choices"]


def test_tokenize_counts_tools_as_a_chat_does() -> None:
    async def scenario(served: Served) -> None:
        body = asked(tool_choice="required", max_tokens=2)
        usage = (await served.client.post(CHAT, json=body)).json()["usage"]
        tokens = await served.client.post(
            "/tokenize", json={"messages": body["messages"], "tools": body["tools"]}
        )
        assert tokens.json()["count"] == usage["prompt_tokens"]
        refused = await served.client.post("/tokenize", json={"prompt": "a", "tools": []})
        assert refused.json()["error"]["message"] == "the body: wanted tools only with messages"

    run(scenario)
