"""Rope and Attend: the two operations that work on the KV cache.

With `slots` a layer's cache is there so many times, once for each sequence slot, `kv_step` bytes
apart, its scales `kvs_step` bytes apart. The step message says which slot each row is of. The chip
adds slot x step to the addresses that the instructions have, so the same instructions serve every
slot (`assumption:` MEM adds a base register to its addresses in no cycle of its own). Without
`slots` there is one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from chip.ops.kv import KvLayout
from chip.ops.opcodes import BOUND, MXM, Opcode, Use
from chip.ops.rows import row_bytes
from chip.ops.scratch import Scratch


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotate queries and keys of qkv [rows, (heads + 2 kv_heads) head_dim] fp32.

    Queries go, quantised per head, to q with scales sq; keys and values to the cache kv with
    scales kvs (fp16 has no scales). `rope` has each row's cosines, then sines; without it nothing
    is rotated. With `ring` the cache is a ring of so many slots (chip/ops/kv.py). With `gq` and
    `gk` each query and key is first normed (RMSNorm over the head with `eps`). `scale`: of scores,
    if it is not 1 / sqrt(head_dim); int8 queries take it in.
    """

    opcode: ClassVar[Opcode] = Opcode.ROPE
    part: ClassVar[str] = "vector"
    units: ClassVar[tuple[str, ...]] = ("VXM",)
    rows: int
    dtype: str
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    ring: int | None = None
    eps: float | None = None
    scale: float | None = None
    qkv: int = field(metadata=BOUND)
    rope: int | None = field(default=None, metadata=BOUND)
    q: int = field(metadata=BOUND)
    sq: int | None = field(default=None, metadata=BOUND)
    kv: int = field(metadata=BOUND)
    kvs: int | None = field(default=None, metadata=BOUND)
    gq: int | None = field(default=None, metadata=BOUND)
    gk: int | None = field(default=None, metadata=BOUND)
    slots: int | None = field(default=None, metadata=BOUND)
    kv_step: int | None = field(default=None, metadata=BOUND)
    kvs_step: int | None = field(default=None, metadata=BOUND)

    @property
    def layout(self) -> KvLayout:
        """How the cache lies in memory."""
        return _layout(self)

    def reads(self) -> list[Use]:
        n = (self.heads + 2 * self.kv_heads) * self.head_dim
        uses = [("qkv", (self.qkv, self.rows * row_bytes(n, 4)))]
        if self.rope is not None:
            uses.append(("rope", (self.rope, self.rows * row_bytes(self.head_dim, 4))))
        size = row_bytes(self.head_dim, 4)
        norms = (("gq", self.gq), ("gk", self.gk))
        return uses + [(name, (at, size)) for name, at in norms if at is not None]

    def writes(self) -> list[Use]:
        return [*_query(self), *_cache(self)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attend:
    """y [rows, heads head_dim] fp16: scores, softmax and weighted values over `bucket` slots.

    `kv_of`: the KV head of every head. `scratch` and `stats`: memory for what lies between the
    passes (chip/ops/scratch.py; fp16 has no stats). A row sees the tokens up to its own position;
    with `horizon`, all rows see those up to the position of that row. With `window` it sees only so
    many of them, the last ones, and with `ring` the cache is a ring of so many slots. `scale`: of
    fp16 scores, if it is not 1 / sqrt(head_dim). `cap`: scores become cap * tanh(score / cap).
    `sinks` [heads] fp32: a score of no token for each head, which takes part in the softmax. `row`:
    which row of the step the only one is, and of its slot the cache; a step without it does nothing
    here.
    """

    opcode: ClassVar[Opcode] = Opcode.ATTEND
    part: ClassVar[str] = "attention"
    units: ClassVar[tuple[str, ...]] = (*MXM, "VXM", "SXM")
    rows: int
    dtype: str
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    bucket: int
    kv_of: tuple[int, ...]
    horizon: int | None = None
    window: int | None = None
    ring: int | None = None
    scale: float | None = None
    cap: float | None = None
    q: int = field(metadata=BOUND)
    sq: int | None = field(default=None, metadata=BOUND)
    kv: int = field(metadata=BOUND)
    kvs: int | None = field(default=None, metadata=BOUND)
    y: int = field(metadata=BOUND)
    scratch: int = field(metadata=BOUND)
    stats: int | None = field(default=None, metadata=BOUND)
    sinks: int | None = field(default=None, metadata=BOUND)
    slots: int | None = field(default=None, metadata=BOUND)
    kv_step: int | None = field(default=None, metadata=BOUND)
    kvs_step: int | None = field(default=None, metadata=BOUND)
    row: int | None = field(default=None, metadata=BOUND)

    @property
    def layout(self) -> KvLayout:
        """How the cache lies in memory."""
        return _layout(self)

    @property
    def kept(self) -> Scratch:
        """How the scratch memory is used."""
        return Scratch(self.layout, self.kv_of, self.rows, self.bucket, self.sinks is not None)

    def reads(self) -> list[Use]:
        sinks = [] if self.sinks is None else [("sinks", (self.sinks, row_bytes(self.heads, 4)))]
        return [*_query(self), *_cache(self), *sinks]

    def writes(self) -> list[Use]:
        kept = self.kept
        known = [] if self.stats is None else [("stats", (self.stats, kept.known_bytes))]
        y = (self.y, self.rows * row_bytes(self.heads * self.head_dim, 2))
        return [("y", y), ("scratch", (self.scratch, kept.bytes)), *known]


def _layout(a: Rope | Attend) -> KvLayout:
    slots = a.context if a.ring is None else a.ring
    return KvLayout(kv_heads=a.kv_heads, head_dim=a.head_dim, context=slots, dtype=a.dtype)


def _query(a: Rope | Attend) -> list[Use]:
    layout = a.layout
    size = a.rows * layout.query_scale_bytes(a.heads)
    scales = [] if a.sq is None else [("sq", (a.sq, size))]
    return [("q", (a.q, a.rows * layout.query_bytes(a.heads))), *scales]


def cache_of(a: Rope | Attend, slot: int) -> tuple[int, int | None]:
    """Return the addresses of a slot's keys and values, and of their scales."""
    scales = None if a.kvs is None else a.kvs + slot * (a.kvs_step or 0)
    return a.kv + slot * (a.kv_step or 0), scales


def _cache(a: Rope | Attend) -> list[Use]:
    """Return the caches of all slots: which of them is used the step message says."""
    layout, last = a.layout, (a.slots or 1) - 1
    kv, kvs = cache_of(a, last)
    scales = []
    if a.kvs is not None and kvs is not None:
        scales.append(("kvs", (a.kvs, kvs - a.kvs + layout.scales_bytes)))
    return [("kv", (a.kv, kv - a.kv + layout.total_bytes)), *scales]
