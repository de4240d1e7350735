"""What units do to data: one prebound NumPy call or few for all issues of a Repeat.

Vectors stand in a pool [rows, 320] of bytes, a row for each value; operands and results are views
of it, or gathered from it first. Arithmetic is fp32 as in chip/kernels/vmath.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.errors import IssueError
from chip.isa.instructions import (
    SUPERLANE,
    TILES,
    AluOp,
    Distribute,
    Lanes,
    Permute,
    Rotate,
    Select,
    Shift,
)  # fmt: skip
from chip.kernels import vmath
from chip.kernels.quant import F16_MAX
from chip.spec import VECTOR_BYTES

Array = NDArray[Any]
BoundCall = Callable[[], None]
DTYPES: Mapping[str, type[np.generic]] = {
    "i8": np.int8,
    "f16": np.float16,
    "i32": np.int32,
    "f32": np.float32,
}
_INT8_MAX = np.float32(127.0)

_UFUNCS: Mapping[AluOp, Any] = {
    AluOp.NEG: np.negative, AluOp.ABS: np.absolute, AluOp.ADD: np.add, AluOp.SUB: np.subtract,
    AluOp.MUL: np.multiply, AluOp.EQ: np.equal, AluOp.LE: np.less_equal,
    AluOp.GE: np.greater_equal, AluOp.MAX: np.maximum, AluOp.MIN: np.minimum,
}  # fmt: skip
_FUNCTIONS: Mapping[AluOp, Callable[[Array], Array]] = {
    AluOp.EXP: vmath.exp, AluOp.RSQRT: vmath.rsqrt, AluOp.TANH: vmath.tanh,
}  # fmt: skip
_MASKS = (AluOp.EQ, AluOp.LE, AluOp.GE)
_TO: Mapping[AluOp, str] = {
    AluOp.CVT_F32: "f32", AluOp.CVT_I32: "i32", AluOp.CVT_I8: "i8", AluOp.CVT_F16: "f16",
}  # fmt: skip


class SaturationCounter:
    """Counts values that saturated when rounded to fp16."""

    __slots__ = ("saturated",)

    def __init__(self) -> None:
        self.saturated = 0


def result_type(op: AluOp, types: tuple[str, ...], name: str) -> str:
    """Return an ALU result's type. Raises IssueError for operands that the op cannot take."""
    if op in _TO:
        wanted = ("i8", "f16", "i32") if op is AluOp.CVT_F32 else ("f32",)
        if types[0] not in wanted:
            raise IssueError(f"operand: wanted {' or '.join(wanted)}, got {types[0]}", name)
        return _TO[op]
    if op is AluOp.COPY:
        return types[0]
    data = types[1:] if op is AluOp.CHOOSE else types
    wide = {"f32", "i32"} if op not in _FUNCTIONS else {"f32"}
    if len(set(data)) != 1 or data[0] not in wide or (op is AluOp.CHOOSE and types[0] != "i32"):
        raise IssueError(f"operands: wanted two of one 32-bit type, got {', '.join(types)}", name)
    return "i32" if op in _MASKS else data[0]


def alu(op: AluOp, operands: list[Array], out: Array, counter: SaturationCounter) -> BoundCall:
    """Bind one ALU operation: operands broadcast to out [n, lanes]."""
    a = operands[0]
    if op in _UFUNCS:
        ufunc = _UFUNCS[op]
        if len(operands) == 1:
            return lambda: ufunc(a, out=out)
        b = operands[1]
        return lambda: ufunc(a, b, out=out)
    if op in _FUNCTIONS:
        function = _FUNCTIONS[op]

        def evaluate() -> None:
            out[...] = function(a)

        return evaluate
    if op is AluOp.OR:
        x, y, z = (v.view(np.uint32) for v in (a, operands[1], out))
        return lambda: np.bitwise_or(x, y, out=z)  # type: ignore[return-value]
    if op is AluOp.CHOOSE:
        yes, no = operands[1:]

        def choose() -> None:
            np.copyto(out, no)
            np.copyto(out, yes, where=a != 0)

        return choose
    return _convert(op, a, out, counter)


def _convert(op: AluOp, a: Array, out: Array, counter: SaturationCounter) -> BoundCall:
    if op is AluOp.CVT_I8:
        return lambda: np.copyto(
            out, np.minimum(np.maximum(np.rint(a), -_INT8_MAX), _INT8_MAX), casting="unsafe"
        )
    if op is AluOp.CVT_I32:
        return lambda: np.copyto(out, np.rint(a), casting="unsafe")
    if op is AluOp.CVT_F16:

        def narrow() -> None:
            over = np.count_nonzero(np.abs(a) > F16_MAX)
            counter.saturated += int(over)
            np.copyto(out, np.clip(a, -F16_MAX, F16_MAX) if over else a, casting="unsafe")

        return narrow
    return lambda: np.copyto(out, a, casting="unsafe")  # COPY and CVT_F32


def lane_map(sxm: Lanes) -> NDArray[np.int64]:
    """Return, for each result lane, the source lane or -1 for zero."""
    lane = np.arange(VECTOR_BYTES)
    if isinstance(sxm, Shift):
        source = lane + sxm.amount
        source[(source < 0) | (source >= VECTOR_BYTES)] = -1
    elif isinstance(sxm, Rotate):
        source = (lane + sxm.amount) % VECTOR_BYTES
    elif isinstance(sxm, Permute):
        source = np.full(VECTOR_BYTES, -1)
        source[: len(sxm.map)] = [-1 if m is None else m for m in sxm.map]
    else:
        assert isinstance(sxm, Distribute)
        within = np.array([-1 if m is None else m for m in sxm.map])
        offset = np.tile(within, TILES)  # within a lane's own superlane
        source = np.where(offset < 0, -1, lane // SUPERLANE * SUPERLANE + offset)
    source[source >= sxm.lanes] = -1
    return source[: sxm.out_lanes]


def move_lanes(sxm: Lanes, operands: list[Array], out: Array) -> BoundCall:
    """Bind an SXM instruction on [n, lanes] values; lanes of out that stay zero are not touched."""
    a = operands[0]
    if isinstance(sxm, Select):
        other, first, last = operands[1], sxm.first, min(sxm.last, sxm.out_lanes, sxm.lanes)
        n = min(sxm.out_lanes, sxm.lanes)

        def select() -> None:
            out[:, :n] = other[:, :n]
            out[:, first:last] = a[:, first:last]

        return select
    source = lane_map(sxm)
    target = np.flatnonzero(source >= 0)
    source = source[target]
    if len(source) and (np.diff(source) == 1).all() and (np.diff(target) == 1).all():
        into = out[:, target[0] : target[-1] + 1]
        part = a[:, source[0] : source[-1] + 1]
        return lambda: np.copyto(into, part)

    def move() -> None:
        out[:, target] = a[:, source]

    return move
