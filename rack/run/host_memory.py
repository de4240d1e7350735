"""Does a model fit this computer? What the chips need, what is free, and what follows.

A newcomer who starts a model that is too big gets the timing executor and the reason, instead of
a machine that swaps; whoever asked for `--executor fast` is refused with the numbers. Only this
host is looked at: a Ray cluster's memory is Ray's to declare and refuse.
"""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rack.errors import ConfigError
from rack.run.config import ENV_PREFIX
from rack.run.job import PROCESS_BYTES
from rack.run.session import Prepared

BASE_BYTES = 500_000_000  # assumption: the driver, the compiled schedules, the rest
_CGROUP = Path("/sys/fs/cgroup")
_CGROUP_PAIRS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryDecision:
    """Which executor to run, and what the user must be told about it, if anything."""

    executor: str
    notice: str | None


def decide_executor(
    executor: str, *, asked_for: bool, needed_bytes: int, free_bytes: int | None
) -> MemoryDecision:
    """Choose the executor from the numbers. Raises ConfigError where `asked_for` cannot be.

    `free_bytes` None means that this system does not say; then nothing is refused.
    """
    if executor == "timing" or free_bytes is None or needed_bytes <= free_bytes:
        return MemoryDecision(executor=executor, notice=None)
    numbers = (
        f"needs {_gigabytes(needed_bytes)} of memory here and {_gigabytes(free_bytes)} are free"
    )
    if asked_for:
        raise ConfigError(
            f"executor: {executor} {numbers}; free some, choose a smaller model or context, "
            "or use --executor timing"
        )
    return MemoryDecision(
        executor="timing",
        notice=f"the {executor} executor {numbers}: the timing executor is used instead",
    )


def needed_bytes(used_sram_bytes: int, chips: int, transport: str) -> int:
    """Return what a run takes on this host: filled SRAM, processes, and the rest."""
    return used_sram_bytes + (0 if transport == "local" else chips * PROCESS_BYTES) + BASE_BYTES


def free_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> int | None:
    """Return the memory that may still be taken: the host's, or the container's where lower."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for limit, usage in _CGROUP_PAIRS:
        try:
            texts = [(cgroup / name).read_text(encoding="ascii").strip() for name in (limit, usage)]
        except OSError:
            continue
        if texts[0] != "max":
            used = int(texts[1]) - _file_cache(cgroup / limit)
            available.append(max(0, int(texts[0]) - used))
    return min(available, default=None)


def _file_cache(limit: Path) -> int:
    """Return the bytes of a group's usage that are cached files, which give way."""
    try:
        lines = (limit.parent / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def executor_asked_for(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> bool:
    """Say whether a flag, the environment or the file names an executor; a default does not."""
    if args.executor is not None or ENV_PREFIX + "EXECUTOR" in environ:
        return True
    text = Path(args.config).read_text(encoding="utf-8") if args.config else ""
    return "executor" in tomllib.loads(text)


def fit_to_memory(
    prepared: Prepared, *, asked_for: bool, free: Callable[[], int | None] | None = None,
    environ: Mapping[str, str] = os.environ, racks: int = 1,
) -> tuple[Prepared, str | None]:  # fmt: skip
    """Return what will run here, and the notice that goes with it. Raises ConfigError."""
    config, memories = prepared.config, prepared.compiled.memories
    if config.transport == "ray" and environ.get("RAY_ADDRESS", "local") != "local":
        return prepared, None
    used = sum(memory.sram_bytes - memory.free_bytes for memory in memories)
    decision = decide_executor(
        config.executor, asked_for=asked_for, free_bytes=(free or free_bytes)(),
        needed_bytes=needed_bytes(used * racks, len(memories) * racks, config.transport),
    )  # fmt: skip
    if decision.executor != config.executor:
        prepared = replace(prepared, config=replace(config, executor=decision.executor))
    return prepared, decision.notice


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
