"""What transfers carry, by name: a reader wants the operation on the chip that made the vectors.

A schedule names a transfer after the graph's operation whose result it is. Where a product does
its neighbour's work too (it gates, or adds to the residual), no operation on the chip has
that name; here such a transfer has its maker's. What is passed on keeps its name.
"""

from __future__ import annotations

from chip.ops.moves import Receive, Send
from chip.ops.program import Program, Scheduled
from compiler.ir import StepSchedule
from compiler.model.graph import Graph


def transfer_names(graph: Graph, schedule: StepSchedule) -> list[str]:
    """Return the name of each transfer of a step, by its id."""
    known = {op.name for ops in (*graph.layers, graph.head) for op in ops}
    names = [transfer.name for transfer in schedule.transfers]
    passed: dict[int, int] = {}  # transfer -> the one that brought it
    for program in schedule.programs:
        own = {op.name for op in program.operations if not isinstance(op.op, Send | Receive)}
        for place, operation in enumerate(program.operations):
            op = operation.op
            if not isinstance(op, Send):
                continue
            if op.forward is not None:
                passed[op.transfer] = op.forward
            elif operation.name in known - own:
                names[op.transfer] = _maker(program, place, op) or operation.name
    for number in sorted(passed):  # a hop comes after the one that led to it
        names[number] = names[passed[number]]
    return names


def _maker(program: Program, place: int, sent: Send) -> str | None:
    """Return the name of the operation in front of a SEND that last wrote what it takes."""
    ((_, (first, size)),) = sent.reads()
    return next(
        (
            before.name
            for before in reversed(program.operations[:place])
            if any(_meet(region, first, size) for region in _written(before))
        ),
        None,
    )


def _written(operation: Scheduled) -> list[tuple[int, int]]:
    return [region for _, region in operation.op.writes()]


def _meet(region: tuple[int, int], first: int, size: int) -> bool:
    return region[0] < first + size and first < region[0] + region[1]
