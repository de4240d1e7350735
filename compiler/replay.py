"""Rebuild a step of an artifact: the compiler plans the operations, the file gives their cycles.

Operations, operands, links and addresses are the compiler's own, and the file's must equal them. So
a file cannot make a chip do what the compiler would not. This module takes the file's cycles within
bounds; every chip and every link checks them at run time.
"""

from __future__ import annotations

from typing import Any

from chip.ops.program import Program
from compiler.checked import Table, whole
from compiler.errors import ArtifactError
from compiler.ir import HostMemory, LinkUse, ScheduledTransfer, StepKind, StepSchedule
from compiler.pipeline import Ground, forward_slots
from compiler.place.target import Target
from compiler.schedule.scheduler import Scheduler
from compiler.schedule.steps import Planned

MAX_CYCLES = 1 << 42  # of a step; interconnect/clock.py counts no further
TIMES = 3  # an operation's start, end and NOPs are the last items of its plain form


def replay_step(ground: Ground, kind: StepKind, target: Target, stored: Table) -> StepSchedule:
    """Plan a step and give it the cycles of its stored form. Raises ArtifactError."""
    planner = ground.planner(kind)
    replay = Replay(target, ground, stored, forward_slots(planner))
    for item in planner.plan():
        replay.place(item)
    return replay.finish(kind, planner.host, target.host_turnaround_cycles)


class Replay(Scheduler):
    """A scheduler that looks up its cycles in the stored step."""

    def __init__(
        self, target: Target, ground: Ground, stored: Table,
        forward: dict[int, tuple[list[int], int]],
    ) -> None:  # fmt: skip
        super().__init__(ground.costs, ground.network, forward)
        self._stored = stored
        self._programs: list[Any] = stored.items("programs")
        if len(self._programs) != len(self.nodes):
            stored.refuse("programs", f"one for each of {len(self.nodes)} nodes", self._programs)

    def _times(self, node: int) -> tuple[int, int, int]:
        """Return (start, end, NOPs) of the node's next operation."""
        program, number = self._programs[node], len(self.nodes[node].operations)
        what = f"{self._stored.what}: programs: node {node}: operation {number}"
        if not isinstance(program, list) or len(program) <= number:
            raise ArtifactError(f"{what}: wanted one, got nothing")
        entry = program[number]
        if not isinstance(entry, list) or len(entry) < TIMES:
            raise ArtifactError(f"{what}: wanted a list with its cycles at the end")
        start, end, nop = (whole(what, value, most=MAX_CYCLES) for value in entry[-TIMES:])
        if start > end:
            raise ArtifactError(f"{what}: wanted an end from cycle {start} on, got {end}")
        return start, end, nop

    def _span(self, item: Planned) -> tuple[int, int, int]:
        return self._times(item.chip)

    def _departure(
        self, vectors: int, link: LinkUse, addresses: tuple[int, int],
        arrived: ScheduledTransfer | None,
    ) -> tuple[int, int]:  # fmt: skip
        start, _, nop = self._times(link.src)
        return start, nop

    def finish(self, kind: StepKind, host: HostMemory, turnaround_cycles: int) -> StepSchedule:
        """Return the step, with the stops and the length that were stored."""
        last = max(operation.end for node in self.nodes for operation in node.operations)
        cycles = self._stored.integer("cycles", last + turnaround_cycles, MAX_CYCLES)
        stops = self._stored.items("realign")
        if len(stops) != len(self.nodes):
            self._stored.refuse("realign", f"a list for each of {len(self.nodes)} nodes", stops)
        programs = tuple(
            Program(
                chip=index, step=kind.name, rows=kind.rows, operations=tuple(node.operations),
                realign=self._spans(index, stops[index], cycles),
            )
            for index, node in enumerate(self.nodes)
        )  # fmt: skip
        return StepSchedule(
            kind=kind, programs=programs, transfers=tuple(self.transfers), host=host, cycles=cycles
        )

    def _spans(self, node: int, stored: object, cycles: int) -> tuple[tuple[int, int], ...]:
        what, at = f"{self._stored.what}: realign: node {node}", 0
        if not isinstance(stored, list) or not all(isinstance(span, list) for span in stored):
            raise ArtifactError(f"{what}: wanted a list of spans")
        if stored and not self.network.sync:
            raise ArtifactError(f"{what}: wanted no stops, as clocks are exact, got {len(stored)}")
        out = []
        for span in stored:
            if len(span) != 2:
                raise ArtifactError(f"{what}: wanted (from, to), got {len(span)} numbers")
            begin = whole(what, span[0], at, cycles)
            at = whole(what, span[1], begin, cycles)
            out.append((begin, at))
        return tuple(out)
