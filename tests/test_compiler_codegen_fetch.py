"""Text of a program against the ports and the rate that bring it to the queues."""

from __future__ import annotations

import pytest
from machine_kit import CHIP

from chip.floorplan import queues
from compiler.codegen.fetch import QUEUE_BYTES, fetching
from compiler.errors import LoweringError


def test_the_published_rate() -> None:
    """2.25 TiB/s at 1 GHz, as 20 TiB/s are 20,480 bytes a cycle."""
    assert QUEUE_BYTES * len(queues(CHIP)) == 2304 == 2.25 * 1024


def test_what_text_takes() -> None:
    found = fetching({"MEM_W0": 641, "VXM0": 1}, 500, 100, CHIP, "step")
    assert (found.vectors, found.free_reads) == (6, 88 * 100 - 500)  # pairs of each queue
    assert (found.rate_cycles, found.cycles) == (1, 100)


def test_text_that_does_not_fit_its_step() -> None:
    with pytest.raises(LoweringError) as caught:
        fetching({"MEM_W0": 640}, 88 * 100 - 1, 100, CHIP, "decode/32")
    assert str(caught.value) == (
        "decode/32: its instructions are 2 vectors, and ports of slices are free for 1 in 100 "
        "cycles"
    )
    with pytest.raises(LoweringError) as caught:
        fetching({"MEM_W0": 2304 * 10 + 1}, 0, 10, CHIP, "decode/32")
    assert str(caught.value) == (
        "decode/32: queues take its instructions in 11 cycles or more, and it runs for 10"
    )
