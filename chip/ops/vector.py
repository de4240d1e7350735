"""Operations of the VXM alone: Norm, LayerNorm, Gather, Add, Gate, Apply, TopK."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from chip.ops.opcodes import BOUND, WORD, Activation, Function, Opcode, Use
from chip.ops.rows import activation_bytes, row_bytes, segment_offsets
from chip.spec import pad_vector

VXM = ("VXM",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """RMSNorm of x [rows, hidden] fp32 with gamma; int8 q with a scale s a row, or fp16 q."""

    opcode: ClassVar[Opcode] = Opcode.NORM
    part: ClassVar[str] = "vector"
    units: ClassVar[tuple[str, ...]] = VXM
    rows: int
    hidden: int
    eps: float
    dtype: str
    x: int = field(metadata=BOUND)
    gamma: int = field(metadata=BOUND)
    q: int = field(metadata=BOUND)
    s: int | None = field(default=None, metadata=BOUND)

    def reads(self) -> list[Use]:
        row = row_bytes(self.hidden, 4)
        return [("x", (self.x, self.rows * row)), ("gamma", (self.gamma, row))]

    def writes(self) -> list[Use]:
        return quantised(self.q, self.s, self.rows, self.hidden, self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNorm:
    """x [rows, hidden] fp32 becomes its LayerNorm with gamma and beta; q and s have it quantised.

    Without q it is not quantised.
    """

    opcode: ClassVar[Opcode] = Opcode.LAYER_NORM
    part: ClassVar[str] = "vector"
    units: ClassVar[tuple[str, ...]] = VXM
    rows: int
    hidden: int
    eps: float
    dtype: str
    x: int = field(metadata=BOUND)
    gamma: int = field(metadata=BOUND)
    beta: int = field(metadata=BOUND)
    q: int | None = field(default=None, metadata=BOUND)
    s: int | None = field(default=None, metadata=BOUND)

    def _x(self) -> Use:
        return "x", (self.x, self.rows * row_bytes(self.hidden, 4))

    def reads(self) -> list[Use]:
        row = row_bytes(self.hidden, 4)
        return [self._x(), ("gamma", (self.gamma, row)), ("beta", (self.beta, row))]

    def writes(self) -> list[Use]:
        if self.q is None:
            return [self._x()]
        return [self._x(), *quantised(self.q, self.s, self.rows, self.hidden, self.dtype)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gather:
    """Join the fp16 segments at src, then quantise rows; fp16 is only joined.

    `each`: so many of the rows are one row's of the step, if it is not one.
    """

    opcode: ClassVar[Opcode] = Opcode.GATHER
    part: ClassVar[str] = "vector"
    units: ClassVar[tuple[str, ...]] = VXM
    rows: int
    dtype: str
    shares: tuple[int, ...]
    each: int | None = None
    src: int = field(metadata=BOUND)
    q: int = field(metadata=BOUND)
    s: int | None = field(default=None, metadata=BOUND)

    def reads(self) -> list[Use]:
        return [segments(self.src, self.shares, self.rows)]

    def writes(self) -> list[Use]:
        return quantised(self.q, self.s, self.rows, sum(self.shares), self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Add:
    """x [rows, sum of shares] fp32 += the fp16 segments at src.

    With `post` their RMSNorm with that gamma is added.
    """

    opcode: ClassVar[Opcode] = Opcode.ADD
    part: ClassVar[str] = "vector"
    units: ClassVar[tuple[str, ...]] = VXM
    rows: int
    shares: tuple[int, ...]
    eps: float | None = None
    x: int = field(metadata=BOUND)
    src: int = field(metadata=BOUND)
    post: int | None = field(default=None, metadata=BOUND)

    def reads(self) -> list[Use]:
        uses = [*self.writes(), segments(self.src, self.shares, self.rows)]
        if self.post is not None:
            uses.append(("post", (self.post, row_bytes(sum(self.shares), 4))))
        return uses

    def writes(self) -> list[Use]:
        return [("x", (self.x, self.rows * row_bytes(sum(self.shares), 4)))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """y [rows, n] fp16 = activation(gate) * up of x [rows, 2 n] fp32.

    Columns alternate as `gated_widths` says. The opcode is the activation's name. `each` is
    `Gather`'s.
    """

    part: ClassVar[str] = "vector"
    units: ClassVar[tuple[str, ...]] = VXM
    activation: Activation = field(metadata=WORD)
    rows: int
    k: int  # columns that the product before it was of
    n: int
    dtype: str
    each: int | None = None
    x: int = field(metadata=BOUND)
    y: int = field(metadata=BOUND)

    @property
    def opcode(self) -> Opcode:
        """The activation's."""
        return Opcode(self.activation.value)

    def reads(self) -> list[Use]:
        return [("x", (self.x, self.rows * row_bytes(2 * self.n, 4)))]

    def writes(self) -> list[Use]:
        return [("y", (self.y, self.rows * row_bytes(self.n, 2)))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply:
    """y [rows, n] fp16 = function(x [rows, n] fp32). The opcode is the function's name."""

    part: ClassVar[str] = "vector"
    units: ClassVar[tuple[str, ...]] = VXM
    function: Function = field(metadata=WORD)
    rows: int
    n: int
    x: int = field(metadata=BOUND)
    y: int = field(metadata=BOUND)

    @property
    def opcode(self) -> Opcode:
        """The function's."""
        return Opcode(self.function.value)

    def reads(self) -> list[Use]:
        return [("x", (self.x, self.rows * row_bytes(self.n, 4)))]

    def writes(self) -> list[Use]:
        return [("y", (self.y, self.rows * row_bytes(self.n, 2)))]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """The k largest of x [n] fp32: y has their columns, `first_column` added, then their values.

    `row`: whose logits these are, in a step of several rows.
    """

    opcode: ClassVar[Opcode] = Opcode.TOPK
    part: ClassVar[str] = "vector"
    units: ClassVar[tuple[str, ...]] = VXM
    k: int
    n: int
    x: int = field(metadata=BOUND)
    y: int = field(metadata=BOUND)
    first_column: int = field(metadata=BOUND)
    row: int | None = field(default=None, metadata=BOUND)

    def reads(self) -> list[Use]:
        return [("x", (self.x, row_bytes(self.n, 4)))]

    def writes(self) -> list[Use]:
        return [("y", (self.y, row_bytes(2 * self.k, 4)))]


def segments(src: int, shares: tuple[int, ...], rows: int) -> Use:
    """Return the use of a gather buffer."""
    return "src", (src, segment_offsets(shares, rows)[-1])


def quantised(
    q: int, s: int | None, rows: int, k: int, dtype: str, names: tuple[str, str] = ("q", "s")
) -> list[Use]:
    """Return the uses of quantised rows and, of int8, of their scales."""
    scales = [] if s is None else [(names[1], (s, pad_vector(rows * 4)))]
    return [(names[0], (q, activation_bytes(rows, k, dtype))), *scales]
