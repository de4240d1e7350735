"""Chip processes' loop: it joins, reports, stops, and sends its errors home with their fields."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from schedules import WEIGHTS, compiled

from chip.errors import ScheduleViolation
from chip.kernels import load as load_kernels
from compiler.model.weights import WeightsRef
from interconnect.bit_errors import ErrorSpec, NoisyEnd
from interconnect.faults import Drop, FaultyTransport
from interconnect.frame import Control, Frame
from interconnect.zmq_transport import RunKey, ZmqTransport
from rack.run.job import ChipJob, chip_job
from rack.run.worker import (
    ChipWorker,
    Seat,
    error_values,
    one_blas_thread,
    own_core,
    rebuild_violation,
    serve,
)
from rack.system.provenance import running_code

MODEL = compiled("1x2")


class Running:
    """A worker in a thread, seen from the host."""

    def __init__(self, host: Host, job: ChipJob) -> None:
        self.host = host
        self.worker = ChipWorker(job, host.seat())
        self.thread = threading.Thread(target=self.worker.run, daemon=True)
        self.thread.start()

    def next(self) -> Control:
        message = self.host.receive(10.0)
        assert isinstance(message, Control)
        return message

    def tell(self, kind: str, **values: Any) -> None:
        self.host.send(0, Control(kind, values))

    def ended(self) -> bool:
        self.thread.join(10.0)
        return not self.thread.is_alive()


class Host(ZmqTransport):
    """The host's socket, and the workers that were started on it."""

    def __init__(self) -> None:
        super().__init__(2)
        self.workers: list[Running] = []
        self.pulse = ZmqTransport(3)

    def seat(self, **values: Any) -> Seat:
        return Seat(
            process=0, bind="ipc://*", host=2, host_endpoint=self.endpoint,
            pulse_endpoint=self.pulse.endpoint, key=None, **values,
        )  # fmt: skip

    def start(self, job: ChipJob) -> Running:
        self.workers.append(Running(self, job))
        return self.workers[-1]


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    for worker in made.workers:
        made.connect({0: worker.worker.socket.endpoint})
        worker.tell("stop")  # a failed test leaves nothing that waits
    assert all(worker.ended() for worker in made.workers)
    made.close()
    made.pulse.close()


def job() -> ChipJob:
    return chip_job(MODEL, 0, WEIGHTS)


def test_a_worker_joins_works_and_stops(host: Host) -> None:
    running = host.start(job())
    hello = running.next()
    assert (hello.kind, hello.values["chip"], hello.values["pid"]) == ("hello", 0, os.getpid())
    assert running.next() == Control("ready", {"chip": 0, "process": 0})
    assert host.pulse.receive(10.0) == Control("beat", {"process": 0})
    host.connect({0: hello.values["endpoint"]})
    ends = [[0, hello.values["endpoint"]], [2, host.endpoint]]
    running.tell("peers", rings=[], endpoints=ends, replaced=[])
    running.tell("epoch", epoch=4)
    running.tell("report")
    report = running.next()
    assert isinstance(report, Control)
    assert (report.values["chip"], report.values["saturated"]) == (0, 0)
    assert set(report.values["times"]) == {"kernels", "exchange", "waiting", "python"}
    assert "order" not in report.values
    assert running.worker.node.epoch == 4
    # A step whose embeddings never come: the report says what is missing.
    running.tell("step", sequence=1, step="decode/32", base=0, positions=[0], slots=[0])
    for _ in range(100):  # messages that came together are all read before the chip goes on
        running.tell("report")
        if "order" in (report := running.next()).values:
            break
    assert report.values["step"] == "decode/32"
    violation = rebuild_violation(report.values["violation"])
    assert (violation.chip, violation.step, violation.got) == (0, "decode/32", "nothing")
    assert str(violation) == report.values["what"]
    assert report.values["order"][0] == 1
    running.tell("stop")
    assert running.ended()


