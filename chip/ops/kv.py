"""Where a layer's KV cache lies: heads packed into 320-byte vectors, one row per token.

Several small heads share one vector (two 128-wide int8 heads, ten 16-byte ones), a head larger
than a vector takes several. A cache is [K groups][V groups]; a group is [context][row_bytes], in
whole windows of 64 vectors, so that it loads into the planes as weights do. int8 scales are apart,
in work memory: one fp32 per token and head, [K, then V head][context], so that token t is lane
t mod 320 of 4-vector group t div 320 when the VXM reads them.

A layer whose rows see only a window of tokens keeps no more than it needs of them, in a ring
(`ring_of`): the token at position p is in slot p mod the ring's slots, where token p of any other
cache is in slot p.

With several sequence slots each has a cache of its own, whole turns through the slices apart
(chip/sram.py), so that slots differ in the words of their addresses and in nothing else.

Queries are packed as keys are: head j of a row in vector j div heads_per_group. Its fp32 scale
fills a vector of its own: 80 times the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from chip.spec import VECTOR_BYTES, pad_vector

HEAD_ALIGN_BYTES = 16  # one superlane: a head never starts inside one
WINDOW_VECTORS = 64  # that the four planes load in a cycle
RING_ROWS = 128  # of a step for which every ring has room beside its window


def ring_of(window: int | None, context: int) -> int | None:
    """Return the slots of a layer's ring; None if it has no window, or keeps the whole context.

    A step of `RING_ROWS` rows writes over no token that its first row sees. Slots are whole vectors
    of tokens, so that a token's lane is that of its position, and they depend on the window alone,
    because their order decides the order of sums.
    """
    if window is None:
        return None
    slots = -(-(window + RING_ROWS - 1) // VECTOR_BYTES) * VECTOR_BYTES
    return slots if slots < context else None


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """Offsets in bytes from the cache's base, for one layer on one chip."""

    kv_heads: int
    head_dim: int
    context: int  # slots of tokens
    dtype: str  # "int8" or "fp16"

    @property
    def item_bytes(self) -> int:
        return 1 if self.dtype == "int8" else 2

    @property
    def head_bytes(self) -> int:
        return -(-self.head_dim * self.item_bytes // HEAD_ALIGN_BYTES) * HEAD_ALIGN_BYTES

    @property
    def heads_per_group(self) -> int:
        return max(1, VECTOR_BYTES // self.head_bytes)

    @property
    def groups(self) -> int:
        return -(-self.kv_heads // self.heads_per_group)

    @property
    def row_bytes(self) -> int:
        """Bytes of one token in one group."""
        return pad_vector(self.head_bytes)

    @property
    def group_bytes(self) -> int:
        return -(-self.context // WINDOW_VECTORS) * WINDOW_VECTORS * self.row_bytes

    @property
    def scale_bytes(self) -> int:
        """Bytes of one head's scales; zero for fp16."""
        return pad_vector(self.context * 4) if self.dtype == "int8" else 0

    def head_offset(self, head: int, *, value: bool) -> int:
        """Offset of token 0 of one head's keys, or of its values."""
        group, place = divmod(head, self.heads_per_group)
        return (group + (self.groups if value else 0)) * self.group_bytes + place * self.head_bytes

    def scale_offset(self, head: int, *, value: bool) -> int:
        """Offset of one head's key scales, or value scales, from the first (int8 only)."""
        return (head + (self.kv_heads if value else 0)) * self.scale_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of keys and values."""
        return 2 * self.groups * self.group_bytes

    @property
    def scales_bytes(self) -> int:
        """Bytes of all scales; zero for fp16."""
        return 2 * self.kv_heads * self.scale_bytes

    @property
    def pitch(self) -> int:
        """Lanes from head to head in a packed vector."""
        return self.head_bytes // self.item_bytes

    def query_groups(self, heads: int) -> int:
        """Packed vectors (or, of large heads, groups of vectors) of one row's queries."""
        return -(-heads // self.heads_per_group)

    def query_bytes(self, heads: int) -> int:
        """Bytes of one row's queries."""
        return self.query_groups(heads) * self.row_bytes

    def query_scale_bytes(self, heads: int) -> int:
        """Bytes of one row's query scales: a vector each."""
        return heads * VECTOR_BYTES

    def read_bytes(self, bucket: int) -> int:
        """Bytes that attention over `bucket` tokens reads."""
        scales = 2 * self.kv_heads * pad_vector(bucket * 4) if self.dtype == "int8" else 0
        return 2 * self.groups * bucket * self.row_bytes + scales
