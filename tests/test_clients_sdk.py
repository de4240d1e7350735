"""The SDKs that people use, unchanged, against the real server with a trained model."""

import asyncio
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import groq
import httpx
import openai
import pydantic
import pytest
from server_process import DEADLINE_SECONDS, ServerProcess, server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stories(stories260k: Path) -> Iterator[ServerProcess]:
    arguments = ("--transport", "local", "--dtype", "fp16", "--layout", "1x1")
    with server(str(stories260k), *arguments) as running:
        yield running
        assert running.end(signal.SIGTERM) == 0


@pytest.fixture(scope="module")
def golden(stories260k: Path) -> dict[str, Any]:
    entries: list[dict[str, Any]] = json.loads((stories260k / "greedy.json").read_text())
    return entries[0]


def wanted(golden: dict[str, Any]) -> tuple[str, int]:
    """Give the golden continuation and its length in tokens."""
    text: str = golden["text"].removeprefix(golden["prompt"])
    return text, len(golden["token_ids"]) - len(golden["prompt_token_ids"])


def test_openai_text_completions(stories: ServerProcess, golden: dict[str, Any]) -> None:
    text, count = wanted(golden)
    with openai.OpenAI(base_url=f"{stories.url}/openai/v1", api_key="any") as client:
        options: dict[str, Any] = {"model": "stories260K", "temperature": 0}
        whole = client.completions.create(prompt=golden["prompt"], max_tokens=count, **options)
        options["max_tokens"] = 40
        ids = client.completions.create(prompt=golden["prompt_token_ids"], **options)
        chunks = list(client.completions.create(prompt=golden["prompt"], stream=True, **options))
    assert whole.choices[0].text == text
    assert len(ids.choices[0].text) > 40
    assert text.startswith(ids.choices[0].text)
    assert "".join(chunk.choices[0].text for chunk in chunks) == ids.choices[0].text
    assert whole.usage is not None
    assert whole.usage.completion_tokens == count


