"""What scheduled operations cost: cycles from issue to the last result, and how vectors stream.

One definition for the compiler that places them, the chip that replays its own clocks and the
verifier. Closed forms of `ChipSpec` (HARDWARE.md, The chip); lowering to TSP instructions replaces
them by measured lengths.
"""

from __future__ import annotations

from collections.abc import Callable

from chip.operations import Args, Opcode, kv_layout
from chip.spec import ChipSpec, vectors


def _vector_pass(spec: ChipSpec, passes: int, vecs: int, reductions: int) -> int:
    """Cycles of VXM work: SRAM in and out, `passes` over `vecs` vectors, lane reductions."""
    chains = (passes + reductions) * spec.vxm_chain * spec.vxm_latency_cycles
    reduce = reductions * spec.lane_reduce_cycles
    return 2 * spec.mem_latency_cycles + passes * vecs + chains + reduce


def _norm_cycles(a: Args, spec: ChipSpec) -> int:
    vecs = a["rows"] * vectors(a["hidden"])
    # square and sum; scale and find the maximum; quantise
    return (
        _vector_pass(spec, 3, vecs, 2) if a["dtype"] == "int8" else _vector_pass(spec, 2, vecs, 1)
    )


def _gather_cycles(a: Args, spec: ChipSpec) -> int:
    vecs = a["rows"] * vectors(sum(a["shares"]))
    shift = spec.sxm_latency_cycles  # segments are joined lane by lane
    passes, reductions = (2, 1) if a["dtype"] == "int8" else (1, 0)
    return shift + _vector_pass(spec, passes, vecs, reductions)


def _plane_shape(a: Args, spec: ChipSpec) -> tuple[int, int, int]:
    """Return (planes working side by side, K rows of one, columns loaded per cycle in one)."""
    if a["dtype"] == "int8":
        return spec.mxm_planes, spec.mxm_rows, spec.mxm_weight_streams
    joined = spec.mxm_fp16_slowdown // 2  # a lane is a byte: K halves, and planes work in pairs
    return spec.mxm_planes // joined, spec.mxm_rows // 2, spec.mxm_weight_streams * joined


