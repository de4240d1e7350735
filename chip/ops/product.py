"""Matmul: a product, what may come before it as a part of it, and what may follow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from chip.ops.opcodes import BOUND, MXM, PART, WORD, Activation, Opcode, Use
from chip.ops.rows import row_bytes
from chip.ops.vector import quantised, segments
from chip.ops.weights import weight_bytes, weight_scale_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """The product takes rows x [rows, k] as they are; int8 ones with a scale s a row."""

    x: int = field(metadata=BOUND)
    s: int | None = field(default=None, metadata=BOUND)

    def reads(self, of: Matmul) -> list[Use]:
        return quantised(self.x, self.s, of.rows, of.k, of.dtype, ("x", "s"))

    def writes(self, of: Matmul) -> list[Use]:
        return []


@dataclass(frozen=True, slots=True, kw_only=True)
class NormFirst:
    """The product's prologue is the RMSNorm of src [rows, k] fp32; q and qs are its results.

    `arrives`: src comes off a link as the product runs, a vector every so many cycles.
    """

    role: ClassVar[str] = "prologue"
    word: ClassVar[str] = "norm"
    eps: float
    arrives: int | None = None
    src: int = field(metadata=BOUND)
    gamma: int = field(metadata=BOUND)
    q: int = field(metadata=BOUND)
    qs: int | None = field(default=None, metadata=BOUND)

    def reads(self, of: Matmul) -> list[Use]:
        row = row_bytes(of.k, 4)
        return [("src", (self.src, of.rows * row)), ("gamma", (self.gamma, row))]

    def writes(self, of: Matmul) -> list[Use]:
        return quantised(self.q, self.qs, of.rows, of.k, of.dtype, ("q", "qs"))


@dataclass(frozen=True, slots=True, kw_only=True)
class GatherFirst:
    """The product's prologue joins the fp16 segments at src; q and qs are its results."""

    role: ClassVar[str] = "prologue"
    word: ClassVar[str] = "gather"
    shares: tuple[int, ...]
    src: int = field(metadata=BOUND)
    q: int = field(metadata=BOUND)
    qs: int | None = field(default=None, metadata=BOUND)

    def reads(self, of: Matmul) -> list[Use]:
        return [segments(self.src, self.shares, of.rows)]

    def writes(self, of: Matmul) -> list[Use]:
        return quantised(self.q, self.qs, of.rows, of.k, of.dtype, ("q", "qs"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """The product is the result: y [rows, n]."""

    y: int = field(metadata=BOUND)

    def reads(self, of: Matmul) -> list[Use]:
        return []

    def writes(self, of: Matmul) -> list[Use]:
        return [("y", (self.y, of.rows * row_bytes(of.n, of.out_bytes)))]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddTo:
    """The product's epilogue adds it, rounded to fp16, to the residual r [rows, n] fp32."""

    role: ClassVar[str] = "epilogue"
    word: ClassVar[str] = "add"
    r: int = field(metadata=BOUND)

    def reads(self, of: Matmul) -> list[Use]:
        return [("r", (self.r, of.rows * row_bytes(of.n, 4)))]

    def writes(self, of: Matmul) -> list[Use]:
        return self.reads(of)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gated:
    """The product's epilogue is activation(gate) * up; y [rows, n / 2] fp16."""

    role: ClassVar[str] = "epilogue"
    activation: Activation = field(metadata=WORD)
    y: int = field(metadata=BOUND)

    @property
    def word(self) -> str:
        """The activation's name."""
        return self.activation.value

    def reads(self, of: Matmul) -> list[Use]:
        return []

    def writes(self, of: Matmul) -> list[Use]:
        return [("y", (self.y, of.rows * row_bytes(of.n // 2, of.out_bytes)))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capped:
    """The product's epilogue caps it: y [rows, n] = cap * tanh(product / cap)."""

    role: ClassVar[str] = "epilogue"
    word: ClassVar[str] = "cap"
    cap: float
    y: int = field(metadata=BOUND)

    def reads(self, of: Matmul) -> list[Use]:
        return []

    def writes(self, of: Matmul) -> list[Use]:
        return [("y", (self.y, of.rows * row_bytes(of.n, of.out_bytes)))]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRoom:
    """What a product of one row leaves to the links, in cycles.

    `pace`: a link takes a vector of the result every so many. `gaps`: the loads of weights leave a
    turn of the port every so many; `gaps_last`: only in so many before the end.
    """

    pace: int | None = None
    gaps: int | None = None
    gaps_last: int | None = None


NO_ROOM = LinkRoom()


@dataclass(frozen=True, slots=True, kw_only=True)
class Matmul:
    """rows x [k] . w [k, n], dequantised by sw (int8), and b [n] fp32 added; fp32 or fp16 (`out`).

    Without b nothing is added. `group`: w is int4, and sw has a row of scales for every so many
    rows of K (chip/ops/weights.py).
    `first_column`: the result is logits, of columns from here on.
    """

    opcode: ClassVar[Opcode] = Opcode.MATMUL
    part: ClassVar[str] = "weights"
    rows: int
    k: int
    n: int
    dtype: str  # of x, and without `group` of w
    group: int | None = None
    out: str
    source: Activations | NormFirst | GatherFirst = field(metadata=PART)
    result: Plain | AddTo | Gated | Capped = field(metadata=PART)
    links: LinkRoom = field(default=NO_ROOM, metadata=PART)
    w: int = field(metadata=BOUND)
    sw: int | None = field(default=None, metadata=BOUND)
    b: int | None = field(default=None, metadata=BOUND)
    first_column: int | None = field(default=None, metadata=BOUND)

    @property
    def units(self) -> tuple[str, ...]:
        """Units held from start to end.

        ALUs of the MXM's result chain are set apart from those of vector programs (assumption: 4
        of 16), so a product holds no VXM, unless vector work is part of it.
        """
        alone = isinstance(self.source, Activations) and isinstance(self.result, Plain)
        return MXM if alone else (*MXM, "VXM")

    @property
    def out_bytes(self) -> int:
        """Bytes of one element of the result."""
        return 4 if self.out == "f32" else 2

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights: k padded to the MXM's 320 rows."""
        return weight_bytes(self.k, self.n, self.dtype, self.group)

    def reads(self) -> list[Use]:
        columns = []
        if self.sw is not None:
            columns.append(("sw", (self.sw, weight_scale_bytes(self.k, self.n, self.group))))
        if self.b is not None:
            columns.append(("b", (self.b, row_bytes(self.n, 4))))
        parts = [*self.source.reads(self), *self.result.reads(self)]
        return [*parts, ("w", (self.w, self.weight_bytes)), *columns]

    def writes(self) -> list[Use]:
        return [*self.source.writes(self), *self.result.writes(self)]