def test_a_worker_tells_of_a_frame_that_cannot_be_corrected_and_counts_the_others(
    host: Host,
) -> None:
    """It lives on: the host decides what follows."""
    link = next(link.id for link in MODEL.network.links if (link.src, link.dst) == (1, 0))
    one = Frame(
        epoch=1, link=link, step=1, transfer=0, vectors=1, depart_cycle=0, payload=bytes(320)
    )
    rate, found = ErrorSpec(bit_error_rate=1 / 2620), dict[tuple[int, int], int]()
    for step in range(100):
        end = NoisyEnd(link, rate)
        end.receive(replace(one, step=step))
        found.setdefault((end.corrected_vectors, end.flagged_vectors), step)
    good, bad = found[1, 0], found[0, 1]
    running = host.start(replace(job(), errors={link: rate}))
    endpoint = running.next().values["endpoint"]
    assert running.next().kind == "ready"
    host.connect({0: endpoint})
    ends = [[0, endpoint], [2, host.endpoint]]
    running.tell("peers", rings=[], endpoints=ends, replaced=[])
    running.tell("epoch", epoch=1)
    for step in (good, bad):
        host.send(0, replace(one, step=step))
    told = {
        "chip": 0, "process": 0, "epoch": 1, "link": link, "sequence": bad, "transfer": 0,
    }  # fmt: skip
    assert running.next() == Control("flag", told)
    running.tell("report")
    assert running.next().values["corrected"] == [[link, 1]]
    running.tell("stop")
    assert running.ended()


def test_an_error_ends_the_loop_and_is_sent(host: Host) -> None:
    running = host.start(job())
    hello = running.next()
    running.next()
    host.connect({0: hello.values["endpoint"]})
    ends = [[0, hello.values["endpoint"]], [2, host.endpoint]]
    running.tell("peers", rings=[], endpoints=ends, replaced=[])
    running.tell("step", sequence=1, step="decode/9", base=0, positions=[0], slots=[0])
    error = running.next()
    assert error.kind == "error"
    assert (error.values["chip"], error.values["step"]) == (0, "decode/9")
    assert error.values["what"].startswith("ProgramError: chip 0: no program decode/9; loaded: [")
    assert running.ended()


