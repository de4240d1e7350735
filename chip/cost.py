"""What scheduled operations cost: cycles from issue to the last result, and how vectors stream.

One definition for the compiler that places them, the chip that replays its own clocks and the
verifier: the length of the operation's instruction template (chip/templates), nothing else.
"""

from __future__ import annotations

from chip.floorplan import hops, mem, sxm
from chip.issue import delays
from chip.operations import Args, Opcode
from chip.spec import ChipSpec
from chip.templates.builder import C2C_TURN
from chip.templates.table import template

TURNS = 2  # turns of a work slice's port that a transfer may have to wait for: assumption


def cycles(opcode: Opcode, a: Args, spec: ChipSpec) -> int:
    """Cycles from issue to the last result in SRAM.

    Raises ValueError for SEND and RECEIVE: the link decides.
    """
    return template(opcode, a, spec).cycles


def needed(opcode: Opcode, operand: str, a: Args, spec: ChipSpec) -> tuple[int, int]:
    """Cycles after issue at which an operand's first and last vectors are needed.

    A product loads weights before its activations. Everything else wants whole operands at issue.
    """
    return template(opcode, a, spec).needed.get(operand, (0, 0))


def result_stream_cycles(opcode: Opcode, a: Args, spec: ChipSpec) -> int:
    """Cycles from the first to the last vector of an operation's result; it ends with the last.

    Vectors in between come no later than evenly, so they may be sent while later ones are computed.
    """
    return template(opcode, a, spec).stream_cycles


def send_lead_cycles(spec: ChipSpec) -> int:
    """Cycles before its departure at which a vector must be in SRAM: read, transit, a free port."""
    return delays(spec)["READ"].d_func + _across(spec) + TURNS * C2C_TURN


def receive_cycles(spec: ChipSpec) -> int:
    """Cycles after its arrival at which a vector is in SRAM: transit, a free port, write."""
    table = delays(spec)
    return table["RECEIVE"].d_func + _across(spec) + TURNS * C2C_TURN + table["WRITE"].d_func + 1


def _across(spec: ChipSpec) -> int:
    """Hops between a port and the work slice beyond the VXM."""
    return hops(mem(0, 0), sxm(1, 0), spec)
