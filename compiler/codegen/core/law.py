"""The law of a template: what the reference machine would refuse is not built.

A template is bound to no addresses here. What it asks of queues, ports, streams, ALUs, SXMs and
planes is collected as the machine collects a program (chip/machine/collect.py), each block and each
part that comes again once, and the machine's own rules say what cannot be, in its words. So that
the verdict holds at any address:

- a vector of work memory is read and written on both sides at once;
- vectors of bulk memory that are fetched together may lie in any slices of their side.

Beyond the machine's refusals, nothing may be lost: what is put on a stream, into a slot of the
activation buffer, into the array or into an accumulator is taken before something else comes there.
Not looked at: which value of a memory word a read sees (tests compare bits).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

from chip.errors import IssueError, TemplateError
from chip.floorplan import Queue, Unit, bulk_slices, position
from chip.isa.instructions import Index, Read, Write
from chip.isa.issue import Issue, delays
from chip.isa.operands import Stream
from chip.machine.bulk import BulkEvents, bulk_events, check_bulk
from chip.machine.check import Checker
from chip.machine.collect import EDGE, Collector
from chip.machine.law import refuse_unlawful
from chip.spec import RUN, VECTOR_BYTES, ChipSpec
from chip.sram import feed_start, work_start
from compiler.codegen.core.bind import Binder
from compiler.codegen.core.control import Bulk
from compiler.codegen.core.template import Placed, Template, parts_of

BULK = frozenset({"w", "kv", "scratch"})  # operands of streams; blocks have none there
FED = "x"  # the one that may be in feed slices
NO_OPERAND = -1


def base_on(spec: ChipSpec) -> Callable[[str], int]:
    """Return what gives operands of streams a first vector: any would do."""
    work, feed = (start(spec) // VECTOR_BYTES for start in (work_start, feed_start))

    def first(operand: str) -> int:
        of = operand.partition(":")[0]
        return 0 if of in BULK else feed if of == FED else work

    return first


def obey(what: str, found: Template, spec: ChipSpec) -> None:
    """Raise TemplateError for a template that the machine would refuse at some address."""
    asked = _Asked(spec)
    blocks: dict[int, list[Placed]] = defaultdict(list)
    for placed in found.placed:
        blocks[id(placed.block)].append(placed)
    try:
        for number, every in enumerate(blocks.values()):
            asked.block(f"block {number}", every, found.row_vectors)
        for stream in found.streams:
            for starts, issues in parts_of(stream, asked.base):
                asked.part(type(stream).__name__, starts, issues)
        check_bulk(asked.accesses, asked.table)
        refuse_unlawful(asked.table)
    except IssueError as error:
        raise TemplateError(f"{what}: {error}") from None


class _Asked:
    """Collects what a template asks for."""

    def __init__(self, spec: ChipSpec) -> None:
        self.spec, self.table, self._checker = spec, Collector(spec), Checker(spec)
        self.accesses = bulk_events(self.table)
        self._operands: dict[str, int] = {}
        self._read = delays(spec)["READ"].d_func
        self.base = base_on(spec)

    def block(self, name: str, every: list[Placed], row_vectors: Mapping[str, int]) -> None:
        """Add a block at all places where it runs."""
        first, given = every[0], defaultdict[str, int](int)
        bases = defaultdict[str, int](partial(self.base, ""))
        for issue in Binder(self.spec, first, first.row, bases, row_vectors, given).works(0):
            self._check(issue, name)
        starts = [one.start + n * one.interval for one in every for n in range(one.n)]
        self.table.again(name, starts)
        for issue in Binder(self.spec, first, first.row, None, row_vectors, given).issues(0):
            self.table.add(issue)

    def part(self, name: str, starts: Iterable[int], issues: Iterable[Issue | Bulk]) -> None:
        """Add what comes again at each start."""
        self.table.again(name, tuple(starts))
        for one in issues:
            if isinstance(one, Bulk):
                self._bulk(one)
            else:
                self._check(one, name)
                self.table.add(one)
                if one.queue.unit is Unit.MEM and one.queue.number >= self.spec.near_slices:
                    self._single(one)

    def _check(self, issue: Issue, name: str) -> None:
        try:
            self._checker.check(issue)
        except IssueError:
            Checker(self.spec).check(replace(issue, name=name))
            raise

    def _bulk(self, run: Bulk) -> None:
        """Add neighbouring vectors of bulk memory."""
        first = self.base(run.operand) + run.offset
        place, side = first // (2 * RUN) * RUN + first % RUN, first // RUN % 2
        diagonal = self._diagonal(run.unit, run.cycle, run.stream)
        head = replace(run.issue(first, 0, 0, self.spec), n=run.n, d=run.d)
        burst = self.table.neighbours(head, run.vectors, diagonal)
        operand = self._operands.setdefault(run.operand, len(self._operands))
        for turn in range(run.n):
            events = BulkEvents.run(
                way=2 * side + run.stream.eastward, operand=operand,
                diagonal=diagonal + turn * run.d - (0 if run.write else self._read),
                vector=place + turn * run.stride // 2, apart=run.apart,
            )  # fmt: skip
            self.accesses.add(burst, run.vectors, events, turn)

    def _single(self, issue: Issue) -> None:
        """Add accesses of one slice of bulk memory at an address: to no operand's vectors."""
        access = issue.instruction
        first, step = 0, 0  # of an Index: no read of its slice may be in the queue then
        if isinstance(access, (Read, Write)):
            if not isinstance(access.address, int):
                return  # it stands in all slices that it may mean
            first, step = access.address, access.step
        elif not isinstance(access, Index):
            return
        slices = len(bulk_slices(self.spec))
        for nth in range(issue.n):
            cycle, word = issue.cycle + nth * issue.d, first + nth * step
            events = BulkEvents.run(
                way=2 * issue.queue.hemisphere + access.stream.eastward, operand=NO_OPERAND,
                diagonal=self._diagonal(issue.queue, cycle, access.stream), apart=0,
                vector=word * slices + issue.queue.number - self.spec.near_slices,
            )  # fmt: skip
            self.accesses.add(len(self.table.bursts) - 1, 1, events, nth)

    def _diagonal(self, queue: Queue, cycle: int, stream: Stream) -> int:
        """Return the diagonal of a cycle at a unit."""
        at = position(queue, self.spec)
        return cycle - (at if stream.eastward else EDGE - at)
