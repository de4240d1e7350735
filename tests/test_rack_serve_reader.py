"""Reading requests elsewhere: what is refused by length, what ends a request that takes long."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from read_tasks import dies, fails, waits, where
from serve_kit import DEADLINE_SECONDS, Served, chat, serving, tiny

from rack.run.config import RunConfig
from rack.run.session import Prepared, prepare
from rack.serve.reader import MOST_WAITING, ReadBounds, reader_of
from rack.system.ending import SIGNALS

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
WHOLE = ReadBounds(short_bytes=1 << 30)


def with_template(folder: Path, stories: Path, template: str) -> Prepared:
    """The trained tiny model with a chat template of its own."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if (stories / name).is_file():
            (folder / name).write_bytes((stories / name).read_bytes())
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return prepare(RunConfig(model=str(folder), executor="timing", layout="1x1"))


def ask(scenario: Callable[[Served], Awaitable[Any]], **options: Any) -> Any:
    async def run() -> Any:
        async with serving(**options) as served:
            return await scenario(served)

    return asyncio.run(run())


def body(prepared: Prepared, **options: Any) -> dict[str, Any]:
    return chat() | {"model": prepared.compiled.config.name} | options


@asynccontextmanager
async def alive(served: Served) -> AsyncIterator[None]:
    """Other routes answer, again and again, while the context is open."""
    answered = 0

    async def poll() -> None:
        nonlocal answered
        while True:
            assert (await served.client.get("/health")).status_code == 200
            answered += 1
            await asyncio.sleep(0.01)

    task = asyncio.create_task(poll())
    try:
        yield
        before = answered
        async with asyncio.timeout(DEADLINE_SECONDS):
            while answered == before:
                await asyncio.sleep(0.01)
    finally:
        task.cancel()
    assert answered


def test_a_long_body_is_read_in_another_process() -> None:
    """The same as in this one; ids, text and chats."""
    prompt = list(range(1, 101))

    async def scenario(served: Served) -> list[Any]:
        posts = [
            served.client.post(CHAT, json=chat()),
            served.client.post(TEXT, json={"model": "tiny", "prompt": prompt, "max_tokens": 3}),
            served.client.post("/tokenize", json={"model": "tiny", "prompt": "Hi"}),
            served.client.post("/detokenize", json={"tokens": [72, 105]}),
            served.client.post(CHAT, json=chat(n=2)),
            served.client.post("/tokenize", json={"model": "other", "prompt": "Hi"}),
        ]
        answers = [(await post).json() for post in posts]
        return [
            answers[0]["choices"][0]["message"]["content"], answers[0]["usage"]["prompt_tokens"],
            answers[1]["choices"][0]["text"], answers[1]["usage"]["prompt_tokens"], *answers[2:],
        ]  # fmt: skip

    here = ask(scenario)
    assert ask(scenario, read=ReadBounds(short_bytes=0)) == here
    assert here[1] == len(tiny().tokenizer.apply_chat_template(chat()["messages"]))
    assert here[3] == 100
    assert here[4]["tokens"][1:] == [72, 105]
    assert here[5] == {"prompt": "Hi"}
    assert here[6]["error"]["param"] == "n"
    assert here[7]["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x'.center(2000000000) }}",
        "{{ '%2000000000d' % 1 }}",
        "{{ 'x' * 2000000000 }}",
        "{{ 'x' | center(2000000000) }}",
        "{{ '{:2000000000d}'.format(1) }}",
        "{% set n = namespace(t='x') %}"
        "{% for a in range(40) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
    ],
)
def test_a_template_without_bounds_is_given_up(
    tmp_path: Path, stories260k: Path, template: str
) -> None:
    prepared = with_template(tmp_path, stories260k, template)  # itself within bounds

    async def scenario(served: Served) -> tuple[httpx.Response, httpx.Response]:
        async with alive(served):
            refused = await served.client.post(CHAT, json=body(prepared))
        text = {"model": body(prepared)["model"], "prompt": "Once", "max_tokens": 2}
        return refused, await served.client.post(TEXT, json=text)

    bounds = ReadBounds(seconds=1.0, memory_bytes=64 << 20)
    refused, other = ask(scenario, prepared=prepared, read=bounds)
    assert other.status_code == 200
    error = refused.json()["error"]
    assert refused.status_code in (400, 413)
    if refused.status_code == 413:
        assert error["code"] == "request_too_large"
        assert error["message"] == (
            "reading the request (its JSON, the model's chat template, the tokenizer) took more "
            "than 1 seconds or 64 MiB"
        )
    else:
        assert "the model's chat template" in error["message"]


