"""Several racks behind one server: the shortest queue first, and racks that fail."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from serve_kit import DEADLINE_SECONDS, Steps, chat, tiny, until

from chip.errors import ChipError
from rack.run.session import Session
from rack.serve.dispatch import Dispatcher
from rack.serve.errors import BusyError
from rack.serve.pacing import Unpaced
from rack.serve.runner import Failed, Finished, QueuedRequest, Runner
from rack.system.progress import Progress
from rack.text.sampler import SamplingParams


class Since(Unpaced):
    """A pacer of a rack that is free since some time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    @property
    def due_seconds(self) -> float:
        return self._seconds


def test_a_tie_goes_to_the_rack_that_has_been_free_for_longest() -> None:
    """So that a request never waits for a rack although another was free when it came."""

    async def scenario() -> None:
        async with Fleet(3) as fleet:
            for runner, since in zip(fleet.racks.runners, (30.0, 10.0, 20.0), strict=True):
                runner.pacer = Since(since)
            taken = [fleet.racks.submit(fleet.job()[0]) for _ in range(4)]
            places = [fleet.racks.runners.index(runner) for runner in taken]
            assert places == [1, 2, 0, 1]

    asyncio.run(scenario())


class Fleet:
    """Racks whose steps wait to be told."""

    def __init__(
        self, count: int, *, permits: int | None = 0, max_queue: int = 8, restarts: bool = True
    ) -> None:
        self.restarts = restarts
        self.steps = [Steps(permits) for _ in range(count)]
        self._ready = [threading.Event() for _ in range(count)]
        self.racks = Dispatcher(
            [
                Runner(self._opener(steps), max_queue=max_queue, on_ready=ready.set, pauses=(0.0,))
                for steps, ready in zip(self.steps, self._ready, strict=True)
            ]
        )

    def _opener(self, steps: Steps) -> Callable[[Progress], Session]:
        opened: list[Session] = []

        def open_session(report: Progress) -> Session:
            if opened and not self.restarts:
                raise ChipError("no memory")
            session = Session(tiny(), report)
            opened.append(session)
            steps.stand_before(session.rack)
            return session

        return open_session

    async def __aenter__(self) -> "Fleet":
        self.racks.start()
        await self.until_ready()
        return self

    async def until_ready(self) -> None:
        for ready in self._ready:
            await until(ready)

    async def __aexit__(self, *_: object) -> None:
        self.racks.request_stop()
        for steps in self.steps:
            steps.end()
        assert await asyncio.to_thread(self.racks.stop, DEADLINE_SECONDS)

    def job(self) -> tuple[QueuedRequest, "asyncio.Future[Any]"]:
        """Return a request and what it will end with."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Any] = loop.create_future()

        def emit(event: Any) -> None:
            if isinstance(event, Finished | Failed):
                loop.call_soon_threadsafe(ended.set_result, event)

        messages = tiny().tokenizer.apply_chat_template(chat()["messages"])
        return QueuedRequest(messages, SamplingParams(max_tokens=3), emit), ended


def test_the_shortest_queue_takes_the_request() -> None:
    async def scenario() -> None:
        async with Fleet(3) as fleet:
            racks, jobs = fleet.racks, [fleet.job() for _ in range(7)]
            taken = [racks.runners.index(racks.submit(job)) for job, _ in jobs]
            assert taken == [0, 1, 2, 0, 1, 2, 0]
            assert (racks.running, racks.waiting) == (3, 4)
            racks.runners[1].cancel(jobs[4][0])  # rack 1's queue is the shortest now
            extra, ended = fleet.job()
            assert racks.submit(extra) is racks.runners[1]
            for steps in fleet.steps:
                steps.release(100)
            results = await asyncio.gather(
                ended, *(future for job, future in jobs if job is not jobs[4][0])
            )
            assert len({result.data_hash for result in results}) == 1  # whichever rack ran it
            assert (racks.running, racks.waiting) <= (3, 0)

    asyncio.run(scenario())


def test_refused_only_when_all_queues_are_full() -> None:
    async def scenario() -> None:
        async with Fleet(2, max_queue=1) as fleet:
            for _ in range(4):
                fleet.racks.submit(fleet.job()[0])
            with pytest.raises(BusyError, match="1 requests are waiting, --max-queue is 1"):
                fleet.racks.submit(fleet.job()[0])
            fleet.racks.request_stop()
            for steps in fleet.steps:
                steps.release(100)

    asyncio.run(scenario())


def test_a_failed_rack_is_passed_over_until_it_is_back() -> None:
    async def scenario() -> None:
        async with Fleet(2, permits=None) as fleet:
            racks, broken = fleet.racks, fleet.racks.runners[0]
            for ready in fleet._ready:
                ready.clear()
            fleet.steps[0].fail_next = ChipError("boom")
            job, ended = fleet.job()
            assert racks.submit(job) is broken
            assert isinstance(await ended, Failed)
            if broken.stage is not None:  # not back yet
                job, ended = fleet.job()
                assert racks.submit(job) is racks.runners[1]
                assert isinstance(await ended, Finished)
            await until(fleet._ready[0])
            assert racks.ready == list(racks.runners)

    asyncio.run(scenario())


def test_a_rack_that_says_nothing_is_passed_over_while_there_is_another() -> None:
    async def scenario() -> None:
        async with Fleet(2) as fleet:
            racks, why = fleet.racks, "chip 1 has not been heard for 1.6 s"
            assert racks.check_running() == ["ready", "ready"]
            for runner, states in zip(racks.runners, ([why, "ready"], [why, why]), strict=True):
                assert runner._sequences is not None
                runner._sequences.rack.condition = lambda: why  # type: ignore[method-assign]
                assert racks.states == states
            wanted = rf"no rack is ready \(rack 0: {why}; rack 1: {why}\)"
            with pytest.raises(BusyError, match=wanted):
                racks.check_running()
            assert racks.submit(fleet.job()[0]) is racks.runners[0]  # it waits there
            assert racks.runners[1]._sequences is not None
            racks.runners[1]._sequences.rack.condition = lambda: None  # type: ignore[method-assign]
            assert racks.check_running() == [why, "ready"]
            for _ in range(2):
                assert racks.submit(fleet.job()[0]) is racks.runners[1]

    asyncio.run(scenario())


def test_a_rack_that_was_given_up_leaves_the_others_alone() -> None:
    async def scenario() -> None:
        async with Fleet(2, permits=None, restarts=False) as fleet:
            racks, broken = fleet.racks, fleet.racks.runners[0]
            fleet.steps[0].fail_next = ChipError("boom")
            job, ended = fleet.job()
            assert racks.submit(job) is broken
            assert isinstance(await ended, Failed)
            await asyncio.to_thread(broken._thread.join, DEADLINE_SECONDS)
            assert racks.states == ["given up: no memory", "ready"]
            assert (broken.given_up, racks.given_up) == (True, False)
            for _ in range(3):
                job, ended = fleet.job()
                assert racks.submit(job) is racks.runners[1]
                assert isinstance(await ended, Finished)
            fleet.steps[1].fail_next = ChipError("boom")
            job, ended = fleet.job()
            racks.submit(job)
            await asyncio.to_thread(racks.runners[1]._thread.join, DEADLINE_SECONDS)
            assert racks.given_up
            wanted = (
                r"no rack is ready \(rack 0: given up: no memory; rack 1: given up: no memory\)"
            )
            with pytest.raises(BusyError, match=wanted):
                racks.submit(fleet.job()[0])

    asyncio.run(scenario())


def test_not_ready_names_the_stages() -> None:
    racks = Fleet(2).racks
    wanted = r"no rack is ready \(rack 0: starting; rack 1: starting\)"
    with pytest.raises(BusyError, match=wanted):
        racks.check_ready()
    with pytest.raises(BusyError, match=wanted):
        racks.submit(QueuedRequest([1], SamplingParams(), lambda event: None))
    assert racks.stop(1.0)
    with pytest.raises(BusyError, match=r"\(rack 0: stopping; rack 1: stopping\)"):
        racks.check_ready()
    one = Fleet(1).racks
    with pytest.raises(BusyError, match=r"the rack is not ready \(starting\)"):
        one.submit(QueuedRequest([1], SamplingParams(), lambda event: None))
