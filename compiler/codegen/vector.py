"""Vector operations: NORM, LAYER_NORM, GATHER, ADD, gates, functions; one block a row.

Numerics: chip/kernels/twin.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

from chip.isa.instructions import AluOp
from chip.isa.operands import streams_of
from chip.kernels.quant import MIN_ABSMAX
from chip.ops.opcodes import Activation, Function
from chip.ops.rows import gated_widths, item_bytes, row_bytes
from chip.ops.vector import Add, Apply, Gate, Gather, LayerNorm, Norm
from chip.spec import VECTOR_BYTES, ChipSpec, pad_vector, vectors
from compiler.codegen.core.builder import LANES, Block, Load, Node, NodeSource, Ref, RowMask
from compiler.codegen.core.parts import f32
from compiler.codegen.core.reductions import lane_max, lane_sum
from compiler.codegen.core.template import MANY, Template, by_rows, row_block
from compiler.codegen.gates import ACTIVATIONS, ANY, CLAMPED, GELU, UPS, gelu, risen
from compiler.codegen.resources import ROW_SCALES

# cycles that a value is begun before its factor is known: two MULs of a NORM, a GATHER's convert
NORMED, LOADED = 8, 4
GELU_PACE = 6  # cycles between groups of a GELU, at least: of ten at once all registers are full
FED = frozenset({"q"})  # operands that products take: they lie in feed slices


@dataclass(frozen=True, slots=True)
class Run:
    """`count` neighbouring values of an operand's row, from `first`, that go to lanes `lane` on."""

    operand: str
    first: int
    count: int
    lane: int = 0


def groups(n: int) -> list[int]:
    """Lanes of each group of 320 values of a row of n."""
    return [min(LANES, n - first) for first in range(0, n, LANES)]


def load(operand: str, index: int, lanes: int, dtype: str) -> Load:
    """Load group `index` of a row that starts on a vector."""
    item = {"i8": 1, "f16": 2, "f32": 4}[dtype]
    return Load(Ref(operand, index * streams_of(LANES, item), streams_of(lanes, item)), dtype)


def store(operand: str, index: int, lanes: int, item: int) -> Ref:
    return Ref(operand, index * streams_of(LANES, item), streams_of(lanes, item))


