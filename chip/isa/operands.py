"""Operands of TSP instructions: streams, what the VXM computes with, and run-time addresses.

assumption: a unit gathers an operand of several vectors over some cycles (beats) and lets a
result's vectors leave over some cycles, so that one SRAM slice can serve 32-bit values. d_func
counts from the last operand's last beat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import copysign
from typing import Any, NamedTuple

from chip.spec import vectors

STREAMS = 32  # in each direction
ITEM_BYTES: Mapping[str, int] = {"i8": 1, "f16": 2, "i32": 4, "f32": 4}


class Stream(NamedTuple):
    """A stream by direction and number."""

    eastward: bool
    number: int

    @property
    def code(self) -> int:
        """Return one number for direction and number: 0 to 31 eastward, 32 to 63 westward."""
        return self.number if self.eastward else STREAMS + self.number

    @classmethod
    def of_code(cls, code: int) -> Stream:
        """Return the stream that has a code."""
        return cls(code < STREAMS, code % STREAMS)

    def __str__(self) -> str:
        return f"{'E' if self.eastward else 'W'}{self.number}"


class Tap(NamedTuple):
    """One vector of an operand or a result: its stream, and how many cycles after the first."""

    stream: Stream
    beat: int = 0

    def __str__(self) -> str:
        return f"{self.stream}" + (f"@{self.beat}" if self.beat else "")


Group = tuple[Tap, ...]
"""The vectors of one operand or result, in host order."""


def group(stream: Stream, count: int) -> Group:
    """Return `count` neighbouring streams at once."""
    return tuple(Tap(Stream(stream.eastward, stream.number + i)) for i in range(count))


def streams_of(lanes: int, item: int) -> int:
    """Streams (and vectors) that `lanes` values of `item` bytes take."""
    return vectors(lanes * item)


@dataclass(frozen=True, slots=True)
class In:
    """A stream operand of type i8, f16, i32 or f32."""

    taps: Group
    dtype: str = "f32"


@dataclass(frozen=True, slots=True)
class Chain:
    """The result of an ALU that completes in just this cycle."""

    alu: int


@dataclass(frozen=True, slots=True)
class Held:
    """An ALU's output register: the latest result that completed by now, its own included."""

    alu: int


@dataclass(frozen=True, slots=True, eq=False)
class Immediate:
    """One constant in every lane; `dtype` f32 (an exact fp32 value) or i32. Zeros have a sign."""

    value: float
    dtype: str = "f32"

    def _key(self) -> tuple[float, float, str]:
        return self.value, copysign(1.0, self.value), self.dtype

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Immediate) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


@dataclass(frozen=True, slots=True)
class Lane:
    """The lane's own number + `offset` (+ `step` an issue), i32."""

    offset: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class Position:
    """The position of step row `row` (+ `step` an issue) from the step message, i32 in every lane.

    `% modulus` if that is not 0, then + offset. Rows that the step does not use stand at 0.
    """

    row: int
    step: int = 0
    offset: int = 0
    modulus: int = 0


Source = In | Chain | Held | Immediate | Lane | Position


@dataclass(frozen=True, slots=True)
class At:
    """An SRAM address known when the step starts: vector `base` + position(row) * num // den.

    The position is taken modulo `modulus` if that is not 0. Below `base + limit`. The instruction
    stands in the queue of every slice that may hold it, and acts in the one that does; a row that
    the step does not use is neither read nor written. `step` is added to `row` an issue.
    """

    base: int
    num: int
    den: int
    row: int
    limit: int
    step: int = 0
    modulus: int = 0


@dataclass(frozen=True, slots=True)
class Chosen:
    """Vectors of one of `choices` blocks of memory, which lie `apart` vectors from each other.

    The slice's index says which block (INDEX). Of the first block they are `count` vectors from
    `base` on, `spread` of the hemisphere's vectors from one to the next. The Read stands in the
    queue of every slice that may hold one of them, where the value that would be on the stream
    passes; a slice puts the vector that it holds on the stream as many further as its number says.
    """

    base: int
    apart: int
    choices: int
    count: int = 1
    spread: int = 1


Address = int | At | Chosen
"""Of a MEM instruction: a word of its slice, or what is known at run time only."""
LaneMap = tuple[int | None, ...]
"""The source lane of each result lane, None for zero."""

INTEGER_OPERANDS: tuple[tuple[type[Any], str, tuple[str, ...]], ...] = (
    (Chain, "alu", ("alu",)),
    (Held, "held", ("alu",)),
    (Lane, "lane", ("offset", "step")),
    (Position, "pos", ("row", "step", "offset", "modulus")),
    (At, "at", ("base", "num", "den", "row", "limit", "step")),
    (At, "atring", ("base", "num", "den", "row", "limit", "step", "modulus")),
    (Chosen, "atchosen", ("base", "apart", "choices", "count", "spread")),
)
"""Operands made of integers: class, word in the text form, fields in order. The binary form numbers
them by their place here. Fields that are left out are 0."""


def integers_of(operand: Source | At | Chosen) -> tuple[int, str, tuple[int, ...]]:
    """Return an operand's place in `INTEGER_OPERANDS`, word and integers: all that are not 0."""
    for number, (kind, word, names) in enumerate(INTEGER_OPERANDS):
        if isinstance(operand, kind):
            others = {one.name for one in fields(operand)} - set(names)
            if not any(getattr(operand, name) for name in others):
                return number, word, tuple(getattr(operand, name) for name in names)
    raise AssertionError(operand)
