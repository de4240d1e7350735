"""A template's instructions that no block has: runs of bulk vectors, and what MXM and SXM do."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from chip.floorplan import Queue, hops, mem
from chip.isa.instructions import Read, Write
from chip.isa.issue import Issue, delays
from chip.isa.operands import Stream
from chip.spec import RUN, ChipSpec
from chip.sram import bulk_place

Of = TypeVar("Of")


class Bulk(NamedTuple):
    """Vectors of a run of 16 in bulk memory, read or written as one, wherever it lies.

    They are on neighbouring streams from `stream` on, and at `unit` at `cycle`: what is read
    arrives there, what is written leaves from there. `offset` counts vectors from the operand's
    first, `apart` from one to the next. `n` times, `d` cycles apart, each time `stride` vectors on.
    """

    unit: Queue
    cycle: int
    operand: str
    offset: int
    stream: Stream
    vectors: int = RUN
    n: int = 1
    d: int = 1
    stride: int = 0
    apart: int = 1
    write: bool = False

    def moved(self, cycles: int) -> Bulk:
        """Return the same, so many cycles later."""
        return self._replace(cycle=self.cycle + cycles)

    def issues(self, base: Callable[[str], int], spec: ChipSpec) -> Iterator[Issue]:
        """Yield the Reads or Writes; `base` gives an operand's first vector in SRAM."""
        first = base(self.operand) + self.offset
        for turn in range(self.n):
            for lane in range(self.vectors):
                yield self.issue(first, turn, lane, spec)

    def issue(self, first: int, turn: int, lane: int, spec: ChipSpec) -> Issue:
        """Return one of them. `first`: the vector that `offset` means."""
        side, index, word = bulk_place(spec, first + turn * self.stride + lane * self.apart)
        queue, cycle = mem(side, index), self.cycle + turn * self.d
        stream = Stream(self.stream.eastward, self.stream.number + lane)
        way = hops(queue, self.unit, spec)
        if self.write:
            return Issue(queue, cycle + way, Write(address=word, stream=stream))
        cycle -= delays(spec)["READ"].d_func + way
        return Issue(queue, cycle, Read(address=word, stream=stream))


def one_by_one(
    issues: Iterable[Issue | Bulk], base: Callable[[str], int], spec: ChipSpec
) -> Iterator[Issue]:  # fmt: skip
    """Yield every instruction; those of bulk memory at the addresses that `base` gives."""
    for one in issues:
        if isinstance(one, Bulk):
            yield from one.issues(base, spec)
        else:
            yield one


class Part(NamedTuple):
    """Instructions that a template has again at each of `starts`; their cycles count from there.

    From start to start addresses and rows of the step may differ, and nothing else.
    """

    starts: Sequence[int]
    issues: Iterable[Issue | Bulk]


class Alike(Generic[Of]):
    """Pieces of a template whose instructions differ in their start alone, by what tells kinds."""

    def __init__(self) -> None:
        self._found: dict[Hashable, tuple[list[int], Of]] = {}

    def add(self, kind: Hashable, start: int, of: Of) -> None:
        """Add a piece."""
        self._found.setdefault(kind, ([], of))[0].append(start)

    def every(self) -> Iterator[tuple[list[int], Of]]:
        """Yield each kind's starts, counted from the first piece's, and that piece."""
        for starts, of in self._found.values():
            yield [start - starts[0] for start in starts], of


@dataclass(frozen=True, slots=True)
class Control:
    """Bulkes and fixed instructions, on cycles from each of `starts`."""

    starts: tuple[int, ...]
    fixed: Sequence[Issue]
    fetches: Sequence[Bulk]

    def issues(self, base: Callable[[str], int]) -> Iterator[Issue | Bulk]:
        """Yield the instructions."""
        for start in self.starts:
            yield from (one.moved(start) for one in self.fixed)
            yield from (one.moved(start) for one in self.fetches)

    def parts(self, base: Callable[[str], int]) -> Iterator[Part]:
        """Yield what is the same at each start."""
        yield Part(self.starts, (*self.fixed, *self.fetches))
