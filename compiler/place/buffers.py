"""A step's buffers on one chip: their sizes, and lifetimes derived from the order of operations.

A lifetime counts the operations of a group as places: those of one layer, because all layers are
alike, then those of the head. Place `ENTERED` is before the first operation, for what a chip
receives. The place behind the last one is for results, which wait for their links.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from chip.ops.kv import KvLayout, ring_of
from chip.ops.rows import item_bytes, row_bytes, segment_offsets
from chip.ops.scratch import Scratch
from chip.spec import pad_vector
from compiler.model.config import ModelConfig
from compiler.model.layer import entering, layer
from compiler.model.layer import head as head_of
from compiler.model.operation import RESIDUAL, ROPE, GraphOp, Kind, Split
from compiler.place.partition import Group, Partition, weight_of

ENTERED = -1
HANDED = "handed"  # the gather buffer of segments that the group before hands over
PARTIAL = "partial"  # sum over the experts of a row so far
FORWARD_SLOTS = 4  # messages that may pass through a chip at once; a fifth one waits

Lifetime = tuple[int, int]
"""First and last place at which a buffer is in use."""


class Slices(Enum):
    """The MEM slices that a buffer lies in (chip/sram.py)."""

    BULK = "bulk"
    FEED = "feed"
    WORK = "work"


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """A buffer of one step: `first` and `last` are its lifetime, in places of the order."""

    name: str
    size: int
    first: int
    last: int
    slices: Slices = Slices.WORK


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryOptions:
    """The options that decide how much a memory holds beside the weights."""

    dtype: str  # of activations and cache
    context: int  # tokens of KV cache
    rows: tuple[int, ...]  # row counts of the steps, rising
    forward_row_bytes: dict[int, int]  # chip -> the widest row that passes through it
    top_k: int = 0
    group: int | None = None  # of int4 weights
    sequences: int = 1  # slots, each with a KV cache of its own
    decode_rows: tuple[int, ...] = (1,)  # those of decode steps, rising; each row has its own slot
    prefill_rows: int | None = None  # of the largest prefill step, if that is not the last of rows


def tokens_kept(config: ModelConfig, layer: int, context: int) -> int:
    """Return how many tokens a layer's KV cache has room for."""
    window = config.windows[layer] if config.windows else None
    return ring_of(window, context) or context


def lifetimes(order: Sequence[GraphOp]) -> dict[str, Lifetime]:
    """Return the lifetime of every value: from its first write to its last read.

    A value that is read before it is written enters from outside, and each layer leaves it to the
    next: it always lives. A value that nothing reads is a result.

    A faster chip may send its part of an exchanged value before this chip writes its own part: as
    soon as this chip's part of the exchange before has left, or from the layer's beginning. By
    then a product (LINEAR) is over. ATTEND, GATE and APPLY count as still at work: one place more
    than they need. It is kept because it decides addresses, and with them `schedule_hash`.
    """
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    sent = 0
    for place, op in enumerate(order):
        for name in op.inputs:
            if first.setdefault(name, ENTERED) == ENTERED:
                last[name] = len(order)
            else:
                last[name] = place
        first.setdefault(op.output, sent if op.exchanged else place)
        if op.exchanged:
            sent = place + (op.kind is Kind.LINEAR)
    return {name: (start, last.get(name, len(order))) for name, start in first.items()}


@lru_cache(maxsize=16)
def _order(
    config: ModelConfig, *, layers: bool, head: bool
) -> tuple[tuple[GraphOp, ...], dict[str, Lifetime]]:
    """Return the operations of one layer and of the head, as far as asked for, and lifetimes."""
    order = (layer(config) if layers else ()) + (head_of(config) if head else ())
    return order, lifetimes(order)


def step_buffers(
    partition: Partition, chip: int, rows: int, options: MemoryOptions
) -> list[Buffer]:
    """Return the buffers of one step on one chip, with lifetimes."""
    out = []
    for group, rank in partition.groups_of(chip):
        out += _Sizes(partition, group, rank, rows, options).buffers()
    if width := options.forward_row_bytes.get(chip, 0):
        always = (ENTERED, max(buffer.last for buffer in out))
        slots = range(FORWARD_SLOTS)
        out += [_buffer(f"forward.{slot}", rows * width, always) for slot in slots]
    return out


