"""One rack, many clients: the queue, clients that leave, steps that fail, starting and stopping."""

import asyncio
import json
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import httpx
import pytest
from serve_kit import DEADLINE_SECONDS, Served, Steps, chat, events, serving, tiny, until

from chip.errors import ChipError
from rack.errors import ChipFailedError, ConfigError, RequestError
from rack.run.completion import TokenEvent
from rack.run.session import Session
from rack.serve.runner import Event, Failed, Finished, QueuedRequest, Runner
from rack.system.progress import Progress
from rack.text.grammar import json_grammar
from rack.text.sampler import SamplingParams

CHAT = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def _looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rack.serve.runner.IDLE_CHECK_SECONDS", 0.02)


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


def post(served: Served, **options: Any) -> "asyncio.Task[httpx.Response]":
    return asyncio.create_task(served.client.post(CHAT, json=chat(**options)))


async def settled(condition: Callable[[], bool]) -> None:
    """Let other tasks run until a condition holds; it needs no other thread."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("never settled")


def waiting(served: Served) -> int:
    return len(served.runner._waiting)


async def fill(served: Served, steps: Steps, count: int) -> "list[asyncio.Task[httpx.Response]]":
    """Have one request held in its first step, and `count` more waiting."""
    tasks = [post(served)]
    await until(steps.waiting)
    for number in range(1, count + 1):
        tasks.append(post(served))
        await settled(lambda number=number: waiting(served) == number)  # type: ignore[misc]
    return tasks


def test_queue_time_is_the_emulated_work_that_ran_ahead() -> None:
    async def scenario() -> None:
        steps = Steps(permits=0)
        async with serving(steps=steps) as served:
            tasks = await fill(served, steps, 2)
            steps.release(100)
            answers = [(await task).json()["x_rack"]["emulated_cycles"] for task in tasks]
            work = answers[0]["prompt"] + answers[0]["completion"]
            assert [answer["queue"] for answer in answers] == [0, work, 2 * work]
            assert served.runner.cycles == 3 * work

    run(scenario)


def test_a_full_queue_is_refused() -> None:
    async def scenario() -> None:
        steps = Steps(permits=0)
        async with serving(steps=steps, max_queue=1) as served:
            tasks = await fill(served, steps, 1)
            refused = await post(served)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"] == {
                "message": "1 requests are waiting, --max-queue is 1",
                "type": "service_unavailable", "code": "service_unavailable", "param": None,
            }  # fmt: skip
            steps.release(100)
            assert [(await task).status_code for task in tasks] == [200, 200]

    run(scenario)


def test_not_ready_while_starting() -> None:
    async def scenario() -> None:
        go, reached = threading.Event(), threading.Event()

        def opening(report: Progress) -> None:
            report("loading weights", 1, 4)
            reached.set()
            assert go.wait(30)

        async with serving(opening=opening, wait=False) as served:
            await until(reached)
            assert (await served.client.get("/health")).status_code == 200
            for response in (await served.client.get("/health/ready"), await post(served)):
                assert response.status_code == 503
                assert response.headers["retry-after"] == "5"
                message = response.json()["error"]["message"]
                assert message == "the rack is not ready (loading weights 1/4)"
            go.set()
            await served.until_ready()
            assert (await served.client.get("/health/ready")).status_code == 200

    run(scenario)


def test_stop_while_starting() -> None:
    async def scenario() -> None:
        go, reached = threading.Event(), threading.Event()

        def opening(report: Progress) -> None:
            reached.set()
            assert go.wait(30)
            report("chips", 1, 2)  # raises StoppedError
            raise AssertionError("must not go on")

        async with serving(opening=opening, wait=False) as served:
            await until(reached)
            served.runner.request_stop()
            go.set()
        assert served.fatal == []
        assert served.opened == []

    run(scenario)


def test_a_rack_that_does_not_start_is_fatal() -> None:
    async def scenario() -> None:
        told = threading.Event()

        def opening(report: Progress) -> None:
            told.set()
            raise ConfigError("no such rack")

        async with serving(opening=opening, wait=False) as served:
            await until(told)
        assert [str(error) for error in served.fatal] == ["no such rack"]

    run(scenario)


def test_a_failed_step_is_500_and_a_fresh_rack_follows() -> None:
    async def scenario() -> None:
        steps = Steps()
        async with serving(steps=steps) as served:
            good = (await post(served)).json()
            steps.fail_next = ChipError("chip 0, cycle 12: MXM on fire")
            bad = await post(served)
            assert bad.status_code == 500
            assert bad.json()["error"] == {
                "message": "ChipError: chip 0, cycle 12: MXM on fire",
                "type": "internal_server_error", "code": "rack_failed", "param": None,
            }  # fmt: skip
            await served.until_ready()
            assert len(served.opened) == 2
            again = (await post(served)).json()
            assert again["choices"] == good["choices"]
            assert again["x_rack"]["data_hash"] == good["x_rack"]["data_hash"]

    run(scenario)


class Openings:
    """What opening a rack does, in order; the last one again and again."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors, self.count = list(errors), 0

    def __call__(self, report: Progress) -> None:
        error = self.errors[min(self.count, len(self.errors) - 1)]
        self.count += 1
        if error is not None:
            raise error


