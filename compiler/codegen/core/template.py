"""A scheduled operation as instructions: blocks on relative cycles, and what it asks of others.

`cycles` is the operation's cost. Nothing in a template depends on an address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from chip.errors import TemplateError
from chip.isa.issue import Issue
from compiler.codegen.core.builder import C2C_TURN, Block
from compiler.codegen.core.control import Bulk, Part
from compiler.codegen.core.uses import Uses, of_nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A block that runs `n` times, `interval` cycles apart, for rows `row`, `row` + 1, ..."""

    block: Block
    start: int
    n: int = 1
    interval: int = 0
    row: int = 0
    shift: Mapping[str, int] = field(default_factory=dict)  # vectors added to operands' places


class Stream(Protocol):
    """A part of a template that is worked out when it is bound: the MXM's loads and control."""

    def issues(self, base: Callable[[str], int]) -> Iterator[Issue | Bulk]:
        """Yield instructions; `base` gives an operand's first vector in SRAM."""


@runtime_checkable
class InParts(Stream, Protocol):
    """A stream of which parts come again and again."""

    def parts(self, base: Callable[[str], int]) -> Iterator[Part]:
        """Yield the same instructions as `issues`, each part once."""


def parts_of(stream: Stream, base: Callable[[str], int]) -> Iterator[Part]:
    """Yield a stream's instructions in parts; one part of all, where it has none."""
    if isinstance(stream, InParts):
        yield from stream.parts(base)
    else:
        yield Part((0,), stream.issues(base))


class Choice(NamedTuple):
    """Blocks of an operand: how many there are, and vectors from one to the next."""

    choices: int
    apart: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """Placed blocks. `row_vectors`: vectors between an operand's rows, by operand name.

    `needed`: operand -> cycles after the start at which its first and last vectors are taken;
    others are taken from cycle 0 on. `stream_cycles`: from the first to the last result. Vectors of
    operands that are `chosen` are those of one of several blocks, which the slices' indices say.
    """

    placed: tuple[Placed, ...]
    cycles: int
    row_vectors: dict[str, int] = field(default_factory=dict)
    needed: dict[str, tuple[int, int]] = field(default_factory=dict)
    stream_cycles: int = 0
    streams: tuple[Stream, ...] = ()
    uses: tuple[Uses, ...] = ()  # of ALUs by streams
    chosen: Mapping[str, Choice] = field(default_factory=dict)  # operands of chosen blocks
    lowered: bool = True  # False: an estimate without instructions

    def asked(self) -> list[Uses]:
        """Return what blocks and streams ask of the VXM's ALUs."""
        starts: dict[int, list[int]] = {}
        for placed in self.placed:
            turns = (placed.start + n * placed.interval for n in range(placed.n))
            starts.setdefault(id(placed.block), []).extend(turns)
        blocks = {id(placed.block): placed.block for placed in self.placed}.items()
        return [*self.uses, *(
            replace(of_nodes(f"block {number}", block.nodes), starts=np.array(starts[key]))
            for number, (key, block) in enumerate(blocks)
        )]  # fmt: skip


@contextmanager
def laid_out(what: str) -> Iterator[None]:
    """Name an operation whose template counts on delays that this chip does not have.

    Raises TemplateError.
    """
    try:
        yield
    except (AssertionError, OverflowError) as error:
        why = f": {error}" if str(error) else ""
        raise TemplateError(f"{what}: no instructions can be laid out on this chip{why}") from error


FEW = 100  # instructions of a block for which all intervals are tried
SOME = 4  # runs for which a block is built that overlaps itself and ends soon
MANY = 16  # runs from which on the interval alone decides
TRIES = 12  # initiation intervals to try between one bound and twice that
PACES = (0, 2)  # cycles between groups of lanes to try in a block that overlaps


def even_stream(ready: list[int], end: int) -> int:
    """Return the longest time over which even delivery until `end` is never ahead.

    Vector v of n is taken `stream * v / (n - 1)` cycles after the first, or later. With a `pace`
    (cycles that a link takes for a vector) the product is over when a link that began early
    enough would take the last vector: so a block that is ready at once does not hold it back.
    """
    last = len(ready) - 1
    spans = [(end - at) * last // (last - v) for v, at in enumerate(ready[:-1])]
    return min(spans, default=0)


def aligned(cycles: int) -> int:
    """Round up to whole turns (`C2C_TURN`) of the work slices' ports.

    A block that starts there leaves the links their cycle.
    """
    return -(-cycles // C2C_TURN) * C2C_TURN


def paced(build: Callable[[int], Block]) -> Block:
    """Build a block at the fastest pace (cycles between groups) at which the ALUs suffice.

    Raises TemplateError where they suffice at none.
    """
    for pace in range(200):
        try:
            return build(pace).finish()
        except OverflowError:
            continue
    raise TemplateError("no pace leaves enough ALUs")


def row_block(build: Callable[[int, int], Block], runs: int) -> Block:
    """Build the block of one row, for `runs` rows: all of them end as early as can be.

    Where it pays, runs overlap (a modulo schedule). `build` takes the pace and the initiation
    interval (0 for none), and raises OverflowError where they are too short. Intervals are tried
    from the block's resource bound on.
    """
    best = alone = paced(lambda pace: build(pace, 0))
    if runs == 1:
        return alone
    ends = (runs - 1) * aligned(alone.end) + alone.end
    least = aligned(alone.resource_bound())
    step = max(C2C_TURN, aligned(least // TRIES))  # so that long blocks are not tried for long
    for interval in range(least, aligned(alone.end), step):
        if (runs - 1) * interval + alone.end >= ends:  # a run takes no less than one alone
            break
        for pace in PACES:
            try:
                block = build(pace, interval).finish()
            except OverflowError:
                continue
            if (runs - 1) * interval + block.end < ends:
                best, ends = block, (runs - 1) * interval + block.end
        if best is not alone and len(alone.nodes) > FEW:
            break  # longer intervals bring little, and take long to try
    return best


def interval_of(block: Block) -> int:
    """Cycles from one run of a block to the next."""
    return block.interval or aligned(block.end)


def by_rows(
    row: Callable[[int], Block], rows: int, row_vectors: dict[str, int],
    first: Block | None = None,
) -> Template:  # fmt: skip
    """Run one row's block for every row, behind a block that sets up.

    `row` builds it for so many runs (`row_block`): for one, for some and for many; what ends first
    is taken.
    """
    block = row(1)
    if rows > 1:
        block = min(block, row(SOME), row(MANY), key=lambda b: (rows - 1) * interval_of(b) + b.end)
    start = aligned(first.end) if first is not None else 0
    interval = interval_of(block)
    placed = [Placed(block=first, start=0)] if first is not None else []
    placed.append(Placed(block=block, start=start, n=rows, interval=interval))
    return Template(
        placed=tuple(placed),
        cycles=start + interval * (rows - 1) + block.end,
        row_vectors=row_vectors,
    )
