"""Lost chips as clients and operators see them: streams that pause, health, metrics, log, drain.

First a server in this process, on whose rack vectors are lost; then the real thing, whose chips are
stopped and killed. That the replay is exact is tested in test_rack_run_recovery.py.
"""

from __future__ import annotations

import asyncio
import io
import json
import queue
import re
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import psutil
import pytest
from serve_kit import Served, chat, events, serving, tiny
from server_process import DEADLINE_SECONDS, ServerProcess, server

from rack.errors import FaultError
from rack.run.pulse import SILENT_SECONDS
from rack.run.steps import Rack, Recovery
from rack.serve.answers import XRack
from rack.serve.logs import Notices
from rack.serve.pacing import Pacer
from rack.serve.serving import say_recovery

CHAT, TEXT, READY = "/v1/chat/completions", "/v1/completions", "/health/ready"
FIELDS = [
    "chip", "chips", "step", "detected_seconds", "replayed_cycles", "wall_seconds", "schedule_hash",
]  # fmt: skip


def ask(scenario: Callable[[Served], Awaitable[Any]], **options: Any) -> Any:
    async def run() -> Any:
        async with serving(**options) as served:
            return await scenario(served)

    return asyncio.run(run())


def lose(rack: Rack, *ends: int) -> None:
    """Let the n-th steps to end from now on be lost."""
    finish, ended = rack.finish, 0

    def losing() -> Any:
        nonlocal ended
        ended += 1
        if ended in ends:
            raise FaultError(chip=0, step="step x", what="lost", waiting_for="nothing")
        return finish()

    rack.finish = losing  # type: ignore[method-assign]


async def text(served: Served, **options: Any) -> Any:
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 4, "temperature": 0} | options
    return (await served.client.post(TEXT, json=body)).json()


def without_wall(body: Any) -> Any:
    """What of an answer is emulated."""
    marks = {
        name: value for name, value in body["x_rack"].items()
        if name not in ("wall_seconds", "recoveries")
    }  # fmt: skip
    texts = [choice.get("text", choice.get("message")) for choice in body["choices"]]
    return texts, body["usage"], marks


# -- in this process


def test_answers_list_the_faults_after_which_they_went_on() -> None:
    async def scenario(served: Served) -> None:
        good = (await served.client.post(CHAT, json=chat())).json()
        assert good["x_rack"]["recoveries"] == []
        lose(served.opened[0].rack, 3)
        whole = (await served.client.post(CHAT, json=chat())).json()
        (told,) = whole["x_rack"]["recoveries"]
        assert list(told) == FIELDS
        assert (told["chip"], told["chips"], told["step"]) == (None, [], "step x")
        assert told["wall_seconds"] > 0
        XRack.model_validate(whole["x_rack"])
        assert without_wall(whole) == without_wall(good)  # the replay is in no account
        lose(served.opened[0].rack, 4)
        streamed = await served.client.post(CHAT, json=chat(stream=True))
        *_, last, done = events(streamed.text)
        assert done == "[DONE]"
        (again,) = last["x_rack"]["recoveries"]
        cycles = whole["x_rack"]["emulated_cycles"]["prompt"]  # of the chunk that holds it all
        assert again["replayed_cycles"] == told["replayed_cycles"] == cycles
        assert last["x_rack"]["data_hash"] == good["x_rack"]["data_hash"]
        lose(served.opened[0].rack, 2)
        asked = {"model": "tiny", "input": "hi", "max_output_tokens": 4}
        reply = (await served.client.post("/v1/responses", json=asked)).json()
        assert len(reply["x_rack"]["recoveries"]) == 1
        assert len(served.opened) == 1
        seen = [one.replayed_cycles for one in served.recoveries]
        assert seen[:2] == [told["replayed_cycles"], again["replayed_cycles"]]

    ask(scenario)


@pytest.mark.parametrize("slots", [1, 2])
def test_prompts_of_one_request_tell_each_fault_once(slots: int) -> None:
    async def scenario(served: Served) -> None:
        good = await text(served, prompt=["hi", "ho"])
        lose(served.opened[0].rack, 3)
        both = await text(served, prompt=["hi", "ho"])
        assert len(both["x_rack"]["recoveries"]) == 1
        assert without_wall(both) == without_wall(good)
        lose(served.opened[0].rack, 3, 9)
        assert len((await text(served, prompt=["hi", "ho"]))["x_rack"]["recoveries"]) == 2

    ask(scenario, prepared=tiny(sequences=slots))


