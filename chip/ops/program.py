"""One chip's program for one step: scheduled operations in issue order, as plain data.

Start and end are cycles relative to the step's base. `nop` is the number of idle cycles the
program holds an operation back beyond what its operands and units ask for (a `NOP n` in front).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chip.ops.attention import Attend, Rope
from chip.ops.experts import ExpertsEach, ExpertsSum, Route
from chip.ops.moves import Receive, Send
from chip.ops.opcodes import Opcode, plain
from chip.ops.product import Matmul
from chip.ops.vector import Add, Apply, Gate, Gather, LayerNorm, Norm, TopK

Computation = (
    Norm | LayerNorm | Gather | Matmul | Rope | Attend | Add | Gate | Apply | TopK
    | Route | ExpertsEach | ExpertsSum
)  # fmt: skip
"""What a chip computes; its cycles are its instructions'."""
Move = Send | Receive
"""What a chip gives to a link or takes off it; its cycles are the link's."""
Operation = Computation | Move
MOVES = (Opcode.SEND, Opcode.RECEIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """One operation at its cycles, with its provenance (`layers.3.mlp.down_proj`)."""

    op: Operation
    name: str
    start: int
    end: int
    nop: int = 0

    @property
    def opcode(self) -> Opcode:
        return self.op.opcode

    def to_list(self) -> list[Any]:
        """Return the plain form that is hashed and stored."""
        values = sorted(plain(self.op).items())
        args = {k: list(v) if isinstance(v, tuple) else v for k, v in values}
        return [str(self.opcode), self.name, args, self.start, self.end, self.nop]

    def __str__(self) -> str:
        args = " ".join(f"{key}={value}" for key, value in plain(self.op).items())
        return f"{self.start:>9} {self.end:>9} {self.opcode:<8} {self.name:<32} {args}"


def working_order(operations: Sequence[Scheduled]) -> list[Scheduled]:
    """Return the order in which a chip does its operations in wall time.

    As listed, but a SEND goes before RECEIVEs whose vectors it does not pass on: no chip of an
    all-gather keeps the others waiting for a segment that it has. Cycles do not depend on it.
    """
    order: list[Scheduled] = []
    for operation in operations:
        place = len(order)
        while place and _passes(operation.op, order[place - 1].op):
            place -= 1
        order.insert(place, operation)
    return order


def _passes(send: Operation, before: Operation) -> bool:
    if not isinstance(send, Send) or not isinstance(before, Receive):
        return False
    ((_, (source, size)),) = send.reads()
    ((_, (target, room)),) = before.writes()
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
    operations: tuple[Scheduled, ...]
    realign: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        head = f"chip {self.chip} step {self.step} rows {self.rows}"
        return "\n".join([head, *(str(operation) for operation in self.operations)])
