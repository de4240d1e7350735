"""Which chips talk, over which cables: connections, cabling, and a route for every pair.

Where cables are free (any port to any chip) the compiler lays one per pair that talks; where a
chip has too few ports, groups become circulant graphs and the rest is forwarded. Links are named
by logical chips; the binding says which physical slot each logical chip sits in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.errors import LayoutError
from compiler.ir import LinkUse
from compiler.partition import Partition
from compiler.target import Target
from interconnect.clock import EXACT, ClockSpec, SyncHop, SyncPath, slack_cycles, stall_cycles
from interconnect.errors import PortsExhaustedError, UnreachableError
from interconnect.topology import Link, Topology, paths_from, shortest_path

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Links in use, and for every pair of nodes that talks the links on its way."""

    links: tuple[LinkUse, ...]
    routes: dict[Pair, tuple[int, ...]]
    binding: tuple[int, ...]  # logical chip -> physical slot
    ports_in_use: int
    clock: ClockSpec = EXACT
    sync: tuple[SyncPath, ...] = ()  # logical chip -> its way down the HAC's tree; () when exact

    @property
    def stall_cycles(self) -> int:
        """Idle cycles that a realignment takes; 0 where clocks are exact."""
        return stall_cycles(self.clock, self.sync)

    def forwarders(self) -> dict[int, list[Pair]]:
        """Chips that pass other chips' vectors on, with the pairs they serve."""
        out: dict[int, list[Pair]] = {}
        for pair, route in self.routes.items():
            for link in route[1:]:
                out.setdefault(self.links[link].src, []).append(pair)
        return out


def stage_pairs(partition: Partition) -> list[Pair]:
    """(source, destination) of the residual between groups: rank i from rank i mod size."""
    out = []
    for before, after in zip(partition.groups, partition.groups[1:], strict=False):
        for rank, chip in enumerate(after.chips):
            out.append((before.chips[rank % len(before.chips)], chip))
    return out


def group_pairs(partition: Partition) -> list[Pair]:
    """Ordered pairs inside groups that exchange vectors; a head group exchanges none."""
    groups = [group for group in partition.groups if len(group.layers)]
    return [(a, b) for group in groups for a in group.chips for b in group.chips if a != b]


def build_network(
    partition: Partition, target: Target, binding: Sequence[int] | None = None
) -> Network:
    """Cable the layout and route every pair. Raises LayoutError when a pair has no way."""
    n_chips = partition.layout.chips
    slots = tuple(binding) if binding is not None else tuple(range(n_chips))
    if len(slots) != n_chips or len(set(slots)) != n_chips or min(slots) < 0:
        raise LayoutError(
            f"binding: wanted {n_chips} different physical slots, got {len(set(slots))} "
            f"in a list of {len(slots)}"
        )
    pairs = stage_pairs(partition) + group_pairs(partition)
    topology = _cable(partition, target, slots)
    cabling = _Cabling(target, topology, slots)
    used: dict[int, int] = {}
    links: list[LinkUse] = []
    routes: dict[Pair, tuple[int, ...]] = {}
    for src, dst in pairs:
        try:
            path = shortest_path(topology, slots[src], slots[dst], frozenset(slots))
        except UnreachableError as error:
            raise LayoutError(f"layout {partition.layout}: {error}") from error
        for link in path:
            if link.id not in used:
                used[link.id] = len(links)
                links.append(cabling.use(link, len(links)))
        routes[src, dst] = tuple(used[link.id] for link in path)
    _add_host_links(partition, target, links, routes, cabling.sync)
    return Network(
        links=tuple(links), routes=routes, binding=slots, ports_in_use=topology.max_ports_used,
        clock=target.clock, sync=cabling.sync,
    )  # fmt: skip


class _Cabling:
    """A layout's cables, trained: latencies, and how far the clocks at their ends may be apart."""

    def __init__(self, target: Target, topology: Topology, slots: tuple[int, ...]) -> None:
        self.clock = target.clock
        self.spec = target.link_spec(max(1, topology.max_ports_used))
        self.slot_cycles = self.spec.slot_cycles(target.chip.clock_hz)
        self.logical = {slot: chip for chip, slot in enumerate(slots)}
        self.sync = self._paths(topology, slots) if self.clock.strays else ()

    def _paths(self, topology: Topology, slots: tuple[int, ...]) -> tuple[SyncPath, ...]:
        """Each chip's way from the root, the first logical chip, over any cable there is."""
        ways = {slots[0]: (), **paths_from(topology, slots[0])}
        return tuple(
            tuple(SyncHop(link.dst, self.latency(link)) for link in ways[slot]) for slot in slots
        )

    def latency(self, link: Link) -> int:
        cable = f"{link.src}.{link.src_port}->{link.dst}.{link.dst_port}"
        return self.clock.trained_cycles(self.spec.latency_cycles, cable)

    def use(self, link: Link, number: int) -> LinkUse:
        """Return a cable's direction as the schedule's link of this number."""
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
    """All pairs of each group, or only ranks 1, 2, 4, ... apart when ports are short."""
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
    partition: Partition, target: Target, links: list[LinkUse], routes: dict[Pair, tuple[int, ...]],
    sync: tuple[SyncPath, ...],
) -> None:  # fmt: skip
    """One host port per chip of the first group (in) and of the last groups (out).

    The host's port is paced by the root chip's clock (assumption: its DMA engine is that chip's).
    """
    host, spec = partition.layout.chips, target.host_link
    out = sorted({*partition.groups[-1].chips, partition.last_layers.chips[0]})
    ends = [(host, chip) for chip in partition.groups[0].chips] + [(chip, host) for chip in out]
    for src, dst in ends:
        name = f"host->{dst}" if src == host else f"{src}->host"
        routes[src, dst] = (len(links),)
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
