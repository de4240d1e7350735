"""The TSP's instruction set: what each instruction reads, does and writes, and when.

An instruction issued at cycle c samples its stream operands at c + d_skew from the stream register
that reaches its unit, and its result is on the stream register behind its unit at c + d_func; both
come from `ChipSpec.delays`. Values move one register a cycle, eastward or westward; a unit sees
the nearest writer strictly upstream. The 20 tiles' vertical skew is common to all units, so
`TILES` cycles are added to an operation once and nowhere else.

An operand of 16- or 32-bit values takes up to 2 or 4 vectors on streams of their own (a `Group`),
which, put end to end, are the values as they lie in SRAM ("host order": which byte of a lane
travels in which vector is a fixed permutation that no unit sees). `lanes` values take
ceil(lanes * size / 320) vectors; units work on 320 lanes, and those at or beyond `lanes` are +0
(assumption: a lane-count register in each unit).

The published address counters (Iterations, Countdown, Step) are what a Repeat and `step` say
together: n more issues, d cycles apart, each `step` words, columns or slots further on.
docs/hardware.md, The chip; ISCA 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from chip.floorplan import Queue, Role, Unit, plane_of
from chip.isa.control import (
    Config,
    Deskew,
    Ifetch,
    Instruction,
    Notify,
    Receive,
    RuntimeDeskew,
    Send,
    Sync,
    mnemonic,
)
from chip.isa.operands import Address, At, Group, Source, Stream
from chip.spec import VECTOR_BYTES

TILES = 20  # superlanes of a vector
SUPERLANE = VECTOR_BYTES // TILES  # lanes of one
BLOCK_STREAMS = 16  # that a TRANSPOSE takes and puts in a cycle


class AluOp(StrEnum):
    """VXM operations. Functions are those of chip/kernels/vmath.py; converts end the list."""

    COPY = "COPY"
    NEG = "NEG"
    ABS = "ABS"
    ADD = "ADD"
    SUB = "SUB"
    MUL = "MUL"
    OR = "OR"  # of the bits
    EQ = "EQ"  # masks: 1 or 0, i32
    LE = "LE"
    GE = "GE"
    CHOOSE = "CHOOSE"  # operands mask, a, b: a where the mask is not 0, else b
    MAX = "MAX"
    MIN = "MIN"
    EXP = "EXP"
    RSQRT = "RSQRT"
    TANH = "TANH"
    CVT_F32 = "CVT_F32"  # from i8, f16 or i32
    CVT_I32 = "CVT_I32"  # rint
    CVT_I8 = "CVT_I8"  # rint, clamped to [-127, 127]
    CVT_F16 = "CVT_F16"  # saturating; the chip counts what saturates


LARGE_ALUS = frozenset({0, 2, 5, 7, 8, 10, 13, 15})
LARGE_OPS = frozenset(list(AluOp)[list(AluOp).index(AluOp.MAX) :])
_BINARY = ("ADD", "SUB", "MUL", "OR", "EQ", "LE", "GE", "MAX", "MIN")
ARITY: Mapping[AluOp, int] = (
    dict.fromkeys(AluOp, 1) | {AluOp(name): 2 for name in _BINARY} | {AluOp.CHOOSE: 3}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Read(Instruction):
    """MEM: put word `address` (0 to 8191) on a stream; zeros if `At` is in another slice."""

    address: Address
    stream: Stream
    step: int = 0  # words an issue, by the address counter


@dataclass(frozen=True, slots=True, kw_only=True)
class Write(Instruction):
    """MEM: take a vector from a stream into word `address`."""

    address: int | At
    stream: Stream
    step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gather(Instruction):
    """MEM: each superlane reads the word that the first two bytes of its part of `map` name."""

    map: Stream
    stream: Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Scatter(Instruction):
    """MEM: each superlane writes the word that its part of `map` names; 0xffff writes nothing."""

    map: Stream
    stream: Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Index(Instruction):
    """MEM: the slice's index is the low half of i32 value `lane` of a vector (`Chosen`).

    assumption: address counters, which step by a constant, may begin at a step that a stream names.
    """

    stream: Stream
    lane: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Alu(Instruction):
    """VXM: one operation; the result stays in the ALU's output register and may go on a stream."""

    op: AluOp
    a: Source
    b: Source | None = None
    c: Source | None = None
    lanes: int = VECTOR_BYTES
    out: Group = ()

    @property
    def name(self) -> str:
        return self.op.value

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple([source for source in (self.a, self.b, self.c) if source is not None])


