"""Who holds which ALU, stream and SXM queue in attention: a table for int8, one for fp16.

`print(INT8)` shows a table. An ALU that no owner at work names is free for the blocks between
passes, which begin while the pass before still works; compiler/codegen/core/uses.py proves by
cycles that the two do not meet.
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
    inward_groups,
    outward,
    outward_groups,
    sxm_queue,
    sxm_queues,
)
from compiler.codegen.core.traffic import BLOCKS
from compiler.codegen.products.resources import FEED, SUMS16


@dataclass(frozen=True, slots=True)
class LaneNumbers:
    """Numbers of the lanes, which masks compare with a row's position."""

    lane: int = alu(14, "each lane's number within its quarter")


@dataclass(frozen=True, slots=True)
class Edges:
    """What makes the lane numbers."""

    edges: tuple[int, ...] = alus((4, 6, 9), "lanes at or beyond a quarter's edge")


@dataclass(frozen=True, slots=True)
class Masks:
    """Masked columns, the same in every pass that masks."""

    mask: int = alu(12, "tokens that a row may see")
    chosen: tuple[int, ...] = alus((2, 5), "masked values of even columns, of odd ones")


@dataclass(frozen=True, slots=True)
class RunningMaximum:
    """Row maxima, a pair of columns at a time."""

    pair: int = alu(7, "the larger of a pair of columns")
    best: int = alu(8, "the row maximum so far")


@dataclass(frozen=True, slots=True)
class Store:
    """What a pass leaves of each head, on its way to work memory."""

    store: int = alu(13, "a number of each head")


@dataclass(frozen=True, slots=True)
class Queries:
    """Queries on their way to the planes that hold keys, and sums back."""

    senders: tuple[int, ...] = alus((1, 3), "send queries back to the side that they come from")
    passed: int = outward(0, "queries that flow past the VXM, on to the other side's SXM")
    query: int = outward(8, "queries from the VXM to an SXM")
    fed: int = outward(28, "queries of a head each, from the SXMs to the planes")
    sums: int = inward(8, "columns of scores, a stream a head", 4)
    parts: int = inward(24, "sums as they leave the accumulators", 4)
    turn_passed: int = sxm_queue(2, "give heads their queries, of vectors that flowed on", 4)
    turn_copied: int = sxm_queue(6, "give heads their queries, of vectors sent back", 4)
    turn_sums: int = sxm_queue(0, "put tokens in order, a queue a vector of tokens", 2)


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores: sums of both sides, dequantised."""

    sum: int = alu(4, "sum of both sides' parts")
    convert: int = alu(0, "the sum in fp32")
    factors: tuple[int, ...] = alus((6, 9), "scale of query times scales of keys, by column")
    score: int = alu(11, "the score")
    scales: tuple[int, ...] = alus((10, 15), "scales of queries, by job")


@dataclass(frozen=True, slots=True)
class Bends:
    """Scores that are capped, or of which a row sees a window."""

    scaled: int = alu(4, "score / cap")
    bent: int = alu(0, "its tanh")
    capped: int = alu(11, "times the cap")
    late: int = alu(1, "slots up to the row's own")
    edge: int = alu(3, "a ring's first slot that a row sees, by lap")
    early: int = alu(6, "slots that are no older than the window")
    written: int = alu(10, "slots that have tokens a row may see")
    seen: int = alu(9, "slots that a row sees")
    chosen: int = alu(12, "what a row sees of the scores")
    best: tuple[int, ...] = alus((2, 5, 7, 8), "row maxima, by column modulo 4")


@dataclass(frozen=True, slots=True)
class Exponentials:
    """Exponentials of scores less the row maximum, and their sums."""

    maxima: tuple[int, ...] = alus((1, 3), "row maxima, by quad")
    below: int = alu(4, "score less row maximum")
    power: int = alu(0, "its exponential")
    totals: tuple[int, ...] = alus((6, 9, 11, 12), "sums, by column modulo 4")
    fold: tuple[int, ...] = alus((2, 5), "sums of sums")


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights: exponentials times sum reciprocal times the values' scales."""

    reciprocals: tuple[int, ...] = alus((1, 3), "sum reciprocals, by job")
    share: int = alu(4, "exponential times sum reciprocal")
    scales: tuple[int, ...] = alus((6, 9), "scales of values, by column")
    weight: int = alu(11, "the weight")


