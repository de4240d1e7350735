"""However a verb ends, nothing of it is left: no process, no folder, no traceback."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from verb_process import Verb, wait_for

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
GENERATE = (
    "rack.generate", "tiny", "--transport", "process", "--layout", "2x2+1", "--prompt", "hi",
    "--max-tokens", "250", "--ignore-eos",
)  # fmt: skip
CHIPS = 5


@pytest.fixture
def verb(tmp_path: Path) -> Iterator[Callable[..., Verb]]:
    started: list[Verb] = []

    def start(*words: str, **environment: str) -> Verb:
        started.append(Verb(tmp_path, "-m", *words, **environment))
        return started[-1]

    yield start
    for one in started:
        one.kill()


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
        ("rack", "plan", "tiny"),
        ("rack.compile", "tiny", "-o", "out"),
        ("rack.trace", "tiny", "-o", "out"),
        ("rack.validate",),
        ("rack.disasm", "out", "layers.0.attn.q_proj"),
        ("rack.serve", "tiny", "--port", "0"),
    ],
    ids=lambda words: " ".join(words[:2]),
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
