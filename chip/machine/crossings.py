"""Vectors that cross a port: which Send or Receive moves each, and how many a port holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from chip.errors import IssueError
from chip.isa.instructions import Receive, Send
from chip.isa.issue import culprit
from chip.machine.collect import Burst
from chip.machine.events import I64

WAITING = 4  # vectors that a port holds each way (assumption; chip/isa/instructions.py, Send)


@dataclass(frozen=True, slots=True)
class Crossing:
    """Vectors that cross a port one after another, as one transfer: the cycle of each."""

    port: int
    outward: bool
    cycles: tuple[int, ...]
    name: str = ""


class _PortCycle(NamedTuple):
    """A vector passes a port in one direction in one cycle."""

    port: int
    outward: bool
    cycle: int


class _Passage(NamedTuple):
    """The issue that moves a vector through a port."""

    value: int  # value number
    burst: Burst
    nth: int  # issue of its burst
    issued: int  # cycle

    @property
    def culprit(self) -> str:
        return culprit(self.burst.issue, self.nth)


def match(crossings: Sequence[Crossing], bursts: Sequence[Burst], source: I64) -> list[I64]:
    """Return each crossing's value numbers, in order.

    Raises IssueError for a vector that no instruction moves at its cycle, for an instruction
    that moves none, and for a port that would hold too many.
    """
    passages: dict[_PortCycle, _Passage] = {}
    for burst in bursts:
        for when, passage in _passages(burst, source):
            if (other := passages.get(when)) is not None:
                what = "two vectors at one port in one cycle"
                raise IssueError(what, culprit(other.burst.issue), passage.culprit)
            passages[when] = passage
    _check_waiting(passages)
    out = []
    for crossing in crossings:
        values = []
        for cycle in crossing.cycles:
            taken = passages.pop(_PortCycle(crossing.port, crossing.outward, cycle), None)
            if taken is None:
                what = "departs" if crossing.outward else "is received"
                raise IssueError(
                    f"no vector {what} at port {crossing.port} in cycle {cycle}", crossing.name
                )
            values.append(taken.value)
        out.append(np.array(values, np.int64))
    if passages:
        passage = next(iter(passages.values()))
        raise IssueError("a vector that belongs to no transfer", passage.culprit)
    return out


def _passages(burst: Burst, source: I64) -> Iterator[tuple[_PortCycle, _Passage]]:
    """Yield when each vector of a Send or Receive is at its port; other bursts have none.

    A vector departs `wait` cycles after its Send, and arrived `wait` cycles before its Receive.
    """
    instruction, issue = burst.issue.instruction, burst.issue
    if not isinstance(instruction, (Send, Receive)):
        return
    outward = isinstance(instruction, Send)
    for nth in range(issue.n):
        issued = issue.cycle + nth * issue.d
        cycle = issued + instruction.wait if outward else issued - instruction.wait
        value = int(source[burst.operands[0].first + nth]) if outward else burst.base + nth
        yield _PortCycle(instruction.port, outward, cycle), _Passage(value, burst, nth, issued)


def _check_waiting(passages: Mapping[_PortCycle, _Passage]) -> None:
    """A port holds up to `WAITING` vectors each way, between instruction and link."""
    ports: dict[tuple[int, bool], list[tuple[int, int, _Passage]]] = {}
    for (port, outward, cycle), passage in sorted(passages.items(), key=lambda pair: pair[0]):
        first, last = (passage.issued, cycle) if outward else (cycle, passage.issued)
        ports.setdefault((port, outward), []).append((first, last, passage))
    for held in ports.values():
        for (_, leaves, before), (enters, _, passage) in zip(held, held[WAITING:], strict=False):
            if enters < leaves:
                what = f"more than {WAITING} vectors wait at a port"
                raise IssueError(what, before.culprit, passage.culprit)
