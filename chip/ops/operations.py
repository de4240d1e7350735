"""The chip's scheduled operations: operands, units and regions, one definition for all.

An operation is what the schedule places and the fast executor runs; compiler, chip and verifier
take the regions it touches and the units it holds from here, and its cycles from chip/ops/cost.py.

Activations are rows of whole vectors: a row of n elements takes `row_bytes(n, item)`. A gather
buffer is one segment per chip of the group, [segment][row][share], each on a vector boundary, so
that one segment is one transfer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from chip.ops.kv import KvLayout
from chip.ops.scratch import Scratch
from chip.spec import VECTOR_BYTES, pad_vector

Args = Mapping[str, Any]
Region = tuple[int, int]
"""(first byte, bytes) in SRAM."""


class Opcode(StrEnum):
    """The closed set of scheduled operations."""

    NORM = "norm"  # RMSNorm, then quantise
    GATHER = "gather"  # join the segments of an all-gather, then quantise
    MATMUL = "matmul"  # weights x activations, dequantised
    ROPE = "rope"  # rotate q and k, quantise q, write the KV cache
    ATTEND = "attend"  # scores, softmax, weighted values, over the whole context bucket
    ADD = "add"  # residual += gathered segments
    SILU = "silu"  # silu(gate) * up
    TOPK = "topk"  # the k largest logits and their columns
    SEND = "send"
    RECEIVE = "receive"


MOVES = (Opcode.SEND, Opcode.RECEIVE)


def item_bytes(dtype: str) -> int:
    """Bytes of one activation or weight element."""
    return {"int8": 1, "fp16": 2}[dtype]


def row_bytes(n: int, item: int) -> int:
    """Bytes of one row of `n` elements, in whole vectors."""
    return pad_vector(n * item)


def segment_offsets(shares: Sequence[int], rows: int) -> list[int]:
    """Byte offset of each fp16 segment of a gather buffer, and its total size last."""
    offsets = [0]
    for share in shares:
        offsets.append(offsets[-1] + rows * row_bytes(share, 2))
    return offsets


def gated_widths(n: int) -> list[int]:
    """Cut the n columns of a gate: columns of gate and up projection alternate in these widths.

    Whole column blocks, then a pair within a block each: so a gate meets its up in the VXM.
    """
    blocks, rest = divmod(n, VECTOR_BYTES)
    half = VECTOR_BYTES // 2
    return [VECTOR_BYTES] * blocks + [w for w in (min(rest, half), rest - half) if w > 0]


def _activation(a: Args, k: int) -> int:
    """Bytes of a quantised activation: k padded to the MXM's 320 rows."""
    return int(a["rows"]) * row_bytes(pad_vector(k), item_bytes(a["dtype"]))


def _scale(a: Args, name: str) -> list[Region]:
    return [(a[name], pad_vector(a["rows"] * 4))] if a["dtype"] == "int8" else []


def _segments(a: Args, name: str) -> Region:
    return a[name], segment_offsets(a["shares"], a["rows"])[-1]


def kv_layout(a: Args) -> KvLayout:
    """Return the cache layout that a ROPE or ATTEND operation works on."""
    return KvLayout(
        kv_heads=a["kv_heads"], head_dim=a["head_dim"], context=a["context"], dtype=a["dtype"]
    )


def _query(a: Args) -> list[Region]:
    layout, rows = kv_layout(a), a["rows"]
    scales = [(a["sq"], rows * layout.query_scale_bytes(a["heads"]))] if "sq" in a else []
    return [(a["q"], rows * layout.query_bytes(a["heads"])), *scales]


def _cache(a: Args) -> list[Region]:
    layout = kv_layout(a)
    scales = [(a["kvs"], layout.scales_bytes)] if "kvs" in a else []
    return [(a["kv"], layout.total_bytes), *scales]


def _norm_regions(a: Args) -> tuple[list[Region], list[Region]]:
    x = (a["x"], a["rows"] * row_bytes(a["hidden"], 4))
    gamma = (a["gamma"], row_bytes(a["hidden"], 4))
    return [x, gamma], [(a["q"], _activation(a, a["hidden"])), *_scale(a, "s")]


def _gather_regions(a: Args) -> tuple[list[Region], list[Region]]:
    return [_segments(a, "src")], [(a["q"], _activation(a, sum(a["shares"]))), *_scale(a, "s")]


def _matmul_regions(a: Args) -> tuple[list[Region], list[Region]]:
    """Activations as they are (x, s), or what they are made of; then weights, and what follows."""
    k, n, prologue = a["k"], a["n"], a.get("prologue")
    reads: list[Region] = []
    writes: list[Region] = []
    if prologue is None:
        reads += [(a["x"], _activation(a, k)), *_scale(a, "s")]
    else:
        writes += [(a["q"], _activation(a, k)), *_scale(a, "qs")]
    if prologue == "norm":
        reads += [(a["src"], a["rows"] * row_bytes(k, 4)), (a["gamma"], row_bytes(k, 4))]
    if prologue == "gather":
        reads.append(_segments(a, "src"))
    if a.get("epilogue") == "add":
        reads.append((a["r"], a["rows"] * row_bytes(n, 4)))
    reads.append((a["w"], n * row_bytes(pad_vector(k), item_bytes(a["dtype"]))))
    if a["dtype"] == "int8":
        reads.append((a["sw"], row_bytes(n, 4)))
    if a.get("epilogue") == "add":
        writes.append((a["r"], a["rows"] * row_bytes(n, 4)))
    else:
        columns = n // 2 if a.get("epilogue") == "silu" else n
        item = 4 if a["out"] == "f32" else 2
        writes.append((a["y"], a["rows"] * row_bytes(columns, item)))
    return reads, writes


