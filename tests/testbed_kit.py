"""A test bed for tests: where this computer cannot have one they are skipped, but never in CI."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tools.testbed.bed import Bed
from tools.testbed.needs import UnavailableError


@contextlib.contextmanager
def bed_or_skip(**wanted: Any) -> Iterator[Bed]:
    """Give a bed as `Bed(**wanted)` makes it."""
    with contextlib.ExitStack() as ends:
        try:
            bed = ends.enter_context(Bed(**wanted))
        except UnavailableError as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(str(error))
        yield bed