def lost(served: Served) -> None:
    """Let a chip of the rack die while nothing runs."""

    def check() -> None:
        raise ChipFailedError(chip=2, step="between steps", what="ended", waiting_for="nothing")

    served.opened[-1].rack.check = check  # type: ignore[method-assign]


LOST = "chip 2, between steps: ended; waiting for nothing"


def test_a_restart_that_fails_is_tried_again_after_a_pause() -> None:
    async def scenario() -> None:
        steps, no = Steps(permits=0), ChipError("no memory")
        openings = Openings(None, no, no, None)
        async with serving(steps=steps, opening=openings, pauses=(0.0, 0.01, 0.02)) as served:
            tasks = await fill(served, steps, 1)
            steps.fail_next = ChipError("boom")
            steps.release(100)
            failed, waited = [await task for task in tasks]
            assert failed.status_code == 500
            assert waited.status_code == 503  # elsewhere it may be answered sooner
            wanted = "the rack is not ready (restarting after a failure)"
            assert waited.json()["error"]["message"] == wanted
            await served.until_ready()
            assert served.losses == [("boom", 0.0), ("no memory", 0.0), ("no memory", 0.01)]
            assert (await post(served)).status_code == 200
        assert served.fatal == []

    run(scenario)


def test_a_rack_that_cannot_be_started_again_is_given_up() -> None:
    async def scenario() -> None:
        openings = Openings(None, ChipError("no memory"))
        async with serving(opening=openings, pauses=(0.0, 0.01)) as served:
            lost(served)
            assert await asyncio.to_thread(served.runner._thread.join, DEADLINE_SECONDS) is None
            assert [str(error) for error in served.fatal] == ["no memory"]
            assert served.losses == [(LOST, 0.0), ("no memory", 0.01)]
            refused = await served.client.get("/health/ready")
            assert refused.status_code == 503
            wanted = "the rack is not ready (given up: no memory)"
            assert refused.json()["error"]["message"] == wanted
            assert (await post(served)).json()["error"]["message"] == wanted

    run(scenario)


def test_a_chip_that_dies_while_nothing_runs_is_noticed() -> None:
    async def scenario() -> None:
        async with serving() as served:
            good = (await post(served)).json()
            for count in (1, 2):
                lost(served)
                await served.until_ready()
                assert len(served.opened) == 1 + count
                again = (await post(served)).json()
                assert again["choices"] == good["choices"]
            assert served.losses == [(LOST, 0.0)] * 2  # a request in between: the count is reset

    run(scenario)


def test_a_stop_ends_the_pause_before_a_start() -> None:
    async def scenario() -> None:
        openings = Openings(None, ChipError("no memory"))
        async with serving(opening=openings, pauses=(0.0, 3600.0)) as served:
            lost(served)
            while len(served.losses) < 2:
                await asyncio.sleep(0.01)
        assert served.fatal == []
        assert openings.count == 2

    run(scenario)


def test_what_waits_during_a_failure_runs_on_the_fresh_rack() -> None:
    async def scenario() -> None:
        steps = Steps(permits=0)
        async with serving(steps=steps) as served:
            tasks = await fill(served, steps, 1)
            steps.fail_next = ChipError("boom")
            steps.release(100)
            assert [(await task).status_code for task in tasks] == [500, 200]
            assert len(served.opened) == 2

    run(scenario)


def test_failure_in_mid_stream_is_an_event() -> None:
    async def scenario() -> None:
        prefill, decode = 1, 2
        steps = Steps(permits=prefill + decode)
        async with serving(steps=steps) as served:
            task = post(served, stream=True)
            await steps.ran(prefill + decode)
            steps.fail_next = ChipError("boom")
            steps.release(100)
            response = await task
            *chunks, last = events(response.text)
            assert response.status_code == 200
            assert len(chunks) == 1 + decode  # the role, then a chunk a token
            assert last["error"]["message"] == "ChipError: boom"
            assert "[DONE]" not in response.text

    run(scenario)


