"""Gaps that a one-row product leaves to what passes between links and work memory."""

from __future__ import annotations

from dataclasses import dataclass

from chip.floorplan import Role, hops, mem, mxm
from compiler.codegen.core.builder import C2C_TURN
from compiler.codegen.core.clock import Clock


def port_leads(clock: Clock) -> tuple[int, int]:
    """Return the cycles from a work slice's read to the planes beyond an SXM.

    Of the far slice, and of the near one.
    """
    load = mxm(2, Role.LOAD)
    far, near = (hops(mem(side, 0), load, clock.spec) for side in (0, 1))
    return clock.of["READ"] + far, clock.of["READ"] + near


def link_turns(clock: Clock) -> frozenset[int]:
    """Return the cycles, modulo `C2C_TURN`, of the ports that are left to the links.

    One for each slice, so that a vector from either goes by in the same gap of the loads.
    """
    far, near = port_leads(clock)
    turn = C2C_TURN - 1
    return frozenset({turn, (turn + far - near) % C2C_TURN})


@dataclass(frozen=True, slots=True)
class Gaps:
    """Cycles at which the streams at the planes are a link's, from `start` on.

    `every`: at least one in so many cycles; None: none.
    """

    every: int | None
    start: int
    clock: Clock

    def has(self, cycle: int) -> bool:
        """Tell whether a cycle is a link's: it reads in its turn of the port."""
        far, _ = port_leads(self.clock)
        if self.every is None or cycle < self.start:
            return False
        return (cycle - far) % self.every == C2C_TURN - 1
