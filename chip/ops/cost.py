"""What scheduled operations cost: cycles from issue to the last result, and how vectors stream.

One definition for the compiler that places them, the chip that replays its own clocks and the
verifier: the length of the operation's instruction template (compiler/codegen), nothing else. The
compiler hands a `CostModel` on with the spec that it was worked out for, because templates take a
while to build and chips are processes of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import NamedTuple

from chip.errors import ProgramError
from chip.floorplan import hops, mem, sxm
from chip.isa.issue import delays
from chip.ops.opcodes import Key, described, shape_key, shape_of
from chip.ops.program import Computation
from chip.spec import ChipSpec

C2C_TURN = 8  # every eighth cycle of a work slice's port is the C2C's
TURNS = 3  # turns of a work slice's port that a transfer may have to wait for: assumption


class Cost(NamedTuple):
    """`cycles` from issue to the last result in SRAM; `stream`: from the first result to the last.

    `needed`: operand -> cycles after issue at which its first and last vectors are needed; others
    are needed whole at issue. Results in between come no later than evenly.
    """

    cycles: int
    stream: int
    needed: dict[str, tuple[int, int]]


@dataclass(slots=True, kw_only=True)
class CostModel:
    """Costs of operations on chips of one spec, kept by shape.

    `build` works out those that are not known yet; without it there are no others.
    """

    spec: ChipSpec
    build: Callable[[Computation], Cost] | None = None
    known: dict[Computation, Cost] = field(default_factory=dict)
    _by_key: dict[Key, Cost] = field(default_factory=dict, init=False, repr=False, compare=False)

    def cost(self, operation: Computation) -> Cost:
        """Return an operation's cost. Raises ProgramError where it is not known, TemplateError,
        with the shape, for one that this chip cannot do."""
        key = shape_key(operation)
        found = self._by_key.get(key)
        if found is None:
            found = self._by_key[key] = self._of_shape(shape_of(operation))
        return found

    def _of_shape(self, shape: Computation) -> Cost:
        found = self.known.get(shape)
        if found is None:
            if self.build is None:
                raise ProgramError(
                    f"{shape.opcode} of {described(shape)}: wanted its cost from the compiler, "
                    "got none"
                )
            found = self.known[shape] = self.build(shape)
        return found

    def cycles(self, operation: Computation) -> int:
        """Cycles from issue to the last result in SRAM."""
        return self.cost(operation).cycles

    def needed(self, operation: Computation, operand: str) -> tuple[int, int]:
        """Cycles after issue at which an operand's first and last vectors are needed."""
        return self.cost(operation).needed.get(operand, (0, 0))

    def stream_cycles(self, operation: Computation) -> int:
        """Cycles from the first to the last vector of the result; it ends with the last."""
        return self.cost(operation).stream

    def only(self, operations: Iterable[Computation]) -> CostModel:
        """Return a model of no more than these operations, to be handed to chips."""
        apart = {shape_key(operation): operation for operation in operations}
        known = {shape_of(one): self.cost(one) for one in apart.values()}
        return CostModel(spec=self.spec, known=known)

    def check_spec(self, spec: ChipSpec) -> None:
        """Raise ProgramError, with the field, for a chip that the costs are not for."""
        for one in fields(ChipSpec):
            wanted, got = getattr(self.spec, one.name), getattr(spec, one.name)
            if wanted != got:
                raise ProgramError(
                    f"costs of operations: they are for a chip with {one.name} {wanted}, this one "
                    f"has {got}"
                )


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
