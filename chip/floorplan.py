"""Where units and their instruction queues lie, in stream-register hops from the western edge.

West to east: MXM, SXM with the C2C ports beside it, MEM slices 43 to 0, VXM, MEM slices 0 to 43,
SXM with C2C, MXM. There is a stream register (one hop, one cycle) between neighbouring units, and
one per `slices_per_hop` slices in a hemisphere's memory. docs/hardware.md, The chip; ISCA 2020.
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from chip.spec import ChipSpec

SXM_QUEUES, MXM_QUEUES = 14, 6  # a hemisphere


class Unit(StrEnum):
    """Kinds of functional unit that have instruction queues."""

    MEM = "MEM"
    SXM = "SXM"
    MXM = "MXM"
    VXM = "VXM"


class Role(StrEnum):
    """What each of a plane's three queues does."""

    LOAD = "LW"  # weights into the buffer
    FEED = "ABC"  # install weights, activations into the array
    DRAIN = "ACC"  # products into accumulators and onto streams


_ROLES = tuple(Role)  # in the order of a plane's queues


class Queue(NamedTuple):
    """One instruction queue: `MEM_W12`, `SXM_E3`, `MXM_E2`, `VXM5`. Hemisphere 0 is west."""

    unit: Unit
    hemisphere: int
    number: int

    def __str__(self) -> str:
        side = "" if self.unit is Unit.VXM else "_" + "WE"[self.hemisphere]
        return f"{self.unit}{side}{self.number}"


def mem(hemisphere: int, index: int) -> Queue:
    """Return the queue of one MEM slice."""
    return Queue(Unit.MEM, hemisphere, index)


def bulk_slices(spec: ChipSpec) -> range:
    """Return the numbers of a hemisphere's slices of bulk memory: all but those near the VXM."""
    return range(spec.near_slices, spec.slices // spec.hemispheres)


def sxm(hemisphere: int, index: int) -> Queue:
    """Return one of a hemisphere's SXM queues; C2C instructions are issued there too.

    assumption: the 14 queues are alike, and the C2C has none of its own (144 are counted in all).
    """
    return Queue(Unit.SXM, hemisphere, index)


def mxm(plane: int, role: Role) -> Queue:
    """Return a queue of one plane: planes 0 and 1 are west, 2 and 3 east."""
    return Queue(Unit.MXM, plane // 2, 3 * (plane % 2) + _ROLES.index(role))


def alu(index: int) -> Queue:
    """Return the queue of one VXM ALU."""
    return Queue(Unit.VXM, 0, index)


@lru_cache(maxsize=8)
def queues(spec: ChipSpec) -> tuple[Queue, ...]:
    """Return every queue of a chip: 144 on the published one."""
    out = [
        Queue(unit, hemisphere, index)
        for unit, count in (
            (Unit.MEM, spec.slices // spec.hemispheres),
            (Unit.SXM, SXM_QUEUES),
            (Unit.MXM, MXM_QUEUES),
        )
        for hemisphere in range(2)
        for index in range(count)
    ]
    return (*out, *(alu(index) for index in range(spec.vxm_alus)))


def parse_queue(text: str, spec: ChipSpec) -> Queue:
    """Undo `str(queue)`. Raises ValueError for a queue that the chip does not have."""
    found = _names(spec).get(text)
    if found is None:
        raise ValueError(f"queue: wanted MEM_W0, SXM_E3, MXM_W2, VXM5, ...; got {text!r}")
    return found


@lru_cache(maxsize=8)
def _names(spec: ChipSpec) -> dict[str, Queue]:
    return {str(queue): queue for queue in queues(spec)}


def plane_of(queue: Queue) -> tuple[int, Role]:
    """Return the plane of an MXM queue, and what it does there."""
    plane, role = divmod(queue.number, 3)
    return 2 * queue.hemisphere + plane, _ROLES[role]


def position(queue: Queue, spec: ChipSpec) -> int:
    """Return a unit's place in hops from the western edge."""
    rows = -(-spec.slices // spec.hemispheres // spec.slices_per_hop)  # of slices
    centre = rows + 2
    if queue.unit is Unit.VXM:
        return centre
    out = {
        Unit.MEM: 1 + queue.number // spec.slices_per_hop,
        Unit.SXM: rows + 1,
        Unit.MXM: rows + 2,
    }[queue.unit]
    return centre + out if queue.hemisphere else centre - out


def hops(a: Queue, b: Queue, spec: ChipSpec) -> int:
    """Return how many cycles a stream value takes between two units."""
    return abs(position(a, spec) - position(b, spec))
