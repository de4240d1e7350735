"""The cycles of a burst's events where they are not those of its issues."""

from __future__ import annotations

import pytest
from machine_kit import CHIP, DELAYS, E0, issue

from chip.floorplan import position, sxm
from chip.isa.instructions import Transpose
from chip.machine.collect import Collector


@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 24), (20, 1)])
def test_a_block_leaves_a_cycle_after_another_however_it_came(n: int, d: int) -> None:
    """The way of its 16 streams is issue by issue, the way out is one vector a cycle on each."""
    collector = Collector(CHIP)
    collector.add(issue(sxm(0, 0), 50, Transpose(src=E0, dst=E0, groups=3), n, d))
    taken, put = collector.stream_reads.expand(), collector.stream_writes.expand()
    flow, first = position(sxm(0, 0), CHIP), collector.bursts[0].base
    came = [50 + DELAYS["TRANSPOSE"].d_skew - flow + d * nth for nth in range(n)]
    left = [50 + DELAYS["TRANSPOSE"].d_func - flow + nth for nth in range(3)]
    for stream in range(16):
        on = taken.stream == stream
        assert taken.diagonal[on].tolist() == came
        on = put.stream == stream
        assert put.diagonal[on].tolist() == left
        assert put.data[on].tolist() == [first + 16 * nth + stream for nth in range(3)]
