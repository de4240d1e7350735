"""Pacing: due times on one cumulative schedule, kept by a clock that the tests turn by hand."""

import queue
import threading
from dataclasses import dataclass, field

import pytest
from serve_kit import DEADLINE_SECONDS, tiny

from rack.run.completion import TokenEvent
from rack.run.session import Session
from rack.serve.pacing import SLIP_SECONDS, Pacer, Slip, Unpaced
from rack.serve.runner import Event, Finished, QueuedRequest, Runner
from rack.text.sampler import SamplingParams

HZ = 1000.0  # a cycle is a millisecond


@dataclass
class Clock:
    """Time that passes only in sleep, a little longer than asked for, or when told."""

    now: float = 100.0
    oversleep: float = 0.0
    slept: list[float] = field(default_factory=list)

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.now += seconds + self.oversleep


def paced(clock: Clock, clock_hz: float = HZ) -> tuple[Pacer, list[float]]:
    late: list[float] = []
    return Pacer(clock_hz, late=late.append, clock=clock.read, sleep=clock.sleep), late


def test_steps_end_when_their_cycles_have_passed() -> None:
    clock = Clock()
    pacer, late = paced(clock)
    pacer.begin(100.0)
    ends = []
    for cycles in (10, 20, 5):
        pacer.advance(cycles)
        pacer.wait()
        ends.append(clock.now)
    assert ends == pytest.approx([100.010, 100.030, 100.035])
    assert late == pytest.approx([0.0] * 3, abs=1e-9)


def test_a_wait_without_a_new_step_does_nothing() -> None:
    clock = Clock()
    pacer, late = paced(clock)
    pacer.wait()
    pacer.advance(10)
    pacer.wait()
    pacer.wait()
    assert len(clock.slept) == len(late) == 1


def test_errors_of_single_waits_do_not_add_up() -> None:
    clock = Clock(oversleep=0.0004)
    pacer, late = paced(clock)
    pacer.begin(100.0)
    for _ in range(1000):
        pacer.advance(1)
        pacer.wait()
    assert late == pytest.approx([0.0004] * 1000, abs=1e-9)
    assert clock.now == pytest.approx(101.0004)
    assert pacer.slipped_seconds == 0.0


def test_a_sleep_that_ends_early_is_continued() -> None:
    clock = Clock()
    pacer = Pacer(HZ, clock=clock.read, sleep=lambda seconds: clock.sleep(seconds / 2 + 1e-4))
    pacer.begin(100.0)
    pacer.advance(10)
    pacer.wait()
    assert clock.now >= 100.010
    assert len(clock.slept) > 1


def test_jitter_is_caught_up() -> None:
    clock = Clock()
    pacer, late = paced(clock)
    pacer.begin(100.0)
    clock.now += SLIP_SECONDS - 0.001
    for _ in range(2):
        pacer.advance(1)
        pacer.wait()
    assert clock.slept == []
    assert late == pytest.approx([SLIP_SECONDS - 0.002, SLIP_SECONDS - 0.003])


def test_an_executor_slower_than_the_rack_moves_the_schedule() -> None:
    clock = Clock()
    pacer, late = paced(clock)
    pacer.begin(100.0)
    pacer.advance(10)
    clock.now += 1.0
    pacer.wait()
    pacer.advance(10)
    pacer.wait()
    assert clock.now == pytest.approx(101.010)  # not at once, to make up for the second before
    assert pacer.slipped_seconds == pytest.approx(0.990)
    assert late == pytest.approx([0.990, 0.0], abs=1e-9)


def test_what_was_promised_stays_when_the_schedule_moves() -> None:
    clock = Clock()
    pacer, _ = paced(clock)
    assert pacer.promised_seconds is None
    pacer.begin(100.0)
    pacer.advance(10)
    clock.now += 1.0
    pacer.wait()
    assert pacer.promised_seconds == pytest.approx(100.010)
    pacer.advance(10)
    pacer.wait()
    assert pacer.promised_seconds == pytest.approx(100.020)  # and it is now 101.010
    pacer.begin(100.5)
    assert pacer.promised_seconds == pytest.approx(101.010)  # the rack was not free before


def test_time_that_stands_still_is_added_to_all_that_is_due() -> None:
    clock = Clock()
    pacer, late = paced(clock)
    pacer.begin(100.0)
    pacer.advance(10)
    pacer.wait()
    clock.now += 2.0
    pacer.stand_still(2.0)
    assert pacer.cycles_at(101.0) == 0  # who came meanwhile came at the cycle that was reached
    assert pacer.cycles_at(102.015) == 15
    pacer.advance(10)
    pacer.wait()
    assert clock.now == pytest.approx(102.020)
    assert pacer.promised_seconds == pytest.approx(100.020)
    assert pacer.slipped_seconds == pacer.moved_seconds == pytest.approx(2.0)
    assert late == pytest.approx([0.0, 0.0], abs=1e-9)


def test_the_slip_of_a_request() -> None:
    slip = Slip()
    for late in (-0.1, 0.5, 2.0, 1.0, 0.25):
        slip.take(late)
    assert slip.to_dict() == {"worst": 2.0, "total": 0.25}
    slip.take(-1.0)
    assert slip.to_dict() == {"worst": 2.0, "total": 0.0}


def test_a_request_starts_when_it_arrives_or_when_the_rack_is_free() -> None:
    clock = Clock(oversleep=0.0002)
    pacer, _ = paced(clock)
    pacer.begin(100.0)
    pacer.advance(10)
    pacer.wait()
    pacer.begin(100.004)  # it waited
    assert pacer.due_seconds == pytest.approx(100.010)
    pacer.begin(100.5)
    assert pacer.due_seconds == 100.5


def test_unpaced_never_waits() -> None:
    pacer = Unpaced()
    pacer.begin(0.0)
    pacer.advance(1 << 60)
    pacer.stand_still(1e9)
    pacer.wait()


def test_every_token_is_released_when_its_emulated_time_says() -> None:
    prepared = tiny("timing")
    clock_hz = prepared.compiled.chip.clock_hz
    clock = Clock()
    pacer, late = paced(clock, clock_hz)
    released: queue.Queue[tuple[float, Event]] = queue.Queue()
    ready = threading.Event()
    runner = Runner(
        lambda report: Session(prepared, report), max_queue=1, pacer=pacer, on_ready=ready.set
    )
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    job = QueuedRequest([1] * 12, params, lambda event: released.put((clock.now, event)))
    runner.start()
    try:
        assert ready.wait(DEADLINE_SECONDS)
        clock.now = 2e9  # later than any perf_counter, so the request finds the rack busy
        pacer.begin(clock.now)
        runner.submit(job)
        got = [released.get(timeout=DEADLINE_SECONDS) for _ in range(21)]
    finally:
        assert runner.stop(DEADLINE_SECONDS)
    totals = got[-1][1]
    assert isinstance(totals, Finished)
    cycles = totals.prompt_cycles
    for when, event in got[:-1]:
        assert isinstance(event, TokenEvent)
        cycles += event.emulated_cycles
        assert when == pytest.approx(2e9 + cycles / clock_hz, abs=1e-6)
    assert got[-1][0] == got[-2][0]  # the totals come with the last token
    assert max(late) < 1e-6