def test_prompts_in_the_cache_are_found_after_a_fault() -> None:
    async def scenario(served: Served) -> None:
        long = "Once upon a time there was a little girl who lived by the sea"
        await text(served, prompt=long)
        good = await text(served, prompt=long)
        found = good["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert found > 0
        lose(served.opened[0].rack, 2)
        again = await text(served, prompt=long)
        assert len(again["x_rack"]["recoveries"]) == 1
        assert without_wall(again) == without_wall(good)

    prepared = tiny(prefill_chunk=16)
    ask(scenario, prepared=prepared, prefix_cache=True)


def test_metrics_count_recoveries_replayed_cycles_and_spares() -> None:
    async def scenario(served: Served) -> None:
        async def count(name: str) -> float:
            found = re.search(
                rf'^rack:{name}{{model_name="tiny"}} (\S+)$',
                (await served.client.get("/metrics")).text, re.MULTILINE,
            )  # fmt: skip
            assert found is not None, name
            return float(found[1])

        assert await count("recoveries_total") == await count("replayed_cycles_total") == 0
        assert await count("spares") == 0
        lose(served.opened[0].rack, 1, 5)
        served.opened[0].rack.spares = 3  # type: ignore[misc]
        told = (await text(served))["x_rack"]["recoveries"]
        assert await count("recoveries_total") == len(told) == 2
        assert await count("replayed_cycles_total") == sum(t["replayed_cycles"] for t in told)
        assert await count("spares") == 3

    ask(scenario)


def test_readiness_is_what_keeps_the_rack_from_running_now() -> None:
    async def scenario(served: Served) -> None:
        rack, said = served.opened[0].rack, list[str]()
        recover = rack.recover

        def recovering(error: FaultError) -> Recovery:
            said.append(str(served.runner.condition()))
            return recover(error)

        rack.recover = recovering  # type: ignore[method-assign]
        lose(rack, 2)
        await text(served)
        assert said == ["recovering: chip 0, step x: lost; waiting for nothing"]
        assert (await served.client.get(READY)).json() == {"status": "ready", "racks": ["ready"]}
        rack.condition = lambda: "chip 1 has not been heard for 1.6 s"  # type: ignore[method-assign]
        refused = await served.client.get(READY)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        wanted = "the rack is not ready (chip 1 has not been heard for 1.6 s)"
        assert refused.json()["error"]["message"] == wanted
        assert (await served.client.get("/health")).status_code == 200
        assert (await text(served))["choices"]  # taken all the same: it may be heard again
        rack.condition = lambda: None  # type: ignore[method-assign]
        assert (await served.client.get(READY)).status_code == 200

    ask(scenario)


def test_a_server_that_drains_takes_no_more_and_ends_what_it_has() -> None:
    async def scenario(served: Served) -> None:
        door = served.service.door
        assert door.inside == 0
        door.inside, door.closed = 1, True
        wanted = "the server is draining: it ends after 1 request, and takes no more"
        for path in (CHAT, TEXT, "/v1/responses", "/tokenize"):
            refused = await served.client.post(path, json=chat())
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert refused.headers["x-request-id"].startswith("req_")
            assert refused.json()["error"]["message"] == wanted
        assert (await served.client.get(READY)).json()["error"]["message"] == wanted
        assert (await served.client.get("/health")).status_code == 200
        assert (await served.client.get("/metrics")).status_code == 200
        assert door.inside == 1
        door.inside = 2
        assert "it ends after 2 requests, and" in (await served.client.get(READY)).text
        door.inside, door.closed = 0, False
        assert (await served.client.post(CHAT, json=chat())).status_code == 200
        assert (await served.client.post(CHAT, json={})).status_code == 400
        assert door.inside == 0

    ask(scenario)


def test_a_recovery_is_a_line_in_either_form() -> None:
    recovery = Recovery(
        chips=(1, 4), step="step decode1/64", what="chip 1, step decode1/64:\nits process ended",
        detected_seconds=0.4321, wall_seconds=1.2345678, replayed_cycles=54321,
    )  # fmt: skip
    said = []
    for form in ("text", "json"):
        stream = io.StringIO()
        say_recovery(Notices(stream, form=form), 2, recovery, 3)
        said.append(stream.getvalue())
    assert said[0] == (
        "rack 2 goes on after a fault: chip 1, step decode1/64: its process ended; detected after "
        "0.43 s, replayed 54321 cycles, recovered in 1.23 s; spares left: 3\n"
    )
    line = json.loads(said[1])
    del line["time"]
    assert line == {
        "event": "recovery", "rack": 2, "what": "chip 1, step decode1/64: its process ended",
        "chip": 1, "chips": [1, 4], "step": "step decode1/64", "detected_seconds": 0.4321,
        "replayed_cycles": 54321, "wall_seconds": 1.234568, "schedule_hash": None,
        "spares_left": 3,
    }  # fmt: skip


def test_a_paced_answer_tells_how_long_it_stood_still() -> None:
    async def scenario(served: Served) -> None:
        rack = served.opened[0].rack
        recover = rack.recover

        def recovering(error: FaultError) -> Recovery:
            return replace(recover(error), detected_seconds=0.3)

        rack.recover = recovering  # type: ignore[method-assign]
        lose(rack, 2)
        marks = (await text(served))["x_rack"]
        (recovery,) = marks["recoveries"]
        assert recovery["detected_seconds"] == 0.3
        assert marks["slipped_seconds"]["total"] >= 0.3

    ask(scenario, pacer=Pacer(tiny().compiled.chip.clock_hz))


# -- the real thing

WORDS = ("tiny", "--transport", "process", "--layout", "2x1")
BODY = {
    "model": "tiny", "prompt": "hi", "max_tokens": 250, "ignore_eos": True, "temperature": 0,
    "stream": True,
}  # fmt: skip


class Stream:
    """A stream that is read in a thread."""

    def __init__(self, pool: ThreadPoolExecutor, url: str) -> None:
        self._seen: queue.Queue[None] = queue.Queue()
        self._all: Future[list[Any]] = pool.submit(self._read, url)

    def _read(self, url: str) -> list[Any]:
        out: list[Any] = []
        with httpx.stream("POST", url + TEXT, json=BODY, timeout=DEADLINE_SECONDS) as answer:
            for line in answer.iter_lines():
                if line:
                    data = line.removeprefix("data: ")
                    out.append(data if data == "[DONE]" else json.loads(data))
                    self._seen.put(None)
        return out

    def begun(self) -> None:
        self._seen.get(timeout=DEADLINE_SECONDS)

    @property
    def ended(self) -> bool:
        return self._all.done()

    def result(self) -> list[Any]:
        return self._all.result(DEADLINE_SECONDS)


def told(stream: Stream) -> tuple[str, Any, list[Any]]:
    """The text, what is emulated but for the queue, and the recoveries of a whole stream."""
    *chunks, last, done = stream.result()
    assert done == "[DONE]", last
    marks, usage = last["x_rack"], last["x_groq"]["usage"]
    cycles, _ = marks["emulated_cycles"], usage.pop("queue_time")
    emulated = marks["data_hash"], cycles["prompt"], cycles["completion"], usage
    written = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    return written, emulated, marks["recoveries"]


def process_of(running: ServerProcess, number: int) -> psutil.Process:
    """The process that was started as chip `number`: whose socket has that name."""
    (found,) = [
        one for one in psutil.Process(running.process.pid).children(recursive=True)
        if any(str(socket.laddr).endswith(f"/{number}") for socket in one.net_connections("unix"))
    ]  # fmt: skip
    return found


def until_ready_says(url: str, status: int, wanted: str) -> re.Match[str]:
    """Ask /health/ready until it says so; other 503s may come before."""
    deadline, pattern = time.monotonic() + DEADLINE_SECONDS, re.compile(wanted)
    while True:
        answer = httpx.get(url + READY, timeout=DEADLINE_SECONDS)
        found = pattern.search(answer.text)
        if answer.status_code == status and found is not None:
            return found
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.02)


