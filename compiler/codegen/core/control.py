"""A template's instructions that no block has: runs of cached vectors, and what MXM and SXM do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from chip.floorplan import Queue, hops, mem
from chip.isa.instructions import Read
from chip.isa.issue import Issue, delays
from chip.isa.operands import Stream
from chip.spec import ChipSpec
from chip.sram import RUN, bulk_place


@dataclass(frozen=True, slots=True)
class Fetch:
    """16 neighbouring vectors, `offset` from the cache's first, reach `to` at `cycle`.

    On neighbouring streams from `stream`.
    """

    to: Queue
    cycle: int
    offset: int
    stream: Stream


@dataclass(frozen=True, slots=True)
class Control:
    """Reads of the cache and fixed instructions, on cycles from `start`."""

    spec: ChipSpec
    start: int
    fixed: Sequence[Issue]
    fetches: Sequence[Fetch]

    def issues(self, base: Callable[[str], int]) -> Iterator[Issue]:
        """Yield the instructions."""
        for issue in self.fixed:
            yield issue.moved(self.start)
        for fetch in self.fetches:
            for n in range(RUN):
                yield self._read(fetch, n, base("kv"))

    def _read(self, fetch: Fetch, n: int, base: int) -> Issue:
        side, index, word = bulk_place(self.spec, base + fetch.offset + n)
        queue = mem(side, index)
        lead = delays(self.spec)["READ"].d_func + hops(queue, fetch.to, self.spec)
        stream = Stream(fetch.stream.eastward, fetch.stream.number + n)
        cycle = self.start + fetch.cycle - lead
        return Issue(queue, cycle, Read(address=word, stream=stream))
