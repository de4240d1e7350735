"""`make serve` on odd machines: one line says what is missing, and nothing is left half-made."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).resolve().parent.parent / "Makefile"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="wanted make")


@pytest.fixture
def checkout() -> Iterator[Path]:
    """A folder with the Makefile, a space in its name; its user is not root."""
    outer = Path(tempfile.mkdtemp(prefix="lpu-make-"))
    outer.chmod(0o755)
    folder = outer / "a checkout"
    folder.mkdir()
    shutil.copyfile(MAKEFILE, folder / "Makefile")
    (folder / "pyproject.toml").touch()
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(outer)


def python(folder: Path, name: str, script: str) -> str:
    """A stand-in for Python that does what `script` says."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def make(folder: Path, *words: str) -> tuple[int, list[str]]:
    """Run make as a user who may not do everything; gives what it said before its own lines."""
    user = 65534 if os.geteuid() == 0 else None
    done = subprocess.run(
        ["make", *words], cwd=folder, capture_output=True, text=True, timeout=60, user=user,
        env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    return done.returncode, done.stdout.splitlines()


WANTED = "wanted Python 3.11 or newer with venv, got"
OTHER = "or choose another: make PYTHON=python3.12"


@pytest.mark.parametrize(
    ("script", "line"),
    [
        (None, f"{WANTED} none: {{python}} is not found; install it {OTHER}"),
        (
            'case "$*" in *version_info*) exit 1;; esac; echo Python 3.9.2',
            f"{WANTED} Python 3.9.2; install it {OTHER}",
        ),
        (
            'case "$*" in *ensurepip*) exit 1;; esac',
            f"{WANTED} one without: apt install python3-venv (Debian, Ubuntu) {OTHER}",
        ),
    ],
)
def test_a_python_that_will_not_do(checkout: Path, script: str | None, line: str) -> None:
    name = str(checkout / "python")
    if script is not None:
        name = python(checkout, "python", script)
    assert make(checkout, "serve", f"PYTHON={name}") == (2, [line.format(python=name)])


def test_a_checkout_that_cannot_be_written(checkout: Path) -> None:
    checkout.chmod(0o555)
    code, lines = make(checkout, "test")
    assert (code, lines) == (2, [f"{checkout} cannot be written: copy it to a folder that can"])


VENV = """
case "$*" in
  *"-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; echo made >> log
    [ ! -e fails ] || exit 1;;
  *"quiet install"*) echo "$@" >> log; [ ! -e offline ] || exit 1;;
  *"import pip"*) [ ! -e no-pip ] || { rm no-pip; exit 1; };;
  *rack.serve*) echo "$@" >> log;;
esac
"""


def test_what_was_interrupted_is_done_again(checkout: Path) -> None:
    words = ["serve", f"PYTHON={python(checkout, 'python', VENV)}", "MODEL=a model"]
    log = checkout / "log"

    def said() -> list[str]:
        lines = log.read_text().splitlines()
        log.unlink()
        return lines

    (checkout / "fails").touch()
    assert make(checkout, *words)[0] == 2
    assert not (checkout / ".venv").exists()
    (checkout / "fails").unlink()
    (checkout / "offline").touch()
    code, lines = make(checkout, *words)
    assert code == 2
    assert lines[-1] == (
        "pip could not install lpu-rack: the reason is above; without a network, give it "
        "packages: PIP_NO_INDEX=1 PIP_FIND_LINKS=folder make"
    )
    assert not (checkout / ".venv" / ".ready-run").exists()
    (checkout / "offline").unlink()
    (checkout / "no-pip").touch()  # killed between the venv's Python and its pip
    said()
    assert make(checkout, *words)[0] == 0
    install = "-m pip --disable-pip-version-check --quiet install -e ."
    serve = "-m rack.serve a model"
    assert said() == ["made", install, serve]
    assert make(checkout, *words)[0] == 0
    assert said() == [serve]  # it is there: nothing is installed again


def test_what_the_commands_for_changing_the_code_run(checkout: Path) -> None:
    for name in (".venv/bin/python", ".venv/.ready-test", ".goldens/.ready"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).touch()
    (checkout / "tests" / "goldens").mkdir(parents=True)
    os.utime(checkout / "pyproject.toml", (0, 0))
    (checkout / "tests" / "goldens" / "requirements.txt").touch()
    os.utime(checkout / "tests" / "goldens" / "requirements.txt", (0, 0))
    (checkout / ".venv" / ".ready-test").touch()
    (checkout / ".goldens" / ".ready").touch()
    assert make(checkout, "-n", "quick", "ARGS=-x") == (
        0,
        [".venv/bin/python -m pytest --quick -x"],
    )
    assert make(checkout, "-n", "goldens") == (
        0,
        [
            ".goldens/bin/python tests/goldens/make_goldens.py",
            ".goldens/bin/python tests/goldens/make_chats.py",
            ".venv/bin/python tests/test_goldens_house.py",
            "git --no-pager diff --stat -- tests/goldens",
        ],
    )
