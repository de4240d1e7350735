"""Processes of ours find our modules, whatever folder they are started in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from rack.system import own_code, provenance
from rack.system.provenance import ROOT, running_code


def test_a_module_is_found_where_this_process_found_it(tmp_path: Path) -> None:
    for package in ("rack", "chip"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise ImportError('the wrong one')")
    command = own_code.command("rack.generate", "--help")
    assert "-P" in command
    done = subprocess.run(
        command, cwd=tmp_path, env=own_code.environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Run one completion" in done.stdout


def test_a_digest_covers_every_module() -> None:
    from chip.kernels import load

    code = running_code(load("numpy"))
    assert code["kernels"] == "numpy"
    assert len(code["sources"]) == 64
    assert code["python"].split()[1] == ".".join(map(str, sys.version_info[:3]))
    assert (code["numpy"], code["byte order"]) == (np.__version__, sys.byteorder)
    read: list[Path] = []
    real = Path.read_bytes

    def note(path: Path) -> bytes:
        read.append(path)
        return real(path)

    provenance.source_digest.cache_clear()
    try:
        Path.read_bytes = note  # type: ignore[method-assign]
        assert provenance.source_digest() == code["sources"]
    finally:
        Path.read_bytes = real  # type: ignore[method-assign]
    names = {path.relative_to(ROOT).as_posix() for path in read}
    assert {"chip/kernels/native.py", "rack/run/worker.py", "compiler/codegen/lower.py"} <= names