def _plane_blocks(n: int, planes: int, spec: ChipSpec) -> list[int]:
    """Column counts of one plane's blocks, when n columns are dealt evenly over the planes."""
    share = -(-n // (planes * 16)) * 16
    full, rest = divmod(share, spec.mxm_columns)
    return [spec.mxm_columns] * full + ([rest] if rest else [])


def mxm_pass_cycles(a: Args, spec: ChipSpec, k: int, n: int, rows: int) -> int:
    """Cycles the planes stream: a tile takes its weight load or its rows, if longer."""
    planes, k_rows, per_cycle = _plane_shape(a, spec)
    per_k = sum(max(-(-c // per_cycle), rows) for c in _plane_blocks(n, planes, spec))
    return -(-k // k_rows) * per_k


def _column_groups(a: Args, spec: ChipSpec, n: int, rows: int) -> int:
    """Groups in which one plane finishes its columns, all K tiles of a group before the next.

    A group is as narrow as its rows allow, so that results come early at no cost in cycles.
    """
    planes, _, per_cycle = _plane_shape(a, spec)
    width = min(spec.mxm_columns, per_cycle * rows)
    return -(-sum(_plane_blocks(n, planes, spec)) // width)


def _product_stream(a: Args, spec: ChipSpec, n: int) -> int:
    """Cycles between the first and the last result of a product of n columns."""
    stream = mxm_pass_cycles(a, spec, a["k"], n, a["rows"])
    return stream - -(-stream // _column_groups(a, spec, n, a["rows"]))


def _first_load(a: Args, spec: ChipSpec, n: int) -> int:
    planes, _, per_cycle = _plane_shape(a, spec)
    return -(-_plane_blocks(n, planes, spec)[0] // per_cycle)


def _matmul_cycles(a: Args, spec: ChipSpec) -> int:
    stream = mxm_pass_cycles(a, spec, a["k"], a["n"], a["rows"])
    drain = spec.mxm_fill_cycles + spec.vxm_chain * spec.vxm_latency_cycles
    # the last tile's rows flow after its weights: one more load of latency than the stream itself
    return 2 * spec.mem_latency_cycles + _first_load(a, spec, a["n"]) + stream + drain


def _rope_cycles(a: Args, spec: ChipSpec) -> int:
    vecs = a["rows"] * vectors((a["heads"] + 2 * a["kv_heads"]) * a["head_dim"])
    reductions = 1 if a["dtype"] == "int8" else 0
    return spec.sxm_latency_cycles + _vector_pass(spec, 2, vecs, reductions)


def _attend_cycles(a: Args, spec: ChipSpec) -> int:
    layout = kv_layout(a)
    bucket, passes = a["bucket"], a["rows"] * -(-a["heads"] // layout.groups)
    width = layout.heads_per_group * a["head_dim"]
    scores = layout.groups * mxm_pass_cycles(a, spec, width, bucket, passes)
    values = layout.groups * mxm_pass_cycles(a, spec, bucket, width, passes)
    vecs = a["rows"] * a["heads"] * vectors(bucket)
    # maximum; exp and sum; scale by v and find the maximum; quantise
    softmax = (
        _vector_pass(spec, 4, vecs, 3) if a["dtype"] == "int8" else _vector_pass(spec, 3, vecs, 2)
    )
    edges = 2 * (spec.mxm_fill_cycles + 2 * spec.mem_latency_cycles)
    transpose = spec.sxm_latency_cycles  # values are loaded with tokens along K
    return scores + softmax + transpose + values + edges


def _add_cycles(a: Args, spec: ChipSpec) -> int:
    vecs = a["rows"] * vectors(sum(a["shares"]))
    return spec.sxm_latency_cycles + _vector_pass(spec, 1, vecs, 0)


def _silu_cycles(a: Args, spec: ChipSpec) -> int:
    # exp, recip (rsqrt twice) and the products: three chains, one pass, in step with the product
    # of k rows that feeds it
    chains = 2 * spec.vxm_chain * spec.vxm_latency_cycles
    return _vector_pass(spec, 1, 0, 0) + chains + _silu_stream(a, spec)


def _silu_stream(a: Args, spec: ChipSpec) -> int:
    return max(int(a["rows"]) * vectors(a["n"]), _product_stream(a, spec, 2 * a["n"]))


def _topk_cycles(a: Args, spec: ChipSpec) -> int:
    return _vector_pass(spec, a["k"], vectors(a["n"]), a["k"])


_COSTS: dict[Opcode, Callable[[Args, ChipSpec], int]] = {
    Opcode.NORM: _norm_cycles,
    Opcode.GATHER: _gather_cycles,
    Opcode.MATMUL: _matmul_cycles,
    Opcode.ROPE: _rope_cycles,
    Opcode.ATTEND: _attend_cycles,
    Opcode.ADD: _add_cycles,
    Opcode.SILU: _silu_cycles,
    Opcode.TOPK: _topk_cycles,
}


def cycles(opcode: Opcode, a: Args, spec: ChipSpec) -> int:
    """Cycles from issue to the last result in SRAM.

    Raises ValueError for SEND and RECEIVE: the link decides.
    """
    if opcode not in _COSTS:
        raise ValueError(f"{opcode}: its duration is the link's, not the chip's")
    return _COSTS[opcode](a, spec)


def needed(opcode: Opcode, operand: str, a: Args, spec: ChipSpec) -> tuple[int, int]:
    """Cycles after issue at which an operand's first and last vectors are needed.

    A product loads weights before its activations; a sum, a gather and a gated product take their
    vectors one a cycle as they come. Everything else wants whole operands at issue.
    """
    if opcode is Opcode.MATMUL and operand in ("x", "s"):
        load = _first_load(a, spec, a["n"])
        return load, load
    if opcode in (Opcode.ADD, Opcode.GATHER) and operand == "src":
        return 0, a["rows"] * vectors(sum(a["shares"])) - 1
    if opcode is Opcode.SILU and operand == "x":
        return 0, _silu_stream(a, spec)
    return 0, 0


def result_stream_cycles(opcode: Opcode, a: Args, spec: ChipSpec) -> int:
    """Cycles from the first to the last vector of an operation's result; it ends with the last.

    Vectors in between come evenly, so they may be sent while later ones are still computed.
    """
    if opcode is Opcode.MATMUL:
        return _product_stream(a, spec, a["n"])
    return _silu_stream(a, spec) if opcode is Opcode.SILU else 0
