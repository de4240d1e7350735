"""Fixtures that several test files share."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("no deadline", deadline=None)  # tests do not depend on wall-clock speed
settings.load_profile("no deadline")

# A run in the background may ignore these, and its children would: tests send them.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGTERM, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the long runs be asked for."""
    parser.addoption(
        "--fuzz-examples", type=int, default=400, metavar="N",
        help="fuzzed cases of each kind: bodies, folders, … (default %(default)s)",
    )  # fmt: skip
    parser.addoption(
        "--grid", action="store_true",
        help="every operation over the whole grid of shapes on the machine (some 40 minutes)",
    )  # fmt: skip
    parser.addoption(
        "--quick", action="store_true",
        help="leave out what is marked slow or ray, and what tests/slow.txt lists",
    )  # fmt: skip


@cache
def slow_tests() -> frozenset[str]:
    """Return the tests of slow.txt: FILE::TEST and the CPU seconds that it took, a line each."""
    lines = (ROOT / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(line.split()[0] for line in lines if line and not line.startswith("#"))


def defined_tests(path: Path) -> set[str]:
    """Return the tests that a file defines, as slow.txt writes them."""
    names = re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {f"{path.relative_to(ROOT).as_posix()}::{name}" for name in names}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `--quick`, do not import a file when slow.txt lists all its tests."""
    if not config.getoption("--quick") or not collection_path.match("test_*.py"):
        return None
    return defined_tests(collection_path) <= slow_tests() or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take out what `--quick` leaves out."""
    if not config.getoption("--quick"):
        return
    listed = slow_tests()
    left_out = [
        item
        for item in items
        if item.nodeid.split("[")[0] in listed
        or item.get_closest_marker("slow")
        or item.get_closest_marker("ray")
    ]
    config.hook.pytest_deselected(items=left_out)
    gone = set(left_out)
    items[:] = [item for item in items if item not in gone]


@pytest.fixture(scope="session")
def stories260k() -> Path:
    """Give the folder of the trained test model (tests/models/README.md)."""
    return ROOT / "tests" / "models" / "stories260K"


@pytest.fixture(scope="module", autouse=True)
def _same_environment() -> Iterator[None]:
    """Take back what a module's tests left in the environment: Ray sets RAY_AUTH_MODE there."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