@pytest.mark.parametrize(
    ("kinds", "text"),
    [
        (["step"], "chip 0, loaded: wanted peers or take or stop from the host, got step"),
        (["ready"], "chip 0, loaded: wanted peers or take or stop from the host, got ready"),
        (["go"], "chip 0, loaded: wanted peers or take or stop from the host, got go"),
        (["peers", "spare"], "chip 0, serving: wanted peers or take or epoch or step or report or "
         "stop from the host, got spare"),
        (["peers", "epoch", "epoch"], "chip 0, serving: wanted an epoch after 1 from the host, "
         "got epoch 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_message_out_of_order_is_refused(host: Host, kinds: list[str], text: str) -> None:
    running = host.start(job())
    hello = running.next()
    running.next()
    host.connect({0: hello.values["endpoint"]})
    ends = [[0, hello.values["endpoint"]], [2, host.endpoint]]
    for kind in kinds:
        running.tell(kind, rings=[], endpoints=ends, epoch=1, replaced=[])
    error = running.next()
    assert (error.kind, error.values["what"]) == ("error", f"ControlError: {text}")
    assert running.ended()


def test_a_chip_that_cannot_load_says_why(host: Host, tmp_path: Path) -> None:
    weights = WeightsRef.from_folder(MODEL.config, tmp_path)
    running = host.start(replace(job(), weights=weights))
    assert running.next().kind == "hello"
    error = running.next()
    assert (error.kind, error.values["step"]) == ("error", "start")
    assert error.values["what"].startswith(f"ModelError: {tmp_path}: wanted model.safetensors or")
    assert running.ended()


def test_faults_go_between_the_chip_and_its_socket(host: Host) -> None:
    worker = ChipWorker(job(), host.seat(faults=[Drop(0, 1)]))
    assert isinstance(worker.node.transport, FaultyTransport)
    worker.socket.close()


def test_a_chip_learns_where_a_replaced_one_is_and_says_so(host: Host) -> None:
    running = host.start(job())
    hello = running.next()
    running.next()
    host.connect({0: hello.values["endpoint"]})
    ends = [[0, hello.values["endpoint"]], [1, "ipc:///old"], [2, host.endpoint]]
    running.tell("peers", rings=[], endpoints=ends, replaced=[])
    running.tell("peers", rings=[], endpoints=[[1, "ipc:///new"]], replaced=[1])
    assert running.next().kind == "ready"
    assert running.worker.socket._peers[1] == "ipc:///new"


def spare(host: Host) -> threading.Thread:
    """A process without a job, in a thread."""
    seat = replace(host.seat(), process=7)
    thread = threading.Thread(target=serve, args=(None, seat), daemon=True)
    thread.start()
    hello = host.receive(10.0)
    assert isinstance(hello, Control)
    assert (hello.kind, hello.values["process"], hello.values["pid"]) == ("spare", 7, os.getpid())
    assert set(hello.values["code"]) == set(running_code(load_kernels()))
    host.connect({7: hello.values["endpoint"]})
    return thread


def test_a_spare_takes_a_chip_s_place(host: Host) -> None:
    thread = spare(host)
    host.send(7, Control("take", {"job": pickle.dumps(job())}))
    hello, ready = host.receive(10.0), host.receive(10.0)
    assert isinstance(hello, Control)
    assert (hello.kind, hello.values["chip"], hello.values["process"]) == ("hello", 0, 7)
    assert ready == Control("ready", {"chip": 0, "process": 7})
    host.connect({0: hello.values["endpoint"]})
    host.send(0, Control("stop"))
    thread.join(10.0)
    assert not thread.is_alive()


def test_a_spare_that_is_not_needed_stops(host: Host) -> None:
    thread = spare(host)
    host.send(7, Control("stop"))
    thread.join(10.0)
    assert not thread.is_alive()


def test_a_spare_that_is_told_something_else_says_why_it_ends(host: Host) -> None:
    thread = spare(host)
    host.send(7, Control("epoch", {"epoch": 1}))
    error = host.receive(10.0)
    assert isinstance(error, Control)
    wanted = "ControlError: chip 7, spare: wanted take or stop from the host, got epoch"
    assert (error.kind, error.values["what"], error.values["process"]) == ("error", wanted, 7)
    thread.join(10.0)
    assert not thread.is_alive()


@pytest.mark.parametrize("wanted", [5, "a text", (1, 2), None, [3]])
def test_a_violation_keeps_its_fields_on_the_way(wanted: object) -> None:
    violation = ScheduleViolation(
        "late", chip=3, link="C2C 0.1->3.1", cycle=77, operation="layers.0.add", wanted=wanted,
        got=(4, 5), step="decode/256",
    )  # fmt: skip
    values = error_values(3, "decode/256", violation)
    again = rebuild_violation(values["violation"])
    assert str(again) == str(violation).replace("got (4, 5)", "got (4, 5)") == values["what"]
    assert (again.chip, again.link, again.cycle) == (3, "C2C 0.1->3.1", 77)


def test_other_errors_travel_as_text() -> None:
    assert error_values(1, "start", MemoryError("64 bytes")) == {
        "chip": 1, "step": "start", "what": "MemoryError: 64 bytes",
    }  # fmt: skip


def test_a_seat_hides_the_secret_and_survives_pickle() -> None:
    seat = Seat(
        process=3, bind="tcp://x:*", host=4, host_endpoint="tcp://y:1",
        pulse_endpoint="tcp://y:2", key=RunKey.generate(), slots={1: 2},
    )  # fmt: skip
    assert pickle.loads(pickle.dumps(seat)) == seat
    assert seat.key is not None
    assert repr(seat.key.secret) not in repr(seat)


def test_chips_use_one_blas_thread_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    one_blas_thread()
    assert os.environ["OPENBLAS_NUM_THREADS"] == "1"
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    one_blas_thread()
    assert os.environ["OPENBLAS_NUM_THREADS"] == "2"


def test_chips_take_turns_on_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 4})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: placed.append(cores))
    for chip in range(4):
        own_core(chip)
    assert placed == [{3}, {4}, {5}, {3}]


def test_a_chip_without_a_job_removes_the_folder_before_it_ends(tmp_path: Path) -> None:
    """Its parent was killed: standard input is at its end, and the job's file is gone already."""
    folder = tmp_path / "lpu-run-x"
    folder.mkdir()
    code = (
        "import sys, time\n"
        "from rack.run import worker\n"
        "remove = worker.remove\n"
        "worker.remove = lambda folder: (time.sleep(0.3), remove(folder))\n"
        "sys.exit(worker.main(sys.argv[1:]))\n"
    )
    words = [sys.executable, "-c", code, str(folder / "job-0")]
    assert subprocess.run(words, stdin=subprocess.DEVNULL, timeout=60, check=False).returncode == 1
    assert not folder.exists()