MESSAGES: Any = [{"role": "user", "content": "Once upon a time"}]
ASK: dict[str, Any] = {
    "model": "stories260K", "messages": MESSAGES, "temperature": 0, "max_tokens": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def chat_text(stories: ServerProcess) -> str:
    """Give what the model says to MESSAGES, asked for as a plain text completion."""
    body = {**ASK, "prompt": "user: Once upon a time\nassistant:"}
    del body["messages"]
    answer = httpx.post(f"{stories.url}/v1/completions", json=body, timeout=DEADLINE_SECONDS)
    text: str = answer.json()["choices"][0]["text"]
    assert text
    return text


def test_openai_chat(stories: ServerProcess, chat_text: str) -> None:
    with openai.OpenAI(base_url=f"{stories.url}/v1", api_key="any") as client:
        whole = client.chat.completions.create(**ASK)
        chunks = list(
            client.chat.completions.create(
                **ASK, stream=True, stream_options={"include_usage": True}
            )
        )
        names = [model.id for model in client.models.list()]
    assert whole.choices[0].message.content == chat_text
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == chat_text
    assert chunks[-1].usage == whole.usage
    assert names == ["stories260K"]


def test_groq_chat(stories: ServerProcess, chat_text: str) -> None:
    with groq.Groq(base_url=stories.url, api_key="any") as client:
        whole = client.chat.completions.create(**ASK)
        chunks = list(client.chat.completions.create(**ASK, stream=True))
    assert whole.choices[0].message.content == chat_text
    assert whole.usage is not None
    assert whole.usage.total_time
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == chat_text
    last = chunks[-1].x_groq
    assert last is not None
    assert last.usage is not None
    assert last.usage.completion_time == whole.usage.completion_time


def test_async_sdks(stories: ServerProcess, chat_text: str) -> None:
    async def ask() -> list[str]:
        out = []
        async with (
            openai.AsyncOpenAI(base_url=f"{stories.url}/v1", api_key="any") as one,
            groq.AsyncGroq(base_url=stories.url, api_key="any") as two,
        ):
            for client in (one, two):
                stream = await client.chat.completions.create(**ASK, stream=True)  # type: ignore[attr-defined]
                out.append("".join([c.choices[0].delta.content or "" async for c in stream]))
        return out

    assert asyncio.run(ask()) == [chat_text] * 2


def test_errors_reach_the_sdks(stories: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"{stories.url}/v1", api_key="any") as one:
        with pytest.raises(openai.NotFoundError, match="this server has `stories260K`"):
            one.chat.completions.create(**ASK | {"model": "gpt"})
        with pytest.raises(openai.BadRequestError, match="`n` is not supported"):
            one.chat.completions.create(**ASK, n=2)
    messages: Any = [{"role": "user", "content": "word " * 600}]
    too_long: Any = ASK | {"messages": messages}
    with groq.Groq(base_url=stories.url, api_key="any") as two:
        with pytest.raises(groq.BadRequestError, match="leave no room in the context of 512"):
            two.chat.completions.create(**too_long)
        with pytest.raises(groq.NotFoundError, match="does not exist"):
            two.models.retrieve("gpt")


def test_malformed_json(stories: ServerProcess) -> None:
    answer = httpx.post(f"{stories.url}/v1/chat/completions", content="{", timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("the body is not valid JSON")


def test_leaving_in_mid_stream(stories: ServerProcess, golden: dict[str, Any]) -> None:
    text, count = wanted(golden)
    body = {"model": "stories260K", "temperature": 0, "prompt": golden["prompt"]}
    long = body | {"max_tokens": 500, "ignore_eos": True, "stream": True}
    url = f"{stories.url}/v1/completions"
    for _ in range(3):
        with httpx.stream("POST", url, json=long, timeout=DEADLINE_SECONDS) as stream:
            assert next(stream.iter_lines()).startswith("data: ")
    answer = httpx.post(url, json=body | {"max_tokens": count}, timeout=DEADLINE_SECONDS)
    assert answer.json()["choices"][0]["text"] == text


def test_raw_response_headers(stories: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"{stories.url}/v1", api_key="any") as one:
        first = one.chat.completions.with_raw_response.create(**ASK)
    with groq.Groq(base_url=stories.url, api_key="any") as two:
        second = two.chat.completions.with_raw_response.create(**ASK)
        with two.chat.completions.with_streaming_response.create(**ASK) as third:
            ids = [third.headers["x-request-id"]]
    for raw in (first, second):
        body = json.loads(raw.text() if callable(raw.text) else raw.text)
        assert raw.status_code == 200
        assert raw.headers["content-type"] == "application/json"
        assert raw.headers["x-request-id"] == body["x_groq"]["id"]
        assert raw.parse().choices[0].message.role == "assistant"
        ids.append(raw.headers["x-request-id"])
    assert len(set(ids)) == 3


def curl(url: str, body: dict[str, Any]) -> str:
    command = ["curl", "--silent", "--no-buffer", "--max-time", "60", url, "--data", "@-"]
    done = subprocess.run(
        command, input=json.dumps(body), capture_output=True, text=True, timeout=90, check=True
    )
    return done.stdout


def streamed_text(body: str) -> str:
    chunks = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def test_the_same_seed_gives_the_same_text_through_any_client(stories: ServerProcess) -> None:
    url = f"{stories.url}/openai/v1"

    def ask(seed: int) -> Iterator[str | None]:
        """Ask through every client there is."""
        drawn = ASK | {"temperature": 1.0, "top_p": 0.9, "top_k": 50, "seed": seed}
        sdk = {name: value for name, value in drawn.items() if name != "top_k"}
        sdk["extra_body"] = {"top_k": 50}
        with openai.OpenAI(base_url=url, api_key="any") as one:
            yield one.chat.completions.create(**sdk).choices[0].message.content
            chunks = list(one.chat.completions.create(**sdk, stream=True))
            yield "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        with groq.Groq(base_url=stories.url, api_key="any") as two:
            yield two.chat.completions.create(**sdk).choices[0].message.content
        yield asyncio.run(ask_async(stories.url, sdk))
        answer = httpx.post(f"{url}/chat/completions", json=drawn, timeout=DEADLINE_SECONDS)
        yield answer.json()["choices"][0]["message"]["content"]
        yield streamed_text(curl(f"{url}/chat/completions", drawn | {"stream": True}))

    by_seed = {seed: set(ask(seed)) for seed in (1, 2)}
    assert all(len(texts) == 1 for texts in by_seed.values()), by_seed
    assert by_seed[1] != by_seed[2]


async def ask_async(url: str, options: dict[str, Any]) -> str:
    async with groq.AsyncGroq(base_url=url, api_key="any") as client:
        stream = await client.chat.completions.create(**options, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def test_equal_requests_take_equal_emulated_time(stories: ServerProcess) -> None:
    """Whatever runs between them, and however long they waited: p99 is p50, variation is 0."""

    async def ask() -> list[Any]:
        async with groq.AsyncGroq(base_url=stories.url, api_key="any") as client:
            create = client.chat.completions.create
            calls = []
            for number in range(12):
                calls.append(create(**ASK | {"seed": number, "temperature": 1.0}))
                calls.append(create(**ASK | {"max_tokens": 1 + number}))
            answers = await asyncio.gather(*calls)
        return [answer.usage for answer in answers[::2]]

    usages = asyncio.run(ask())
    assert {usage.completion_tokens for usage in usages} == {20}
    times = [(usage.prompt_time, usage.completion_time, usage.total_time) for usage in usages]
    assert len(set(times)) == 1
    assert len({usage.queue_time for usage in usages}) > 1  # they did wait for each other


def test_json_that_keeps_to_a_schema(stories: ServerProcess) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "tame": {"type": "boolean"}},
        "required": ["name", "tame"],
        "additionalProperties": False,
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "cat", "schema": schema}}
    more: Any = ASK | {"max_tokens": 100, "response_format": wanted}
    with groq.Groq(base_url=stories.url, api_key="any") as client:
        answer = client.chat.completions.create(**more)
        value = json.loads(answer.choices[0].message.content or "")
        assert list(value) == ["name", "tame"]
        assert answer.choices[0].finish_reason == "stop"
        wanted["json_schema"]["schema"] = {"type": "bogus"}
        with pytest.raises(groq.BadRequestError, match="Invalid type: bogus") as caught:
            client.chat.completions.create(**more)
    assert caught.value.body["error"]["param"] == "response_format"  # type: ignore[index]


