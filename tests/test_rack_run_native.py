"""A run without native code says so, says why, and gives the same bits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import types
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest

from chip import kernels
from chip.kernels import extension
from rack.errors import ConfigError
from rack.run import native
from rack.run.native import native_notices, stale_notices

ROOT = Path(__file__).resolve().parent.parent
RUN = ["tiny", "--layout", "1x1", "--prompt", "Hi", "--max-tokens", "2", "--json"]
SUFFIX = EXTENSION_SUFFIXES[0]
OTHER = ".cpython-37-other.so"


@pytest.fixture(scope="module")
def unbuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages as a machine without a compiler has them."""
    folder = tmp_path_factory.mktemp("unbuilt")
    for package in ("chip", "interconnect", "compiler", "rack"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    return folder


def generate(folder: Path, transport: str, **environ: str) -> tuple[dict[str, Any], list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "rack.generate", *RUN, "--transport", transport], cwd=folder,
        env={**os.environ, **environ}, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return json.loads(done.stdout), [line for line in done.stderr.splitlines() if "slower" in line]


def test_without_native_code(unbuilt: Path) -> None:
    file = unbuilt / "interconnect" / f"_rings{SUFFIX}"
    file.write_bytes(b"not a library")
    report, said = generate(unbuilt, "process")
    file.unlink()
    kernels_line, rings_line = said
    assert kernels_line.startswith(
        "NumPy kernels, several times slower, because native ones are not built; to build them, "
        "install a C compiler and Python's headers"
    )
    assert rings_line.startswith(
        "frames between chips go through ZeroMQ, slower, because rings are not to be loaded: "
        f"{file}"
    )
    assert set(said) <= set(report["notices"])
    native, none = generate(ROOT, "local")
    assert native["data_hash"] == report["data_hash"]
    if kernels.BEST:
        assert none == []


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        (f"_native{SUFFIX}", b"not a library", "native ones are not to be loaded: "),
        (f"_native{SUFFIX}", b"", "native ones are not to be loaded: "),
        (f"_native{OTHER}", b"", "native ones are built for another Python: "),
    ],
)
def test_why_an_extension_is_not_loaded(name: str, content: bytes, why: str, unbuilt: Path) -> None:
    file = unbuilt / "chip" / "kernels" / name
    file.write_bytes(content)
    try:
        _, (line,) = generate(unbuilt, "local")
    finally:
        file.unlink()
    assert why in line
    assert str(file) in line


def test_an_extension_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    other = types.ModuleType("_native")  # loads, and has nothing of what is wanted
    monkeypatch.setattr(extension, "import_module", lambda name: other)
    found, why = extension._instruction_sets()
    assert (found, why) == ({}, "module '_native' has no attribute 'instruction_sets'")


def test_the_variable_that_chooses_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.ENVIRONMENT, "numpy")
    if kernels.BEST:
        (line,) = native_notices("fast", "local")
        assert line == "NumPy kernels, several times slower, because $LPU_KERNELS says so"
    assert list(native_notices("timing", "ray")) == []
    monkeypatch.setenv(kernels.ENVIRONMENT, "fast")
    with pytest.raises(ConfigError, match=r"\$LPU_KERNELS: kernels: unknown implementation 'fast'"):
        list(native_notices("fast", "local"))


@pytest.mark.skipif(kernels.BEST is None, reason="native code was not built")
def test_extensions_are_made_of_the_sources_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(stale_notices()) == []  # otherwise: build again
    monkeypatch.setattr(native, "ROOT", tmp_path)
    assert list(stale_notices()) == []  # an installed package has none
    for folder in native.NATIVE.values():
        shutil.copytree(ROOT / folder, tmp_path / folder)
    assert list(native_notices("fast", "local")) == []
    source = tmp_path / "chip" / "kernels" / "native" / "vmath.h"
    source.write_bytes(source.read_bytes() + b"/* later */")
    (line,) = native_notices("fast", "local")
    assert f" is not made of the sources in {source.parent}; to build them, install" in line


def test_a_build_that_fails_leaves_no_older_one(tmp_path: Path) -> None:
    shutil.copy(ROOT / "setup.py", tmp_path)
    older = []
    for module, folder in native.NATIVE.items():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "broken.c").write_text("#error\n")
        older.append(tmp_path / f"{module.replace('.', '/')}{SUFFIX}")
        older[-1].write_bytes(b"older")
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0  # the package does without
    assert [file for file in older if file.exists()] == []
    for module in native.NATIVE:
        assert f'building extension "{module}" failed' in done.stdout + done.stderr
