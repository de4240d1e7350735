"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
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
