"""RUNTIME_DESKEW sets a chip's counter right: all queues stop, and no value is on its way.

How long a stop really takes depends on how far the clock has strayed. Whatever was issued before it
must be over when it begins: its result taken, its vector departed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from chip.errors import IssueError
from chip.floorplan import Queue
from chip.isa.instructions import Receive, RuntimeDeskew, Send
from chip.isa.issue import Delay, Issue, culprit
from chip.machine.collect import Burst, landing
from chip.machine.streams import Flights
from chip.spec import ChipSpec


def check_stops(
    bursts: Sequence[Burst], flights: Flights, table: dict[str, Delay], spec: ChipSpec
) -> None:  # fmt: skip
    """Raise IssueError for an instruction or a value at work while the queues stop."""
    stops: dict[tuple[int, int], Issue] = {}
    of_queue: defaultdict[Queue, set[tuple[int, int]]] = defaultdict(set)
    works = []
    for burst in bursts:
        issue, instruction = burst.issue, burst.issue.instruction
        if isinstance(instruction, RuntimeDeskew):
            span = issue.cycle, issue.cycle + instruction.cycles
            stops.setdefault(span, issue)
            of_queue[issue.queue].add(span)
        else:
            works.append(burst)
    if not stops:
        return
    for burst in works:
        if missing := sorted(stops.keys() - of_queue[burst.issue.queue]):
            what = f"{burst.issue.queue} does not stop with the others at {missing[0][0]}"
            raise IssueError(what, culprit(burst.issue), culprit(stops[missing[0]]))
    for (begin, end), stop in stops.items():
        for burst in works:
            _check_burst(burst, begin, end, stop, _over(burst, table, spec))
        across = (flights.leaves < end) & (flights.taken > begin)
        if across.any():
            event, reader = int(np.argmax(across)), flights.reader
            name = culprit(bursts[int(reader.burst[event])].issue, int(reader.nth[event]))
            raise IssueError("a value on its way while the queues stop", name, culprit(stop))


def _over(burst: Burst, table: dict[str, Delay], spec: ChipSpec) -> int:
    """Return the cycles from an issue to its end: its result leaves, d_func after the last beat.

    A Send's departs later, and a Receive's has to land.
    """
    issue = burst.issue
    if isinstance(issue.instruction, Receive):
        return landing(issue, spec, table) - issue.cycle
    over = table[issue.instruction.name].d_func + burst.last_beat
    return over + (issue.instruction.wait if isinstance(issue.instruction, Send) else 0)


def _check_burst(burst: Burst, begin: int, end: int, stop: Issue, over: int) -> None:
    issue = burst.issue
    before = min(issue.n, max(0, -(-(begin - issue.cycle) // issue.d)))  # issues before the stop
    if before < issue.n and issue.cycle + before * issue.d < end:
        what = "an instruction while the queues stop"
        raise IssueError(what, culprit(issue, before), culprit(stop))
    if before and issue.cycle + (before - 1) * issue.d + over > begin:
        what = "an instruction that is not over when the queues stop"
        raise IssueError(what, culprit(issue, before - 1), culprit(stop))
