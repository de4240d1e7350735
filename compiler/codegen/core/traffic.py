"""Streams and SXM queues of the blocks that every kind of template has.

A block reads and writes work memory and sends values through the SXMs. Its reservation table keeps
these apart cycle by cycle (compiler/codegen/core/reservations.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from chip.floorplan import SXM_QUEUES
from compiler.codegen.core.resources import crossing, inward, outward, sxm_queue


@dataclass(frozen=True, slots=True)
class BlockTraffic:
    """What blocks send where."""

    to_vxm: int = inward(0, "vectors of work memory, of a side's slices", 2)
    feed_to_vxm: int = inward(2, "a vector of a side's feed slices")
    from_vxm: int = outward(1, "results for work memory, to a side's slices", 2)
    feed_from_vxm: int = outward(3, "a result for a side's feed slices")
    to_sxm: int = crossing(
        28, "vectors of work memory for an SXM, of a side's slices, the first of each side last", 4,
        turns=True,
    )  # fmt: skip
    vxm_to_sxm: int = outward(4, "a value that the SXMs copy", 4, turns=True)
    copies: int = inward(0, "copies of a value, turned: eight of four streams", 32, turns=True)
    turned: int = inward(4, "copies of a value that came by itself, beside reads", 24, turns=True)
    joined: int = inward(28, "lanes that the eastern SXM takes out of work memory", 4, turns=True)
    passes: int = sxm_queue(0, "copies and joined lanes", SXM_QUEUES, turns=True)


BLOCKS = BlockTraffic()
