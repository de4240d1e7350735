"""What fits this computer: the decision from the numbers, and where the numbers come from."""

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
from serve_kit import tiny

from rack.errors import ConfigError
from rack.run.host_memory import (
    decide_executor,
    executor_asked_for,
    fit_to_memory,
    free_bytes,
    needed_bytes,
)

GB = 1_000_000_000


def test_enough_memory_changes_nothing() -> None:
    for free in (10 * GB, None):
        got = decide_executor("fast", asked_for=False, needed_bytes=10 * GB, free_bytes=free)
        assert (got.executor, got.notice) == ("fast", None)


def test_too_little_falls_back_and_says_so() -> None:
    got = decide_executor("fast", asked_for=False, needed_bytes=9 * GB, free_bytes=4 * GB)
    assert got.executor == "timing"
    assert got.notice == (
        "the fast executor needs 9.0 GB of memory here and 4.0 GB are free: "
        "the timing executor is used instead"
    )


def test_too_little_is_refused_where_it_was_asked_for() -> None:
    with pytest.raises(ConfigError) as caught:
        decide_executor("fast", asked_for=True, needed_bytes=9 * GB, free_bytes=4 * GB)
    assert str(caught.value) == (
        "executor: fast needs 9.0 GB of memory here and 4.0 GB are free; free some, choose a "
        "smaller model or context, or use --executor timing"
    )


def test_timing_needs_nothing() -> None:
    got = decide_executor("timing", asked_for=True, needed_bytes=9 * GB, free_bytes=0)
    assert (got.executor, got.notice) == ("timing", None)


def test_processes_count() -> None:
    assert needed_bytes(GB, 4, "local") == GB + 500_000_000
    assert (
        needed_bytes(GB, 4, "ray")
        == needed_bytes(GB, 4, "process")
        == GB + 500_000_000 + 4 * (100 << 20)
    )


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_lower_of_host_and_container(tmp_path: Path) -> None:
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    write(meminfo, "MemTotal: 9000 kB\nMemAvailable: 5000 kB\n")
    assert free_bytes(meminfo, cgroup) == 5_120_000
    write(cgroup / "memory.max", "max\n")
    write(cgroup / "memory.current", "1\n")
    assert free_bytes(meminfo, cgroup) == 5_120_000
    write(cgroup / "memory.max", "3000\n")
    assert free_bytes(meminfo, cgroup) == 2999
    write(cgroup / "memory.current", "2500\n")
    write(cgroup / "memory.stat", "anon 7\ninactive_file 1000\n")
    assert free_bytes(meminfo, cgroup) == 1500  # cached files give way
    write(cgroup / "memory/memory.limit_in_bytes", "100\n")
    write(cgroup / "memory/memory.usage_in_bytes", "200\n")
    assert free_bytes(meminfo, cgroup) == 0
    assert free_bytes(tmp_path / "none", cgroup) is None


def test_an_executor_is_asked_for_by_flag_environment_or_file(tmp_path: Path) -> None:
    nothing = argparse.Namespace(executor=None, config=None)
    assert not executor_asked_for(nothing, {})
    assert executor_asked_for(nothing, {"LPU_RACK_EXECUTOR": "fast"})
    assert executor_asked_for(argparse.Namespace(executor="fast", config=None), {})
    for text, asked in (('executor = "fast"\n', True), ("seed = 1\n", False)):
        write(tmp_path / "run.toml", text)
        named = argparse.Namespace(executor=None, config=str(tmp_path / "run.toml"))
        assert executor_asked_for(named, {}) == asked


def test_a_prepared_model_is_moved_to_timing() -> None:
    prepared, notice = fit_to_memory(tiny(), asked_for=False, free=lambda: 1000, environ={})
    assert prepared.config.executor == "timing"
    assert "the timing executor is used instead" in (notice or "")
    assert fit_to_memory(tiny(), asked_for=True, free=lambda: 100 * GB) == (tiny(), None)


def test_spares_are_processes_too() -> None:
    config = replace(tiny().config, transport="process", spares=4000)
    many = replace(tiny(), config=config)
    for asked_for in (False, True):  # no other executor has spares
        with pytest.raises(ConfigError, match=r"executor: fast needs \d{3}\.\d GB of memory here"):
            fit_to_memory(many, asked_for=asked_for, free=lambda: 100 * GB, environ={})