def _buffer(name: str, size: int, life: Lifetime, slices: Slices = Slices.WORK) -> Buffer:
    return Buffer(name=name, size=size, first=life[0], last=life[1], slices=slices)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """The buffers of one group on one of its chips."""

    partition: Partition
    group: Group
    rank: int
    rows: int
    options: MemoryOptions

    def buffers(self) -> list[Buffer]:
        """Return the buffers of all values, and those that hold no value of the graph."""
        config, layers = self.partition.config, len(self.group.layers) > 0
        ends = config.encoder is not None or self.rows in self.options.decode_rows
        head = self.group.has_head and ends
        order, lives = _order(config, layers=layers, head=head)
        results = len(order)
        out = self._entering((ENTERED, results))
        written: set[str] = set(entering(config))
        for place, op in enumerate(order):
            if op.output not in written:
                written.add(op.output)
                out += self._output(op, lives[op.output])
            if op.kind is Kind.ATTEND:
                out += self._between_passes(op, (place, place))
            if op.kind is Kind.EXPERTS_SUM:
                own = weight_of(config, self.group, self.rank, op).n
                out.append(_buffer(PARTIAL, row_bytes(own, 4), (place, place)))
        if head and self.options.top_k:
            size = self.rows * row_bytes(2 * self.options.top_k, 4)
            out.append(_buffer("top_k", size, (results, results)))
        return out

    def _entering(self, always: Lifetime) -> list[Buffer]:
        """Return the buffers of values from the host or from the group before."""
        config = self.partition.config
        widths = {RESIDUAL: config.hidden_size, ROPE: config.head_dim}
        out = [
            _buffer(name, self.rows * row_bytes(widths[name], 4), always)
            for name in entering(config)
        ]
        if self.group.index and self.rows == 1:  # this group may do the last sum of the one before
            before = self.partition.groups[self.group.index - 1]
            out.append(_buffer(HANDED, self._segments(before, Split.HIDDEN), (ENTERED, ENTERED)))
        return out

    def _output(self, op: GraphOp, life: Lifetime) -> list[Buffer]:
        """Return the buffer of an operation's output, and the one of its scales if it has any."""
        if op.kind in (Kind.NORM, Kind.LAYER_NORM, Kind.GATHER):
            return self._quantised(op, life)
        if op.kind is Kind.ROPE:
            return self._queries(op, life)
        if op.kind is Kind.ROUTE:
            size = self.rows * row_bytes(op.features, 4)
            return [_buffer(name, size, life) for name in (op.output, f"{op.output}.weight")]
        if op.exchanged:
            return [_buffer(op.output, self._segments(self.group, op.split, op.each), life)]
        own = weight_of(self.partition.config, self.group, self.rank, op).n
        return [_buffer(op.output, self.rows * op.each * row_bytes(own, 4), life)]

    def _segments(self, group: Group, split: Split, each: int = 1) -> int:
        shares = group.shares(split, self.partition.config.head_dim)
        return segment_offsets(shares, self.rows * each)[-1]

    def _quantised(self, op: GraphOp, life: Lifetime) -> list[Buffer]:
        dtype, rows = self.options.dtype, self.rows * op.each
        size = rows * row_bytes(pad_vector(op.features), item_bytes(dtype))
        out = [_buffer(op.output, size, life, Slices.FEED)]
        if dtype == "int8":
            out.append(_buffer(f"{op.output}.scale", pad_vector(rows * 4), life))
        return out

    def _queries(self, op: GraphOp, life: Lifetime) -> list[Buffer]:
        """Return the buffers of packed queries (chip/ops/kv.py)."""
        start, stop = self.group.heads[self.rank]
        layout, rows = self._layout(context=1), self.rows
        return [
            _buffer(op.output, rows * layout.query_bytes(stop - start), life),
            _buffer(f"{op.output}.scale", rows * layout.query_scale_bytes(stop - start), life),
        ]

    def _between_passes(self, op: GraphOp, life: Lifetime) -> list[Buffer]:
        """Return the buffers that ATTEND needs between its passes."""
        start, stop = self.group.kv_heads[self.rank]
        if start == stop:
            return []
        kv_of, config = self.partition.kv_of(self.group, self.rank), self.partition.config
        most = max(tokens_kept(config, at, self.options.context) for at in self.group.layers)
        kept = Scratch(self._layout(context=most), kv_of, self.rows, most, bool(op.vectors))
        int8 = self.options.dtype == "int8"
        scores = _buffer("scores", kept.bytes, life, Slices.BULK if int8 else Slices.WORK)
        return [scores, _buffer("stats", kept.known_bytes, life)] if int8 else [scores]

    def _layout(self, *, context: int) -> KvLayout:
        start, stop = self.group.kv_heads[self.rank]
        return KvLayout(
            kv_heads=max(stop - start, 1), head_dim=self.partition.config.head_dim,
            context=context, dtype=self.options.dtype,
        )  # fmt: skip
