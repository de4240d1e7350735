"""Give every tensor of a chip its SRAM address: weights, scales, norms, KV cache, buffers.

Weights, keys and values lie in the bulk slices from address 0 on. Each begins a window of 64
vectors, so that it loads into the planes without two reads in one slice. Attention's scratch lies
behind them. Scales, norms and the step's other buffers lie in the work slices, which nothing else
uses. Rows that products take lie in the feed slices, if the layout leaves room for such. Buffers
share addresses if their lifetimes do not overlap. Steps do not share buffers, so each row count has
its own arrangement. A model that does not fit is refused.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import lru_cache

from chip.ops.experts import columns_apart, expert_stride
from chip.ops.kv import WINDOW_VECTORS, KvLayout
from chip.ops.rows import row_bytes
from chip.ops.weights import weight_bytes, weight_scale_bytes
from chip.spec import VECTOR_BYTES, ChipSpec
from chip.sram import bulk_turn, feed_start, work_start, work_turn
from compiler.errors import CapacityError
from compiler.ir import Memory, Tensor
from compiler.model.operation import GraphOp, Kind
from compiler.place.buffers import Buffer, MemoryOptions, Slices, step_buffers, tokens_kept
from compiler.place.partition import Partition, Weight, weight_of

WINDOW_BYTES = WINDOW_VECTORS * VECTOR_BYTES


GROUP_SCALE = "group scale"  # of int4 weights: too many for work slices


def constants(
    partition: Partition, chip: int, dtype: str, group: int | None = None,
    turn: int = VECTOR_BYTES,
) -> list[tuple[str, str, int]]:  # fmt: skip
    """Return (name, kind, bytes) of each weight, scale, bias and norm of a chip, by address.

    `group`: weights are int4, with so many rows of K to a scale. `turn`: bytes of one of the work
    slices, of which experts' scales and biases take whole ones.
    """
    out: list[tuple[str, str, int]] = []
    for chips, rank in partition.groups_of(chip):
        for name, piece in partition.vectors_of(chips, rank).items():
            out.append((name, "norm", row_bytes(piece.stop - piece.start, 4)))
        for op in partition.ops(chips):
            if op.kind is Kind.NORM:
                out.append((op.name, "norm", row_bytes(op.features, 4)))
            if op.kind is Kind.LAYER_NORM:
                names = (op.name, f"{op.name}.bias")
                out += [(name, "norm", row_bytes(op.features, 4)) for name in names]
            if op.is_product:
                weight = weight_of(partition.config, chips, rank, op)
                out += _product(op, weight, dtype, group, turn)
    return out


def _product(
    op: GraphOp, weight: Weight, dtype: str, group: int | None, turn: int
) -> list[tuple[str, str, int]]:
    """Return the same of a product: its matrix, or those of all experts one behind the other."""
    if not weight.n:
        return []
    size, columns = weight_bytes(weight.k, weight.n, dtype, group), row_bytes(weight.n, 4)
    if op.experts is not None:
        size = op.matrices * expert_stride(weight.k, weight.n, dtype, group)
        columns = op.matrices * columns_apart(weight.n, turn)
    out = [(op.name, "weight", size)]
    if dtype == "int8" and group is None:
        out.append((f"{op.name}.scale", "scale", columns))
    elif dtype == "int8":
        scales = op.matrices * weight_scale_bytes(weight.k, weight.n, group)
        out.append((f"{op.name}.scale", GROUP_SCALE, scales))
    if op.biases:
        out.append((f"{op.name}.bias", "bias", columns))
    return out


def kv_tensors(
    partition: Partition, chip: int, dtype: str, context: int
) -> list[tuple[str, str, int]]:
    """Return (name, kind, bytes) of each layer's KV cache, for a chip that has KV heads."""
    out = []
    for group, rank in partition.groups_of(chip):
        start, stop = group.kv_heads[rank]
        if stop > start:
            for index in group.layers:
                layout = KvLayout(
                    kv_heads=stop - start,
                    head_dim=partition.config.head_dim,
                    context=tokens_kept(partition.config, index, context),
                    dtype=dtype,
                )
                out.append((f"layers.{index}.kv", "kv", layout.total_bytes))
                if layout.scales_bytes:
                    out.append((f"layers.{index}.kv.scale", "kv", layout.scales_bytes))
    return out


@lru_cache(maxsize=1024)  # most chips of a layout are alike
def place_buffers(buffers: tuple[Buffer, ...]) -> tuple[dict[str, int], int]:
    """Place buffers by first fit, largest first; return offsets by name and the bytes taken."""
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