def line_with(running: ServerProcess, word: str) -> str:
    seen = []
    while word not in (line := running.lines.get(timeout=DEADLINE_SECONDS)):
        seen.append(line)
        assert line, seen
    return line


@contextmanager
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


SILENT = r"the rack is not ready \(chip 1 has not been heard for (\d+\.\d) s\)"


@pytest.mark.slow
def test_a_stream_pauses_while_a_chip_is_lost_and_goes_on() -> None:
    with server(*WORDS, "--spares", "1") as running, pool() as threads:
        url = running.url
        text, emulated, none = told(Stream(threads, url))
        assert none == []

        chip = process_of(running, 1)
        asked = time.monotonic()
        until_ready_says(url, 200, '"ready"')
        chip.suspend()  # while nothing runs
        silent = until_ready_says(url, 503, SILENT)
        waited = time.monotonic() - asked
        assert SILENT_SECONDS <= float(silent[1]) + 0.05 <= SILENT_SECONDS + waited
        queued = Stream(threads, url)  # taken, although the chip says nothing
        until_ready_says(url, 503, SILENT)
        assert not queued.ended
        chip.resume()
        until_ready_says(url, 200, '"racks":\\["ready"\\]')
        assert told(queued) == (text, emulated, [])

        stream = Stream(threads, url)
        stream.begun()
        chip.suspend()  # in the midst of a stream
        until_ready_says(url, 503, SILENT)
        assert not stream.ended
        chip.kill()
        later = Stream(threads, url)  # waits for the recovery or comes after it
        paused, same, (recovery,) = told(stream)
        assert (paused, same) == (text, emulated)
        assert told(later) == (text, emulated, [])
        assert (recovery["chip"], recovery["chips"]) == (1, [1])
        assert recovery["step"].startswith("step ")
        assert recovery["detected_seconds"] >= SILENT_SECONDS
        assert recovery["replayed_cycles"] > 0
        line = line_with(running, "goes on after a fault")
        assert line.startswith("rack 0 goes on after a fault: chip 1, step ")
        assert f"replayed {recovery['replayed_cycles']} cycles, " in line
        assert line.endswith("spares left: 0\n")
        until_ready_says(url, 200, '"racks":\\["ready"\\]')
        metrics = httpx.get(url + "/metrics").text
        replayed = f'rack:replayed_cycles_total{{model_name="tiny"}} {recovery["replayed_cycles"]}'
        for wanted in ('rack:recoveries_total{model_name="tiny"} 1.0', replayed):
            assert wanted in metrics
        assert 'rack:spares{model_name="tiny"} 0.0' in metrics

        stream = Stream(threads, url)
        stream.begun()
        process_of(running, 0).suspend()
        assert not stream.ended
        process_of(running, 0).kill()  # and there is no spare left
        *_, last = stream.result()
        assert last["error"]["code"] == "rack_failed"
        assert "chip 0, step " in last["error"]["message"]
        line_with(running, "rack 0 is ready again")
        assert told(Stream(threads, url)) == (text, emulated, [])
        assert 'rack:spares{model_name="tiny"} 1.0' in httpx.get(url + "/metrics").text
        process_of(running, 1).kill()  # while nothing runs: replaced, and nobody is told but we
        line = line_with(running, "goes on after a fault")
        assert "chip 1, between steps: its process ended" in line
        assert told(Stream(threads, url)) == (text, emulated, [])
        assert running.end(signal.SIGTERM) == 0


