"""The reservation table of a block: which resource is taken at which cycle.

With an initiation interval it is a modulo reservation table: the block starts anew every so many
cycles, so what it takes at a cycle it takes at that cycle of every interval. (The words of the
modulo-scheduling literature; ALUs have a table of their own, compiler/codegen/core/registers.py.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Resource(StrEnum):
    """What of a chip a block reserves, besides ALUs and SXM queues."""

    PORT_W = "port of the western work slice"
    PORT_E = "port of the eastern work slice"
    FEED_W = "port of the western feed slices"
    FEED_E = "port of the eastern feed slices"
    INWARD = "streams of work memory, as a read passes the VXM"
    FEED_INWARD = "streams of feed slices, as a read passes the VXM"
    ACROSS = "streams of work memory on which a read passes the VXM to the far SXM"
    FROM_SXM = "streams from the SXMs, as values arrive at the VXM"
    TURNED_W = "streams of turned copies, from the western SXM"
    TURNED_E = "streams of turned copies, from the eastern SXM"
    TO_SXM_W = "streams to the western SXM, as a value leaves the VXM"
    TO_SXM_E = "streams to the eastern SXM, as a value leaves the VXM"


PORTS = (Resource.PORT_W, Resource.PORT_E)
FEED_PORTS = (Resource.FEED_W, Resource.FEED_E)
# by name: looking a member up costs more than what is done with it, and blocks do so all the time
INWARD, ACROSS = Resource.INWARD, Resource.ACROSS
FEED_INWARD = Resource.FEED_INWARD
FROM_SXM = Resource.FROM_SXM
TURNED = (Resource.TURNED_W, Resource.TURNED_E)
TO_SXM = (Resource.TO_SXM_W, Resource.TO_SXM_E)
EXCLUSIVE = frozenset(Resource) - {Resource.ACROSS}
"""What an overlapping run of the same block may not take in the same cycle: a read that passes the
VXM holds `INWARD` as well."""
Slot = tuple[Resource, int]
"""A resource at a cycle."""
ENDLESS = 1 << 20  # a block that long has no place for what it asks


@dataclass(slots=True)
class ReservationTable:
    """Slots taken, by cycle modulo the initiation `interval`; 0: the block runs by itself."""

    interval: int = 0
    taken: set[Slot] = field(default_factory=set)
    log: list[Slot] | None = None  # of slots that are taken anew, while somebody keeps it

    def modulo(self, slot: Slot) -> Slot:
        """Return a slot with its cycle within the initiation interval."""
        return (slot[0], slot[1] % self.interval) if self.interval else slot

    def conflicts(self, *slots: Slot) -> bool:
        """Tell whether any of the slots is taken."""
        taken, interval = self.taken, self.interval
        for resource, cycle in slots:
            if (resource, cycle % interval if interval else cycle) in taken:
                return True
        return False

    def distinct(self, slots: list[Slot]) -> bool:
        """Tell whether no two of the slots are the same one."""
        return len(slots) == len(set(map(self.modulo, slots)))

    def reserve(self, *slots: Slot) -> None:
        """Take slots."""
        wanted = [self.modulo(slot) for slot in slots]
        if self.log is not None:
            self.log += [slot for slot in wanted if slot not in self.taken]
        self.taken.update(wanted)

    def repeats(self, interval: int) -> bool:
        """Tell whether the block could start anew so often: no exclusive slot is taken twice."""
        slots = [slot for slot in self.taken if slot[0] in EXCLUSIVE]
        return len({(resource, cycle % interval) for resource, cycle in slots}) == len(slots)

    def next_cycle(self, first: int, cycle: int, what: str) -> int:
        """Return the next cycle to try.

        Raises OverflowError where all of an initiation interval were tried.
        """
        if self.interval and cycle - first > self.interval:
            raise OverflowError(f"no cycle of {self.interval} is left for {what}")
        assert cycle - first < ENDLESS, f"no cycle is left for {what}"
        return cycle + 1
