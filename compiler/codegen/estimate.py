"""Closed forms for what no template fits (codegen/table.py): very wide heads, and the like.

Read with care: they know nothing of ports or queues. Such an operation can be scheduled and run by
the fast executor, but not lowered (`Template.lowered`). Latencies come from the instructions'
delays and the floor plan, along the longest way that there is.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from chip.floorplan import Role, hops, mem, mxm, sxm
from chip.isa.issue import delays
from chip.ops.attention import Attend, Rope
from chip.ops.product import Matmul
from chip.ops.vector import TopK
from chip.spec import ChipSpec, vectors
from compiler.codegen.core.template import Template

CHAIN = 6  # ALU operations from a value to what is written of it
LEVELS = 10  # of the tree that sums 320 lanes, and back: to 5 by halves, three sums, to all lanes


class Latencies(NamedTuple):
    """Cycles that the parts of an operation take, however many vectors there are."""

    memory: int  # SRAM to a unit, or a unit to SRAM
    fill: int  # first activation in to first result out, across the chip
    chain: int
    reduce: int  # over the lanes of a vector
    shuffle: int  # twice through the SXM's switch


@lru_cache(maxsize=16)
def latencies(spec: ChipSpec) -> Latencies:
    """Work the latencies out of delays and hops."""
    table = {name: delay.d_func for name, delay in delays(spec).items()}
    return Latencies(
        memory=table["READ"] + hops(mem(0, 0), sxm(1, 0), spec) + 1 + table["WRITE"],
        fill=table["ABC"] + table["ACC"] + hops(mxm(0, Role.DRAIN), mxm(2, Role.FEED), spec),
        chain=CHAIN * table["MUL"],
        reduce=LEVELS * table["ADD"],
        shuffle=2 * table["PERMUTE"],
    )


def _vector_pass(spec: ChipSpec, passes: int, vecs: int, reductions: int) -> int:
    """Cycles of VXM work: SRAM in and out, `passes` over `vecs` vectors, lane reductions."""
    took = latencies(spec)
    chains = (passes + reductions) * took.chain
    return 2 * took.memory + passes * vecs + chains + reductions * took.reduce


def _plane_shape(dtype: str, spec: ChipSpec) -> tuple[int, int, int]:
    """Return (planes working side by side, K rows of one, columns loaded per cycle in one)."""
    if dtype == "int8":
        return spec.mxm_planes, spec.mxm_rows, spec.mxm_weight_streams
    joined = spec.mxm_fp16_slowdown // 2  # a lane is a byte: K halves, and planes work in pairs
    return spec.mxm_planes // joined, spec.mxm_rows // 2, spec.mxm_weight_streams * joined


def _plane_blocks(n: int, planes: int, spec: ChipSpec) -> list[int]:
    """Column counts of one plane's blocks, when n columns are dealt evenly over the planes."""
    share = -(-n // (planes * 16)) * 16
    full, rest = divmod(share, spec.mxm_columns)
    return [spec.mxm_columns] * full + ([rest] if rest else [])


def mxm_pass_cycles(dtype: str, spec: ChipSpec, k: int, n: int, rows: int) -> int:
    """Cycles the planes stream: a tile takes its weight load or its rows, if longer."""
    planes, k_rows, per_cycle = _plane_shape(dtype, spec)
    per_k = sum(max(-(-c // per_cycle), rows) for c in _plane_blocks(n, planes, spec))
    return -(-k // k_rows) * per_k


def packed_pass_cycles(spec: ChipSpec, k: int, n: int, rows: int, group: int) -> int:
    """Cycles the planes stream with int4 weights: as `mxm_pass_cycles`, loads being shorter.

    Sums of a group leave the planes apart, to be scaled: a row goes in once for each group of a
    tile, with zeros in the lanes of the others.
    """
    planes, k_rows, per_cycle = _plane_shape("int8", spec)
    fed, packed = rows * (k_rows // group), per_cycle * spec.mxm_int4_columns
    per_k = sum(max(-(-c // packed), fed) for c in _plane_blocks(n, planes, spec))
    return -(-k // k_rows) * per_k


def _column_groups(dtype: str, spec: ChipSpec, n: int, rows: int) -> int:
    """Groups in which one plane finishes its columns, all K tiles of a group before the next.

    A group is as narrow as its rows allow, so that results come early at no cost in cycles.
    """
    planes, _, per_cycle = _plane_shape(dtype, spec)
    width = min(spec.mxm_columns, per_cycle * rows)
    return -(-sum(_plane_blocks(n, planes, spec)) // width)


def _product_stream(op: Matmul, spec: ChipSpec) -> int:
    """Cycles between the first and the last result of a product."""
    stream = mxm_pass_cycles(op.dtype, spec, op.k, op.n, op.rows)
    return stream - -(-stream // _column_groups(op.dtype, spec, op.n, op.rows))


def _first_load(op: Matmul, spec: ChipSpec) -> int:
    planes, _, per_cycle = _plane_shape(op.dtype, spec)
    return -(-_plane_blocks(op.n, planes, spec)[0] // per_cycle)


def _matmul_cycles(op: Matmul, spec: ChipSpec) -> int:
    stream = mxm_pass_cycles(op.dtype, spec, op.k, op.n, op.rows)
    took = latencies(spec)
    drain = took.fill + took.chain
    # the last tile's rows flow after its weights: one more load of latency than the stream itself
    return 2 * took.memory + _first_load(op, spec) + stream + drain


def _rope_cycles(op: Rope, spec: ChipSpec) -> int:
    vecs = op.rows * vectors((op.heads + 2 * op.kv_heads) * op.head_dim)
    reductions = 1 if op.dtype == "int8" else 0
    return latencies(spec).shuffle + _vector_pass(spec, 2, vecs, reductions)


def _attend_cycles(op: Attend, spec: ChipSpec) -> int:
    layout = op.layout
    bucket, passes = op.bucket, op.rows * -(-op.heads // layout.groups)
    width = layout.heads_per_group * op.head_dim
    scores = layout.groups * mxm_pass_cycles(op.dtype, spec, width, bucket, passes)
    values = layout.groups * mxm_pass_cycles(op.dtype, spec, bucket, width, passes)
    vecs = op.rows * op.heads * vectors(bucket)
    # maximum; exp and sum; scale by v and find the maximum; quantise
    softmax = (
        _vector_pass(spec, 4, vecs, 3) if op.dtype == "int8" else _vector_pass(spec, 3, vecs, 2)
    )
    took = latencies(spec)
    edges = 2 * (took.fill + 2 * took.memory)
    # values are loaded with tokens along K
    return scores + softmax + took.shuffle + values + edges


def _topk_cycles(op: TopK, spec: ChipSpec) -> int:
    return _vector_pass(spec, op.k, vectors(op.n), op.k)


def estimate(op: Matmul | Rope | Attend | TopK, spec: ChipSpec) -> Template:
    """Return an empty template of the estimated length."""
    if isinstance(op, Matmul):
        load = _first_load(op, spec)
        return _empty(
            _matmul_cycles(op, spec), needed={"x": (load, load)}, stream=_product_stream(op, spec)
        )
    if isinstance(op, Rope):
        return _empty(_rope_cycles(op, spec))
    if isinstance(op, Attend):
        return _empty(_attend_cycles(op, spec))
    return _empty(_topk_cycles(op, spec))


def _empty(
    cycles: int, needed: dict[str, tuple[int, int]] | None = None, stream: int = 0
) -> Template:  # fmt: skip
    return Template(
        placed=(), cycles=cycles, needed=needed or {}, stream_cycles=stream, lowered=False
    )
