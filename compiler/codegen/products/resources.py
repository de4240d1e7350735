"""Who holds which ALU, stream and SXM queue in a product: three tables, int8 and fp16.

`print(ONE_ROW)` shows a table. An ALU that no owner names is free for the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

from compiler.codegen.core.resources import (
    Owner,
    Resources,
    alu,
    alus,
    crossing,
    inward,
    outward,
    sxm_queue,
)
from compiler.codegen.core.traffic import BLOCKS


@dataclass(frozen=True, slots=True)
class Feed:
    """Activations on their way from work memory to the planes."""

    stream: int = outward(28, "activations")
    alus: tuple[int, ...] = alus((12, 11), "pass activations on, west and east")

    @property
    def pinned(self) -> frozenset[int]:
        """ALUs that blocks may not take."""
        return frozenset(self.alus)


@dataclass(frozen=True, slots=True)
class FeedBeside:
    """Activations on their way from work memory to the planes, beside loads of weights."""

    stream: int = outward(31, "activations", turns=True)
    before: tuple[int, ...] = alus((14, 13, 10), "pass activations on before, as many as need be")
    alus: tuple[int, ...] = alus((12, 11), "pass activations on, west and east")

    def pinned(self, copies: int) -> frozenset[int]:
        """ALUs that blocks may not take, where so many copies come before."""
        return frozenset({*self.before[:copies], *self.alus})


@dataclass(frozen=True, slots=True)
class Quantiser:
    """The end of a prologue, which feeds the planes as it quantises."""

    outlets: tuple[int, ...] = alus((0, 2), "give quantised values to the planes, west and east")


@dataclass(frozen=True, slots=True)
class RowScale:
    """What is kept of the row from its quantisation to its last drain."""

    scale: int = alu(9, "the row's scale")


@dataclass(frozen=True, slots=True)
class ShareWeight:
    """What is kept of a product that is one of a weighted sum."""

    weight: int = alu(14, "what the product is multiplied by")


@dataclass(frozen=True, slots=True)
class Second:
    """The same of every second of products that overlap."""

    scale: int = alu(6, "the second row's scale")
    weight: int = alu(4, "what the second product is multiplied by")


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights on their way from bulk memory to the planes."""

    stream: int = outward(0, "weights: 16 streams a plane of a side", 32, turns=True)


@dataclass(frozen=True, slots=True)
class WeightsBeside:
    """Weights that planes load beside the activations: on 15 streams each, or 16 in turns."""

    stream: int = outward(0, "weights: 15 streams a plane of a side", 30, turns=True)


