"""Requests that share a rack: slots and queue, cancels, failures, pace, the prefix cache."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import groq
import httpx
import pytest
from openai.types.responses import Response
from serve_kit import DEADLINE_SECONDS, Served, Steps, chat, serving, tiny, until
from test_rack_serve_metrics import scrape
from test_rack_serve_pacing import Clock, paced
from test_rack_serve_runner import RawClient, settled, waiting

from chip.errors import ChipError
from rack.run.completion import TokenEvent
from rack.run.session import Prepared, Session
from rack.serve.answers import ChatCompletion, TextCompletion
from rack.serve.limits import Limiter
from rack.serve.pacing import Pacer
from rack.serve.runner import Event, Finished, QueuedRequest, Runner
from rack.text.sampler import SamplingParams

CHAT, TEXT = "/openai/v1/chat/completions", "/v1/completions"
PIPELINE = "3x1+1"  # four stages: room for several sequences


def ask(scenario: Callable[[Served], Awaitable[Any]], **options: Any) -> Any:
    async def run() -> Any:
        async with serving(**options) as served:
            return await scenario(served)

    return asyncio.run(run())


def post(served: Served, **options: Any) -> "asyncio.Task[httpx.Response]":
    return asyncio.create_task(served.client.post(CHAT, json=chat(**options)))


async def cycles(task: "asyncio.Task[httpx.Response]") -> dict[str, int]:
    got: dict[str, int] = (await task).json()["x_rack"]["emulated_cycles"]
    return got


# -- slots


def test_requests_at_the_same_time_answer_as_each_alone() -> None:
    texts = ("hi", "how are you", "tell me more of it", "x", "and then")

    async def alone(served: Served) -> list[Any]:
        return [(await post(served, text=text, max_tokens=6)).json() for text in texts]

    async def together(served: Served) -> list[Any]:
        tasks = [post(served, text=text, max_tokens=6) for text in texts]
        return [(await task).json() for task in tasks]

    wanted = ask(alone, prepared=tiny(layout=PIPELINE))
    got = ask(together, prepared=tiny(layout=PIPELINE, sequences=3))
    for one, other in zip(wanted, got, strict=True):
        assert other["choices"] == one["choices"]
        assert other["x_rack"]["data_hash"] == one["x_rack"]["data_hash"]
        hz = tiny(layout=PIPELINE).compiled.chip.clock_hz
        waited = round(other["x_rack"]["waited_seconds"] * hz)
        parts, lone = other["x_rack"]["emulated_cycles"], one["x_rack"]["emulated_cycles"]
        passed = parts["prompt"] + parts["completion"] - waited
        assert passed == lone["prompt"] + lone["completion"]
        assert one["x_rack"]["waited_seconds"] == 0
    marks = got[0]["x_rack"]
    assert (marks["sequences"], marks["batch"], marks["prefix_cache"]) == (3, 1, False)


def test_queue_time_is_the_wait_for_a_slot_alone() -> None:
    async def scenario(served: Served) -> None:
        tasks = [post(served)]
        await until(steps.waiting)
        tasks += [post(served) for _ in range(3)]
        await settled(lambda: waiting(served) == 2)
        got = await scrape(served)
        assert got("vllm:num_requests_running") == 2
        assert got("vllm:num_requests_waiting") == 2
        assert got("rack:slots") == 2
        assert got("rack:slot_usage_perc") == 1
        steps.release(1000)
        first, second, third, fourth = [await cycles(task) for task in tasks]
        assert first["queue"] == second["queue"] == 0
        ends = sorted(one["prompt"] + one["completion"] for one in (first, second))
        assert (third["queue"], fourth["queue"]) == tuple(ends)
        assert (await scrape(served))("rack:slot_usage_perc") == 0

    steps = Steps(permits=0)
    ask(scenario, steps=steps, prepared=tiny("timing", 2, PIPELINE))


def test_the_cache_in_use_is_counted_over_all_slots() -> None:
    async def scenario(served: Served) -> None:
        task = post(served)
        await until(steps.waiting)  # before its first token; its prompt is in the cache
        prompt = len(tiny().tokenizer.apply_chat_template(chat()["messages"]))
        got = await scrape(served)
        assert got("vllm:kv_cache_usage_perc") == pytest.approx((prompt - 1) / (256 * 4))
        steps.release(100)
        await task

    steps = Steps(permits=1)
    ask(scenario, steps=steps, prepared=tiny("timing", 4))


def test_a_full_queue_is_refused_when_the_slots_are_taken_too() -> None:
    async def scenario(served: Served) -> None:
        tasks = [post(served) for _ in range(3)]
        await settled(lambda: served.runner.load == 3)
        refused = await post(served)
        assert refused.status_code == 503
        wanted = "1 requests are waiting, --max-queue is 1"
        assert refused.json()["error"]["message"] == wanted
        steps.release(1000)
        assert [(await task).status_code for task in tasks] == [200] * 3

    steps = Steps(permits=0)
    ask(scenario, steps=steps, max_queue=1, prepared=tiny("timing", 2))


# -- who leaves, and what fails


def test_a_client_that_leaves_frees_its_slot_before_its_next_step() -> None:
    async def scenario(served: Served) -> None:
        client = RawClient(served, stream=True, max_tokens=200, ignore_eos=True)
        call = client.start()
        async with asyncio.timeout(DEADLINE_SECONDS):
            await client.first_chunk.wait()
            await until(steps.waiting)  # in its third step
            other = post(served, max_tokens=3)
            late = post(served, max_tokens=3)
            await settled(lambda: waiting(served) == 1)
            client.gone.set()
            await call
        steps.release(1000)
        others = [(await task).json() for task in (other, late)]
        # the step under way of who left, then a chunk and three tokens of each of the others
        assert steps.done == 3 + 2 * 4
        assert served.runner.running == []
        alone = (await post(served, max_tokens=3)).json()
        assert [one["choices"] for one in others] == [alone["choices"]] * 2

    steps = Steps(permits=2)  # a chunk and the first token
    ask(scenario, steps=steps, prepared=tiny(sequences=2))


def test_a_failed_step_ends_all_that_are_in_flight_and_names_the_cause() -> None:
    async def scenario(served: Served) -> None:
        good = (await post(served)).json()
        steps.hold()
        tasks = [post(served, stream=stream) for stream in (False, False, True)]
        await settled(lambda: served.runner.load == 3)
        waits = post(served)
        await settled(lambda: waiting(served) == 1)
        steps.release(5)  # all three have begun
        await until(steps.waiting)
        steps.fail_next = ChipError("chip 0, cycle 12: MXM on fire")
        steps.release(1000)
        for task in tasks:
            failed = await task
            told = failed.text if failed.status_code == 200 else failed.json()["error"]["message"]
            assert "ChipError: chip 0, cycle 12: MXM on fire" in told
        again = (await waits).json()
        assert len(served.opened) == 2
        assert again["choices"] == good["choices"]
        assert again["x_rack"]["data_hash"] == good["x_rack"]["data_hash"]
        assert again["x_rack"]["emulated_cycles"]["prompt"] > 0

    steps = Steps()
    ask(scenario, steps=steps, prepared=tiny(layout=PIPELINE, sequences=3))


def test_who_has_a_slot_but_no_step_yet_is_for_the_next_rack() -> None:
    async def scenario(served: Served) -> None:
        task = post(served)
        await until(steps.waiting)
        late = post(served)  # has the second slot, and the rack's thread does not know it yet
        await settled(lambda: len(served.runner.running) == 2)
        steps.fail_next = ChipError("boom")
        steps.release(1000)
        assert (await task).status_code == 500
        assert (await late).status_code == 200
        assert len(served.opened) == 2

    steps = Steps(permits=0)
    ask(scenario, steps=steps, prepared=tiny("timing", 2))


# -- pace


@contextmanager
def running(prepared: Prepared, pacer: Pacer | None = None, **options: Any) -> Iterator[Runner]:
    ready = threading.Event()
    runner = Runner(
        lambda report: Session(prepared, report), max_queue=99, pacer=pacer, on_ready=ready.set,
        **options,
    )  # fmt: skip
    runner.start()
    try:
        assert ready.wait(DEADLINE_SECONDS)
        yield runner
    finally:
        assert runner.stop(DEADLINE_SECONDS)


class Job:
    """A request whose events are kept, each with the time by a clock at which it came."""

    def __init__(self, clock: Clock, prompt: int, tokens: int, arrived: float) -> None:
        self.events: list[tuple[float, Event]] = []
        self.ended = threading.Event()
        self.arrived = arrived
        self._clock = clock
        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        self.request = QueuedRequest([1] * prompt, params, self._take, arrived)

    def _take(self, event: Event) -> None:
        self.events.append((self._clock.now, event))
        if not isinstance(event, TokenEvent):
            self.ended.set()

    def check(self, clock_hz: float) -> Finished:
        """Every token came at its cycle, counted from the arrival."""
        assert self.ended.wait(DEADLINE_SECONDS)
        totals = self.events[-1][1]
        assert isinstance(totals, Finished), totals
        cycles = totals.prompt_cycles
        for when, event in self.events[:-1]:
            assert isinstance(event, TokenEvent)
            cycles += event.emulated_cycles
            at = self.arrived + (totals.queue_cycles + cycles) / clock_hz
            assert when == pytest.approx(at, abs=3e-6)
        return totals


def test_paced_streams_begin_when_they_come_and_keep_their_own_time() -> None:
    """Eight streams of the timing executor; a clock is turned by hand, no time is lost."""
    prepared = tiny("timing", 8, PIPELINE)
    hz = prepared.compiled.chip.clock_hz
    start, clock = 2e6, Clock(now=2e6)
    arrivals = [start + n * 1.7e-5 for n in range(8)]  # a step takes 3.8e-5 s
    jobs = [Job(clock, 12 + n, 20, at) for n, at in enumerate(arrivals)]
    pacer, late = paced(clock, hz)
    sleep, left = clock.sleep, list(jobs[1:])

    def sleeping(seconds: float) -> None:
        """Sleep; who comes meanwhile is there at its end."""
        sleep(seconds)
        while left and left[0].arrived <= clock.now:
            runner.submit(left.pop(0).request)

    pacer = Pacer(hz, late=late.append, clock=clock.read, sleep=sleeping)
    with running(prepared, pacer) as runner:
        pacer.begin(clock.now)
        runner.submit(jobs[0].request)
        got = [job.check(hz) for job in jobs]
    assert [one.queue_cycles for one in got] == [0] * 8
    engine = Session(prepared).engine
    for n, one in enumerate(got):
        lone = engine.generate([1] * (12 + n), SamplingParams(max_tokens=20, ignore_eos=True)).run()
        alone = lone.prompt_cycles + sum(lone.decode_cycles)
        assert one.prompt_cycles + one.completion_cycles - one.waited_cycles == alone
    assert max(late) < 1e-5


def test_a_paced_request_that_waits_for_a_slot_is_queued_until_it_is_free() -> None:
    prepared = tiny("timing", 1)
    hz, clock = prepared.compiled.chip.clock_hz, Clock(now=2e6)
    pacer, _ = paced(clock, hz)
    jobs = [Job(clock, 5, 4, clock.now) for _ in range(2)]
    with running(prepared, pacer) as runner:
        pacer.begin(clock.now)
        with runner._changed:  # both are there before the first begins
            for job in jobs:
                runner.submit(job.request)
        first, second = [job.check(hz) for job in jobs]
    assert first.queue_cycles == 0
    assert second.queue_cycles == first.prompt_cycles + first.completion_cycles


def test_a_slow_executor_moves_the_schedule_of_all_streams_alike() -> None:
    prepared = tiny("timing", 2, PIPELINE)
    hz, clock = prepared.compiled.chip.clock_hz, Clock(now=2e6)
    pacer, _ = paced(clock, hz)
    jobs = [Job(clock, 3, 6, clock.now) for _ in range(2)]
    promised: list[list[float]] = [[], []]
    for job, due in zip(jobs, promised, strict=True):
        take = job.request.emit

        def emit(event: Event, job: Job = job, due: list[float] = due, take: Any = take) -> None:
            if isinstance(event, TokenEvent):
                assert job.request.promised_seconds is not None
                due.append(clock.now - job.request.promised_seconds)
                if job is jobs[0] and len(due) == 2:
                    clock.now += 1.0  # the computer was busy
            take(event)

        job.request.emit = emit
    with running(prepared, pacer) as runner:
        pacer.begin(clock.now)
        with runner._changed:
            for job in jobs:
                runner.submit(job.request)
        for job in jobs:
            assert job.ended.wait(DEADLINE_SECONDS)
    assert pacer.slipped_seconds == pytest.approx(1.0, abs=1e-3)
    for due in promised:
        assert due[:2] == pytest.approx([0.0, 0.0], abs=1.1)
        assert due[2:] == pytest.approx([1.0] * 4, abs=1e-3)


# -- the prefix cache

STORY = "Once upon a time there was a little girl who lived in a house by the sea and " * 2


def cached(body: Any) -> int:
    count: int = body["usage"]["prompt_tokens_details"]["cached_tokens"]
    return count


def test_a_prompt_that_begins_alike_is_run_from_its_end() -> None:
    async def scenario(served: Served) -> list[Any]:
        out = []
        for text in (STORY, STORY, STORY + "more"):
            out.append((await post(served, text=text)).json())
        got = await scrape(served)
        total = sum(one["usage"]["prompt_tokens"] for one in out)
        on = out[0]["x_rack"]["prefix_cache"]
        assert got("vllm:prefix_cache_queries_total") == (total if on else 0)
        assert got("vllm:prefix_cache_hits_total") == sum(map(cached, out))
        return out

    prepared = tiny(sequences=2, prefill_chunk=16)
    plain = ask(scenario, prepared=prepared)
    reused = ask(scenario, prepared=prepared, prefix_cache=True)
    assert [cached(one) for one in plain] == [0, 0, 0]
    assert all("usage" not in one["x_groq"] for one in plain)
    length = plain[0]["usage"]["prompt_tokens"]
    whole = (length - 1) // 16 * 16
    assert [cached(one) for one in reused] == [0, whole, whole]
    for one, other in zip(plain, reused, strict=True):
        ChatCompletion.model_validate(other)
        assert other["choices"] == one["choices"]
        assert other["x_rack"]["data_hash"] == one["x_rack"]["data_hash"]
        assert other["x_groq"]["usage"] == {"sram_cached_tokens": cached(other)}
        assert other["x_rack"]["prefix_cache"]
        assert other["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    assert reused[0]["usage"] == plain[0]["usage"]
    assert reused[1]["usage"]["prompt_time"] < plain[1]["usage"]["prompt_time"] / 2


def test_every_route_tells_of_cached_tokens() -> None:
    async def scenario(served: Served) -> None:
        text = {"model": "tiny", "prompt": [5] * 40, "max_tokens": 2}
        for wanted in (0, 32):
            body = (await served.client.post(TEXT, json=text)).json()
            TextCompletion.model_validate(body)
            assert cached(body) == body["x_groq"]["usage"]["sram_cached_tokens"] == wanted
        several = text | {"prompt": [[5] * 40, [5] * 20]}
        both = (await served.client.post(TEXT, json=several)).json()
        assert cached(both) == 32  # the other slot was empty
        for wanted in (0, 160):
            answer = await served.client.post(
                "/v1/responses", json={"model": "tiny", "input": STORY}
            )
            response = Response.model_validate(answer.json())
            assert response.usage is not None
            assert response.usage.input_tokens_details.cached_tokens == wanted
        transport = httpx.ASGITransport(served.app)
        told = []
        async with (
            httpx.AsyncClient(transport=transport) as http,
            groq.AsyncGroq(base_url="http://rack", api_key="x", http_client=http) as client,
        ):
            async for chunk in await client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": STORY}], stream=True,
                max_tokens=2,
            ):  # fmt: skip
                if chunk.x_groq and chunk.x_groq.usage:
                    told.append(chunk.x_groq.usage.to_dict())
        assert told[0]["prompt_tokens_details"] == {"cached_tokens": 160}
        assert told[0]["sram_cached_tokens"] == 160

    ask(scenario, prepared=tiny("timing", 2, prefill_chunk=16), prefix_cache=True)


def test_cached_tokens_do_not_count_to_rate_limits() -> None:
    async def scenario(served: Served) -> None:
        async def left() -> int:
            answer = await served.client.get("/v1/models")
            del answer
            return int(limiter.headers("anyone", "tiny")["x-ratelimit-remaining-tokens"])

        text = {"model": "tiny", "prompt": [5] * 40, "max_tokens": 8, "ignore_eos": True}
        assert (await served.client.post(TEXT, json=text)).status_code == 200
        assert await left() == 1000 - 48
        steps.hold()
        task = asyncio.create_task(served.client.post(TEXT, json=text))
        await settled(lambda: served.runner.load == 1)
        assert await left() == 1000 - 2 * 48
        steps.release(3)  # the rest of the prompt and a token, of which it is known
        async with asyncio.timeout(DEADLINE_SECONDS):
            while await left() != 1000 - 2 * 48 + 32:
                await asyncio.sleep(0)
        steps.release(100)
        assert cached((await task).json()) == 32
        assert await left() == 1000 - 2 * 48 + 32

    steps = Steps()
    limiter = Limiter(lambda key, model: {"tokens_per_minute": 1000}, lambda: 1000.0)
    prepared = tiny("timing", 2, prefill_chunk=16)
    ask(scenario, prepared=prepared, prefix_cache=True, limiter=limiter, steps=steps)


def test_what_a_client_that_left_had_begun_is_whole_before_it_is_reused() -> None:
    """The rack has not run the chunk that was begun; the next prompt counts on it."""

    async def scenario(served: Served) -> None:
        client = RawClient(served, text=STORY, max_tokens=4)
        call = client.start()
        async with asyncio.timeout(DEADLINE_SECONDS):
            await until(steps.waiting)  # for its second chunk
            client.gone.set()
            await call
            steps.release(1000)
            await settled_soon(lambda: not served.runner.running)
        again = (await post(served, text=STORY)).json()
        assert cached(again) == 32
        assert again["x_rack"]["data_hash"] == wanted["x_rack"]["data_hash"]

    async def alone(served: Served) -> Any:
        return (await post(served, text=STORY)).json()

    prepared = tiny(layout="2x1", sequences=1, prefill_chunk=16)
    wanted, steps = ask(alone, prepared=prepared), Steps(permits=1)
    ask(scenario, prepared=prepared, prefix_cache=True, steps=steps)


async def settled_soon(condition: Callable[[], bool]) -> None:
    """Let other threads run until a condition holds; whoever waits has a deadline."""
    while not condition():
        await asyncio.sleep(0.001)