@dataclass(frozen=True, slots=True)
class QuantisedWeights:
    """Weights on their way to the planes that hold values (P.V)."""

    factors: tuple[int, ...] = alus((10, 15), "127 / largest weight, by job")
    scaled: int = alu(13, "the weight times its factor")
    rounded: tuple[int, ...] = alus((7, 8), "the weight in int8, for the west and the east")
    rounded_stream: int = outward(8, "weights from the VXM to the SXMs")
    fed: int = outward(28, "weights of a head each, from the SXMs to the planes")
    turn: int = sxm_queue(0, "give each head its vector, a queue a vector of tokens", 2)


@dataclass(frozen=True, slots=True)
class Results:
    """Sums of P.V: planes added, scaled, heads side by side, rounded."""

    adders: tuple[int, ...] = alus((4, 6, 9), "sums of the planes' parts")
    convert: int = alu(0, "the sum in fp32")
    scaled: int = alu(11, "the head's result")
    joined: int = alu(12, "heads side by side")
    round: int = alu(2, "results in fp16")


@dataclass(frozen=True, slots=True)
class ResultsWay:
    """The way of results to the VXM; it begins while the last weights are on theirs."""

    parts: int = inward(24, "sums as they leave the accumulators, four streams a plane", 8)
    sums: int = inward(8, "sums in the lanes of their results, four streams a plane", 8)
    turn: int = sxm_queue(2, "put sums in the lanes of their results, a queue a plane", 2)


@dataclass(frozen=True, slots=True)
class Tiles:
    """Keys and values on their way to the planes."""

    loaded: int = outward(12, "keys and values", 16)
    turn: int = sxm_queue(13, "turn values: tokens to lanes")


@dataclass(frozen=True, slots=True)
class Items:
    """Values of one column of a quad, on their way to and from bulk memory."""

    written: int = outward(28, "items for bulk memory; gone before the SXMs send", 4, turns=True)
    read: int = inward(28, "items from bulk memory", 4, turns=True)


@dataclass(frozen=True, slots=True)
class Loop:
    """Quads of many rows that follow each other in a modulo schedule (attention/modulo.py)."""

    visible: int = alu(14, "the last lane that each quarter's row sees, of a quad's first column")
    rounded: int = alu(13, "results in fp16; edges of the quarters")
    joined: tuple[int, ...] = alus((15, 12, 11, 9), "a row's heads side by side, by quarter")
    near: int = inward(0, "vectors of work memory")
    query: int = crossing(3, "queries from work memory to both SXMs")
    results: int = outward(1, "results for work memory", 2)
    sent: int = outward(4, "a value that an SXM copies", 4)
    ways: tuple[int, ...] = inward_groups((4, 24, 20, 16, 28), "copies of a value", turns=True)
    sums: int = inward(8, "columns of scores, a stream a row", 4)
    products: int = inward(12, "sums of P.V, a stream a row", 4)
    rounded_weights: int = outward(8, "weights in int8")
    fed_weights: int = outward(28, "weights of a row each, from the SXMs to the planes", turns=True)
    fed_queries: int = outward(29, "queries, from the SXMs to the planes' buffers", turns=True)
    score_parts: int = inward(24, "sums as they leave the planes of keys", 4, turns=True)
    product_parts: int = inward(28, "sums as they leave the planes of values", 4, turns=True)
    turn_sums: int = sxm_queue(0, "put tokens in order, a queue a vector of tokens", 2)
    turn_products: int = sxm_queue(2, "give each row's sums their stream")
    turn_weights: int = sxm_queue(3, "give each row its vector, a queue a vector of tokens", 2)
    copy_queues: tuple[int, ...] = sxm_queues((5, 6, 7, 8, 9), "copies of a value", turns=True)
    query_queues: tuple[int, ...] = sxm_queues(
        (10, 11, 12, 5, 6, 7, 8, 9), "give heads their queries", turns=True
    )

    @property
    def pinned(self) -> frozenset[int]:
        """ALUs that the quads' instructions may not take."""
        return frozenset({self.visible, self.rounded, *self.joined})