def joined(b: Block, runs: Sequence[Run], item: int, after: int = 0) -> NodeSource:
    """Bring runs of fp16 or fp32 values side by side: an fp32 operand of the VXM."""
    per = VECTOR_BYTES // item
    (first, *rest) = runs
    if not rest and first.lane == 0 and first.first % per == 0:
        ref = Ref(first.operand, first.first // per, -(-first.count // per))
        plain = Load(ref, {2: "f16", 4: "f32"}[item])
        return plain if item == 4 else b.alu(AluOp.CVT_F32, plain, lanes=first.count, after=after)
    total: Node | None = None
    for run in runs:
        pieces, together = _pieces(run, item), 1
        if item == 2 and b.turning:  # two pieces that one read can bring
            together = b.wide(pieces[0][0], sxm=True) // item
        for first_piece in range(0, len(pieces), together):
            parts = pieces[first_piece : first_piece + together]
            whole = replace(parts[0][0], count=sum(ref.count for ref, _, _ in parts))
            at, operands = b.pieces(whole, parts, item, after)
            op = AluOp.CVT_F32 if item == 2 else AluOp.COPY
            for operand in operands:
                piece = b.alu(op, operand, at=at)
                total = piece if total is None else b.alu(AluOp.OR, total, piece)
    assert total is not None
    return total


@lru_cache(maxsize=1024)
def _pieces(run: Run, item: int) -> list[tuple[Ref, tuple[int | None, ...], int]]:
    """Cut a run into whole vectors, at most 320 values each: (vectors, lane map, lanes in)."""
    per, out = VECTOR_BYTES // item, []
    first, stop = run.first // per, -(-(run.first + run.count) // per)
    for at in range(first, stop, item):  # 320 values take `item` vectors
        count = min(item, stop - at)
        spread: list[int | None] = [None] * LANES
        for source in range(
            max(run.first, at * per), min(run.first + run.count, (at + item) * per)
        ):
            spread[run.lane + source - run.first] = source - at * per
        out.append((Ref(run.operand, at, count), tuple(spread), count * per))
    return out


def runs_of(shares: Sequence[int], first: int, lanes: int) -> list[Run]:
    """Return where values [first, first + lanes) of the joined segments lie."""
    out, start = [], 0
    for segment, share in enumerate(shares):
        a, b = max(first, start), min(first + lanes, start + share)
        if a < b:
            out.append(Run(f"src:{segment}", a - start, b - a, a - first))
        start += share
    return out


def segment_rows(shares: Sequence[int]) -> dict[str, int]:
    """Vectors between the rows of each segment of a gather buffer."""
    return {f"src:{n}": row_bytes(share, 2) // VECTOR_BYTES for n, share in enumerate(shares)}


def scale_factor(b: Block, peak: Node) -> tuple[Node, Node]:
    """Return (127 * recip(peak), peak / 127); a peak below 2^-100 gives a scale of zero."""
    alive = b.alu(AluOp.GE, peak, f32(float(MIN_ABSMAX)))
    root = b.alu(AluOp.RSQRT, b.alu(AluOp.CHOOSE, alive, peak, f32(1.0)))
    factor = b.alu(AluOp.MUL, f32(127.0), b.alu(AluOp.MUL, root, root))
    scale = b.alu(AluOp.MUL, peak, f32(1.0 / 127.0))
    return factor, b.alu(AluOp.CHOOSE, alive, scale, f32(0.0))


def quantise(
    b: Block, value: Callable[[int, int], NodeSource], count: int, after: int, pace: int, lead: int
) -> Node:  # fmt: skip
    """Write groups of values, int8, by their largest; return the row's scale. Two passes.

    `value` gives group g from a cycle on; `lead`: cycles from there to the value.
    """
    peak: Node | None = None

    def larger(g: int, first: int) -> Node:
        size = b.alu(AluOp.ABS, value(g, first))
        return size if peak is None else b.alu(AluOp.MAX, peak, size)

    for g in range(count):
        peak = b.chain(after + g * pace, partial(larger, g))
    assert peak is not None
    factor, scale = scale_factor(b, lane_max(b, peak))

    def quantised(g: int, first: int) -> None:
        quantised_group(b, g, value(g, first), factor)

    for g in range(count):
        b.chain(factor.done + g * pace - lead, partial(quantised, g))
    return scale


def quantised_group(b: Block, g: int, value: NodeSource, factor: Node) -> None:
    """Write a group of values, int8."""
    b.alu(AluOp.CVT_I8, b.alu(AluOp.MUL, value, factor), out=store("q", g, LANES, 1))


def largest(b: Block, shares: Sequence[int], pace: int) -> Node:
    """Return the largest magnitude of each lane, of fp16 segments as they lie in memory."""
    peak: Node | None = None
    at = 0

    def larger(sources: Sequence[Load], counts: Sequence[int], after: int) -> Node:
        best = peak
        for value in widened(b, sources, counts, after):
            size = b.alu(AluOp.ABS, value)
            best = size if best is None else b.alu(AluOp.MAX, best, size)
        assert best is not None
        return best

    for segment, share in enumerate(shares):
        name, counts = f"src:{segment}", groups(share)
        for g, sources in pairs(b, name, counts):
            of = counts[g : g + len(sources)]
            peak = b.chain(at * pace, partial(larger, sources, of))
            at += 1
    assert peak is not None
    return peak


def pairs(b: Block, operand: str, counts: Sequence[int]) -> Iterator[tuple[int, list[Load]]]:
    """Yield fp16 groups that one read brings, by the first's number: two where it can."""
    together = b.wide(Ref(operand, 0, 1)) // 2 if b.turning else 1
    for g in range(0, len(counts), together):
        loads = [
            load(operand, n, counts[n], "f16") for n in range(g, min(g + together, len(counts)))
        ]
        whole = replace(loads[0].ref, count=sum(one.ref.count for one in loads))
        yield g, [replace(loads[0], read=whole), *(replace(one, shared=True) for one in loads[1:])]


def widened(b: Block, loads: Sequence[Load], counts: Sequence[int], after: int) -> list[Node]:
    """Take fp16 groups of one read, all in the same cycle."""
    first, *others = zip(loads, counts, strict=True)
    node = b.alu(AluOp.CVT_F32, first[0], lanes=first[1], after=after)
    more = (b.alu(AluOp.CVT_F32, one, lanes=lanes, at=node.cycle) for one, lanes in others)
    return [node, *more]


def alone(shares: Sequence[int]) -> int | None:
    """Return the number of the only segment that holds anything, or None."""
    (first, *others) = [number for number, share in enumerate(shares) if share] or [0]
    return None if others else first


def at_once(b: Block, shares: Sequence[int]) -> list[tuple[int, int]]:
    """Return the groups of joined segments that are taken together: (first, how many)."""
    counts, segment = groups(sum(shares)), alone(shares)
    if segment is None:
        return [(g, 1) for g in range(len(counts))]
    return [(g, len(loads)) for g, loads in pairs(b, f"src:{segment}", counts)]


def halfs(
    b: Block, shares: Sequence[int], first: int, several: int, after: int
) -> list[NodeSource]:  # fmt: skip
    """Bring groups of joined fp16 segments to the VXM, as fp32: those that are taken together."""
    counts, segment = groups(sum(shares)), alone(shares)
    if several == 1 or segment is None:
        return [joined(b, runs_of(shares, first * LANES, counts[first]), 2, after)]
    loads = dict(pairs(b, f"src:{segment}", counts))[first]
    return list(widened(b, loads, counts[first : first + several], after))


def collect_scale(b: Block, operand: str, scale: Node, count: int) -> None:
    """Put this row's scale in its lane of the collecting register, and write its vectors."""
    mask = b.alu(AluOp.EQ, *RowMask.operands(), after=scale.done - b.delay["EQ"].d_func)
    b.alu(
        AluOp.CHOOSE, mask, scale, b.register(ROW_SCALES.scales), on=ROW_SCALES.scales,
        lanes=min(LANES, count * VECTOR_BYTES // 4), out=Ref(operand, 0, count),
    )  # fmt: skip


def scale_block(spec: ChipSpec) -> Block:
    """Clear the register that collects scales."""
    b = Block(spec)
    b.alu(AluOp.COPY, f32(0.0), on=ROW_SCALES.scales)
    return b.finish()


@lru_cache(maxsize=64)
def _norm_row(width: int, eps: float, int8: bool, scales: int, spec: ChipSpec, runs: int) -> Block:
    """One row of a NORM; `scales`: vectors of the rows' scales."""
    lanes = groups(width)

    def scaled(b: Block, g: int, root: Node, after: int) -> Node:
        x = b.alu(AluOp.MUL, load("x", g, lanes[g], "f32"), root, lanes=lanes[g], after=after)
        gamma = load("gamma", g, lanes[g], "f32")
        return b.alu(AluOp.MUL, x, gamma, lanes=lanes[g])

    pinned = frozenset({ROW_SCALES.scales})

    def build(pace: int, interval: int) -> Block:
        b = Block(spec, pinned=pinned, interval=interval, feed=FED,
                  turning=runs >= MANY)  # fmt: skip
        total: Node | None = None

        def squared(g: int, after: int) -> Node:
            x = load("x", g, lanes[g], "f32")
            square = b.alu(AluOp.MUL, x, x, lanes=lanes[g], after=after)
            return square if total is None else b.alu(AluOp.ADD, total, square)

        for g in range(len(lanes)):
            total = b.chain(g * pace, partial(squared, g))
        assert total is not None
        mean = b.alu(AluOp.MUL, lane_sum(b, total), f32(1.0 / width))
        root = b.alu(AluOp.RSQRT, b.alu(AluOp.ADD, mean, f32(eps)))
        root = b.alu(AluOp.COPY, root)  # large ALUs are needed for the maximum
        if not int8:
            for g in range(len(lanes)):
                b.chain(root.done + g * pace, lambda after, g=g: b.alu(  # type: ignore[misc]
                    AluOp.CVT_F16, scaled(b, g, root, after), out=store("q", g, LANES, 2)
                ))  # fmt: skip
            return b
        value = partial(scaled, b)
        scale = quantise(b, lambda g, after: value(g, root, after), len(lanes), root.done, pace,
                         NORMED)  # fmt: skip
        collect_scale(b, "s", scale, scales)
        return b

    return row_block(build, runs)


def norm(op: Norm, spec: ChipSpec) -> Template:
    """RMSNorm, then int8 per row or fp16."""
    width, rows, int8 = op.hidden, op.rows, op.dtype == "int8"
    row = partial(_norm_row, width, op.eps, int8, vectors(rows * 4), spec)
    steps = {
        "x": vectors(width * 4), "gamma": 0, "s": 0,
        "q": row_bytes(pad_vector(width), item_bytes(op.dtype)) // VECTOR_BYTES,
    }  # fmt: skip
    return by_rows(row, rows, steps, scale_block(spec) if int8 else None)


@lru_cache(maxsize=64)
def _layer_norm_row(
    width: int, eps: float, to: str, scales: int, spec: ChipSpec, runs: int
) -> Block:
    """One row of a LAYER_NORM. `to`: the type of q, none without; `scales`: vectors of them."""
    lanes = groups(width)

    def build(pace: int, interval: int) -> Block:
        b = Block(spec, pinned=frozenset({ROW_SCALES.scales}), interval=interval, feed=FED,
                  turning=runs >= MANY)  # fmt: skip

        def above(g: int, mean: Node, after: int) -> Node:
            x = load("x", g, lanes[g], "f32")
            return b.alu(AluOp.SUB, x, mean, lanes=lanes[g], after=after)

        def normed(g: int, mean: Node, root: Node, after: int) -> Node:
            x = b.alu(AluOp.MUL, above(g, mean, after), root, lanes=lanes[g])
            x = b.alu(AluOp.MUL, load("gamma", g, lanes[g], "f32"), x, lanes=lanes[g])
            return b.alu(AluOp.ADD, load("beta", g, lanes[g], "f32"), x, lanes=lanes[g])

        total: Node | None = None
        for g, n in enumerate(lanes):
            x = b.alu(AluOp.COPY, load("x", g, n, "f32"), lanes=n, after=g * pace)
            total = x if total is None else b.alu(AluOp.ADD, total, x)
        assert total is not None
        mean = b.alu(AluOp.MUL, lane_sum(b, total), f32(1.0 / width))
        total = None
        for g, n in enumerate(lanes):
            d = above(g, mean, mean.done + g * pace)
            square = b.alu(AluOp.MUL, d, d, lanes=n)
            total = square if total is None else b.alu(AluOp.ADD, total, square)
        assert total is not None
        variance = b.alu(AluOp.MUL, lane_sum(b, total), f32(1.0 / width))
        root = b.alu(AluOp.RSQRT, b.alu(AluOp.ADD, variance, f32(eps)))
        root = b.alu(AluOp.COPY, root)  # large ALUs are needed for the maximum
        peak: Node | None = None
        for g, n in enumerate(lanes):
            y = normed(g, mean, root, root.done + g * pace)
            b.alu(AluOp.COPY, y, lanes=n, out=store("x", g, n, 4))
            if to == "f16":
                b.alu(AluOp.CVT_F16, y, out=store("q", g, LANES, 2))
            elif to == "i8":
                size = b.alu(AluOp.ABS, y)
                peak = size if peak is None else b.alu(AluOp.MAX, peak, size)
        if peak is None:
            return b
        factor, scale = scale_factor(b, lane_max(b, peak))
        for g, n in enumerate(lanes):  # as it was written
            y = b.alu(AluOp.MUL, load("x", g, n, "f32"), factor, lanes=n, after=g * pace)
            b.alu(AluOp.CVT_I8, y, out=store("q", g, LANES, 1))
        collect_scale(b, "s", scale, scales)
        return b

    return row_block(build, runs)


def layer_norm(op: LayerNorm, spec: ChipSpec) -> Template:
    """LayerNorm in place, then int8 per row, or fp16, or neither."""
    width, rows = op.hidden, op.rows
    to = "" if op.q is None else {"int8": "i8", "fp16": "f16"}[op.dtype]
    row = partial(_layer_norm_row, width, op.eps, to, vectors(rows * 4), spec)
    steps = {
        "x": vectors(width * 4), "gamma": 0, "beta": 0, "s": 0,
        "q": row_bytes(pad_vector(width), item_bytes(op.dtype)) // VECTOR_BYTES,
    }  # fmt: skip
    return by_rows(row, rows, steps, scale_block(spec) if to == "i8" else None)


@lru_cache(maxsize=64)
def _gather_row(
    shares: tuple[int, ...], int8: bool, scales: int, spec: ChipSpec, runs: int
) -> Block:
    """One row of a GATHER; `scales`: vectors of the rows' scales."""
    lanes = groups(sum(shares))

    def build(pace: int, interval: int) -> Block:
        b = Block(spec, pinned=frozenset({ROW_SCALES.scales}), interval=interval, feed=FED,
                  turning=runs >= MANY)  # fmt: skip

        def value(g: int, after: int) -> NodeSource:
            return joined(b, runs_of(shares, g * LANES, lanes[g]), 2, after)

        if not int8:
            for g in range(len(lanes)):
                b.chain(g * pace, lambda after, g=g: b.alu(  # type: ignore[misc]
                    AluOp.CVT_F16, value(g, after), out=store("q", g, LANES, 2)
                ))  # fmt: skip
            return b
        if not b.turning:
            collect_scale(b, "s", quantise(b, value, len(lanes), 0, pace, LOADED), scales)
            return b
        factor, scale = scale_factor(b, lane_max(b, largest(b, shares, pace)))

        def quantised(first: int, several: int, after: int) -> None:
            for g, y in enumerate(halfs(b, shares, first, several, after), first):
                quantised_group(b, g, y, factor)

        for first, several in at_once(b, shares):
            b.chain(factor.done + first * pace - LOADED, partial(quantised, first, several))
        collect_scale(b, "s", scale, scales)
        return b

    return row_block(build, runs)


def gather(op: Gather, spec: ChipSpec) -> Template:
    """Join the segments, then quantise each row; fp16 is only joined."""
    shares, rows, int8 = op.shares, op.rows, op.dtype == "int8"
    width = sum(shares)
    row = partial(_gather_row, shares, int8, vectors(rows * 4), spec)
    steps = {
        **segment_rows(shares), "s": 0,
        "q": row_bytes(pad_vector(width), item_bytes(op.dtype)) // VECTOR_BYTES,
    }  # fmt: skip
    return by_rows(row, rows, steps, scale_block(spec) if int8 else None)


@lru_cache(maxsize=64)
def _add_row(shares: tuple[int, ...], spec: ChipSpec, runs: int) -> Block:
    """One row of an ADD."""
    counts = groups(sum(shares))

    def build(pace: int, interval: int) -> Block:
        b = Block(spec, interval=interval, turning=runs >= MANY)

        def added(first: int, several: int, after: int) -> None:
            for g, delta in enumerate(halfs(b, shares, first, several, after), first):
                x = load("x", g, counts[g], "f32")
                total = b.alu(AluOp.ADD, x, delta, lanes=counts[g])
                b.alu(AluOp.COPY, total, lanes=counts[g], out=store("x", g, counts[g], 4))

        for first, several in at_once(b, shares):
            b.chain(first * pace, partial(added, first, several))
        return b

    return row_block(build, runs)


@lru_cache(maxsize=64)
def _add_norm_row(shares: tuple[int, ...], eps: float, spec: ChipSpec, runs: int) -> Block:
    """One row of an ADD whose segments are normed. Two passes."""
    width = sum(shares)
    counts = groups(width)

    def build(pace: int, interval: int) -> Block:
        b, total = Block(spec, interval=interval, turning=runs >= MANY), None

        def squared(first: int, several: int, after: int) -> Node:
            best = total
            for g, delta in enumerate(halfs(b, shares, first, several, after), first):
                square = b.alu(AluOp.MUL, delta, delta, lanes=counts[g])
                best = square if best is None else b.alu(AluOp.ADD, best, square)
            assert best is not None
            return best

        for first, several in at_once(b, shares):
            total = b.chain(first * pace, partial(squared, first, several))
        assert total is not None
        mean = b.alu(AluOp.MUL, lane_sum(b, total), f32(1.0 / width))
        root = b.alu(AluOp.RSQRT, b.alu(AluOp.ADD, mean, f32(eps)))

        def added(first: int, several: int, after: int) -> None:
            for g, delta in enumerate(halfs(b, shares, first, several, after), first):
                y = b.alu(AluOp.MUL, delta, root, lanes=counts[g])
                y = b.alu(AluOp.MUL, load("post", g, counts[g], "f32"), y, lanes=counts[g])
                y = b.alu(AluOp.ADD, load("x", g, counts[g], "f32"), y, lanes=counts[g])
                b.alu(AluOp.COPY, y, lanes=counts[g], out=store("x", g, counts[g], 4))

        for first, several in at_once(b, shares):
            b.chain(root.done - LOADED + first * pace, partial(added, first, several))
        return b

    return row_block(build, runs)


def add(op: Add, spec: ChipSpec) -> Template:
    """x += the joined segments, or their norm."""
    shares, rows = op.shares, op.rows
    steps = {**segment_rows(shares), "x": vectors(sum(shares) * 4), "post": 0}
    if op.eps is None:
        return by_rows(partial(_add_row, shares, spec), rows, steps)
    return by_rows(partial(_add_norm_row, shares, op.eps, spec), rows, steps)


@lru_cache(maxsize=64)
def _gate_row(activation: Activation, n: int, spec: ChipSpec, runs: int) -> Block:
    """One row of a gate."""

    def build(pace: int, interval: int) -> Block:
        b, at = Block(spec, interval=interval, turning=runs >= MANY), 0
        for g, count in enumerate(gated_widths(n)):
            x = joined(b, [Run("x", 2 * at, count)], 4)
            gate = b.alu(AluOp.COPY, x, lanes=count, after=g * pace)
            gated = ACTIVATIONS[activation](b, gate, ANY)
            ahead = gated.done - 6 - (CLAMPED if activation in UPS else 0)
            up = joined(b, [Run("x", 2 * at + count, count)], 4, ahead)
            y = b.alu(AluOp.MUL, gated, risen(b, activation, up, count, ahead), lanes=count)
            out = Ref("y", at * 2 // VECTOR_BYTES, vectors(2 * count))
            b.alu(AluOp.CVT_F16, y, lanes=count, out=out)
            at += count
        return b

    return row_block(build, runs)


def gate(op: Gate, spec: ChipSpec) -> Template:
    """activation(gate) * up, rounded to fp16; columns alternate as `gated_widths` says."""
    n, rows = op.n, op.rows
    steps = {"x": vectors(2 * n * 4), "y": vectors(n * 2)}
    return by_rows(partial(_gate_row, op.activation, n, spec), rows, steps)


@lru_cache(maxsize=64)
def _apply_row(function: Function, n: int, spec: ChipSpec, runs: int) -> Block:
    """One row of a function."""

    def build(pace: int, interval: int) -> Block:
        b = Block(spec, interval=interval, turning=runs >= MANY)
        for g, count in enumerate(groups(n)):
            x = load("x", g, count, "f32")
            y = gelu(b, x, count, GELU[function], g * (GELU_PACE + pace))
            b.alu(AluOp.CVT_F16, y, lanes=count, out=store("y", g, count, 2))
        return b

    return row_block(build, runs)


def apply(op: Apply, spec: ChipSpec) -> Template:
    """function(x), rounded to fp16."""
    steps = {"x": vectors(op.n * 4), "y": vectors(op.n * 2)}
    return by_rows(partial(_apply_row, op.function, op.n, spec), op.rows, steps)
