"""Vectors that cross a port: which Send or Receive moves each, and what the ports can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chip.errors import MachineError
from chip.isa.instructions import Receive, Send
from chip.machine.check import culprit
from chip.machine.collect import Burst
from chip.machine.tables import I64

WAITING = 4  # vectors that a port holds each way (assumption; chip/isa/instructions.py, Send)


@dataclass(frozen=True, slots=True)
class Crossing:
    """Vectors that cross a port one after another, as one transfer: the cycle of each."""

    port: int
    outward: bool
    cycles: tuple[int, ...]
    name: str = ""


def match(crossings: Sequence[Crossing], bursts: Sequence[Burst], source: I64) -> list[I64]:
    """Return each crossing's value numbers, in order.

    Raises MachineError for a vector that no instruction moves at its cycle, for an instruction
    that moves none, and for a port that would hold too many.
    """
    events: dict[tuple[int, bool, int], tuple[int, Burst, int, int]] = {}
    for burst in bursts:
        instruction, issue = burst.issue.instruction, burst.issue
        if not isinstance(instruction, (Send, Receive)):
            continue
        outward = isinstance(instruction, Send)
        for i in range(issue.n):
            at = issue.cycle + i * issue.d
            cycle = at + instruction.wait if outward else at - instruction.wait
            value = int(source[burst.operands[0].offset + i]) if outward else burst.base + i
            key = (instruction.port, outward, cycle)
            if key in events:
                raise MachineError(
                    "two vectors at one port in one cycle", culprit(events[key][1].issue),
                    culprit(issue, i),
                )  # fmt: skip
            events[key] = (value, burst, i, at)
    _check_waiting(events)
    out = []
    for crossing in crossings:
        values = []
        for cycle in crossing.cycles:
            key = (crossing.port, crossing.outward, cycle)
            if key not in events:
                what = "departs" if crossing.outward else "is received"
                raise MachineError(
                    f"no vector {what} at port {crossing.port} in cycle {cycle}", crossing.name
                )
            values.append(events.pop(key)[0])
        out.append(np.array(values, np.int64))
    if events:
        _, burst, i, _ = next(iter(events.values()))
        raise MachineError("a vector that belongs to no transfer", culprit(burst.issue, i))
    return out


def _check_waiting(events: dict[tuple[int, bool, int], tuple[int, Burst, int, int]]) -> None:
    ports: dict[tuple[int, bool], list[tuple[int, int, Burst, int]]] = {}
    for (port, outward, cycle), (_, burst, i, at) in sorted(events.items(), key=lambda e: e[0]):
        first, last = (at, cycle) if outward else (cycle, at)
        ports.setdefault((port, outward), []).append((first, last, burst, i))
    for held in ports.values():
        for k in range(WAITING, len(held)):
            if held[k][0] < held[k - WAITING][1]:
                raise MachineError(
                    f"more than {WAITING} vectors wait at a port",
                    culprit(held[k - WAITING][2].issue, held[k - WAITING][3]),
                    culprit(held[k][2].issue, held[k][3]),
                )
