"""Check pairs of steps: at the interval between their bases nothing of one meets the other.

From operations and transfers alone: when a step first and last uses each unit, each chip's memory
and each link. A step that begins the interval after another must find all of them left. So no unit
is held twice, no vector waits for a wire, no buffer is written that is still read, and what a chip
writes to a cache is there for the next step. Both steps' memory is taken as one place a chip:
buffers are shared by steps of equal rows, and the caches by all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from chip.ops.cost import CostModel, receive_cycles, send_lead_cycles
from chip.ops.moves import Receive, Send
from compiler.errors import ScheduleError
from compiler.ir import LinkUse, StepSchedule

FAR = 1 << 60  # cycles: never
Spans = dict[str, tuple[int, int]]
"""What a step uses: its first cycle there, and the first cycle after the last."""


def check_pairs(
    steps: Sequence[StepSchedule], interval: Callable[[str, str], int], costs: CostModel,
    links: Sequence[LinkUse],
) -> None:  # fmt: skip
    """Check every ordered pair of steps at its interval. Raises ScheduleError by name."""
    spans = [spans_of(step, costs, links) for step in steps]
    names = sorted(set().union(*spans))
    first = np.array([[one.get(name, (FAR, 0))[0] for name in names] for one in spans])
    last = np.array([[one.get(name, (0, -FAR))[1] for name in names] for one in spans])
    for a, before in enumerate(steps):
        for b, wanted in enumerate(_wanted(last[a], first)):
            got = interval(before.name, steps[b].name)
            if got < wanted:
                place = int(np.argmax(last[a] - first[b]))
                raise ScheduleError(
                    f"{names[place]}: {before.name} uses it until {last[a, place]}, and "
                    f"{steps[b].name} from {first[b, place]} on, {got} cycles later: wanted "
                    f"{wanted}"
                )


def _wanted(last: NDArray[np.int64], first: NDArray[np.int64]) -> list[int]:
    """Return the least interval of one step to each of the others."""
    return [int(cycles) for cycles in (last - first).max(axis=1)]


def spans_of(step: StepSchedule, costs: CostModel, links: Sequence[LinkUse]) -> Spans:
    """Return the span in which a step uses each unit and memory of each chip, and each link."""
    spans: Spans = {}

    def use(name: str, first: int, last: int) -> None:
        before = spans.get(name, (FAR, -FAR))
        spans[name] = min(before[0], first), max(before[1], last)

    lead, landed = send_lead_cycles(costs.spec), receive_cycles(costs.spec)
    for program in step.programs[:-1]:
        memory = f"chip {program.chip}, memory"
        for operation in program.operations:
            op, start, end = operation.op, operation.start, operation.end
            if isinstance(op, Receive):
                use(memory, start, end + landed)
            elif isinstance(op, Send):
                use(memory, start - lead, end)
            else:
                use(memory, start, end)
                for unit in op.units:
                    use(f"chip {program.chip}, {unit}", start, end)
    for transfer in step.transfers:
        link = links[transfer.link]
        free = transfer.depart + transfer.vectors * link.slot_cycles
        use(f"link {link.name}", transfer.depart, free)
    return spans
