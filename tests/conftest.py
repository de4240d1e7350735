"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("no deadline", deadline=None)  # tests do not depend on wall-clock speed
settings.load_profile("no deadline")

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the long fuzzing runs be asked for."""
    parser.addoption(
        "--fuzz-examples", type=int, default=400, metavar="N",
        help="fuzzed request bodies (default %(default)s; 10000 takes about a minute)",
    )  # fmt: skip


@pytest.fixture(scope="session")
def stories260k() -> Path:
    """Give the trained test model's folder; it is not part of the project (DESIGN.md, 11)."""
    models = Path(os.environ.get("LPU_RACK_TEST_MODELS") or ROOT.parent / "shared" / "models")
    folder = models / "stories260K"
    if not (folder / "config.json").is_file():
        reason = f"no trained model at {folder}; set LPU_RACK_TEST_MODELS to the folder above it"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
