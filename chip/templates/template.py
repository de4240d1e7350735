"""A scheduled operation as instructions: blocks on relative cycles, and what it asks of others.

`cycles` is the operation's cost. Nothing in a template depends on an address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from chip.issue import Issue
from chip.templates.builder import Block


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A block that runs `n` times, `period` cycles apart, for rows `row`, `row` + 1, ..."""

    block: Block
    start: int
    n: int = 1
    period: int = 0
    row: int = 0
    shift: Mapping[str, int] = field(default_factory=dict)  # vectors added to operands' places


class Stream(Protocol):
    """A part of a template that is worked out when it is bound: the MXM's loads and control."""

    def issues(self, base: Callable[[str], int]) -> Iterator[Issue]:
        """Yield instructions; `base` gives an operand's first vector in SRAM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """Placed blocks. `row_vectors`: vectors between an operand's rows, by operand name.

    `needed`: operand -> cycles after the start at which its first and last vectors are taken;
    others are taken from cycle 0 on. `stream_cycles`: from the first to the last result.
    """

    placed: tuple[Placed, ...]
    cycles: int
    row_vectors: dict[str, int] = field(default_factory=dict)
    needed: dict[str, tuple[int, int]] = field(default_factory=dict)
    stream_cycles: int = 0
    streams: tuple[Stream, ...] = ()
    lowered: bool = True  # False: an estimate without instructions


def aligned(cycles: int) -> int:
    """Round up to whole turns of the work slices' ports."""
    return -(-cycles // 8) * 8


def paced(build: Callable[[int], Block]) -> Block:
    """Build a block at the fastest pace (cycles between groups) at which the ALUs suffice."""
    for pace in range(200):
        try:
            return build(pace).finish()
        except OverflowError:
            continue
    raise AssertionError("no pace leaves enough ALUs")


def by_rows(
    block: Block, rows: int, row_vectors: dict[str, int], first: Block | None = None
) -> Template:
    """Run one row's block for every row, one after another, behind a block that sets up."""
    start = aligned(first.end) if first is not None else 0
    period = aligned(block.end)
    placed = [Placed(block=first, start=0)] if first is not None else []
    placed.append(Placed(block=block, start=start, n=rows, period=period))
    return Template(
        placed=tuple(placed),
        cycles=start + period * (rows - 1) + block.end,
        row_vectors=row_vectors,
    )
