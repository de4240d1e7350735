"""Resource tables: which ALU, stream and SXM queue is whose, for one kind of template.

An owner is a part of a template: a pass of attention, what feeds the planes, a block that takes
sums. It is a frozen dataclass whose fields are made by `alu`, `inward`, `outward`, `crossing` and
`sxm_queue`, so that its module writes `SCORES.sum` where an instruction needs a number, and the
purpose stands beside it. A template's table lists its owners with the phases at which each is at
work, and refuses two that hold one thing in the same phase. What takes turns on a thing cycle by
cycle (`turns`) is left to the reservation table.

Streams are named as the VXM sees them: inward to it, outward from it, or crossing the chip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from chip.errors import TemplateError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Kind(StrEnum):
    """Things that have an owner."""

    ALU = "ALU"
    INWARD = "inward stream"
    OUTWARD = "outward stream"
    CROSSING = "crossing stream"
    SXM = "SXM queue"


# a value that crosses the chip is inward in one hemisphere and outward in the other
_MET = {
    Kind.INWARD: {Kind.INWARD, Kind.CROSSING},
    Kind.OUTWARD: {Kind.OUTWARD, Kind.CROSSING},
    Kind.CROSSING: {Kind.INWARD, Kind.OUTWARD, Kind.CROSSING},
    Kind.ALU: {Kind.ALU},
    Kind.SXM: {Kind.SXM},
}


@dataclass(frozen=True, slots=True)
class Holding:
    """What one field of an owner holds: numbers of a kind, and what for."""

    owner: str
    name: str
    kind: Kind
    numbers: tuple[int, ...]
    purpose: str
    turns: bool

    def meets(self, other: Holding) -> frozenset[int]:
        """Return the numbers that both hold and neither shares in turns."""
        if self.turns or other.turns or other.kind not in _MET[self.kind]:
            return frozenset()
        return frozenset(self.numbers) & frozenset(other.numbers)

    def __str__(self) -> str:
        first, last = self.numbers[0], self.numbers[-1]
        run = self.numbers == tuple(range(first, last + 1)) and len(self.numbers) > 2
        numbers = f"{first}-{last}" if run else ", ".join(map(str, self.numbers))
        shared = ", in turns" if self.turns else ""
        return f"{self.kind} {numbers}: {self.purpose}{shared}"


def _held(default: Any, kind: Kind, purpose: str, count: int, turns: bool) -> Any:
    firsts = default if isinstance(default, tuple) else (default,)
    numbers = tuple(first + n for first in firsts for n in range(count))
    return field(default=default, metadata={"held": (kind, numbers, purpose, turns)})


def alu(number: int, purpose: str) -> int:
    """Declare an ALU."""
    found: int = _held(number, Kind.ALU, purpose, 1, False)
    return found


def alus(numbers: tuple[int, ...], purpose: str) -> tuple[int, ...]:
    """Declare several ALUs of one purpose."""
    found: tuple[int, ...] = _held(numbers, Kind.ALU, purpose, 1, False)
    return found


def inward(first: int, purpose: str, count: int = 1, *, turns: bool = False) -> int:
    """Declare `count` neighbouring streams towards the VXM; the field is the first's number."""
    found: int = _held(first, Kind.INWARD, purpose, count, turns)
    return found


def inward_groups(firsts: tuple[int, ...], purpose: str, *, turns: bool = False) -> tuple[int, ...]:
    """Declare streams towards the VXM, four from each of some numbers on."""
    found: tuple[int, ...] = _held(firsts, Kind.INWARD, purpose, 4, turns)
    return found


def outward_groups(
    firsts: tuple[int, ...], purpose: str, *, turns: bool = False
) -> tuple[int, ...]:  # fmt: skip
    """Declare streams away from the VXM, four from each of some numbers on."""
    found: tuple[int, ...] = _held(firsts, Kind.OUTWARD, purpose, 4, turns)
    return found


def outward(first: int, purpose: str, count: int = 1, *, turns: bool = False) -> int:
    """Declare `count` neighbouring streams away from the VXM; the field is the first's number."""
    found: int = _held(first, Kind.OUTWARD, purpose, count, turns)
    return found


def crossing(first: int, purpose: str, count: int = 1, *, turns: bool = False) -> int:
    """Declare `count` neighbouring streams across the chip; the field is the first's number."""
    found: int = _held(first, Kind.CROSSING, purpose, count, turns)
    return found


def sxm_queue(first: int, purpose: str, count: int = 1, *, turns: bool = False) -> int:
    """Declare `count` neighbouring SXM queues of a hemisphere; the field is the first's number."""
    found: int = _held(first, Kind.SXM, purpose, count, turns)
    return found


def sxm_queues(numbers: tuple[int, ...], purpose: str, *, turns: bool = False) -> tuple[int, ...]:
    """Declare several SXM queues of a hemisphere."""
    found: tuple[int, ...] = _held(numbers, Kind.SXM, purpose, 1, turns)
    return found


@dataclass(frozen=True, slots=True)
class Owner:
    """A part of a template: what it holds, in which phases it is at work."""

    name: str
    holds: DataclassInstance  # its fields declare holdings
    phases: range

    def holdings(self) -> Iterator[Holding]:
        """Yield what each field of the part holds."""
        for one in fields(self.holds):
            if found := one.metadata.get("held"):
                kind, numbers, purpose, turns = found
                yield Holding(self.name, one.name, kind, numbers, purpose, turns)


@dataclass(frozen=True, slots=True)
class Resources:
    """The table of one kind of template. `phases`: their names, in order.

    Raises TemplateError where two owners at work in one phase hold the same thing.
    """

    template: str
    phases: tuple[str, ...]
    owners: tuple[Owner, ...]

    def __post_init__(self) -> None:
        held = [list(owner.holdings()) for owner in self.owners]
        for number, owner in enumerate(self.owners):
            for before, other in enumerate(self.owners[:number]):
                both = range(
                    max(owner.phases.start, other.phases.start),
                    min(owner.phases.stop, other.phases.stop),
                )
                if both:
                    self._refuse_shared(held[number], held[before], self.phases[both.start])

    def _refuse_shared(self, late: list[Holding], early: list[Holding], phase: str) -> None:
        for held in late:
            for before in early:
                if shared := before.meets(held):
                    raise TemplateError(
                        f"resources of {self.template}: {held.kind} {min(shared)} is held by "
                        f"{before.owner} ({before.purpose}) and by {held.owner} ({held.purpose}), "
                        f"both at work in phase {phase}"
                    )

    def holdings(self) -> list[Holding]:
        """Return what every owner holds."""
        return [held for owner in self.owners for held in owner.holdings()]

    def of(self, kind: Kind) -> frozenset[int]:
        """Return all numbers of a kind that some owner holds."""
        return frozenset(n for held in self.holdings() if held.kind is kind for n in held.numbers)

    def __str__(self) -> str:
        lines = [f"{self.template}: {', '.join(self.phases)}"]
        for owner in self.owners:
            when = [self.phases[number] for number in owner.phases]
            lines.append(f"  {owner.name} ({when[0]}{' to ' + when[-1] if when[1:] else ''})")
            lines += [f"    {held.name}: {held}" for held in owner.holdings()]
        return "\n".join(lines)
