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
from chip.ops.moves import Receive, Send
from chip.ops.opcodes import CONSTANTS, Region
from chip.ops.program import Program, Scheduled
from chip.spec import VECTOR_BYTES
from compiler.ir import HostMemory, LinkUse, ScheduledTransfer, StepKind, StepSchedule
from compiler.place.network import Network
from compiler.schedule.movement import Transfer
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

    __slots__ = ("_places", "counter", "free", "operations")

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self.free: dict[str, int] = {}
        self.operations: list[Scheduled] = []
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
    """Places one step's planned items, in order."""

    def __init__(
        self, costs: CostModel, network: Network, forward: dict[int, tuple[list[int], int]]
    ) -> None:
        self.costs, self.spec, self.network = costs, costs.spec, network
        self.n_chips = len(network.binding)
        ways = send_lead_cycles(self.spec), receive_cycles(self.spec)
        self.nodes = [_Node(Counter(network, chip, *ways)) for chip in range(self.n_chips + 1)]
        self.transfers: list[ScheduledTransfer] = []
        # chip -> (addresses of its forward slots, how many were used)
        self.forward = {chip: (slots, 0) for chip, (slots, _) in forward.items()}

    def place(self, item: Planned | Transfer) -> None:
        if isinstance(item, Planned):
            self._place_operation(item)
        else:
            self._place_transfer(item)

    def _place_operation(self, item: Planned) -> None:
        start, end, nop = self._span(item)
        operation = Scheduled(op=item.op, name=item.name, start=start, end=end, nop=nop)
        self.nodes[item.chip].operations.append(operation)

    def _span(self, item: Planned) -> tuple[int, int, int]:
        """Return an operation's place in time: (start, end, NOPs before it)."""
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

    def _place_transfer(self, item: Transfer) -> None:
        """Place a message's tree of hops; each chip that has received it passes it on."""
        targets = dict(item.targets)
        at: dict[int, tuple[int, ScheduledTransfer | None]] = {item.src: (item.src_address, None)}
        for number in self.network.routes[item.src, tuple(targets)]:
            link = self.network.links[number]
            address = targets.get(link.dst)
            address = self._forward_slot(link.dst) if address is None else address
            at[link.dst] = address, self._hop(item, link, address, at[link.src])

    def _forward_slot(self, chip: int) -> int:
        slots, used = self.forward[chip]
        self.forward[chip] = (slots, used + 1)
        return slots[used % len(slots)]

    def _hop(
        self, item: Transfer, link: LinkUse, dst: int,
        origin: tuple[int, ScheduledTransfer | None],
    ) -> ScheduledTransfer:  # fmt: skip
        """Place SEND and RECEIVE of one hop. `origin`: source address, and the hop to it."""
        src, arrived = origin
        start, nop = self._departure(item.vectors, link, (src, dst), arrived)
        first = start + link.slot_cycles + link.latency_cycles + link.slack_cycles
        transfer = ScheduledTransfer(
            id=len(self.transfers), name=item.name, link=link.id, src=link.src, dst=link.dst,
            vectors=item.vectors, depart=start, first_arrive=first,
            arrive=first + (item.vectors - 1) * link.slot_cycles,
        )  # fmt: skip
        self.transfers.append(transfer)
        at: dict[str, int] = {"link": link.id, "transfer": transfer.id, "vectors": item.vectors}
        sent = Send(**at, src=src, forward=None if arrived is None else arrived.id)
        self._put(link.src, transfer, sent, nop)
        self._put(link.dst, transfer, Receive(**at, dst=dst), 0)
        return transfer

    def _departure(
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

    def _put(self, node: int, transfer: ScheduledTransfer, op: Send | Receive, nop: int) -> None:
        """Add one end of a transfer to its node's program."""
        start, end = transfer.first_arrive, transfer.arrive
        if isinstance(op, Send):
            slot = self.network.links[transfer.link].slot_cycles
            start, end = transfer.depart, transfer.depart + transfer.vectors * slot
        operation = Scheduled(op=op, name=transfer.name, start=start, end=end, nop=nop)
        self.nodes[node].operations.append(operation)

    def finish(self, kind: StepKind, host: HostMemory, turnaround_cycles: int) -> StepSchedule:
        programs = tuple(
            Program(
                chip=index, step=kind.name, rows=kind.rows, operations=tuple(node.operations),
                realign=tuple(node.counter.spans),
            )
            for index, node in enumerate(self.nodes)
        )  # fmt: skip
        last = max(operation.end for p in programs for operation in p.operations)
        last = max(last, *(node.counter.settled - turnaround_cycles for node in self.nodes))
        return StepSchedule(
            kind=kind, programs=programs, transfers=tuple(self.transfers), host=host,
            cycles=last + turnaround_cycles,
        )  # fmt: skip
