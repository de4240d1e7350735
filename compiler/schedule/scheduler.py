"""Place every operation and every transfer of a step on its cycle (docs/design.md, 5 and 7).

Everything is placed as soon as possible, in issue order per unit. An operation starts when its
units are free and its operands will be there in time. A result has a first and a last vector;
those between come evenly. So a finished column leaves while the next is computed, and the first
vector of an all-gather is used before the last has come. If a transfer would reach a buffer that is
still in use, a NOP in its sender's program holds it back. With clocks that stray, vectors are
received as late as the slack of their link allows, and chips stop to realign their counters
(compiler/schedule/realign.py). Times are relative to the step's base. Non-goals: reordering,
splitting.
"""

from __future__ import annotations

from chip.ops.cost import CostModel, receive_cycles, send_lead_cycles
from chip.ops.opcodes import CONSTANTS, Region
from chip.spec import VECTOR_BYTES
from compiler.ir import LinkUse, ScheduledTransfer
from compiler.place.network import Network
from compiler.schedule.assembly import Stops
from compiler.schedule.realign import Counter, meet
from compiler.schedule.steps import Planned


class _Place:
    """One region of a node's memory, with the times that the next access depends on.

    `first` and `last` are when its last write gives its first and its last vector. `busy` is when
    its last access ends. `near` has the regions that share bytes with it, itself included.
    """

    __slots__ = ("busy", "first", "last", "near", "region")

    def __init__(self, region: Region) -> None:
        self.region = region
        self.first = self.last = self.busy = 0
        self.near = [self]

    def readable(self, first: int, last: int) -> int:
        """Return when a reader may start that takes its first and last vector so much later."""
        start = 0
        for other in self.near:
            start = max(start, other.first - first, other.last - last)
        return start

    def writable(self) -> int:
        return max([other.busy for other in self.near])

    def read(self, end: int) -> None:
        self.busy = max(self.busy, end)

    def write(self, first: int, last: int) -> None:
        self.first, self.last = max(self.first, first), max(self.last, last)
        self.busy = max(self.busy, last)


class _Node:
    """The clocks of one node: when each unit and each region of memory is free."""

    __slots__ = ("_places", "counter", "free")

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self.free: dict[str, int] = {}
        self._places: dict[Region, _Place] = {}

    def at(self, region: Region) -> _Place:
        place = self._places.get(region)
        if place is None:
            place = self._places[region] = _Place(region)
            start, stop = region[0], region[0] + region[1]
            for (address, size), other in self._places.items():
                if address < stop and start < address + size and other is not place:
                    place.near.append(other)
                    other.near.append(place)
        return place


class Scheduler:
    """Works out when a step's items are done, as they come (`Times` of an assembly)."""

    def __init__(self, costs: CostModel, network: Network) -> None:
        self.costs, self.spec = costs, costs.spec
        ways = send_lead_cycles(self.spec), receive_cycles(self.spec)
        nodes = range(len(network.binding) + 1)
        self.nodes = [_Node(Counter(network, chip, *ways)) for chip in nodes]

    def span(self, item: Planned) -> tuple[int, int, int]:
        """Give an operation its place in time: (start, end, NOPs in front of it)."""
        node, op = self.nodes[item.chip], item.op
        sources = [(name, node.at(region)) for name, region in op.reads() if name not in CONSTANTS]
        results = [node.at(region) for _, region in op.writes()]
        held = op.units
        duration, stream, needed = self.costs.cost(op)
        start = max(node.free.get(unit, 0) for unit in held)
        for name, place in sources:
            start = max(start, place.readable(*needed.get(name, (0, 0))))
        for place in results:
            start = max(start, place.writable())
        ready, start = start, node.counter.room(start, duration)
        end = start + duration
        node.counter.take(start, end)
        for unit in held:
            node.free[unit] = end
        for _, place in sources:
            place.read(end)
        for place in results:
            place.write(end - stream, end)
        return start, end, start - ready

    def departure(
        self, vectors: int, link: LinkUse, addresses: tuple[int, int],
        arrived: ScheduledTransfer | None,
    ) -> tuple[int, int]:  # fmt: skip
        """Return a hop's place in time: (cycle of departure, NOPs before its SEND)."""
        sender, receiver = self.nodes[link.src], self.nodes[link.dst]
        size, stream = vectors * VECTOR_BYTES, vectors * link.slot_cycles
        source, target = sender.at((addresses[0], size)), receiver.at((addresses[1], size))
        unit = f"C2C:{link.id}"
        start = sender.free.get(unit, 0)
        if arrived is None:
            ready = source.readable(0, (vectors - 1) * link.slot_cycles)
            start = max(start, ready + (send_lead_cycles(self.spec) if ready else 0))
        else:  # vectors are passed on as they come; the last may not overtake its arrival
            behind = arrived.arrive - (vectors - 1) * link.slot_cycles
            start = max(start, max(arrived.first_arrive, behind) + self.spec.forward_cycles)
        flight = link.slot_cycles + link.latency_cycles + link.slack_cycles
        ready, start = start, max(start, target.writable() - flight)
        start = meet(sender.counter, receiver.counter, start, stream, flight, link.slot_cycles)
        sender.free[unit] = start + stream
        source.read(start + stream)
        landed = receive_cycles(self.spec)
        target.write(start + flight + landed, start + flight + stream - link.slot_cycles + landed)
        return start, start - ready

    def close(self, end: int) -> tuple[int, list[Stops]]:
        """Return the cycles of the step, at least `end`, and each node's stops.

        It is over when every chip is set right again.
        """
        cycles = max(end, *(node.counter.settled for node in self.nodes))
        return cycles, [tuple(node.counter.spans) for node in self.nodes]
