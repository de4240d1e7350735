"""The network of a layout: its cables, and a tree of links for every message (place/routes.py).

Where any port may be cabled to any chip, the compiler lays one cable per pair of chips in a group,
and one from rank to rank of successive groups. If a chip has too few ports, groups become circulant
graphs and chips forward the other messages. Links are named by logical chips. The binding gives
each logical chip its physical slot. It is derived from the cables (compiler/place/placement.py)
unless it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from chip.ops.rows import row_bytes
from chip.spec import vectors
from compiler.errors import LayoutError
from compiler.ir import LinkUse
from compiler.model.operation import Split
from compiler.place.partition import Group, Partition
from compiler.place.placement import place
from compiler.place.routes import Flow, Router
from compiler.place.target import Target
from interconnect.clock import (
    EXACT,
    ClockSpec,
    SyncHop,
    SyncPath,
    slack_cycles,
    stall_cycles,
    start_cycles,
)
from interconnect.errors import PortsExhaustedError, UnreachableError
from interconnect.topology import Link, LinkKind, Topology, paths_from

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The links in use, and the links of every message's tree, nearest to the source first."""

    links: tuple[LinkUse, ...]
    routes: dict[Flow, tuple[int, ...]]
    binding: tuple[int, ...]  # logical chip -> physical slot
    ports_in_use: int
    clock: ClockSpec = EXACT
    sync: tuple[SyncPath, ...] = ()  # logical chip -> its way down the HAC's tree; () when exact

    @property
    def stall_cycles(self) -> int:
        """Idle cycles that a realignment takes; 0 where clocks are exact."""
        return stall_cycles(self.clock, self.sync)

    @property
    def start_cycles(self) -> int:
        """Cycles until a program runs on all chips; 0 where clocks are exact."""
        return start_cycles(self.clock, self.sync)

    def forwarders(self) -> dict[int, list[Flow]]:
        """Return the chips that forward messages meant only for others, with those messages."""
        out: dict[int, list[Flow]] = {}
        for (source, targets), route in self.routes.items():
            for chip in sorted({self.links[link].src for link in route} - {source, *targets}):
                out.setdefault(chip, []).append((source, targets))
        return out

    def nearest_first(self, flows: Iterable[Flow]) -> list[Flow]:
        """Sort messages that start together by their hops: the shorter ones free links sooner."""
        return sorted(flows, key=self._hops)

    def _hops(self, flow: Flow) -> int:
        hops = {flow[0]: 0}
        for number in self.routes[flow]:
            link = self.links[number]
            hops[link.dst] = hops[link.src] + 1
        return max(hops.values())


def stage_pairs(partition: Partition) -> list[Pair]:
    """Return (source, destination) of the cables between groups: to rank i from i mod size."""
    out = []
    for before, after in zip(partition.groups, partition.groups[1:], strict=False):
        for rank, chip in enumerate(after.chips):
            out.append((before.chips[rank % len(before.chips)], chip))
    return out


def group_pairs(partition: Partition) -> list[Pair]:
    """Return the ordered pairs of chips that exchange vectors in a group; a head group has none."""
    groups = [group for group in partition.groups if len(group.layers)]
    return [(a, b) for group in groups for a in group.chips for b in group.chips if a != b]


def flows_between(before: Group, after: Group) -> list[Flow]:
    """Return the messages from each chip of a group to all of the next, or to its own others."""
    if before is after:
        return [(a, tuple(b for b in before.chips if b != a)) for a in before.chips]
    return [(chip, after.chips) for chip in before.chips]


def build_network(
    partition: Partition, target: Target, binding: Sequence[int] | None = None, pace: int = 0
) -> Network:
    """Cable the layout and route every message. Raises LayoutError if a message has no way.

    `pace`: the fewest cycles between vectors on a chip's links; a faster link is driven as slowly.
    """
    n_chips = partition.layout.chips
    slots = tuple(binding) if binding is not None else tuple(range(n_chips))
    if len(slots) != n_chips or len(set(slots)) != n_chips or min(slots) < 0:
        raise LayoutError(
            f"binding: wanted {n_chips} different physical slots, got {len(set(slots))} "
            f"in a list of {len(slots)}"
        )
    topology = _cable(partition, target, slots)
    if binding is None:
        slots = place(topology, n_chips)
    cabling = _Cabling(target, topology, slots, pace)
    used: dict[int, int] = {}
    links: list[LinkUse] = []
    routes: dict[Flow, tuple[int, ...]] = {}
    for flow, tree in _trees(partition, target, topology, slots, cabling.slot_cycles):
        for link in tree:
            if link.id not in used:
                used[link.id] = len(links)
                links.append(cabling.use(link, len(links)))
        routes[flow] = tuple(used[link.id] for link in tree)
    _add_host_links(partition, target, links, routes, cabling.sync)
    return Network(
        links=tuple(links), routes=routes, binding=slots, ports_in_use=topology.max_ports_used,
        clock=target.clock, sync=cabling.sync,
    )  # fmt: skip


