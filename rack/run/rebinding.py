"""Which spare slots can take a logical chip's place: the cables of the schedule must be there too.

If the schedule is to stay as it is, to the cycle, every link that it uses at a lost chip must have
a cable at the spare's slot: of the same latency and errors, no slower, and its own. Where the
layout lays the cables, they are laid to the spare. Where they are fixed, they are looked for. If
they are not there (the spares of a dragonfly are mostly in another node), the lost chip's node
moves as a whole, or else the chip alone, and the schedule has to be made anew for the new binding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from compiler.ir import LinkUse
from compiler.pipeline import CompiledModel
from interconnect.topology import Topology
from rack.errors import ConfigError, MachineError
from rack.machines.hardware import Cabling, Hardware

Binding = dict[int, int]
"""Logical chip -> physical slot."""


def spare_slots(compiled: CompiledModel, hardware: Hardware, count: int) -> tuple[int, ...]:
    """Return the slots of so many spares, on fixed cables free ones of the layout's nodes first.

    As many as a node has are a free node, if there is one: it can take another one's place whole.
    Raises ConfigError where the machine has not so many.
    """
    used = set(compiled.network.binding)
    if hardware.cabling is Cabling.FREE:
        first = max(used) + 1
        return tuple(range(first, first + count))
    slots = hardware.racks(max(used) + 1) * hardware.chips_per_rack
    nodes = {slot // hardware.chips_per_node for slot in used}
    free = [slot for slot in range(slots) if slot not in used]
    whole = count >= hardware.chips_per_node
    free.sort(key=lambda slot: ((slot // hardware.chips_per_node in nodes) is whole, slot))
    if len(free) < count:
        raise ConfigError(
            f"spares: wanted at most {len(free)}, the free chips of {hardware.name} beside the "
            f"{len(used)} of layout {compiled.layout}, got {count}; "
            "a --layout of fewer chips leaves more"
        )
    return tuple(free[:count])


def spares_notice(
    compiled: CompiledModel, hardware: Hardware, count: int, *, stored: bool
) -> str | None:
    """Say how many chips so many spares can hardly replace: those of nodes without a spare.

    But a node of spares takes any node's place, if the schedule can be made anew: not a `stored`
    one. None where all chips are provided for.
    """
    if not count or hardware.cabling is Cabling.FREE:
        return None
    size = hardware.chips_per_node
    nodes = Counter(slot // size for slot in spare_slots(compiled, hardware, count))
    alone = sum(slot // size not in nodes for slot in compiled.network.binding)
    if not alone or (size in nodes.values() and not stored):
        return None
    return (
        f"SPARES: {alone} of {compiled.layout.chips} chips are in nodes without a spare, and other "
        f"nodes have not their cables: --spares {size} is a node, which takes another one's place "
        "as a whole" + (", though not from an artifact, whose schedule is fixed" if stored else "")
    )


class Rebinder:
    """Finds spares for lost chips on one machine."""

    def __init__(self, compiled: CompiledModel, hardware: Hardware) -> None:
        self.hardware, self._clock = hardware, compiled.network.clock
        self._links = [link for link in compiled.network.links if not link.is_host]
        bound = compiled.network.binding
        self._errors = {
            link.id: hardware.errors[hardware.link_kind(bound[link.src], bound[link.dst])]
            for link in self._links
        }

    def of(self, compiled: CompiledModel) -> Rebinder:
        """Return the same for another schedule on the same machine."""
        return Rebinder(compiled, self.hardware)

    def rebind(self, binding: Binding, lost: Sequence[int], spares: Sequence[int]) -> Binding:
        """Return the binding with spare slots for the lost chips, the first ones that fit.

        Raises MachineError, which names a link that has no cable, where there is no way.
        """
        first = {**binding, **dict(zip(lost, spares, strict=False))}
        try:
            self.verify(first)
        except MachineError:
            kept = {chip: slot for chip, slot in binding.items() if chip not in lost}
            topology = self._topology(first)
            found = None
            if self.hardware.cabling is not Cabling.FREE:
                found = self._search(topology, kept, list(lost), list(spares))
            if found is None:
                raise
            first = found
            self.verify(first)
        return first

    def move(self, binding: Binding, lost: Sequence[int], spares: Sequence[int]) -> Binding:
        """Return a binding without the slots of lost chips, whatever cables there are.

        The chips of a lost one's node go to the spares of one node, if those are enough. So they
        stay together. Other lost chips go to any spares, of which there are enough.
        """
        new, free, size = dict(binding), list(spares), self.hardware.chips_per_node
        for node in sorted({binding[chip] // size for chip in lost}):
            chips = [chip for chip, slot in sorted(new.items()) if slot // size == node]
            for other in sorted({slot // size for slot in free}):
                room = [slot for slot in free if slot // size == other]
                if len(room) >= len(chips):
                    break
            else:
                chips, room = [chip for chip in chips if chip in lost], free
            chosen = dict(zip(chips, room, strict=False))
            free = [slot for slot in free if slot not in chosen.values()]
            new |= chosen
        return new

    def _search(
        self, topology: Topology, bound: Binding, lost: list[int], spares: list[int]
    ) -> Binding | None:
        """Bind the lost chips one after the other, each to a spare with cables to those before."""
        if not lost:
            return bound
        chip, *others = lost
        for slot in spares:
            new = {**bound, chip: slot}
            mine = [one for one in self._links if chip in (one.src, one.dst)]
            ends = [one for one in mine if one.src in new and one.dst in new]
            if all(self._cables(topology, new, one) for one in ends):
                left = [one for one in spares if one != slot]
                if (found := self._search(topology, new, others, left)) is not None:
                    return found
        return None

    def _cables(self, topology: Topology, binding: Binding, link: LinkUse) -> int:
        """Count the cables that could be a link."""
        cables = topology.links_between(binding[link.src], binding[link.dst])
        return sum(
            self.hardware.latency_cycles(cable.kind) == link.latency_cycles
            and self.hardware.errors[cable.kind] == self._errors[link.id]
            for cable in cables
        )

    def verify(self, binding: Binding) -> None:
        """Check that the bound machine has a cable for every link. Raises MachineError."""
        if self._clock.strays:
            raise MachineError(
                machine=self.hardware.name, what="spares", wanted="clocks that do not drift",
                got="clocks for which each cable is trained, and each schedule made",
            )  # fmt: skip
        topology, taken = self._topology(binding), Counter[tuple[int, int]]()
        spec = self.hardware.link_spec(max(1, topology.max_ports_used))
        slot_cycles = spec.slot_cycles(self.hardware.chip.clock_hz)
        for link in self._links:
            a, b = binding[link.src], binding[link.dst]
            taken[a, b] += 1
            cables = self._cables(topology, binding, link)
            if slot_cycles > link.slot_cycles or taken[a, b] > cables:
                self._refuse(link, a, b, len(topology.links_between(a, b)))

    def _topology(self, binding: Binding) -> Topology:
        ends = [(binding[one.src], binding[one.dst]) for one in self._links]
        pairs = sorted({(min(a, b), max(a, b)) for a, b in ends})
        return self.hardware.topology(max(binding.values()) + 1, pairs)

    def _refuse(self, link: LinkUse, a: int, b: int, cables: int) -> None:
        raise MachineError(
            machine=self.hardware.name,
            what=f"{link.name} with chips {link.src} and {link.dst} in slots {a} and {b}",
            wanted=f"a cable of its own of {link.latency_cycles} cycles",
            got="none" if not cables else f"{cables} of another kind, or in use",
        )
