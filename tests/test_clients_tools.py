"""Tools through the SDKs that people use, unchanged, with a trained model and a made-up one."""

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import groq
import openai
import pytest
from pydantic import BaseModel, Field
from server_process import ServerProcess, server

pytestmark = pytest.mark.slow

USER: Any = {"role": "user", "content": "Once upon a time"}


class Weather(BaseModel):
    """Tell the weather."""

    city: str = Field(max_length=8)
    windy: bool


TOOL: Any = openai.pydantic_function_tool(Weather)


@pytest.fixture(scope="module")
def stories(stories260k: Path) -> Iterator[ServerProcess]:
    arguments = ("--transport", "local", "--dtype", "fp16", "--layout", "1x1")
    with server(str(stories260k), *arguments) as running:
        yield running
        assert running.end(signal.SIGTERM) == 0


@pytest.fixture(scope="module")
def double(stories260k: Path) -> Iterator[ServerProcess]:
    with server(str(stories260k), "--executor", "timing", "--layout", "1x1") as running:
        yield running
        assert running.end(signal.SIGTERM) == 0


@pytest.fixture(params=["stories", "double"])
def url(request: pytest.FixtureRequest) -> str:
    running: ServerProcess = request.getfixturevalue(request.param)
    return running.url


def asked(**options: Any) -> dict[str, Any]:
    body = {"model": "stories260K", "messages": [USER], "tools": [TOOL], "max_tokens": 120}
    return body | {"tool_choice": "required", "parallel_tool_calls": False} | options


def test_openai_parses_the_arguments(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/openai/v1", api_key="any") as client:
        answer = client.chat.completions.parse(**asked())
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        (call,) = choice.message.tool_calls or ()
        assert call.function.name == "Weather"
        assert isinstance(call.function.parsed_arguments, Weather)
        result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
        echo = choice.message.model_dump()
        del echo["parsed"], echo["tool_calls"][0]["function"]["parsed_arguments"]
        after = client.chat.completions.create(
            **asked(messages=[USER, echo, result], tool_choice="none", max_tokens=5)
        )
    assert after.choices[0].message.content
    assert after.choices[0].message.tool_calls is None


def test_groq_calls_the_named_function(url: str) -> None:
    named: Any = {"type": "function", "function": {"name": "Weather"}}
    with groq.Groq(base_url=url, api_key="any") as client:
        answer = client.chat.completions.create(**asked(tool_choice=named))
        (call,) = answer.choices[0].message.tool_calls or ()
        assert answer.choices[0].finish_reason == "tool_calls"
        Weather.model_validate_json(call.function.arguments)
        wrong = {"role": "tool", "tool_call_id": "call_x", "content": "rain"}
        with pytest.raises(groq.BadRequestError, match="wanted one of their ids") as caught:
            client.chat.completions.create(**asked(messages=[USER, wrong]))
    assert caught.value.body["error"]["param"] == "messages[1].tool_call_id"  # type: ignore[index]


def test_streams_add_up(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/openai/v1", api_key="any") as one:
        whole = one.chat.completions.create(**asked())
        with one.chat.completions.stream(**asked()) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    assert "tool_calls.function.arguments.done" in kinds
    wanted = (whole.choices[0].message.tool_calls or ())[0].function
    got = (final.choices[0].message.tool_calls or ())[0].function
    assert (got.name, got.arguments) == (wanted.name, wanted.arguments)
    assert final.choices[0].finish_reason == "tool_calls"
    assert asyncio.run(streamed(url)) == (wanted.name, wanted.arguments, "tool_calls")


async def streamed(url: str) -> tuple[str, str, str]:
    """Put a stream's call together as groq's documentation does."""
    name, arguments, finish = "", "", ""
    async with groq.AsyncGroq(base_url=url, api_key="any") as client:
        async for chunk in await client.chat.completions.create(**asked(stream=True)):
            finish = chunk.choices[0].finish_reason or finish
            for call in chunk.choices[0].delta.tool_calls or ():
                assert call.index == 0
                if call.id:
                    assert (call.type, call.function and call.function.name) == (
                        "function",
                        "Weather",
                    )
                assert call.function is not None
                name += call.function.name or ""
                arguments += call.function.arguments or ""
    return name, arguments, finish


def test_a_model_that_may_write_freely(stories: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"{stories.url}/v1", api_key="any") as client:
        answer = client.chat.completions.create(**asked(tool_choice="auto", max_tokens=20))
    message = answer.choices[0].message
    assert message.content
    assert message.tool_calls is None


def test_a_double_answers_a_schema(double: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"{double.url}/v1", api_key="any") as client:
        answer = client.chat.completions.parse(
            model="stories260K", messages=[USER], response_format=Weather
        )
    assert isinstance(answer.choices[0].message.parsed, Weather)
    assert json.loads(answer.choices[0].message.content or "").keys() == {"city", "windy"}
