"""Who holds which ALU and stream in vector operations, and between links and work memory."""

from __future__ import annotations

from dataclasses import dataclass

from chip.floorplan import SXM_QUEUES
from compiler.codegen.core.resources import (
    Owner,
    Resources,
    alu,
    crossing,
    outward,
    sxm_queue,
)
from compiler.codegen.core.traffic import BLOCKS
from compiler.codegen.products.resources import FEED, SUMS, WEIGHTS

C2C_QUEUES = SXM_QUEUES - 8  # of a hemisphere's SXM
C2C_STREAMS = 12  # of either direction


@dataclass(frozen=True, slots=True)
class RowScales:
    """Scales of all rows of a NORM or GATHER."""

    scales: int = alu(14, "the rows' scales, one a lane")


@dataclass(frozen=True, slots=True)
class CacheRows:
    """Keys and values of a ROPE on their way to the cache."""

    stream: int = outward(30, "rows for the cache, both ways, between reads", turns=True)


@dataclass(frozen=True, slots=True)
class Picks:
    """What a TOPK knows between its blocks, in registers."""

    last: int = alu(1, "the pick before")
    first: int = alu(3, "each lane's first group behind it")
    best: int = alu(4, "each lane's largest logit of this scan")
    group: int = alu(6, "that logit's group")
    logits: int = alu(9, "the logits picked, one a lane")
    columns: int = alu(11, "their columns, one a lane")

    @property
    def pinned(self) -> frozenset[int]:
        """ALUs that blocks may not take."""
        return frozenset({self.last, self.first, self.best, self.group, self.logits, self.columns})


@dataclass(frozen=True, slots=True)
class Transfers:
    """Vectors on their way between ports and work slices."""

    queues: int = sxm_queue(8, "C2C instructions; passes use those below", C2C_QUEUES)
    streams: int = crossing(
        16, "vectors from and to links, from a port's own on", C2C_STREAMS, turns=True
    )


ROW_SCALES, CACHE_ROWS, PICKS, TRANSFERS = RowScales(), CacheRows(), Picks(), Transfers()
_ALONE = ("rows",)
_WHOLE = range(1)

NORM = Resources(
    "NORM and GATHER int8",
    _ALONE,
    (Owner("blocks", BLOCKS, _WHOLE), Owner("row scales", ROW_SCALES, _WHOLE)),
)
ROPE = Resources(
    "ROPE",
    _ALONE,
    (Owner("blocks", BLOCKS, _WHOLE), Owner("cache rows", CACHE_ROWS, _WHOLE)),
)
TOPK = Resources(
    "TOPK",
    ("scans",),
    (Owner("blocks", BLOCKS, _WHOLE), Owner("picks", PICKS, _WHOLE)),
)
LSTM = Resources(
    "LSTM cell",
    ("passes", "rows"),
    (
        Owner("blocks", BLOCKS, range(2)),
        Owner("weights", WEIGHTS, _WHOLE),
        Owner("feed", FEED, _WHOLE),
        Owner("sums", SUMS, range(1, 2)),
    ),
)
LINKS = Resources("SEND and RECEIVE", ("any",), (Owner("transfers", TRANSFERS, _WHOLE),))
