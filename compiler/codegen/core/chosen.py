"""Reads of bulk vectors of a block that is chosen at run time: one of several, by an index.

The slices that hold a run's vectors depend on the block. So the Read of all runs of a hemisphere
that pass its slices together stands in the queues of all its bulk slices (chip/isa, `Chosen`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from chip.errors import TemplateError
from chip.floorplan import Queue, alu, bulk_slices, hops, mem
from chip.isa.instructions import Index, Read
from chip.isa.issue import Issue, delays
from chip.isa.operands import Chosen, Stream
from chip.spec import RUN, ChipSpec
from compiler.codegen.core.control import Bulk
from compiler.codegen.core.template import Choice


class _Window(NamedTuple):
    """What passes a hemisphere's slices together: towards a unit, which it reaches at a cycle."""

    operand: str
    side: int
    unit: Queue
    cycle: int
    eastward: bool


def chosen_reads(
    issues: Iterable[Issue | Bulk], base: Callable[[str], int], chosen: Mapping[str, Choice],
    spec: ChipSpec,
) -> Iterator[Issue | Bulk]:  # fmt: skip
    """Yield instructions; for runs of chosen blocks their Reads, others as they are."""
    windows: dict[_Window, dict[int, int]] = {}  # the vector on each stream, by its number
    for one in issues:
        if not isinstance(one, Bulk) or one.operand not in chosen:
            yield one
            continue
        first = base(one.operand) + one.offset
        for turn in range(one.n):
            for lane in range(one.vectors):
                vector = first + turn * one.stride + lane * one.apart
                side = vector // RUN % spec.hemispheres
                # units of a side are as far from its slices as each other
                unit = one.unit._replace(number=0)
                window = _Window(
                    one.operand, side, unit, one.cycle + turn * one.d, one.stream.eastward
                )
                windows.setdefault(window, {})[one.stream.number + lane] = vector
    for window, found in windows.items():
        yield from _stands(window, found, chosen[window.operand], spec)


def _stands(
    window: _Window, found: Mapping[int, int], choice: Choice, spec: ChipSpec
) -> Iterator[Issue]:  # fmt: skip
    """Yield the Read of a window from every slice's queue."""
    stream, last = min(found), max(found)
    spread = 1
    if last > stream:
        spread = (_number(found[last], spec) - _number(found[stream], spec)) // (last - stream)
    wrong = [
        n for n, vector in found.items()
        if _number(vector, spec) != _number(found[stream], spec) + spread * (n - stream)
    ]  # fmt: skip
    if wrong:
        raise TemplateError(
            f"vectors of {window.operand} that are chosen together: wanted {spread} from one "
            f"stream to the next, got another on stream {wrong[0]}"
        )
    read = Read(
        address=Chosen(found[stream], choice.apart, choice.choices, last - stream + 1, spread),
        stream=Stream(window.eastward, stream),
    )
    lead = delays(spec)["READ"].d_func
    for number in bulk_slices(spec):
        queue = mem(window.side, number)
        yield Issue(queue, window.cycle - lead - hops(queue, window.unit, spec), read)


def _number(vector: int, spec: ChipSpec) -> int:
    """Return a vector's number among those of its hemisphere."""
    return vector // (RUN * spec.hemispheres) * RUN + vector % RUN


def indices(spec: ChipSpec, cycle: int, stream: int, lane: int, slices: range) -> Iterator[Issue]:
    """Yield what gives slices an index that leaves the VXM on both sides at a cycle."""
    for side in (0, 1):
        for number in slices:
            queue = mem(side, number)
            index = Index(stream=Stream(side == 1, stream), lane=lane)
            yield Issue(queue, cycle + hops(queue, alu(0), spec), index)
