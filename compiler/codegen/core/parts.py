"""What a template's blocks are made of: operands, VXM instructions, accesses, SXM passes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chip.isa.instructions import AluOp
from chip.isa.operands import Group, Immediate, Lane, Source
from chip.spec import VECTOR_BYTES

LANES = VECTOR_BYTES


def f32(value: float) -> Immediate:
    """Return a constant, rounded to fp32."""
    return Immediate(float(np.float32(value)))


@dataclass(frozen=True, slots=True)
class Ref:
    """`count` neighbouring vectors of an operand; `vector` is counted from the row's first."""

    operand: str
    vector: int
    count: int


@dataclass(frozen=True, slots=True)
class Load:
    """A stream operand that comes from work memory just in time.

    `read`: what is read for it, where that is more than it takes; `shared`: it comes with another's
    read, in the same cycle.
    """

    ref: Ref
    dtype: str
    read: Ref | None = None
    shared: bool = False


@dataclass(slots=True)
class Node:
    """One ALU instruction. `alu` is chosen when the block is finished, unless it was given."""

    cycle: int
    op: AluOp
    sources: tuple[NodeSource, ...]
    lanes: int
    done: int  # the cycle at which the result is in the ALU's register, and leaves on a stream
    out: Ref | Group | None
    alu: int | None
    last_use: int


@dataclass(frozen=True, slots=True)
class Row:
    """The number of the block's row, times `times` + `plus`: an i32 immediate when it is known."""

    times: int = 1
    plus: int = 0


@dataclass(frozen=True, slots=True)
class Given:
    """An argument of the operation, in every lane, i32: an immediate once it is bound."""

    name: str


@dataclass(frozen=True, slots=True)
class Fixed:
    """A source that stays as it is whatever the block's row."""

    source: Source


class RowMask:
    """Operands of the comparison that is true in the lane of the block's row."""

    @staticmethod
    def operands() -> tuple[Lane, Row]:
        return Lane(), Row()


NodeSource = Node | Load | Row | Given | Fixed | Source


@dataclass(frozen=True, slots=True)
class Access:
    """`ref` read to arrive at a unit, or written as it leaves the VXM: first beat at `cycle`.

    `wide`: vectors of a beat.
    """

    write: bool
    ref: Ref
    cycle: int
    sxm: int | None = None  # read to the SXM of this hemisphere instead of the VXM
    stride: int = 1  # cycles between beats
    wide: int = 2

    @property
    def beats(self) -> range:
        """Cycles, after the first, at which `wide` more vectors follow."""
        return range(0, -(-self.ref.count // self.wide) * self.stride, self.stride)


@dataclass(frozen=True, slots=True)
class Pass:
    """One SXM permutation, `lanes` values of `item` bytes in; sources in memory are bound later."""

    cycle: int
    hemisphere: int
    queue: int
    map: tuple[int | None, ...] | None  # None: every lane gets the lane of the block's row
    item: int
    lanes: int
    src: Ref | Group
    dst: Group
    out_lanes: int = LANES
