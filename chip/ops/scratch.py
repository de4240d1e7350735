"""Where attention keeps what it works on: weights between its passes, and what is known of heads.

Heads are taken four at a time (a quad), out of those that share packed vectors of the cache. A
quad's vectors have 80 tokens (a column) of each of its heads, fp32: four vectors of memory, an
item. A column's items lie twice in the bulk slices, once in each hemisphere, so that a pass may
read one and write the other: eight of either in a window of 64 vectors. What is one number a head
(maxima, shares, scales) is in work memory, 80 times each, so that it meets a column lane by lane.

Rows are taken in batches, as many at a time as these bounds allow, at least one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from chip.ops.kv import WINDOW_VECTORS, KvLayout
from chip.spec import VECTOR_BYTES

QUAD = 4  # heads in a vector
COLUMN = VECTOR_BYTES // QUAD  # tokens of each head in a vector
TILE = 2 * VECTOR_BYTES  # tokens that meet the planes at once
ITEM = 4  # vectors of 320 fp32 values
PER_WINDOW = WINDOW_VECTORS // ITEM // 2  # items of a hemisphere
ITEMS_AT_ONCE = {"int8": 64, "fp16": 256}  # in a batch of several rows, at least
QUADS_AT_ONCE = 64
QUERIES_AT_ONCE = 63  # fp16: of heads that share vectors; a plane has 64 activations, one zeros
HEADS_KNOWN = 3  # numbers a head: maximum, sum or share; largest weight or factor; scale


@dataclass(frozen=True, slots=True)
class Scratch:
    """Scratch memory of one ATTEND: `kv_of` is the KV head of every head."""

    layout: KvLayout
    kv_of: tuple[int, ...]
    rows: int
    bucket: int
    sinks: bool = False

    @property
    def quads(self) -> list[tuple[int, tuple[int, ...]]]:
        """(group, heads) of a row's quads."""
        per = self.layout.heads_per_group
        out = []
        for group in sorted({kv // per for kv in self.kv_of}):
            heads = [head for head, kv in enumerate(self.kv_of) if kv // per == group]
            out += [(group, tuple(heads[at : at + QUAD])) for at in range(0, len(heads), QUAD)]
        return out

    @property
    def columns(self) -> int:
        return -(-self.bucket // COLUMN)

    @property
    def tiles(self) -> int:
        """Tiles of each group."""
        return -(-self.bucket // TILE)

    @property
    def items(self) -> int:
        """Items that there is room for: an int8 row's over the whole context, or a few."""
        least = ITEMS_AT_ONCE[self.layout.dtype]
        if self.layout.dtype == "fp16":
            return max(least, self._row_of_fp16)
        return max(least, len(self.quads) * -(-self.layout.context // COLUMN))

    @property
    def batch(self) -> int:
        """Rows at a time: batches are as even as can be."""
        if self.layout.dtype == "fp16":
            most = min(self.items // self._row_of_fp16, QUERIES_AT_ONCE // self.shared)
        else:
            quads = len(self.quads)
            most = min(self.items // (quads * self.columns), QUADS_AT_ONCE // quads)
        most = max(1, most)
        return -(-self.rows // -(-self.rows // most))

    @property
    def shared(self) -> int:
        """Heads whose KV heads share a packed vector, at most."""
        per = self.layout.heads_per_group
        return max(Counter(kv // per for kv in self.kv_of).values())

    @property
    def _row_of_fp16(self) -> int:
        """Items of a row in fp16: 320 tokens of a head each."""
        return len(self.kv_of) * -(-self.bucket // VECTOR_BYTES)

    def item(self, quad: int, column: int, side: int) -> int:
        """Return the first vector of an item; `quad` counts a batch's."""
        window, place = divmod(quad * self.columns + column, PER_WINDOW)
        run, within = divmod(place, PER_WINDOW // 2)
        return WINDOW_VECTORS * window + 16 * (2 * run + side) + ITEM * within

    @property
    def bytes(self) -> int:
        """Bytes of the bulk slices, for this bucket and all smaller ones.

        fp16 has them in work memory.
        """
        fp16 = self.layout.dtype == "fp16"
        row = self._row_of_fp16 if fp16 else len(self.quads) * self.columns
        items = min(self.rows * row, self.items)
        if fp16:
            return items * ITEM * VECTOR_BYTES
        return -(-items // PER_WINDOW) * WINDOW_VECTORS * VECTOR_BYTES

    @property
    def known(self) -> int:
        """Vectors of work memory that a quad has: for maxima of its tiles, then `HEADS_KNOWN`.

        Sinks, if there are, lie behind these.
        """
        return ITEM * (max(self.tiles, HEADS_KNOWN) + self.sinks)

    @property
    def known_bytes(self) -> int:
        """Bytes of work memory, for this bucket and all smaller ones."""
        row = len(self.quads) * self.known
        quads = max(QUADS_AT_ONCE, len(self.quads))
        least = ITEM * (self.items * COLUMN // TILE + quads * (HEADS_KNOWN + self.sinks))
        return min(self.rows * row, max(least, row)) * VECTOR_BYTES