RESPOND: dict[str, Any] = {
    "model": "stories260K", "input": MESSAGES, "temperature": 0, "max_output_tokens": 20,
}  # fmt: skip


class Cat(pydantic.BaseModel):
    name: Annotated[str, pydantic.Field(max_length=8)]
    tame: bool


def test_openai_responses(stories: ServerProcess, chat_text: str) -> None:
    with openai.OpenAI(base_url=f"{stories.url}/v1", api_key="any") as client:
        whole = client.responses.create(**RESPOND)
        raw = list(client.responses.create(**RESPOND, stream=True))
        with client.responses.stream(**RESPOND) as stream:
            deltas = [e.delta for e in stream if e.type == "response.output_text.delta"]
            final = stream.get_final_response if raw[-1].type == "response.completed" else None
        timed = client.responses.create(**RESPOND, extra_headers={"Groq-Beta": "inference-metrics"})
    assert whole.output_text == "".join(deltas) == chat_text
    assert (whole.status, raw[0].type) == ("incomplete", "response.created")
    assert raw[-1].type == "response.incomplete"
    assert raw[-1].response.output_text == chat_text
    assert raw[-1].response.usage == whole.usage
    assert final is None  # the SDK's own accumulator wants a completed response
    assert timed.metadata is not None
    assert float(timed.metadata["completion_time"]) > 0


