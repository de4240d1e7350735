"""When instructions run: each one's delays, and issues of an instruction on a queue."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from chip.floorplan import Queue
from chip.isa.instructions import MNEMONICS, TILES, Instruction
from chip.spec import ChipSpec


class Delay(NamedTuple):
    """Cycles from issue to the result's stream register, and from issue to operand sampling."""

    d_func: int
    d_skew: int


@lru_cache(maxsize=16)
def delays(spec: ChipSpec) -> dict[str, Delay]:
    """Return each mnemonic's delays. Raises ValueError where the chip's table has others."""
    table = {name: Delay(func, skew) for name, func, skew in spec.delays}
    if missing := sorted(set(MNEMONICS) ^ set(table)):
        raise ValueError(f"chip.delays: wanted one entry per instruction; check {missing}")
    if table["TRANSPOSE"].d_func < TILES:
        raise ValueError(f"chip.delays.TRANSPOSE: wanted d_func >= {TILES}, the block's issues")
    return table


@dataclass(frozen=True, slots=True)
class Issue:
    """`n` issues of an instruction, `d` cycles apart from `cycle`, with their provenance."""

    queue: Queue
    cycle: int
    instruction: Instruction
    n: int = 1
    d: int = 1
    name: str = ""

    def moved(self, cycles: int) -> Issue:
        """Return the same, so many cycles later."""
        return replace(self, cycle=self.cycle + cycles)

    @property
    def last_cycle(self) -> int:
        return self.cycle + (self.n - 1) * self.d


def culprit(issue: Issue, nth: int = 0) -> str:
    """Name one issue for an error: `WRITE of layers.0.mlp.add on MEM_W0 at 4187`."""
    cycle = issue.cycle + nth * issue.d
    return f"{issue.instruction.name} of {issue.name or 'the program'} on {issue.queue} at {cycle}"