@dataclass(frozen=True, slots=True)
class ColumnScales:
    """What is kept of a group's columns while its rows' sums leave."""

    registers: tuple[int, ...] = alus((1, 3, 4, 6), "scales of each block's columns")


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums on their way from the accumulators to the VXM."""

    left: int = inward(4, "sums as they leave: four streams a plane of a side", 8, turns=True)
    turned: int = inward(
        0, "sums in their lanes: four streams a vector, 16 a plane of a side", 32, turns=True
    )
    queues: int = sxm_queue(
        0, "put sums in their lanes: a vector each, four a plane", 8, turns=True
    )


@dataclass(frozen=True, slots=True)
class Streamed:
    """Weights, rows and sums of arrays that work each for itself, and the chain of their sums."""

    weights: int = crossing(8, "weights of a side, from both hemispheres", 16)
    feed: int = crossing(24, "rows of a side's first plane, and of its second", 2)
    sums: int = inward(4, "sums of the array that is in its last pass", 4)
    scales: int = outward(4, "rows' scales, to the eastern SXM")
    scale: int = inward(28, "a row's scale in every lane", 4)
    turn: int = sxm_queue(0, "puts a row's scale in every lane")
    to_vxm: int = inward(0, "scales of work memory", 2)
    results: int = outward(1, "results for work memory", 2)
    convert: int = alu(0, "sums to fp32")
    by_row: int = alu(1, "times the row's scale")
    by_column: int = alu(3, "times the columns' scales")
    biased: int = alu(15, "plus the columns' biases")
    round: int = alu(2, "results")
    columns: tuple[int, ...] = alus((4, 6), "scales of columns: of this job, and of the next")
    rows: tuple[int, ...] = alus((5, 7, 8, 10, 11, 12), "scales of rows: two chunks")
    more: tuple[int, ...] = alus((13, 14), "biases of columns, as scales; else scales of rows")
    out: int = alu(9, "sends rows' scales to the SXM")


@dataclass(frozen=True, slots=True)
class GateChain:
    """silu(gate) of the last block, made beside the work on its up columns."""

    kept: int = alu(6, "the gate")
    minus: int = alu(1, "-gate")
    exp: int = alu(0, "e^-gate")
    plus: int = alu(3, "1 + e^-gate")
    root: int = alu(2, "rsqrt of it")
    square: int = alu(4, "sigmoid(gate)")
    gated: int = alu(14, "silu(gate), until the up columns come")

    @property
    def chain(self) -> tuple[int, ...]:
        """ALUs of an activation, in order (compiler/codegen/vector.py): the last has the result."""
        return self.kept, self.minus, self.exp, self.plus, self.root, self.square, self.gated

    @property
    def pinned(self) -> frozenset[int]:
        """ALUs that the drains beside it may not take."""
        return frozenset(self.chain)


@dataclass(frozen=True, slots=True)
class Weights16:
    """Weights of an fp16 product."""

    stream: int = outward(0, "weights: up to 32 streams a pair of planes", 32, turns=True)
    far: int = crossing(8, "western weights of the eastern pair", 8, turns=True)


@dataclass(frozen=True, slots=True)
class Sums16:
    """Sums of pairs of planes on their way to the VXM."""

    left: int = inward(4, "sums as they leave", 4, turns=True)
    turned: int = inward(16, "sums in their lanes: four streams a block", 8, turns=True)
    queues: int = sxm_queue(0, "put sums in their lanes: a block each", 2, turns=True)


FEED, QUANTISER, ROW_SCALE, WEIGHTS = Feed(), Quantiser(), RowScale(), Weights()
SUMS, GATE, WEIGHTS16, SUMS16 = Sums(), GateChain(), Weights16(), Sums16()
STREAMED, FEED_BESIDE, WEIGHTS_BESIDE = Streamed(), FeedBeside(), WeightsBeside()
COLUMN_SCALES, SHARE, SECOND = ColumnScales(), ShareWeight(), Second()

_PHASES = ("feed", "drain")
_FEEDING, _DRAINING, _ALWAYS = range(1), range(1, 2), range(2)

ONE_ROW = Resources(
    "MATMUL int8, one row",
    _PHASES,
    (
        Owner("blocks", BLOCKS, _ALWAYS),
        Owner("weights", WEIGHTS, _ALWAYS),
        Owner("feed", FEED, _ALWAYS),  # tiles that share a slot are sent again
        Owner("quantiser", QUANTISER, _FEEDING),
        Owner("row scale", ROW_SCALE, _ALWAYS),
        Owner("sums", SUMS, _DRAINING),
        Owner("gate", GATE, _DRAINING),
    ),
)
SHARE_ROW = Resources(
    "MATMUL one row, one of several",
    _PHASES,
    (
        Owner("blocks", BLOCKS, _ALWAYS),
        Owner("weights", WEIGHTS, _ALWAYS),
        Owner("feed", FEED, _ALWAYS),
        Owner("row scale", ROW_SCALE, _ALWAYS),
        Owner("share", SHARE, _ALWAYS),
        Owner("second", SECOND, _ALWAYS),
        Owner("sums", SUMS, _DRAINING),
    ),
)
ROWS = Resources(
    "MATMUL int8, several rows",
    _PHASES,
    (
        Owner("blocks", BLOCKS, _ALWAYS),
        Owner("weights", WEIGHTS_BESIDE, _ALWAYS),
        Owner("feed", FEED_BESIDE, _ALWAYS),
        Owner("column scales", COLUMN_SCALES, _DRAINING),
        Owner("sums", SUMS, _DRAINING),
    ),
)
FP16 = Resources(
    "MATMUL fp16",
    _PHASES,
    (
        Owner("blocks", BLOCKS, _ALWAYS),
        Owner("weights", WEIGHTS16, _ALWAYS),
        Owner("feed", FEED, _ALWAYS),
        Owner("sums", SUMS16, _DRAINING),
    ),
)
MANY_ROWS = Resources("MATMUL of many rows", ("passes",), (Owner("streamed", STREAMED, range(1)),))