@dataclass(frozen=True, slots=True, kw_only=True)
class LW(Instruction):
    """MXM: take `count` streams into columns `column` on of the plane's weight buffer.

    `step` columns further an issue. With fp16 a vector holds 160 values, and the pair of planes
    takes up to 32 streams.
    """

    stream: Stream
    count: int
    column: int
    step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class IW(Instruction):
    """MXM: install the weight buffer in the array: `columns` columns, the others become zero.

    The buffer is empty afterwards. Holds for activations issued d_func later or after.
    """

    columns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ABC(Instruction):
    """MXM: send one activation row through the array, from a stream or the activation buffer.

    stream only: stream -> array; slot only: buffer -> array; both: stream -> buffer, no product.
    `step` slots further an issue. The product leaves the array d_func later, where an ACC must
    take it. fp16: one vector is 160 values.
    """

    stream: Stream | None = None
    slot: int | None = None
    step: int = 0
    fp16: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ACC(Instruction):
    """MXM: add the product that leaves the array to accumulator row `slot`, or start it anew.

    `step` rows further an issue; `out` puts the first `lanes` sums on streams, int32 (int8 planes)
    or fp32; without `product` the row is only put out. fp16: lane i of a 320-value tile is
    summed in fp64 into partial i mod 16, and the tile comes in two halves: 0 starts the partials, 1
    ends the tile (tree, one rounding to fp32) and adds it to the row's sum, or starts that.
    """

    slot: int
    first: bool
    step: int = 0
    lanes: int = VECTOR_BYTES
    out: Group = ()
    half: int | None = None  # None: int8
    product: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Lanes(Instruction):
    """Base of SXM instructions: `lanes` values of `item` bytes in, `out_lanes` out."""

    src: Group
    dst: Group
    item: int = 1
    lanes: int = VECTOR_BYTES
    out_lanes: int = VECTOR_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift(Lanes):
    """SXM: result lane l is source lane l + amount, or zero outside [0, 320)."""

    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotate(Lanes):
    """SXM: result lane l is source lane (l + amount) mod 320."""

    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Permute(Lanes):
    """SXM: result lane l is source lane map[l], or zero for None; lanes beyond the map are zero.

    assumption: permuter and distributor in one pass, so that a lane may be copied to many.
    """

    map: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribute(Lanes):
    """SXM: lane l of every superlane is its lane map[l] of 16, or zero for None."""

    map: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Select(Lanes):
    """SXM: lanes [first, last) of `src`, the others of `other` (same item and lanes)."""

    other: Group
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Transpose(Instruction):
    """SXM: turn a block of items: n <= 20 issues of 16 streams in, `groups` times 16 streams out.

    Input vector t (issue t // 16, stream t mod 16) item l becomes output vector l (cycle l // 16,
    stream l mod 16) item t; a vector is 320 items of one byte, or 160 of two, and n <= 10. The
    first 16 leave d_func >= 20 after the first issue. assumption: 16 x 16 transposes inside
    superlanes, of the bytes of an item each, skewed between them by the SXM's own registers.
    """

    src: Stream
    dst: Stream
    groups: int = 20
    item: int = 1


MEM = (Read, Write, Gather, Scatter)
C2C = (Send, Receive)
ICU = (Deskew, RuntimeDeskew, Sync, Notify, Ifetch, Config)
SXM = (Shift, Rotate, Permute, Distribute, Select, Transpose)
ISSUED_BY: Mapping[Unit | Role, tuple[type[Instruction], ...]] = {
    Unit.MEM: (*MEM, Index),
    Unit.VXM: (Alu,),
    Unit.SXM: (*SXM, *C2C),
    Role.LOAD: (LW,),
    Role.FEED: (IW, ABC),
    Role.DRAIN: (ACC,),
}
MNEMONICS = (
    *(mnemonic(kind) for kind in (*MEM, LW, IW, ABC, ACC, *SXM, *C2C, *ICU)),
    *(op.value for op in AluOp),
    mnemonic(Index),
)
"""Every instruction that has delays; NOP and Repeat belong to the queues' text and binary forms."""


def issues(queue: Queue, instruction: Instruction) -> bool:
    """Tell whether a queue may issue an instruction."""
    unit = plane_of(queue)[1] if queue.unit is Unit.MXM else queue.unit
    if isinstance(instruction, Alu) and instruction.op in LARGE_OPS:
        return queue.unit is Unit.VXM and queue.number in LARGE_ALUS
    return isinstance(instruction, (*ISSUED_BY[unit], *ICU))


__all__ = (  # what is defined in chip.isa.control and belongs to the instruction set
    "Config", "Deskew", "Ifetch", "Instruction", "Notify", "Receive", "RuntimeDeskew", "Send",
    "Sync", "mnemonic",
)  # fmt: skip
