"""However a verb ends, nothing of it is left: no process, no folder, no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_SECONDS = 60.0
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
GENERATE = (
    "rack.generate", "tiny", "--transport", "process", "--layout", "2x2+1", "--prompt", "hi",
    "--max-tokens", "250", "--ignore-eos",
)  # fmt: skip
CHIPS = 5


class Verb:
    """A verb as a process, with a folder for its files; its processes are known by a mark."""

    def __init__(self, folder: Path, *words: str, **environment: str) -> None:
        self.folder, self.mark = folder, f"LPU_TEST_MARK={uuid4().hex}"
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=ROOT, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(folder), name: value, **environment},
        )  # fmt: skip

    def others(self) -> list[psutil.Process]:
        """Every process that this one has started and that has not ended."""
        found = []
        for process in psutil.process_iter():
            try:
                own = self.mark.partition("=")[2] in process.environ().values()
                if own and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return [process for process in found if process.pid != self.process.pid]

    def until(self, true: Callable[[], object]) -> None:
        wait_for(lambda: true() or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.communicate()

    def maps(self, library: str) -> bool:
        return library in Path(f"/proc/{self.process.pid}/maps").read_text()

    def end(self, how: signal.Signals) -> tuple[int, str]:
        """Send a signal; give the exit code and what was said on standard error."""
        self.process.send_signal(how)
        _, said = self.process.communicate(timeout=DEADLINE_SECONDS)
        return self.process.returncode, said

    def nothing_is_left(self) -> None:
        wait_for(lambda: not self.others())
        assert list(self.folder.glob("lpu-*")) == []


def wait_for(true: Callable[[], object]) -> None:
    until = time.monotonic() + DEADLINE_SECONDS
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture
def verb(tmp_path: Path) -> Iterator[Callable[..., Verb]]:
    started: list[Verb] = []

    def start(*words: str, **environment: str) -> Verb:
        started.append(Verb(tmp_path, *words, **environment))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()
        for other in one.others():
            other.kill()


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    process.suspend()
    wait_for(lambda: process.status() == psutil.STATUS_STOPPED)
    yield


@pytest.mark.slow
@pytest.mark.parametrize("chips", [1, 3, CHIPS])
def test_chips_end_with_a_parent_that_is_killed_while_they_start(
    verb: Callable[..., Verb], chips: int
) -> None:
    running = verb(*GENERATE)
    parent = psutil.Process(running.process.pid)
    running.until(lambda: len(parent.children()) >= chips)
    running.end(signal.SIGKILL)
    running.nothing_is_left()


@pytest.mark.slow
def test_even_a_stopped_chip_ends_with_its_parent(verb: Callable[..., Verb]) -> None:
    running = verb(*GENERATE)
    parent = psutil.Process(running.process.pid)
    running.until(lambda: len(parent.children()) == CHIPS)
    assert running.process.stdout is not None
    assert running.process.stdout.read(1)  # they have loaded
    with stopped(parent.children()[2]):
        running.end(signal.SIGKILL)
        running.nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("how", SIGNALS)
def test_a_signal_ends_a_run_and_its_chips(verb: Callable[..., Verb], how: signal.Signals) -> None:
    running = verb(*GENERATE)
    assert running.process.stdout is not None
    assert running.process.stdout.read(1)
    assert len(running.others()) == CHIPS
    code, said = running.end(how)
    assert code == 1
    assert said.splitlines()[-1] == "interrupted"
    assert "Traceback" not in said
    running.nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("how", SIGNALS)
def test_a_signal_while_chips_start(verb: Callable[..., Verb], how: signal.Signals) -> None:
    running = verb(*GENERATE)
    parent = psutil.Process(running.process.pid)
    running.until(lambda: len(parent.children()) >= 2)
    code, said = running.end(how)
    assert code == 1
    assert said.splitlines()[-1] == "interrupted"
    assert "Traceback" not in said
    running.nothing_is_left()


@pytest.mark.parametrize(
    "words",
    [
        ("rack.generate", "tiny", "--prompt", "hi"),
        ("rack.bench", "tiny"),
        ("rack.plan", "tiny"),
        ("rack.compile", "tiny", "-o", "out"),
        ("rack.trace", "tiny", "-o", "out"),
        ("rack.validate",),
        ("rack.disasm", "out", "layers.0.attn.q_proj"),
        ("rack.serve", "tiny", "--port", "0"),
    ],
    ids=lambda words: str(words[0]),
)
def test_a_signal_while_a_verb_imports(verb: Callable[..., Verb], words: tuple[str, ...]) -> None:
    for how in SIGNALS:
        running = verb(*words)
        running.until(lambda running=running: running.maps("/numpy/"))  # type: ignore[misc]
        assert running.end(how) == (1, "interrupted\n")


def test_a_signal_that_was_to_be_ignored_is(verb: Callable[..., Verb]) -> None:
    """As under nohup: closing the terminal is not the end."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        running = verb("rack.plan", "tiny")
    finally:
        signal.signal(signal.SIGHUP, before)
    running.until(lambda: running.maps("/numpy/"))
    code, said = running.end(signal.SIGHUP)
    assert code == 0, said
