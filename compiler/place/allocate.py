"""Give every tensor of a chip its SRAM address: weights, scales, norms, KV cache, buffers.

Weights, keys and values lie in the bulk slices from address 0 on, each on a window of 64 vectors,
so that any of them loads into the planes without two reads in one slice; behind them what attention
keeps between its passes. Scales, norms and the step's other buffers lie in the work slices, which
nothing else touches. Buffers share addresses where
their lifetimes do not meet. Steps follow each other, so each row count has its own arrangement
of the buffers. What does not fit is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from chip.ops.kv import WINDOW_VECTORS, KvLayout
from chip.ops.rows import item_bytes, row_bytes, segment_offsets
from chip.ops.scratch import Scratch
from chip.spec import VECTOR_BYTES, ChipSpec, pad_vector
from chip.sram import work_start
from compiler.errors import CapacityError
from compiler.ir import Memory, Tensor
from compiler.model.graph import Kind, Split
from compiler.place.partition import Group, Partition, weight_of

WINDOW_BYTES = WINDOW_VECTORS * VECTOR_BYTES
HANDED = "handed"  # the gather buffer of segments that the group before hands over
FORWARD_SLOTS = 4  # messages that may pass through a chip at once; the schedule holds back a fifth


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """A buffer of one step: `first` and `last` are its lifetime, in places of the template.

    Place -1 is what comes in front of a group's first layer.
    """

    name: str
    size: int
    first: int
    last: int
    bulk: bool = False  # in the bulk slices


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryOptions:
    """What the memory must hold beside the weights."""

    dtype: str
    context: int  # tokens of KV cache
    rows: tuple[int, ...]  # row counts of the steps; 1 is decode
    forward_row_bytes: dict[int, int]  # chip -> the widest row that passes through it
    top_k: int = 0


def constants(partition: Partition, chip: int, dtype: str) -> list[tuple[str, str, int]]:
    """(name, kind, bytes) of every weight, scale and norm of a chip, in address order."""
    out: list[tuple[str, str, int]] = []
    for group, rank in partition.groups_of(chip):
        for op in partition.ops(group):
            if op.kind is Kind.NORM:
                out.append((op.name, "norm", row_bytes(op.features, 4)))
            if op.kind is not Kind.LINEAR:
                continue
            weight = weight_of(partition.config, group, rank, op)
            if weight.n:
                size = weight.n * row_bytes(pad_vector(weight.k), item_bytes(dtype))
                out.append((op.name, "weight", size))
                if dtype == "int8":
                    out.append((f"{op.name}.scale", "scale", row_bytes(weight.n, 4)))
    return out


def kv_tensors(
    partition: Partition, chip: int, dtype: str, context: int
) -> list[tuple[str, str, int]]:
    """(name, kind, bytes) of the KV cache of each layer of a chip that has KV heads."""
    out = []
    for group, rank in partition.groups_of(chip):
        start, stop = group.kv_heads[rank]
        if stop > start:
            layout = KvLayout(
                kv_heads=stop - start,
                head_dim=partition.config.head_dim,
                context=context,
                dtype=dtype,
            )
            for index in group.layers:
                out.append((f"layers.{index}.kv", "kv", layout.total_bytes))
                if layout.scales_bytes:
                    out.append((f"layers.{index}.kv.scale", "kv", layout.scales_bytes))
    return out


def step_buffers(
    partition: Partition, chip: int, rows: int, options: MemoryOptions
) -> list[Buffer]:
    """Return the buffers of one step on one chip, with lifetimes."""
    config, dtype = partition.config, options.dtype
    out = [
        Buffer(name="residual", size=rows * row_bytes(config.hidden_size, 4), first=-1, last=99),
        Buffer(name="rope", size=rows * row_bytes(config.head_dim, 4), first=-1, last=99),
    ]
    for group, rank in partition.groups_of(chip):
        if group.index and rows == 1:
            shares = partition.groups[group.index - 1].shares(Split.HIDDEN, config.head_dim)
            size = segment_offsets(shares, rows)[-1]
            out.append(Buffer(name=HANDED, size=size, first=-1, last=-1))
        if len(group.layers):
            out += _layer_buffers(partition, group, rank, rows, dtype)
            out += _attention_buffers(partition, group, rank, rows, options)
        if group.has_head and rows == 1:
            out += _head_buffers(partition, group, rank, options)
    width = options.forward_row_bytes.get(chip, 0)
    out += [
        Buffer(name=f"forward.{slot}", size=rows * width, first=-1, last=99)
        for slot in range(FORWARD_SLOTS if width else 0)
    ]
    return out


def _activation(name: str, rows: int, k: int, dtype: str, first: int, last: int) -> list[Buffer]:
    size = rows * row_bytes(pad_vector(k), item_bytes(dtype))
    out = [Buffer(name=name, size=size, first=first, last=last)]
    if dtype == "int8":
        scale = Buffer(name=f"{name}.scale", size=pad_vector(rows * 4), first=first, last=last)
        out.append(scale)
    return out


def _layer_buffers(
    partition: Partition, group: Group, rank: int, rows: int, dtype: str
) -> list[Buffer]:
    """Buffers of one layer; the places are those of the layer's operations in the graph.

    A gather buffer lives from the exchange before it, because a faster chip may write it early.
    """
    config = partition.config
    dim = config.head_dim
    heads = group.heads[rank][1] - group.heads[rank][0]
    kv = group.kv_heads[rank][1] - group.kv_heads[rank][0]
    inter = group.inter[rank][1] - group.inter[rank][0]

    def segments(name: str, split: Split, first: int, last: int) -> Buffer:
        size = segment_offsets(group.shares(split, dim), rows)[-1]
        return Buffer(name=name, size=size, first=first, last=last)

    layout = KvLayout(kv_heads=max(kv, 1), head_dim=dim, context=1, dtype=dtype)
    query, scales = layout.query_bytes(heads), layout.query_scale_bytes(heads)
    return [
        *_activation("attn.in", rows, config.hidden_size, dtype, 0, 1),
        Buffer(name="qkv", size=rows * row_bytes((heads + 2 * kv) * dim, 4), first=1, last=2),
        Buffer(name="query", size=rows * query, first=2, last=3),
        Buffer(name="query.scale", size=rows * scales, first=2, last=3),
        segments("attn.out", Split.HEADS, 0, 4),
        *_activation("o.in", rows, config.num_heads * dim, dtype, 4, 5),
        segments("o.out", Split.HIDDEN, 3, 6),
        *_activation("mlp.in", rows, config.hidden_size, dtype, 7, 8),
        Buffer(name="gate_up", size=rows * row_bytes(2 * inter, 4), first=8, last=9),
        segments("mlp.mid", Split.INTER, 6, 10),
        *_activation("down.in", rows, config.intermediate_size, dtype, 10, 11),
        segments("mlp.out", Split.HIDDEN, 9, 12),
    ]


def _attention_buffers(
    partition: Partition, group: Group, rank: int, rows: int, options: MemoryOptions
) -> list[Buffer]:
    """What ATTEND keeps between its passes."""
    start, stop = group.kv_heads[rank]
    if start == stop:
        return []
    layout = KvLayout(
        kv_heads=stop - start, head_dim=partition.config.head_dim, context=options.context,
        dtype=options.dtype,
    )  # fmt: skip
    kept = Scratch(layout, partition.kv_of(group, rank), rows, options.context)
    int8 = options.dtype == "int8"
    scores = Buffer(name="scores", size=kept.bytes, first=3, last=3, bulk=int8)
    stats = Buffer(name="stats", size=kept.known_bytes, first=3, last=3)
    return [scores, stats] if int8 else [scores]


def _head_buffers(
    partition: Partition, group: Group, rank: int, options: MemoryOptions
) -> list[Buffer]:
    start, stop = group.vocab[rank]
    logits = Buffer(name="logits", size=row_bytes(stop - start, 4), first=21, last=23)
    top = Buffer(name="top_k", size=row_bytes(2 * options.top_k, 4), first=22, last=23)
    hidden = _activation("head.in", 1, partition.config.hidden_size, options.dtype, 20, 21)
    return [*hidden, logits, *([top] if options.top_k else [])]


@lru_cache(maxsize=1024)  # most chips of a layout are alike
def place_buffers(buffers: tuple[Buffer, ...]) -> tuple[dict[str, int], int]:
    """First fit by falling size: offsets by name, and the bytes taken."""
    placed: list[tuple[int, Buffer]] = []
    for buffer in sorted(buffers, key=lambda b: (-b.size, b.name)):
        offset = 0
        for other_offset, other in sorted(placed, key=lambda item: item[0]):
            meet = buffer.first <= other.last and other.first <= buffer.last
            if meet and offset < other_offset + other.size and other_offset < offset + buffer.size:
                offset = other_offset + other.size
        placed.append((offset, buffer))
    offsets = {buffer.name: offset for offset, buffer in placed}
    return offsets, max((offset + buffer.size for offset, buffer in placed), default=0)


def _lay(tensors: list[tuple[str, str, int]], start: int, align: int) -> tuple[list[Tensor], int]:
    """Place tensors one after another; return them and the end."""
    out = []
    for name, kind, size in tensors:
        out.append(Tensor(name=name, kind=kind, address=start, size=size))
        start += -(-size // align) * align
    return out, start


def _place(
    partition: Partition, chip: int, options: MemoryOptions, spec: ChipSpec
) -> tuple[Memory, int]:
    """Place everything, whether it fits or not; return also the bytes missing."""
    work = work_start(spec)
    fixed = constants(partition, chip, options.dtype)
    caches = kv_tensors(partition, chip, options.dtype, options.context)
    bulk, bulk_end = _lay([t for t in fixed if t[1] == "weight"], 0, WINDOW_BYTES)
    kv, kv_end = _lay([t for t in caches if not t[0].endswith(".scale")], bulk_end, WINDOW_BYTES)
    small, small_end = _lay([t for t in fixed if t[1] != "weight"], work, VECTOR_BYTES)
    scales, at = _lay([t for t in caches if t[0].endswith(".scale")], small_end, VECTOR_BYTES)
    peaks = {True: 0, False: 0}  # of the buffers in the bulk slices, and of the others
    buffers: dict[int, dict[str, int]] = {}
    for rows in options.rows:
        wanted, buffers[rows] = step_buffers(partition, chip, rows, options), {}
        for far, start in ((True, kv_end), (False, at)):
            offsets, size = place_buffers(tuple(b for b in wanted if b.bulk == far))
            buffers[rows] |= {name: start + offset for name, offset in offsets.items()}
            peaks[far] = max(peaks[far], size)
    missing = max(0, kv_end + peaks[True] - work) + max(0, at + peaks[False] - spec.sram_bytes)
    memory = Memory(
        chip=chip,
        tensors=(*bulk, *small, *kv, *scales),
        buffers=buffers,
        constant_bytes=bulk_end + small_end - work,
        kv_bytes=kv_end - bulk_end + at - small_end,
        buffer_bytes=peaks[True] + peaks[False],
        sram_bytes=spec.sram_bytes,
        work_start=work,
    )
    return memory, missing


def allocate_chip(
    partition: Partition, chip: int, options: MemoryOptions, spec: ChipSpec
) -> Memory:
    """Place everything on one chip. Raises CapacityError with the bytes missing."""
    memory, missing = _place(partition, chip, options, spec)
    if missing:
        raise CapacityError(
            chip=chip,
            needed=spec.sram_bytes + missing,
            available=spec.sram_bytes,
            layout=str(partition.layout),
            context=options.context,
        )
    return memory


def chip_classes(
    partition: Partition, forward_row_bytes: dict[int, int]
) -> dict[tuple[object, ...], int]:
    """Group chips that need equally much memory: a key for the class, and one chip of it."""
    classes: dict[tuple[object, ...], int] = {}
    for group in partition.groups:
        for rank, chip in enumerate(group.chips):
            spans = (group.heads, group.kv_heads, group.hidden, group.inter)
            sizes = tuple(span[rank][1] - span[rank][0] for span in spans)
            vocab = group.vocab[rank][1] - group.vocab[rank][0] if group.has_head else 0
            width = forward_row_bytes.get(chip, 0)
            key = (group.index > 0, len(group.layers), len(group.chips), *sizes, vocab, width)
            classes.setdefault(key, chip)
    return classes


def bytes_needed(partition: Partition, chip: int, options: MemoryOptions, spec: ChipSpec) -> int:
    """Bytes one chip needs: more than it has when either bulk or work slices are too small."""
    memory, missing = _place(partition, chip, options, spec)
    return spec.sram_bytes + missing if missing else spec.sram_bytes - memory.free_bytes