@pytest.mark.slow
def test_a_server_drains_before_it_ends() -> None:
    with server(*WORDS, "--log", "none") as running, pool() as threads:
        stream = Stream(threads, running.url)
        stream.begun()
        chip = process_of(running, 1)
        chip.suspend()
        running.process.send_signal(signal.SIGTERM)
        line = line_with(running, "draining: ")
        assert line == (
            "draining: requests under way: 1; the server ends after them, within 25 s; "
            "a second signal ends it at once\n"
        )
        until_ready_says(running.url, 503, "the server is draining: it ends after 1 request")
        refused = httpx.post(running.url + TEXT, json=BODY, timeout=DEADLINE_SECONDS)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert running.process.poll() is None
        chip.resume()
        assert told(stream)[2] == []
        assert running.process.wait(DEADLINE_SECONDS) == 0


@pytest.mark.slow
@pytest.mark.parametrize("seconds", ["1", "25"])
def test_draining_ends_when_its_time_is_up_or_at_a_second_signal(seconds: str) -> None:
    with server(*WORDS, "--drain-seconds", seconds) as running, pool() as threads:
        stream = Stream(threads, running.url)
        stream.begun()
        chip = process_of(running, 1)
        chip.suspend()
        running.process.send_signal(signal.SIGTERM)
        line_with(running, f"within {seconds} s; a second signal")
        if seconds == "1":
            line = line_with(running, "draining: not ended")
            assert line == "draining: not ended within 1 s, and ended now: 1 requests\n"
        else:
            running.process.send_signal(signal.SIGTERM)
        *_, last = stream.result()
        assert last["error"]["message"] == "the server is stopping"
        chip.resume()
        assert running.process.wait(DEADLINE_SECONDS) == 0
