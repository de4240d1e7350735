"""What attention works on: quads of heads, and tiles of keys and values.

A quad is up to four heads that share packed vectors of the cache (chip/ops/scratch.py). One of
fewer heads has its last one in the remaining quarters, too.

A tile is up to 640 tokens of a group's keys or values: its western runs of 16 tokens lie in a plane
of the west, the others in one of the east, in their order, two vectors of 320 tokens one behind the
other.
"""

from __future__ import annotations

from dataclasses import dataclass

from chip.ops.attention import Attend
from chip.ops.scratch import COLUMN, ITEM, QUAD, TILE
from chip.spec import RUN, VECTOR_BYTES, ChipSpec
from compiler.codegen.core.parts import LANES

WEST, EAST = 0, 1
HALF = LANES // 2  # tokens of a vector that one side's plane holds
Map = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Quad:
    """Up to four heads of one row; `number` counts the quads of a batch."""

    number: int
    row: int
    group: int
    heads: tuple[int, ...]

    @property
    def quarters(self) -> tuple[int, ...]:
        """The head of each quarter of the lanes."""
        return self.heads + self.heads[-1:] * (QUAD - len(self.heads))


@dataclass(frozen=True, slots=True)
class Tile:
    """`tokens` tokens from `first` of a group's keys or values; tiles take turns at the planes."""

    number: int
    group: int
    first: int
    tokens: int

    @property
    def columns(self) -> int:
        """Columns of 80 tokens."""
        return -(-self.tokens // COLUMN)

    @property
    def column(self) -> int:
        """The first column, counted from the bucket's first."""
        return self.first // COLUMN

    @property
    def vectors(self) -> range:
        """Vectors of 320 tokens."""
        return range(-(-self.tokens // LANES))

    def plane(self, side: int) -> int:
        return 2 * side + self.number % 2

    def columns_of(self, vector: int) -> range:
        """Columns of one vector of tokens, counted from the tile's first."""
        return range(QUAD * vector, min(QUAD * (vector + 1), self.columns))

    def runs(self, side: int) -> list[tuple[int, int]]:
        """(first token, tokens) of each run of a side, counted from the tile's first."""
        starts = range(side * RUN, self.tokens, 2 * RUN)
        return [(start, min(RUN, self.tokens - start)) for start in starts]

    def sides(self, vector: int = 0) -> list[int]:
        """Sides that hold tokens of a vector."""
        return [0, 1] if self.tokens - vector * LANES > RUN else [0]

    def width(self, side: int) -> int:
        """Lanes (or columns of a plane) that a side's tokens take."""
        start, n = self.runs(side)[-1]
        return place_of(start) + n

    def spread(self, vector: int, side: int) -> Map:
        """For each token of a vector its place among a side's, None for the other side's."""
        first, stop = vector * LANES, min(self.tokens, (vector + 1) * LANES)
        return tuple(place_of(t) if t // RUN % 2 == side else None for t in range(first, stop))


def place_of(token: int) -> int:
    """Place of a tile's token among those of its side."""
    vector, within = divmod(token, LANES)
    return HALF * vector + within // (2 * RUN) * RUN + within % RUN


@dataclass(frozen=True, slots=True)
class Piece:
    """`n` neighbouring results of a head: from a lane of the sums to one of their vector."""

    number: int  # of the row's vectors of 320 results
    lane: int
    place: int
    n: int

    @property
    def taken(self) -> Map:
        """The way of sums to a quarter's first lanes."""
        return tuple(range(self.place, self.place + self.n)) + (None,) * (COLUMN - self.n)

    def spread(self, quarter: int) -> Map:
        """Return the way of a quarter's lanes to those of their vector."""
        first = COLUMN * quarter
        return (None,) * self.lane + tuple(range(first, first + self.n))


def check_ring(op: Attend) -> None:
    """Raise ValueError for a ring whose last column has lanes beyond its last slot."""
    if op.ring is not None and op.ring % LANES:
        raise ValueError(f"ATTEND: wanted a ring of whole vectors of {LANES} slots, got {op.ring}")


class Attention:
    """The shape of one ATTEND: a batch of rows at a time, all heads, the whole bucket."""

    def __init__(self, op: Attend, spec: ChipSpec) -> None:
        self.spec, self.layout = spec, op.layout
        self.kv_of, self.dim, self.rows = op.kv_of, op.head_dim, op.rows
        self.horizon, self.window, self.cap = op.horizon, op.window, op.cap
        self.ring = op.ring if op.bucket == op.ring else None  # else no slot has a second token
        self.sinks = op.sinks is not None
        self.scratch = op.kept
        self.columns, row = self.scratch.columns, self.scratch.quads
        quads = [(r, *quad) for r in range(self.scratch.batch) for quad in row]
        self.quads = [Quad(number, *quad) for number, quad in enumerate(quads)]
        self.queries = [self._query(head) for head in range(len(self.kv_of))]
        bucket = self.scratch.bucket
        starts = [(g, t) for g in sorted({g for g, _ in row}) for t in range(0, bucket, TILE)]
        self.tiles = [Tile(n, g, t, min(TILE, bucket - t)) for n, (g, t) in enumerate(starts)]

    def heads_of(self, group: int) -> list[int]:
        """Heads that share packed vectors of the cache."""
        return [
            head for head, kv in enumerate(self.kv_of) if kv // self.layout.heads_per_group == group
        ]  # fmt: skip

    @property
    def sink(self) -> int | None:
        """Where the heads' sinks are among what is known of a quad."""
        return self.scratch.known // ITEM - 1 if self.sinks else None

    @property
    def bent(self) -> bool:
        """Whether scores are capped, or a row sees a window of tokens: a pass of their own."""
        return self.window is not None or self.cap is not None

    @property
    def scored(self) -> int:
        """Side of the scratch memory that has the scores whose exponentials are taken."""
        return WEST if self.bent else EAST

    @property
    def powers(self) -> int:
        """Side of the scratch memory that has the exponentials."""
        return EAST if self.bent else WEST

    def of(self, tile: Tile) -> list[Quad]:
        """Quads that a tile is for."""
        return [quad for quad in self.quads if quad.group == tile.group]

    def seen_by(self, row: int) -> int:
        """The row up to whose position a row sees."""
        return row if self.horizon is None else self.horizon

    def place(self, head: int) -> int:
        """First lane of a query head's KV head in the packed vector."""
        return self.kv_of[head] % self.layout.heads_per_group * self.layout.pitch

    def width(self, group: int) -> int:
        """Lanes of a packed vector in use, in whole runs."""
        per = self.layout.heads_per_group
        used = min(per, self.layout.kv_heads - group * per) * self.layout.pitch
        return -(-used // RUN) * RUN

    def _query(self, head: int) -> tuple[int, Map]:
        """The packed vector of a row's queries that has a head, and the way to the head's lanes."""
        per, place = self.layout.heads_per_group, self.place(head)
        first = head % per * self.layout.pitch
        spread = [None] * place + list(range(first, first + self.dim))
        return head // per, tuple(spread)

    def scales(self, quad: Quad, column: int, *, value: bool) -> dict[int, list[int]]:
        """Vectors of the scales of a pair of columns, by KV head of the quad."""
        out = {}
        for kv in dict.fromkeys(self.kv_of[head] for head in quad.heads):
            first = self.layout.scale_offset(kv, value=value) // VECTOR_BYTES + column
            out[kv] = [first, first + 1][: self.columns - column]
        return out

    def pieces(self, head: int) -> list[Piece]:
        """Return the pieces of a head's results: of a vector of 320 each, of 80 lanes at most."""
        out, at = list[Piece](), 0
        while at < self.dim:
            number, lane = divmod(head * self.dim + at, LANES)
            n = min(COLUMN, self.dim - at, LANES - lane)
            out.append(Piece(number, lane, self.place(head) + at, n))
            at += n
        return out

    def outputs(self, head: int) -> list[tuple[int, Map]]:
        """The vectors of 320 results that a head has part in, and the way to their lanes."""
        first, place, out = head * self.dim, self.place(head), []
        for number in range(first // LANES, (first + self.dim - 1) // LANES + 1):
            turn: list[int | None] = [None] * LANES
            for d in range(self.dim):
                if (first + d) // LANES == number:
                    turn[(first + d) % LANES] = place + d
            out.append((number, tuple(turn)))
        return out