@dataclass(frozen=True, slots=True)
class WholeRows:
    """Vectors of results on their way to an SXM, in which they wait to be rounded."""

    sent: tuple[int, ...] = outward_groups((12, 16, 20, 24), "a row's results, by quarter")


LANE_NUMBERS, EDGES, MASKS, MAXIMUM, STORE = (
    LaneNumbers(), Edges(), Masks(), RunningMaximum(), Store(),
)  # fmt: skip
QUERIES, SCORES, BENDS = Queries(), Scores(), Bends()
EXPONENTIALS, WEIGHTS = Exponentials(), Weights()
QUANTISED, RESULTS, RESULTS_WAY, TILES, ITEMS = (
    QuantisedWeights(), Results(), ResultsWay(), Tiles(), Items(),
)  # fmt: skip

INT8 = Resources(
    "ATTEND int8",
    ("lane numbers", "scores", "bends", "exponentials", "weight maxima", "P.V", "results"),
    (
        Owner("blocks", BLOCKS, range(7)),
        Owner("lane numbers", LANE_NUMBERS, range(7)),
        Owner("edges", EDGES, range(1)),
        Owner("tiles", TILES, range(1, 6)),
        Owner("items", ITEMS, range(1, 6)),
        Owner("queries", QUERIES, range(1, 2)),
        Owner("scores", SCORES, range(1, 2)),
        Owner("masks of scores", MASKS, range(1, 2)),
        Owner("maxima of scores", MAXIMUM, range(1, 2)),
        Owner("store", STORE, range(1, 5)),
        Owner("bends", BENDS, range(2, 3)),
        Owner("exponentials", EXPONENTIALS, range(3, 4)),
        Owner("weights", WEIGHTS, range(4, 6)),
        Owner("masks of weights", MASKS, range(4, 6)),
        Owner("maxima of weights", MAXIMUM, range(4, 5)),
        Owner("quantised weights", QUANTISED, range(5, 6)),
        Owner("results", RESULTS, range(6, 7)),
        Owner("results' way", RESULTS_WAY, range(5, 7)),
    ),
)

LOOP, WHOLE = Loop(), WholeRows()
MANY = Resources(
    "ATTEND int8 of many rows",
    ("loads", "quads"),
    (
        Owner("tiles", TILES, range(1)),
        Owner("items", ITEMS, range(1, 2)),
        Owner("quads", LOOP, range(2)),
        Owner("whole rows", WHOLE, range(1, 2)),
    ),
)


@dataclass(frozen=True, slots=True)
class Keys16:
    """Keys on their way to the planes."""

    stream: int = outward(0, "keys: two runs of 16 streams", 32, turns=True)


@dataclass(frozen=True, slots=True)
class Values16:
    """Values on their way to the eastern pair, through the eastern SXM."""

    tokens: int = crossing(8, "values, before they are turned and after", 16)
    queue: int = sxm_queue(0, "turn values: tokens to lanes", turns=True)


KEYS16, VALUES16 = Keys16(), Values16()

FP16 = Resources(
    "ATTEND fp16",
    ("queries", "scores", "softmax", "values", "results"),
    (
        Owner("blocks", BLOCKS, range(5)),
        Owner("feed", FEED, range(1)),
        Owner("keys", KEYS16, range(1, 2)),
        Owner("sums", SUMS16, range(1, 5)),
        Owner("values", VALUES16, range(3, 4)),
        Owner("feed of weights", FEED, range(3, 4)),
    ),
)
