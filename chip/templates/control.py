"""A template's instructions that no block has: runs of cached vectors, and what MXM and SXM do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from chip.floorplan import Queue, hops, mem
from chip.isa import Read
from chip.issue import Issue, delays
from chip.operand import Stream
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
    """Reads of the cache and fixed instructions of one row, for `rows` rows, `period` apart."""

    spec: ChipSpec
    rows: int
    period: int
    fixed: list[Issue] = field(default_factory=list)
    fetches: list[Fetch] = field(default_factory=list)

    def issues(self, base: Callable[[str], int]) -> Iterator[Issue]:
        """Yield every row's instructions."""
        for start in range(0, self.rows * self.period, self.period):
            for issue in self.fixed:
                yield issue.moved(start)
            for fetch in self.fetches:
                for n in range(RUN):
                    yield self._read(fetch, n, base("kv"), start)

    def _read(self, fetch: Fetch, n: int, base: int, start: int) -> Issue:
        side, index, word = bulk_place(self.spec, base + fetch.offset + n)
        queue = mem(side, index)
        lead = delays(self.spec)["READ"].d_func + hops(queue, fetch.to, self.spec)
        stream = Stream(fetch.stream.eastward, fetch.stream.number + n)
        return Issue(queue, start + fetch.cycle - lead, Read(address=word, stream=stream))