def _in_slots(
    tensors: list[Tensor], start: int, end: int, sequences: int, turn: int
) -> tuple[list[Tensor], int]:
    """Give slot 0's caches, from `start` to `end`, one of their kind in every slot.

    The slots follow each other, all layers of each, so many whole turns apart that they do
    not meet: a layer's tensor goes from its cache in the first slot to the one in the last,
    past those of other layers. Return the tensors and the end.
    """
    step = -(-(end - start) // turn) * turn
    rest = (sequences - 1) * step
    return [replace(tensor, size=tensor.size + rest) for tensor in tensors], end + rest


def _place(
    partition: Partition, chip: int, options: MemoryOptions, spec: ChipSpec
) -> tuple[Memory, int]:
    """Place everything even if it does not fit; return the memory and the bytes missing."""
    work = work_start(spec)
    fixed = constants(partition, chip, options.dtype, options.group, work_turn(spec))
    caches = kv_tensors(partition, chip, options.dtype, options.context)
    bulk, bulk_end = _lay([t for t in fixed if t[1] == "weight"], 0, WINDOW_BYTES)
    groups, end = _lay([t for t in fixed if t[1] == GROUP_SCALE], bulk_end, VECTOR_BYTES)
    bulk, bulk_end = bulk + groups, -(-end // WINDOW_BYTES) * WINDOW_BYTES
    kv, kv_end = _lay([t for t in caches if not t[0].endswith(".scale")], bulk_end, WINDOW_BYTES)
    kv, kv_end = _in_slots(kv, bulk_end, kv_end, options.sequences, bulk_turn(spec))
    small, small_end = _lay(
        [t for t in fixed if t[1] not in ("weight", GROUP_SCALE)], work, VECTOR_BYTES
    )
    scales, at = _lay([t for t in caches if t[0].endswith(".scale")], small_end, VECTOR_BYTES)
    scales, at = _in_slots(scales, small_end, at, options.sequences, work_turn(spec))
    feed = feed_start(spec)
    starts = {Slices.BULK: kv_end, Slices.FEED: feed, Slices.WORK: at}
    ends = {Slices.BULK: feed, Slices.FEED: work, Slices.WORK: spec.sram_bytes}
    peaks = dict.fromkeys(Slices, 0)
    buffers: dict[int, dict[str, int]] = {}
    for rows in options.rows:
        buffers[rows] = {}
        wanted = _by_slices(step_buffers(partition, chip, rows, options), spec)
        for slices, own in wanted.items():
            offsets, size = place_buffers(tuple(own))
            buffers[rows] |= {name: starts[slices] + offset for name, offset in offsets.items()}
            peaks[slices] = max(peaks[slices], size)
    missing = sum(max(0, starts[one] + peaks[one] - ends[one]) for one in Slices)
    memory = Memory(
        chip=chip,
        tensors=(*bulk, *small, *kv, *scales),
        buffers=buffers,
        constant_bytes=bulk_end + small_end - work,
        kv_bytes=kv_end - bulk_end + at - small_end,
        buffer_bytes=sum(peaks.values()),
        sram_bytes=spec.sram_bytes,
        work_start=work,
    )
    return memory, missing


def _by_slices(buffers: list[Buffer], spec: ChipSpec) -> dict[Slices, list[Buffer]]:
    """Sort buffers by where they lie.

    Rows that products take begin in the first feed slice; without feed slices they are among the
    others.
    """
    out: dict[Slices, list[Buffer]] = {slices: [] for slices in Slices}
    turn = spec.hemispheres * spec.feed_slices * VECTOR_BYTES
    for buffer in buffers:
        if buffer.slices is not Slices.FEED or not turn:
            out[Slices.WORK if buffer.slices is Slices.FEED else buffer.slices].append(buffer)
        elif buffer.size % turn:
            out[Slices.FEED].append(replace(buffer, size=-(-buffer.size // turn) * turn))
        else:
            out[Slices.FEED].append(buffer)
    return out


def allocate_chip(
    partition: Partition, chip: int, options: MemoryOptions, spec: ChipSpec
) -> Memory:
    """Return the memory of one chip. Raises CapacityError with the bytes missing."""
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
    """Return the classes of chips that need equal memory: a key, and one chip of the class."""
    classes: dict[tuple[object, ...], int] = {}
    config = partition.config
    windows = config.windows or (None,) * config.num_layers
    for group in partition.groups:
        for rank, chip in enumerate(group.chips):
            spans = (group.heads, group.kv_heads, group.hidden, group.inter)
            sizes = tuple(span[rank][1] - span[rank][0] for span in spans)
            vocab = group.vocab[rank][1] - group.vocab[rank][0] if group.has_head else 0
            width = forward_row_bytes.get(chip, 0)
            layers = frozenset(Counter(windows[index] for index in group.layers).items())
            key = (group.index > 0, layers, len(group.chips), *sizes, vocab, width)
            classes.setdefault(key, chip)
    return classes


def bytes_needed(partition: Partition, chip: int, options: MemoryOptions, spec: ChipSpec) -> int:
    """Return the bytes that a chip needs: more than it has if bulk or work slices are too small."""
    memory, missing = _place(partition, chip, options, spec)
    return spec.sram_bytes + missing if missing else spec.sram_bytes - memory.free_bytes
