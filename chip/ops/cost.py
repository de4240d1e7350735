"""What scheduled operations cost: cycles from issue to the last result, and how vectors stream.

One definition for the compiler that places them, the chip that replays its own clocks and the
verifier: the length of the operation's instruction template (chip/templates), nothing else.

Templates take a while to build, and chips are processes of their own: what the compiler has worked
out is handed to them (`known_costs`, `learn_costs`), for the spec it was worked out for only.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from chip.errors import TemplateError
from chip.floorplan import hops, mem, sxm
from chip.isa.issue import delays
from chip.ops.operations import Args, Opcode
from chip.spec import ChipSpec

C2C_TURN = 8  # every eighth cycle of a work slice's port is the C2C's
TURNS = 3  # turns of a work slice's port that a transfer may have to wait for: assumption
SHAPE = (
    "rows", "hidden", "eps", "k", "n", "dtype", "shares", "heads", "kv_heads", "head_dim",
    "context", "bucket", "kv_of", "out", "prologue", "epilogue", "pace", "arrives", "gaps",
    "gaps_last",
)  # fmt: skip
"""Arguments that a cost may depend on; all others are addresses or the like."""
Key = tuple[Opcode, tuple[tuple[str, Any], ...]]
"""Opcode and shape of an operation: (argument, value) in the order of `SHAPE`."""


class Cost(NamedTuple):
    """`cycles` from issue to the last result in SRAM; `stream`: from the first result to the last.

    `needed`: operand -> cycles after issue at which its first and last vectors are needed; others
    are needed whole at issue. Results in between come no later than evenly.
    """

    cycles: int
    stream: int
    needed: dict[str, tuple[int, int]]


class Costs(NamedTuple):
    """Costs and the spec that they were worked out for: another chip works out its own."""

    spec: ChipSpec
    known: dict[Key, Cost]


_costs: dict[ChipSpec, dict[Key, Cost]] = {}


def key(opcode: Opcode, a: Args) -> Key:
    """Return what an operation's cost depends on, besides the chip."""
    return opcode, tuple((name, a[name]) for name in SHAPE if name in a)


def cost(opcode: Opcode, a: Args, spec: ChipSpec) -> Cost:
    """Return an operation's cost. Raises ValueError for SEND and RECEIVE: the link decides.

    Raises TemplateError, with its shape, for an operation that this chip cannot do.
    """
    costs, about = _costs.setdefault(spec, {}), key(opcode, a)
    found = costs.get(about)
    if found is None:
        from chip.templates.table import template  # a chip that was told all costs needs none

        try:
            built = template(opcode, a, spec)
        except TemplateError as error:
            shape = ", ".join(f"{name} {value}" for name, value in about[1])
            raise TemplateError(f"{opcode.name} of {shape}: {error}") from None
        found = costs[about] = Cost(built.cycles, built.stream_cycles, built.needed)
    return found


def known_costs(operations: Iterable[tuple[Opcode, Args]], spec: ChipSpec) -> Costs:
    """Return the costs of operations that compute, to be handed to chips of this spec."""
    return Costs(spec, {key(opcode, a): cost(opcode, a, spec) for opcode, a in operations})


def learn_costs(costs: Costs) -> None:
    """Take costs worked out elsewhere."""
    _costs.setdefault(costs.spec, {}).update(costs.known)


def cycles(opcode: Opcode, a: Args, spec: ChipSpec) -> int:
    """Cycles from issue to the last result in SRAM. Raises ValueError for SEND and RECEIVE."""
    return cost(opcode, a, spec).cycles


def needed(opcode: Opcode, operand: str, a: Args, spec: ChipSpec) -> tuple[int, int]:
    """Cycles after issue at which an operand's first and last vectors are needed."""
    return cost(opcode, a, spec).needed.get(operand, (0, 0))


def result_stream_cycles(opcode: Opcode, a: Args, spec: ChipSpec) -> int:
    """Cycles from the first to the last vector of an operation's result; it ends with the last."""
    return cost(opcode, a, spec).stream


@lru_cache(maxsize=8)
def send_lead_cycles(spec: ChipSpec) -> int:
    """Cycles before its departure at which a vector must be in SRAM: read, transit, a free port."""
    return delays(spec)["READ"].d_func + _across(spec) + TURNS * C2C_TURN


@lru_cache(maxsize=8)
def receive_cycles(spec: ChipSpec) -> int:
    """Cycles after its arrival at which a vector is in SRAM: transit, a free port, write."""
    table = delays(spec)
    return table["RECEIVE"].d_func + _across(spec) + TURNS * C2C_TURN + table["WRITE"].d_func + 1


def _across(spec: ChipSpec) -> int:
    """Hops between a port and the work slice beyond the VXM."""
    return hops(mem(0, 0), sxm(1, 0), spec)