def _rope_regions(a: Args) -> tuple[list[Region], list[Region]]:
    n = (a["heads"] + 2 * a["kv_heads"]) * a["head_dim"]
    qkv = (a["qkv"], a["rows"] * row_bytes(n, 4))
    rope = (a["rope"], a["rows"] * row_bytes(a["head_dim"], 4))
    return [qkv, rope], [*_query(a), *_cache(a)]


def _attend_regions(a: Args) -> tuple[list[Region], list[Region]]:
    out = (a["y"], a["rows"] * row_bytes(a["heads"] * a["head_dim"], 2))
    kept = Scratch(kv_layout(a), a["kv_of"], a["rows"], a["bucket"])
    known = [(a["stats"], kept.known_bytes)] if "stats" in a else []
    return [*_query(a), *_cache(a)], [out, (a["scratch"], kept.bytes), *known]


def _add_regions(a: Args) -> tuple[list[Region], list[Region]]:
    x = (a["x"], a["rows"] * row_bytes(sum(a["shares"]), 4))
    return [x, _segments(a, "src")], [x]


def _silu_regions(a: Args) -> tuple[list[Region], list[Region]]:
    x = (a["x"], a["rows"] * row_bytes(2 * a["n"], 4))
    return [x], [(a["y"], a["rows"] * row_bytes(a["n"], 2))]


def _topk_regions(a: Args) -> tuple[list[Region], list[Region]]:
    return [(a["x"], row_bytes(a["n"], 4))], [(a["y"], row_bytes(2 * a["k"], 4))]


def _send_regions(a: Args) -> tuple[list[Region], list[Region]]:
    return [(a["src"], a["vectors"] * pad_vector(1))], []


def _receive_regions(a: Args) -> tuple[list[Region], list[Region]]:
    return [], [(a["dst"], a["vectors"] * pad_vector(1))]


CONSTANTS = frozenset({"w", "sw", "gamma"})  # operands that no step writes

MXM = tuple(f"MXM{plane}" for plane in range(4))


@dataclass(frozen=True, slots=True, kw_only=True)
class OpcodeDefinition:
    """What one opcode holds, touches and costs."""

    units: tuple[str, ...]  # held from start to end, see `units`; a SEND holds its link instead
    regions: Callable[[Args], tuple[list[Region], list[Region]]]  # (read, written)
    reads: tuple[str, ...]  # operands in the order of `regions`; an absent one is skipped
    writes: tuple[str, ...]
    part: str  # the row of `plan` that its cycles count to


def _define(
    units: tuple[str, ...],
    regions: Callable[[Args], tuple[list[Region], list[Region]]],
    reads: str,
    writes: str,
    part: str,
) -> OpcodeDefinition:
    return OpcodeDefinition(
        units=units,
        regions=regions,
        reads=tuple(reads.split()),
        writes=tuple(writes.split()),
        part=part,
    )


DEFINITIONS: dict[Opcode, OpcodeDefinition] = {
    Opcode.NORM: _define(("VXM",), _norm_regions, "x gamma", "q s", "vector"),
    Opcode.GATHER: _define(("VXM",), _gather_regions, "src", "q s", "vector"),
    # ALUs of the MXM's result chain are set apart from those of vector programs
    # (assumption: 4 of 16), so a product holds no VXM, unless vector work is part of it (`units`).
    Opcode.MATMUL: _define(MXM, _matmul_regions, "x s src gamma r w sw", "q qs y r", "weights"),
    Opcode.ROPE: _define(("VXM",), _rope_regions, "qkv rope", "q sq kv kvs", "vector"),
    Opcode.ATTEND: _define(
        (*MXM, "VXM", "SXM"), _attend_regions, "q sq kv kvs", "y scratch stats", "attention"
    ),
    Opcode.ADD: _define(("VXM",), _add_regions, "x src", "x", "vector"),
    Opcode.SILU: _define(("VXM",), _silu_regions, "x", "y", "vector"),
    Opcode.TOPK: _define(("VXM",), _topk_regions, "x", "y", "vector"),
    Opcode.SEND: _define((), _send_regions, "src", "", "exchange"),
    Opcode.RECEIVE: _define((), _receive_regions, "", "dst", "exchange"),
}


def units(opcode: Opcode, a: Args) -> tuple[str, ...]:
    """Return the units that an operation holds from start to end."""
    fused = "prologue" in a or "epilogue" in a
    return (*DEFINITIONS[opcode].units, *(("VXM",) if fused else ()))


def operands(opcode: Opcode, a: Args) -> tuple[list[tuple[str, Region]], list[tuple[str, Region]]]:
    """Return (operand, region) of what an operation reads, and of what it writes."""
    definition = DEFINITIONS[opcode]
    reads, writes = definition.regions(a)
    read_names = [name for name in definition.reads if name in a]
    write_names = [name for name in definition.writes if name in a]
    return (
        list(zip(read_names, reads, strict=True)),
        list(zip(write_names, writes, strict=True)),
    )