def test_a_template_that_writes_without_end(tmp_path: Path, stories260k: Path) -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}words {% endfor %}{% endfor %}"
    prepared = with_template(tmp_path, stories260k, endless)

    async def scenario(served: Served) -> httpx.Response:
        return await served.client.post(CHAT, json=body(prepared))

    refused = ask(scenario, prepared=prepared)
    assert refused.status_code == 400
    assert "the model's chat template writes more than" in refused.json()["error"]["message"]


def test_what_cannot_fit_is_refused_before_it_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = tiny()
    encoded: list[str] = []
    monkeypatch.setattr(prepared.tokenizer, "encode", encoded.append)

    async def scenario(served: Served) -> list[httpx.Response]:
        text = "x" * 100_000
        return [
            await served.client.post(TEXT, json={"model": "tiny", "prompt": text}),
            await served.client.post(CHAT, json=chat(text)),
        ]

    for response, param in zip(ask(scenario, read=WHOLE), ("prompt", "messages"), strict=True):
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
        assert error["message"].startswith(f"{param}: at least 1000")
        assert "tokens leave no room in the context of 256; " in error["message"]
    assert encoded == []


HOSTILE: dict[str, Callable[[], bytes]] = {
    "a long text": lambda: json.dumps(chat("x" * 4_000_000)).encode(),
    "deep": lambda: b'{"model": "tiny", "messages": ' + b"[" * 4_000_000,
    "deep objects": lambda: b'{"model": "tiny", "user": ' + b'{"a":' * 500_000,
    "a long number": lambda: b'{"model": "tiny", "seed": ' + b"1" * 4_000_000 + b"}",
    "ids": lambda: json.dumps({"model": "tiny", "prompt": [1] * 1_300_000}).encode(),
    "large ids": lambda: json.dumps({"model": "tiny", "prompt": [10**15] * 200_000}).encode(),
    "messages": lambda: json.dumps(chat() | {"messages": [{}] * 100_000}).encode(),
    "keys": lambda: json.dumps(chat() | {f"key{n}": n for n in range(200_000)}).encode(),
    "no json": lambda: b"\xff" * 4_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_other_routes_answer_while_a_hostile_body_is_read(name: str) -> None:
    body = HOSTILE[name]()

    async def scenario(served: Served) -> int:
        async with alive(served):
            path = TEXT if "ids" in name else CHAT
            return (await served.client.post(path, content=body)).status_code

    assert ask(scenario) in (400, 413)


@pytest.fixture
def found_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process import `read_tasks`."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.mark.usefixtures("found_there")
def test_a_process_that_ends_is_replaced_and_none_is_left() -> None:
    before = psutil.Process().children()  # a resource tracker of an earlier test, say
    reader = reader_of(tiny(), ReadBounds(short_bytes=0, seconds=DEADLINE_SECONDS))

    async def scenario() -> None:
        first = await reader.run(where, b"x")
        assert first != os.getpid()
        for one in SIGNALS:  # its parent's to act on: the whole group gets them
            os.kill(first, one)
        assert await reader.run(where, b"x") == first
        with pytest.raises(Exception, match="reading the request"):
            await reader.run(dies, b"x")
        second = await reader.run(where, b"x")
        assert second != first
        process = psutil.Process(second)
        process.kill()
        psutil.wait_procs([process], DEADLINE_SECONDS)
        assert await reader.run(where, b"x") not in (first, second)
        with pytest.raises(RuntimeError, match="KeyError: 'no such'"):
            await reader.run(fails, b"x")
        await asyncio.to_thread(reader.close)
        with pytest.raises(Exception, match="the server is stopping"):
            await reader.run(where, b"x")

    asyncio.run(scenario())
    assert psutil.Process().children() == before


@pytest.mark.usefixtures("found_there")
def test_too_many_at_once_are_refused_and_a_stop_ends_those_that_wait() -> None:
    reader = reader_of(tiny(), ReadBounds(short_bytes=0, seconds=DEADLINE_SECONDS))

    async def scenario() -> None:
        tasks = [asyncio.create_task(reader.run(waits, b"x")) for _ in range(MOST_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(Exception, match="64 requests are waiting to be read"):
            await reader.run(where, b"x")
        await asyncio.to_thread(reader.close)
        for task in tasks:
            with pytest.raises(Exception, match="the server is stopping"):
                await task

    asyncio.run(scenario())
    reader.close()  # a second time does nothing
