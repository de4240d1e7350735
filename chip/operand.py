"""Operands of TSP instructions: streams, what the VXM computes with, and run-time addresses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from chip.spec import vectors

ITEM_BYTES = {"i8": 1, "f16": 2, "i32": 4, "f32": 4}


class Stream(NamedTuple):
    """A stream by direction and number; wider operands start there and take the next ones."""

    eastward: bool
    number: int

    def __str__(self) -> str:
        return f"{'E' if self.eastward else 'W'}{self.number}"


def streams_of(lanes: int, item: int) -> int:
    """Streams (and vectors) that `lanes` values of `item` bytes take."""
    return vectors(lanes * item)


@dataclass(frozen=True, slots=True)
class In:
    """A stream operand of type i8, f16, i32 or f32."""

    stream: Stream
    dtype: str = "f32"


@dataclass(frozen=True, slots=True)
class Chain:
    """The result of an ALU that completes in just this cycle."""

    alu: int


@dataclass(frozen=True, slots=True)
class Held:
    """An ALU's output register: the latest result that completed by now, its own included."""

    alu: int


@dataclass(frozen=True, slots=True)
class Immediate:
    """One constant in every lane; `dtype` f32 (an exact fp32 value) or i32."""

    value: float
    dtype: str = "f32"


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

    Below `base + limit`. The instruction stands in the queue of every slice that may hold it, and
    acts in the one that does; a row that the step does not use is neither read nor written.
    `step` is added to `row` an issue.
    """

    base: int
    num: int
    den: int
    row: int
    limit: int
    step: int = 0
