"""What a template asks of the VXM's ALUs, and the proof that they can do it.

An ALU takes one instruction a cycle. Its register keeps a result from the cycle in which it lands
until its last use, and no other result lands there meanwhile. Blocks and passes that overlap are
placed by this, and no template is built that breaks it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chip.errors import TemplateError
from chip.isa.instructions import Alu
from chip.isa.issue import Issue, delays
from chip.isa.operands import Chain, Held, In
from chip.spec import ChipSpec
from compiler.codegen.core.control import Bulk
from compiler.codegen.core.parts import Node

I64 = NDArray[np.int64]


class Use(NamedTuple):
    """An ALU's instruction: when it is issued, its result lands, and is last used."""

    alu: int
    issued: int
    landed: int
    last: int
    op: str


@dataclass(frozen=True, slots=True)
class Uses:
    """Instructions that are placed together, once at each of `starts`."""

    what: str
    table: I64  # [4, n]: ALU, issued, landed, last
    ops: Sequence[str]
    starts: I64 = field(default_factory=lambda: np.zeros(1, np.int64))

    def times(self) -> I64:
        """Return the table of all instructions at the first start, then at the next: [4, n]."""
        moved = np.repeat(self.table[:, None, :], len(self.starts), axis=1)
        moved[1:] += self.starts[:, None]
        return moved.reshape(4, -1)


def together(what: str, uses: Sequence[Use]) -> Uses:
    """Return instructions on cycles from 0."""
    table = np.array([use[:4] for use in uses], np.int64).reshape(-1, 4).T
    return Uses(what, table, [use.op for use in uses])


def of_nodes(what: str, nodes: Iterable[Node]) -> Uses:
    """Return what a finished block asks for."""
    out = []
    for node in nodes:
        assert node.alu is not None
        out.append(Use(node.alu, node.cycle, node.done, node.last_use, node.op))
    return together(what, out)


def of_issues(
    what: str, issues: Iterable[Issue | Bulk], spec: ChipSpec, kept: Collection[int] = ()
) -> list[Use]:
    """Return what instructions ask for of which each reads only what these leave in registers.

    Registers of `kept` are others' to fill. Raises TemplateError for a read before anything came.
    """
    found, reads = defaultdict[int, list[list[int]]](list), list[tuple[int, int]]()
    names: dict[tuple[int, int], str] = {}
    table = delays(spec)
    for issue in issues:
        if not isinstance(issue, Issue) or not isinstance(alu := issue.instruction, Alu):
            continue
        number, delay, late = issue.queue.number, table[alu.name], 0
        registers = []
        for source in alu.sources:
            if isinstance(source, In):
                late = max(late, *[tap.beat for tap in source.taps])
            elif isinstance(source, (Held, Chain)) and source.alu not in kept:
                registers.append(source.alu)
        for at in [issue.cycle + n * issue.d for n in range(issue.n)]:
            reads += [(register, at + delay.d_skew) for register in registers]
            landed = at + late + delay.d_func
            found[number].append([landed, at, landed])
            names[number, at] = alu.op
    for uses in found.values():
        uses.sort()
    for number, at in reads:
        uses = found[number]
        place = bisect_left(uses, [at + 1]) - 1
        if place < 0:
            raise TemplateError(f"{what}: nothing is in VXM{number}'s register yet at {at}")
        uses[place][2] = max(uses[place][2], at)
    return [
        Use(number, at, landed, last, names[number, at])
        for number, uses in found.items() for landed, at, last in uses
    ]  # fmt: skip


def clash(every: Sequence[Uses]) -> str | None:
    """Return what is wrong with the first two instructions that cannot both be, or None."""
    parts = [one.times() for one in every]
    alu, issued, landed, last = np.concatenate([np.empty((4, 0), np.int64), *parts], axis=1)
    order = np.lexsort((issued, alu))
    same = (np.diff(alu[order]) == 0) & (np.diff(issued[order]) == 0)
    if same.any():
        first = int(np.argmax(same))
        one, two = (_named(every, int(order[n])) for n in (first, first + 1))
        return f"two instructions for one ALU in one cycle: {one} and {two}"
    order = np.lexsort((landed, alu))
    same = (np.diff(alu[order]) == 0) & (landed[order][1:] <= last[order][:-1])
    if same.any():
        first = int(np.argmax(same))
        one, two = (_named(every, int(order[n])) for n in (first, first + 1))
        until, at = int(last[order[first]]), int(landed[order[first + 1]])
        what = f"{one}, used until {until}, and {two}, in at {at}"
        return f"two results in one ALU's register: {what}"
    return None


def _named(every: Sequence[Uses], number: int) -> str:
    """Name the instruction of a column of all `times`."""
    for one in every:
        if number < len(one.ops) * len(one.starts):
            turn, place = divmod(number, len(one.ops))
            alu, issued = one.table[:2, place]
            at = issued + one.starts[turn]
            return f"{one.ops[place]} of {one.what} on VXM{alu} at {at}"
        number -= len(one.ops) * len(one.starts)
    raise AssertionError(number)


def check(what: str, every: Sequence[Uses]) -> None:
    """Raise TemplateError for a template whose instructions the VXM cannot do."""
    if found := clash(every):
        raise TemplateError(f"{what}: {found}")