def _trees(
    partition: Partition, target: Target, topology: Topology, slots: tuple[int, ...],
    slot_cycles: int,
) -> Iterator[tuple[Flow, tuple[Link, ...]]]:  # fmt: skip
    """Yield every message with its tree: inside each group, then from each group to the next."""
    layers = [group for group in partition.groups if len(group.layers)]
    following = zip(partition.groups, partition.groups[1:], strict=False)
    spec = target.link_spec(max(1, topology.max_ports_used))
    farther = {kind: target.latency_cycles(kind) - spec.latency_cycles for kind in LinkKind}
    for before, after in (*((group, group) for group in layers), *following):
        width = max(before.shares(Split.HIDDEN, partition.config.head_dim))
        router = Router(
            topology, frozenset(slots),
            hop_cycles=slot_cycles + spec.latency_cycles + target.chip.forward_cycles,
            message_cycles=vectors(row_bytes(width, 2)) * slot_cycles, farther_cycles=farther,
        )  # fmt: skip
        for source, targets in flows_between(before, after):
            wanted = (slots[source], tuple(slots[chip] for chip in targets))
            try:
                yield (source, targets), router.tree(wanted)
            except UnreachableError as error:
                raise LayoutError(f"layout {partition.layout}: {error}") from error


class _Cabling:
    """A layout's trained cables: their latencies, and the slack for the clocks at their ends."""

    def __init__(
        self, target: Target, topology: Topology, slots: tuple[int, ...], pace: int
    ) -> None:
        self.target, self.clock = target, target.clock
        spec = target.link_spec(max(1, topology.max_ports_used))
        self.slot_cycles = max(pace, spec.slot_cycles(target.chip.clock_hz))
        self.logical = {slot: chip for chip, slot in enumerate(slots)}
        self.sync = self._paths(topology, slots) if self.clock.strays else ()

    def _paths(self, topology: Topology, slots: tuple[int, ...]) -> tuple[SyncPath, ...]:
        """Return each chip's way from the root (the first logical chip), over any cable."""
        ways = {slots[0]: (), **paths_from(topology, slots[0])}
        return tuple(
            tuple(SyncHop(link.dst, self.latency(link)) for link in ways[slot]) for slot in slots
        )

    def latency(self, link: Link) -> int:
        cable = f"{link.src}.{link.src_port}->{link.dst}.{link.dst_port}"
        return self.clock.trained_cycles(self.target.latency_cycles(link.kind), cable)

    def use(self, link: Link, number: int) -> LinkUse:
        """Return one direction of a cable as the schedule's link of this number."""
        a, b, latency = self.logical[link.src], self.logical[link.dst], self.latency(link)
        slack = 0
        if self.sync:
            slack = slack_cycles(self.clock, self.sync[a], self.sync[b], self.slot_cycles, latency)
        return LinkUse(
            id=number, name=f"C2C {a}.{link.src_port}->{b}.{link.dst_port}", src=a, dst=b,
            slot_cycles=self.slot_cycles, latency_cycles=latency, rx_window_cycles=2 * slack,
            is_host=False,
        )  # fmt: skip


def _cable(partition: Partition, target: Target, slots: tuple[int, ...]) -> Topology:
    n_slots = max(slots) + 1
    stages = {(min(a, b), max(a, b)) for a, b in stage_pairs(partition)}
    for distances in (None, *range(target.ports_per_chip // 2, 0, -1)):
        cables = sorted(stages | _group_cables(partition, distances))
        try:
            return target.topology(n_slots, [(slots[a], slots[b]) for a, b in cables])
        except PortsExhaustedError as error:
            last = error
    raise LayoutError(f"layout {partition.layout}: {last}")


def _group_cables(partition: Partition, distances: int | None) -> set[Pair]:
    """Return all pairs of each group, or only ranks 1, 2, 4, … apart if ports are short."""
    if distances is None:
        return {(a, b) for a, b in group_pairs(partition) if a < b}
    out = set()
    for group in partition.groups:
        ranks = len(group.chips)
        for rank, chip in enumerate(group.chips if len(group.layers) else ()):
            for power in range(distances):
                peer = group.chips[(rank + (1 << power)) % ranks]
                if peer != chip:
                    out.add((min(chip, peer), max(chip, peer)))
    return out


def _add_host_links(
    partition: Partition, target: Target, links: list[LinkUse], routes: dict[Flow, tuple[int, ...]],
    sync: tuple[SyncPath, ...],
) -> None:  # fmt: skip
    """Add one host port per chip of the first group (in) and of the last groups (out).

    The root chip's clock paces the host's port (assumption: its DMA engine is that chip's).
    """
    host, spec = partition.layout.chips, target.host_link
    out = sorted({*partition.groups[-1].chips, partition.last_layers.chips[0]})
    ends = [(host, chip) for chip in partition.groups[0].chips] + [(chip, host) for chip in out]
    for src, dst in ends:
        name = f"host->{dst}" if src == host else f"{src}->host"
        routes[src, (dst,)] = (len(links),)
        slot_cycles, slack = spec.slot_cycles(target.chip.clock_hz), 0
        if sync:
            one, two = (() if node == host else sync[node] for node in (src, dst))
            slack = slack_cycles(target.clock, one, two, slot_cycles, spec.latency_cycles)
        links.append(
            LinkUse(
                id=len(links),
                name=f"PCIe {name}",
                src=src,
                dst=dst,
                slot_cycles=slot_cycles,
                latency_cycles=spec.latency_cycles,
                rx_window_cycles=2 * slack,
                is_host=True,
            )
        )
