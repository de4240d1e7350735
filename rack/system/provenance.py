"""Which code made a result: the package's version and, in a checkout, its commit (law 6).

And which code a process runs: the driver and its chips have to run the same (`running_code`).
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from chip.kernels import Kernels

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("chip", "compiler", "interconnect", "rack")


@cache
def code_version() -> dict[str, str]:
    """Return `version` and `commit`; `-dirty` marks changes, "unknown" an installed package."""
    return {"version": _release(), "commit": _commit() if (ROOT / ".git").exists() else "unknown"}


def running_code(kernels: Kernels) -> dict[str, str]:
    """Return what has to be equal in the driver and all its chips."""
    return {**code_of_process(), "kernels": kernels.name}


def code_of_process() -> dict[str, str]:
    """Return what of that does not depend on kernels: package, modules, Python, NumPy.

    Python, because jobs are pickled and what a function does may differ; NumPy, because it rounds.
    """
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return {
        "version": _release(), "sources": source_digest(), "python": python,
        "numpy": np.__version__, "byte order": sys.byteorder,
    }  # fmt: skip


@cache
def source_digest() -> str:
    """Return the SHA-256 over the modules of this process's packages: names and contents."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name, text = path.relative_to(ROOT).as_posix().encode(), path.read_bytes()
            digest.update(b"%d %d " % (len(name), len(text)) + name + text)
    return digest.hexdigest()


@cache
def _release() -> str:
    try:
        return version("lpu-rack")
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