def test_openai_responses_parsed(stories: ServerProcess) -> None:
    more: Any = RESPOND | {"max_output_tokens": 100}
    with openai.OpenAI(base_url=f"{stories.url}/openai/v1", api_key="any") as client:
        parsed = client.responses.parse(**more, text_format=Cat)
        with client.responses.stream(**more, text_format=Cat) as stream:
            final = stream.get_final_response()
    assert isinstance(parsed.output_parsed, Cat)
    assert final.output_parsed == parsed.output_parsed
    assert (parsed.status, final.status) == ("completed", "completed")


def test_openai_responses_async_and_refused(stories: ServerProcess, chat_text: str) -> None:
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{stories.url}/v1", api_key="any") as client:
            stream = await client.responses.create(**RESPOND, stream=True)
            text = [e.delta async for e in stream if e.type == "response.output_text.delta"]
            with pytest.raises(openai.BadRequestError, match="`store` is not supported"):
                await client.responses.create(**RESPOND, store=True)
            with pytest.raises(openai.NotFoundError, match="this emulator does inference only"):
                await client.embeddings.create(model="stories260K", input="a")
            with pytest.raises(openai.NotFoundError, match="answers are not stored"):
                await client.responses.retrieve("resp_1")
        return "".join(text)

    assert asyncio.run(ask()) == chat_text


def test_an_answer_can_be_an_item_of_the_next_request(stories: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"{stories.url}/v1", api_key="any") as client:
        first = client.responses.create(**RESPOND)
        items = [*MESSAGES, *[item.model_dump(exclude_unset=True) for item in first.output]]
        items.append({"role": "user", "content": "And then?"})
        more: Any = RESPOND | {"input": items}
        second = client.responses.create(**more)
        messages = [
            *MESSAGES,
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "And then?"},
        ]
        asked: Any = ASK | {"messages": messages}
        chatted = client.chat.completions.create(**asked)
    assert second.output_text == chatted.choices[0].message.content


def test_a_large_upload_is_told_that_there_are_no_files(stories: ServerProcess) -> None:
    """It is answered, not cut off, so that the SDK raises what the answer says."""
    with (
        openai.OpenAI(base_url=f"{stories.url}/v1", api_key="any", max_retries=0) as client,
        pytest.raises(openai.NotFoundError, match="this emulator does inference only"),
    ):
        client.files.create(file=("a.jsonl", bytes(8 << 20)), purpose="batch")


PICK: Any = {
    "type": "function", "name": "pick", "strict": True,
    "parameters": {
        "type": "object", "properties": {"toy": {"type": "string", "enum": ["ball", "car"]}},
        "required": ["toy"], "additionalProperties": False,
    },
}  # fmt: skip


def test_openai_responses_call_functions(stories: ServerProcess) -> None:
    options: Any = RESPOND | {"tools": [PICK], "max_output_tokens": 60}
    must = options | {"tool_choice": "required", "parallel_tool_calls": False}
    with openai.OpenAI(base_url=f"{stories.url}/v1", api_key="any") as client:
        first = client.responses.create(**must)
        with client.responses.stream(**must) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_response()
        (call,) = first.output
        assert call.type == "function_call"
        items = [
            *MESSAGES,
            call.model_dump(exclude_unset=True),
            {"type": "function_call_output", "call_id": call.call_id, "output": "it is red"},
        ]
        second = client.responses.create(**options | {"input": items, "tool_choice": "none"})
    assert call.name == "pick"
    assert json.loads(call.arguments)["toy"] in ("ball", "car")
    assert "response.function_call_arguments.delta" in kinds
    (streamed,) = final.output
    assert streamed.type == "function_call"
    assert streamed.arguments == call.arguments
    assert second.output_text
