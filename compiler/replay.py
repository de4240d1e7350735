"""Rebuild a step of an artifact: the compiler plans the operations, the file gives their cycles.

Operations, operands, links and addresses are the compiler's own, and the file's must equal them. So
a file cannot make a chip do what the compiler would not. This module takes the file's cycles within
bounds; every chip and every link checks them at run time.
"""

from __future__ import annotations

from typing import Any

from compiler.checked import Table, whole
from compiler.errors import ArtifactError
from compiler.ir import LinkUse, ScheduledTransfer, StepKind, StepSchedule
from compiler.pipeline import Ground, assembled
from compiler.place.network import Network
from compiler.place.target import Target
from compiler.schedule.assembly import Stops
from compiler.schedule.steps import Planned

MAX_CYCLES = 1 << 42  # of a step; interconnect/clock.py counts no further
TIMES = 3  # an operation's start, end and NOPs are the last items of its plain form


def replay_step(ground: Ground, kind: StepKind, target: Target, stored: Table) -> StepSchedule:
    """Plan a step and give it the cycles of its stored form. Raises ArtifactError."""
    return assembled(ground, ground.planner(kind), target, _Stored(ground.network, stored))


class _Stored:
    """Looks the cycles of a step up (`Times` of an assembly)."""

    def __init__(self, network: Network, stored: Table) -> None:
        self._network, self._stored = network, stored
        self._programs: list[Any] = stored.items("programs")
        self._placed = [0] * (len(network.binding) + 1)  # operations of each node so far
        if len(self._programs) != len(self._placed):
            nodes = len(self._placed)
            stored.refuse("programs", f"one for each of {nodes} nodes", self._programs)

    def _next(self, node: int) -> tuple[int, int, int]:
        """Return (start, end, NOPs) of the node's next operation."""
        program, number = self._programs[node], self._placed[node]
        self._placed[node] += 1
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

    def span(self, item: Planned) -> tuple[int, int, int]:
        """Return an operation's (start, end, NOPs in front of it)."""
        return self._next(item.chip)

    def departure(
        self, vectors: int, link: LinkUse, addresses: tuple[int, int],
        arrived: ScheduledTransfer | None,
    ) -> tuple[int, int]:  # fmt: skip
        """Return a hop's (cycle of departure, NOPs in front of its SEND)."""
        start, _, nop = self._next(link.src)
        self._placed[link.dst] += 1  # its RECEIVE, whose cycles follow
        return start, nop

    def close(self, end: int) -> tuple[int, list[Stops]]:
        """Return the length of the step and each node's stops, which were stored."""
        cycles = self._stored.integer("cycles", end, MAX_CYCLES)
        stops, nodes = self._stored.items("realign"), len(self._placed)
        if len(stops) != nodes:
            self._stored.refuse("realign", f"a list for each of {nodes} nodes", stops)
        return cycles, [self._spans(node, found, cycles) for node, found in enumerate(stops)]

    def _spans(self, node: int, stored: object, cycles: int) -> Stops:
        what, at = f"{self._stored.what}: realign: node {node}", 0
        if not isinstance(stored, list) or not all(isinstance(span, list) for span in stored):
            raise ArtifactError(f"{what}: wanted a list of spans")
        if stored and not self._network.sync:
            raise ArtifactError(f"{what}: wanted no stops, as clocks are exact, got {len(stored)}")
        out = []
        for span in stored:
            if len(span) != 2:
                raise ArtifactError(f"{what}: wanted (from, to), got {len(span)} numbers")
            begin = whole(what, span[0], at, cycles)
            at = whole(what, span[1], begin, cycles)
            out.append((begin, at))
        return tuple(out)