def test_a_request_that_cannot_be_done_after_all_leaves_the_rack_running() -> None:
    opened: list[Session] = []
    prepared, ready = tiny(), threading.Event()
    got: queue.Queue[Event] = queue.Queue()

    def open_session(report: Progress) -> Session:
        opened.append(Session(prepared, report))
        return opened[-1]

    runner = Runner(open_session, max_queue=2, on_ready=ready.set)
    bogus = json_grammar({"type": "bogus"}, "response_format")
    runner.start()
    try:
        assert ready.wait(DEADLINE_SECONDS)
        for grammar in (bogus, None):  # the service would have refused the first
            params = SamplingParams(grammar=grammar, max_tokens=1)
            runner.submit(QueuedRequest([1], params, got.put))
        first, second, third = (got.get(timeout=DEADLINE_SECONDS) for _ in range(3))
    finally:
        assert runner.stop(DEADLINE_SECONDS)
    assert isinstance(first, Failed)
    assert isinstance(first.error, RequestError)
    assert isinstance(second, TokenEvent)
    assert isinstance(third, Finished)
    assert len(opened) == 1


class RawClient:
    """Speaks ASGI to the app, to leave at a chosen moment."""

    def __init__(self, served: Served, **options: Any) -> None:
        self.app, self.body = served.app, json.dumps(chat(**options)).encode()
        self.gone, self.sent_body = asyncio.Event(), False
        self.first_chunk = asyncio.Event()
        self.sent: list[Any] = []

    def start(self) -> "asyncio.Task[None]":
        scope = {
            "type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(),
            "headers": [], "query_string": b"", "root_path": "", "scheme": "http",
            "http_version": "1.1", "server": ("rack", 80), "client": ("me", 1),
            "asgi": {"version": "3.0", "spec_version": "2.3"},
        }  # fmt: skip
        call: Awaitable[None] = self.app(scope, self._receive, self._send)
        return asyncio.ensure_future(call)  # type: ignore[return-value]

    async def _receive(self) -> dict[str, Any]:
        if not self.sent_body:
            self.sent_body = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body" and message["body"]:
            self.first_chunk.set()


def test_a_client_that_leaves_in_mid_stream_frees_the_rack() -> None:
    async def scenario() -> None:
        steps = Steps(permits=2)  # prefill and the first token
        async with serving(steps=steps) as served:
            client = RawClient(served, stream=True, max_tokens=200, ignore_eos=True)
            call = client.start()
            async with asyncio.timeout(30):
                await client.first_chunk.wait()
                await until(steps.waiting)  # in its third step
                client.gone.set()
                await call
            steps.release(100)
            after = (await post(served)).json()
            assert steps.done == 3 + 1 + 4  # the step under way, then only the next request's
        async with serving() as fresh:
            alone = (await post(fresh)).json()
        assert after["choices"] == alone["choices"]
        assert after["x_rack"]["data_hash"] == alone["x_rack"]["data_hash"]

    run(scenario)


def test_a_client_that_leaves_before_its_answer_frees_the_rack() -> None:
    async def scenario() -> None:
        for stream in (False, True):
            steps = Steps(permits=0)
            async with serving(steps=steps) as served:
                running = RawClient(served, stream=stream, max_tokens=200)
                first = running.start()
                await until(steps.waiting)
                queued = RawClient(served, stream=stream, max_tokens=200)
                second = queued.start()
                await settled(lambda: waiting(served) == 1)
                async with asyncio.timeout(30):
                    for client, call in ((queued, second), (running, first)):
                        client.gone.set()
                        await call
                        assert client.sent[0]["status"] == 499
                assert waiting(served) == 0
                steps.release(100)
                assert (await post(served)).status_code == 200
                assert steps.done == 1 + 1 + 4

    run(scenario)


def test_stop_ends_what_runs_and_what_waits() -> None:
    async def scenario() -> None:
        steps = Steps(permits=0)
        async with serving(steps=steps) as served:
            tasks = await fill(served, steps, 1)
            served.runner.request_stop()
            steps.release(100)
            for task in tasks:
                response = await task
                assert response.status_code == 503
                assert response.json()["error"]["message"] == "the server is stopping"
            late = await post(served)
            assert late.json()["error"]["message"] == "the rack is not ready (stopping)"

    run(scenario)
