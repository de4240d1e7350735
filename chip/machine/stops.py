"""When a chip's counter is set right (RUNTIME_DESKEW): all queues stop, and nothing is on its way.

How long a stop takes in fact depends on how far the clock has strayed, so whatever was issued
before one must be over when it begins: its result taken, its vector gone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from chip.errors import MachineError
from chip.floorplan import Queue
from chip.isa.instructions import RuntimeDeskew, Send
from chip.isa.issue import Delay, Issue, culprit
from chip.machine.collect import Burst
from chip.machine.streams import Flights


def check_stops(bursts: Sequence[Burst], flights: Flights, table: dict[str, Delay]) -> None:
    """Raise MachineError for what goes on while a program's queues stop."""
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
            raise MachineError(what, culprit(burst.issue), culprit(stops[missing[0]]))
    for (begin, end), stop in stops.items():
        for burst in works:
            _check_burst(burst, begin, end, stop, table)
        across = (flights.leaves < end) & (flights.taken > begin)
        if across.any():
            event, reader = int(np.argmax(across)), flights.reader
            name = culprit(bursts[int(reader.burst[event])].issue, int(reader.nth[event]))
            raise MachineError("a value on its way while the queues stop", name, culprit(stop))


def _check_burst(burst: Burst, begin: int, end: int, stop: Issue, table: dict[str, Delay]) -> None:
    issue = burst.issue
    before = min(issue.n, max(0, -(-(begin - issue.cycle) // issue.d)))  # issues before the stop
    if before < issue.n and issue.cycle + before * issue.d < end:
        what = "an instruction while the queues stop"
        raise MachineError(what, culprit(issue, before), culprit(stop))
    over = table[issue.instruction.name].d_func + burst.last_beat
    over += issue.instruction.wait if isinstance(issue.instruction, Send) else 0
    if before and issue.cycle + (before - 1) * issue.d + over > begin:
        what = "an instruction that is not over when the queues stop"
        raise MachineError(what, culprit(issue, before - 1), culprit(stop))
