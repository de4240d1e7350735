"""One chip's program for one step: scheduled operations in issue order, as plain data.

Start and end are cycles relative to the step's base. `nop` is the number of idle cycles the
program holds an operation back beyond what its operands and units ask for (a `NOP n` in front).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chip.ops.operations import DEFINITIONS, Args, Opcode, Region, units


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One scheduled operation with its provenance (`layers.3.mlp.down_proj`)."""

    opcode: Opcode
    name: str
    args: Args
    start: int
    end: int
    nop: int = 0

    @property
    def units(self) -> tuple[str, ...]:
        """Units held from start to end."""
        if self.opcode is Opcode.SEND:
            return (f"C2C:{self.args['link']}",)
        return units(self.opcode, self.args)

    def regions(self) -> tuple[list[Region], list[Region]]:
        """SRAM regions read and written."""
        return DEFINITIONS[self.opcode].regions(self.args)

    def to_list(self) -> list[Any]:
        """Return the plain form that is hashed and stored."""
        args = {k: list(v) if isinstance(v, tuple) else v for k, v in sorted(self.args.items())}
        return [str(self.opcode), self.name, args, self.start, self.end, self.nop]

    @classmethod
    def from_list(cls, item: list[Any]) -> Operation:
        """Rebuild from `to_list`. Raises ValueError for an unknown opcode."""
        opcode, name, args, start, end, nop = item
        fixed = {k: tuple(v) if isinstance(v, list) else v for k, v in args.items()}
        return cls(opcode=Opcode(opcode), name=name, args=fixed, start=start, end=end, nop=nop)

    def __str__(self) -> str:
        args = " ".join(f"{key}={value}" for key, value in self.args.items())
        return f"{self.start:>9} {self.end:>9} {self.opcode:<8} {self.name:<32} {args}"


def working_order(operations: Sequence[Operation]) -> list[Operation]:
    """Return the order in which a chip does its operations in wall time.

    As listed, but a SEND goes before RECEIVEs whose vectors it does not pass on: no chip of an
    all-gather keeps the others waiting for a segment that it has. Cycles do not depend on it.
    """
    order: list[Operation] = []
    for operation in operations:
        place = len(order)
        while operation.opcode is Opcode.SEND and place and _passes(operation, order[place - 1]):
            place -= 1
        order.insert(place, operation)
    return order


def _passes(send: Operation, before: Operation) -> bool:
    if before.opcode is not Opcode.RECEIVE:
        return False
    ((source, size),), _ = send.regions()
    _, ((target, room),) = before.regions()
    return source + size <= target or target + room <= source


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What one chip does in one step. `rows` is the step's row capacity.

    A step begins with all chips' SACs equal (DESKEW in the first, RUNTIME_DESKEW in those after).
    `realign` has the spans (from, to) in which the chip does nothing, because a RUNTIME_DESKEW of
    that length sets its SAC to the HAC again.
    """

    chip: int
    step: str  # "decode/512", "prefill16/512"
    rows: int
    operations: tuple[Operation, ...]
    realign: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        head = f"chip {self.chip} step {self.step} rows {self.rows}"
        return "\n".join([head, *(str(operation) for operation in self.operations)])
