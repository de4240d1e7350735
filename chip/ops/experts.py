"""Route, ExpertsEach and ExpertsSum: a mixture of experts.

Each row has `chosen` experts, in ascending order of their numbers. Route works them out; which they
are depends on data, how many there are does not, and so neither do cycles. The weights of all
experts lie one behind the other, `expert_stride` bytes apart, so that an expert's number is its
address: the list of addresses is fixed, and the router's result selects from it. Their scales and
biases lie in the work slices, `apart` bytes from one expert's to the next one's: whole turns of
these slices, so that a vector comes from the same slice whichever expert is meant.

There are two programs of the same result. In one, the weights of each row's chosen experts are
read, row by row. In the other (`every`) those of all experts are read once, and all rows go through
each; what a row did not choose counts exactly zero. Many rows are sooner done by the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from chip.ops.kv import WINDOW_VECTORS
from chip.ops.opcodes import BOUND, MXM, Opcode, Use
from chip.ops.rows import row_bytes
from chip.ops.vector import VXM, quantised
from chip.ops.weights import weight_bytes, weight_scale_bytes
from chip.spec import VECTOR_BYTES

WINDOW_BYTES = WINDOW_VECTORS * VECTOR_BYTES


def expert_stride(k: int, n: int, dtype: str, group: int | None = None) -> int:
    """Bytes from one expert's weights [k, n] to the next one's: whole windows of vectors."""
    size = weight_bytes(k, n, dtype, group)
    return -(-size // WINDOW_BYTES) * WINDOW_BYTES


def columns_apart(n: int, turn: int) -> int:
    """Bytes from one expert's n scales, or biases, to the next one's: whole turns of work slices.

    `turn`: bytes of one (`chip.sram.work_turn`).
    """
    return -(-row_bytes(n, 4) // turn) * turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The experts of each row: their numbers e [rows, chosen] int32, and weights g [rows, chosen].

    They are those with the largest of x [rows, experts] fp32, ties to the lowest number. Weights
    are the softmax over all experts, divided by the sum of the chosen ones'; with `after`, the
    softmax over the chosen ones alone.
    """

    opcode: ClassVar[Opcode] = Opcode.ROUTE
    part: ClassVar[str] = "vector"
    units: ClassVar[tuple[str, ...]] = VXM
    rows: int
    experts: int
    chosen: int
    after: bool
    x: int = field(metadata=BOUND)
    e: int = field(metadata=BOUND)
    g: int = field(metadata=BOUND)

    def reads(self) -> list[Use]:
        return [("x", (self.x, self.rows * row_bytes(self.experts, 4)))]

    def writes(self) -> list[Use]:
        size = self.rows * row_bytes(self.chosen, 4)
        return [("e", (self.e, size)), ("g", (self.g, size))]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsEach:
    """y [rows chosen, n] fp32: each row of x [rows, k] times the weights of each of its experts.

    Products are those of `Matmul`; b has n fp32 values an expert. `every`: see above.
    """

    opcode: ClassVar[Opcode] = Opcode.EXPERTS_EACH
    part: ClassVar[str] = "weights"
    units: ClassVar[tuple[str, ...]] = (*MXM, "VXM", "SXM")
    rows: int
    experts: int
    chosen: int
    k: int
    n: int
    dtype: str
    group: int | None = None  # of int4 weights, as in `Matmul`
    apart: int  # bytes from one expert's scales, and biases, to the next one's
    every: bool = False
    x: int = field(metadata=BOUND)
    s: int | None = field(default=None, metadata=BOUND)
    e: int = field(metadata=BOUND)
    w: int = field(metadata=BOUND)
    sw: int | None = field(default=None, metadata=BOUND)
    b: int | None = field(default=None, metadata=BOUND)
    y: int = field(metadata=BOUND)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that are read."""
        return _read(self)

    def reads(self) -> list[Use]:
        rows = quantised(self.x, self.s, self.rows, self.k, self.dtype, ("x", "s"))
        return [*rows, _chosen(self), *_weights(self)]

    def writes(self) -> list[Use]:
        return [("y", (self.y, self.rows * self.chosen * row_bytes(self.n, 4)))]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsSum:
    """y [rows, n] fp16: the sum over a row's experts, in order, of g times its product.

    x [rows chosen, k] has a row for each of them. Products, with b, are fp32 and so are sums: t [n]
    has a row's, as far as they are. `every`: see above.
    """

    opcode: ClassVar[Opcode] = Opcode.EXPERTS_SUM
    part: ClassVar[str] = "weights"
    units: ClassVar[tuple[str, ...]] = (*MXM, "VXM", "SXM")
    rows: int
    experts: int
    chosen: int
    k: int
    n: int
    dtype: str
    group: int | None = None  # of int4 weights, as in `Matmul`
    apart: int  # bytes from one expert's scales, and biases, to the next one's
    every: bool = False
    x: int = field(metadata=BOUND)
    s: int | None = field(default=None, metadata=BOUND)
    e: int = field(metadata=BOUND)
    g: int = field(metadata=BOUND)
    w: int = field(metadata=BOUND)
    sw: int | None = field(default=None, metadata=BOUND)
    b: int | None = field(default=None, metadata=BOUND)
    y: int = field(metadata=BOUND)
    t: int = field(metadata=BOUND)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that are read."""
        return _read(self)

    def reads(self) -> list[Use]:
        rows = quantised(self.x, self.s, self.rows * self.chosen, self.k, self.dtype, ("x", "s"))
        g = ("g", (self.g, self.rows * row_bytes(self.chosen, 4)))
        return [*rows, _chosen(self), g, *_weights(self)]

    def writes(self) -> list[Use]:
        return [
            ("y", (self.y, self.rows * row_bytes(self.n, 2))),
            ("t", (self.t, row_bytes(self.n, 4))),
        ]


def programs(op: ExpertsEach | ExpertsSum) -> tuple[ExpertsEach | ExpertsSum, ...]:
    """Return the operation by each of its programs: the chosen experts, then every one."""
    return replace(op, every=False), replace(op, every=True)


def _read(op: ExpertsEach | ExpertsSum) -> int:
    times = op.experts if op.every else op.rows * op.chosen
    return times * weight_bytes(op.k, op.n, op.dtype, op.group)


def _chosen(op: ExpertsEach | ExpertsSum) -> Use:
    return "e", (op.e, op.rows * row_bytes(op.chosen, 4))


def _weights(op: ExpertsEach | ExpertsSum) -> list[Use]:
    uses = [("w", (op.w, op.experts * expert_stride(op.k, op.n, op.dtype, op.group)))]
    if op.sw is not None:
        uses.append(("sw", (op.sw, op.experts * scales_apart(op))))
    if op.b is not None:
        uses.append(("b", (op.b, op.experts * op.apart)))
    return uses


def scales_apart(op: ExpertsEach | ExpertsSum) -> int:
    """Bytes from one expert's scales to the next one's: those of int4 lie beside the weights."""
    return op.apart if op.group is None else weight_scale_bytes(op.k, op.n, op.group)
