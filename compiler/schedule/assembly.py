"""Put a step together: its items, in order, become operations of programs and transfers on links.

What is done comes from the plan, when it is done from `Times`: those that the scheduler works out
(compiler/schedule/scheduler.py), or those that were stored (compiler/replay.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from chip.ops.moves import Receive, Send
from chip.ops.program import Program, Scheduled
from compiler.ir import HostMemory, LinkUse, ScheduledTransfer, StepKind, StepSchedule
from compiler.place.network import Network
from compiler.schedule.movement import Transfer
from compiler.schedule.steps import Planned

Stops = tuple[tuple[int, int], ...]
"""The spans (from, to) in which a node stops to realign its counter."""


class Times(Protocol):
    """When the items of a step are done; they are asked for in the order of the items."""

    def span(self, item: Planned) -> tuple[int, int, int]:
        """Give an operation its place in time: (start, end, NOPs in front of it)."""

    def departure(
        self, vectors: int, link: LinkUse, addresses: tuple[int, int],
        arrived: ScheduledTransfer | None,
    ) -> tuple[int, int]:  # fmt: skip
        """Give a hop its place in time: (cycle of departure, NOPs in front of its SEND).

        `addresses`: of the source and the target. `arrived`: the hop that brings the vectors.
        """

    def close(self, end: int) -> tuple[int, Sequence[Stops]]:
        """Return the cycles of the step, at least `end`, and each node's stops."""


class Assembly:
    """Puts one step's planned items together."""

    def __init__(
        self, times: Times, network: Network, forward: dict[int, tuple[list[int], int]]
    ) -> None:
        self._times, self._network = times, network
        self._operations: list[list[Scheduled]] = [[] for _ in range(len(network.binding) + 1)]
        self._transfers: list[ScheduledTransfer] = []
        # chip -> (addresses of its forward slots, how many were used)
        self._forward = {chip: (slots, 0) for chip, (slots, _) in forward.items()}

    def place(self, item: Planned | Transfer) -> None:
        if isinstance(item, Planned):
            self._place_operation(item)
        else:
            self._place_transfer(item)

    def _place_operation(self, item: Planned) -> None:
        start, end, nop = self._times.span(item)
        operation = Scheduled(op=item.op, name=item.name, start=start, end=end, nop=nop)
        self._operations[item.chip].append(operation)

    def _place_transfer(self, item: Transfer) -> None:
        """Place a message's tree of hops; who has received it passes it on from there."""
        targets = dict(item.targets)
        at: dict[int, tuple[int, ScheduledTransfer | None]] = {item.src: (item.src_address, None)}
        for number in self._network.routes[item.src, tuple(targets)]:
            link = self._network.links[number]
            address = targets.get(link.dst)
            address = self._forward_slot(link.dst) if address is None else address
            at[link.dst] = address, self._hop(item, link, address, at[link.src])

    def _forward_slot(self, chip: int) -> int:
        slots, used = self._forward[chip]
        self._forward[chip] = (slots, used + 1)
        return slots[used % len(slots)]

    def _hop(
        self, item: Transfer, link: LinkUse, dst: int,
        origin: tuple[int, ScheduledTransfer | None],
    ) -> ScheduledTransfer:  # fmt: skip
        """Place SEND and RECEIVE of one hop. `origin`: the address, and the hop that led there."""
        src, arrived = origin
        start, nop = self._times.departure(item.vectors, link, (src, dst), arrived)
        first = start + link.slot_cycles + link.latency_cycles + link.slack_cycles
        transfer = ScheduledTransfer(
            id=len(self._transfers), name=item.name, link=link.id, src=link.src, dst=link.dst,
            vectors=item.vectors, depart=start, first_arrive=first,
            arrive=first + (item.vectors - 1) * link.slot_cycles,
        )  # fmt: skip
        self._transfers.append(transfer)
        at: dict[str, Any] = {
            "link": link.id, "transfer": transfer.id, "vectors": item.vectors, "row": item.row,
        }  # fmt: skip
        send = Scheduled(
            op=Send(**at, src=src, forward=None if arrived is None else arrived.id),
            name=item.name, start=start, end=start + item.vectors * link.slot_cycles, nop=nop,
        )  # fmt: skip
        receive = Scheduled(
            op=Receive(**at, dst=dst), name=item.name, start=first, end=transfer.arrive
        )
        self._operations[link.src].append(send)
        self._operations[link.dst].append(receive)
        return transfer

    def finish(self, kind: StepKind, host: HostMemory, turnaround_cycles: int) -> StepSchedule:
        """Return the step; it ends so many cycles after its last operation, or later."""
        last = max(one.end for operations in self._operations for one in operations)
        cycles, stops = self._times.close(last + turnaround_cycles)
        programs = tuple(
            Program(
                chip=index, step=kind.name, rows=kind.rows, operations=tuple(operations),
                realign=stops[index],
            )
            for index, operations in enumerate(self._operations)
        )  # fmt: skip
        return StepSchedule(
            kind=kind, programs=programs, transfers=tuple(self._transfers), host=host,
            cycles=cycles,
        )  # fmt: skip
