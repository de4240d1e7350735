"""What is run once more, from its beginning, after a fault from which the rack has recovered.

For what has no sequence that could go on (rack/run/sequences.py): an encoder's step, a round of a
measurement.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from rack.errors import FaultError, RackError
from rack.run.steps import Rack, Recovery

T = TypeVar("T")

MOST_FAULTS = 100
"""So many runs may be lost to faults."""


def until_done(rack: Rack, run: Callable[[], T]) -> tuple[T, tuple[Recovery, ...]]:
    """Run until no fault comes between; return what that gave, and the faults before.

    Raises as `Rack.recover`, and RackError where it does not come to its end.
    """
    recoveries: list[Recovery] = []
    while True:
        try:
            return run(), tuple(recoveries)
        except FaultError as error:
            if len(recoveries) == MOST_FAULTS:
                raise RackError(
                    f"{1 + MOST_FAULTS} runs in a row did not come to their end: {error}"
                ) from error
            recoveries.append(rack.recover(error))
