"""Choose the executor by this computer's memory: the chips' need against what is free.

If a model is too big, the default falls back to the timing executor and gives the reason, so that
the computer does not swap. With `--executor fast` such a model is refused with the numbers. Only
this host's memory counts: in a Ray cluster, Ray refuses what does not fit.
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
from rack.run.shared import shares, sram_in_use

BASE_BYTES = 500_000_000  # assumption: the driver, the compiled schedules, the rest
ONE_OF_MANY_BYTES = 40 << 20
"""What a chip process without Ray adds, measured: 34 MB where libraries are in memory already. It
is taken where chips share images, which hundreds of them then do."""
_CGROUP = Path("/sys/fs/cgroup")
_CGROUP_PAIRS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryDecision:
    """The executor to run, and a notice for the user, if any."""

    executor: str
    notice: str | None


def decide_executor(
    executor: str, *, asked_for: bool, needed_bytes: int, free_bytes: int | None
) -> MemoryDecision:
    """Choose the executor from the numbers. Raises ConfigError if `asked_for` does not fit.

    `free_bytes` is None if this system does not tell it; then nothing is refused.
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


def needed_bytes(
    used_sram_bytes: int, chips: int, transport: str, process_bytes: int = PROCESS_BYTES
) -> int:
    """Return the bytes that a run needs on this host: filled SRAM, processes, and the rest."""
    return used_sram_bytes + (0 if transport == "local" else chips * process_bytes) + BASE_BYTES


def free_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> int | None:
    """Return the free memory: the host's or the container's, whichever is less."""
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
    """Return the cached files in a control group's usage: bytes that the kernel frees on demand."""
    try:
        lines = (limit.parent / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def executor_asked_for(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> bool:
    """Say whether a flag, the environment or the file names an executor."""
    if args.executor is not None or ENV_PREFIX + "EXECUTOR" in environ:
        return True
    text = Path(args.config).read_text(encoding="utf-8") if args.config else ""
    return "executor" in tomllib.loads(text)


def fit_to_memory(
    prepared: Prepared, *, asked_for: bool, free: Callable[[], int | None] | None = None,
    environ: Mapping[str, str] = os.environ, racks: int = 1,
) -> tuple[Prepared, str | None]:  # fmt: skip
    """Return the model with the executor that fits here, and its notice. Raises ConfigError.

    Who wants spares wants chips that can be lost, and so no timing executor.
    """
    config, memories = prepared.config, prepared.compiled.memories
    if config.transport == "ray" and environ.get("RAY_ADDRESS", "local") != "local":
        return prepared, None
    weights, stored = prepared.model.weights_ref, prepared.images is not None
    used = sram_in_use(prepared.compiled, weights, config.transport, stored=stored)
    many = shares(weights, config.transport, stored=stored)
    decision = decide_executor(
        config.executor, asked_for=asked_for or config.spares > 0,
        free_bytes=(free or free_bytes)(),
        needed_bytes=needed_bytes(
            used * racks, (len(memories) + config.spares) * racks, config.transport,
            ONE_OF_MANY_BYTES if many else PROCESS_BYTES,
        ),
    )  # fmt: skip
    if decision.executor != config.executor:
        prepared = replace(prepared, config=replace(config, executor=decision.executor))
    return prepared, decision.notice


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
