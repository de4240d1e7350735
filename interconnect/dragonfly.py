"""Nodes of fully connected chips, racks of nodes, systems of racks.

A chip has `local_ports`, one cable to every other chip of its node, then `global_ports`. The
global ports of a node form one pool: the pool's slot s is port `local_ports + s // chips` of the
node's chip `s % chips`, so neighbouring slots sit on different chips and load is spread evenly.

Up to `max_linked_nodes`, every pair of nodes is linked directly and as often as the ports allow.
Beyond that, half of a node's pool links the nodes of its rack. The other halves of a rack's nodes
form one pool, which links every pair of racks. What the pairs leave of a pool gives some pairs one
cable more (`_pairs`), so that no port stays free: about 50 GB/s a chip up
to 264 chips. (ISCA 2022, section 2 and Fig. 2; docs/hardware.md.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from interconnect.errors import TopologyError
from interconnect.topology import Cable, LinkKind, Topology, wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Dragonfly:
    """The counts a dragonfly is made of. Raises TopologyError when they do not fit together."""

    chips_per_node: int
    nodes_per_rack: int
    local_ports: int
    global_ports: int

    def __post_init__(self) -> None:
        for item in fields(self):
            if getattr(self, item.name) < 1:
                raise TopologyError(
                    what=item.name, wanted="at least 1", got=getattr(self, item.name)
                )
        if self.local_ports < self.chips_per_node - 1:
            raise TopologyError(
                what="local_ports",
                wanted=f"{self.chips_per_node - 1}, one to every other chip of a node",
                got=self.local_ports,
            )
        if self.nodes_per_rack > self.max_linked_nodes:
            raise TopologyError(
                what="nodes_per_rack",
                wanted=f"at most {self.max_linked_nodes}, so that every pair can be linked",
                got=self.nodes_per_rack,
            )

    @property
    def ports_per_chip(self) -> int:
        """Local and global ports together."""
        return self.local_ports + self.global_ports

    @property
    def chips_per_rack(self) -> int:
        """Chips in one rack."""
        return self.chips_per_node * self.nodes_per_rack

    @property
    def node_pool(self) -> int:
        """Global ports of a node."""
        return self.chips_per_node * self.global_ports

    @property
    def max_linked_nodes(self) -> int:
        """The most nodes of which every pair is linked directly."""
        return self.node_pool + 1

    @property
    def rack_node_links(self) -> int:
        """Links per node pair of a rack, in systems larger than `max_linked_nodes`."""
        return self.node_pool // 2 // max(1, self.nodes_per_rack - 1)

    @property
    def rack_pool(self) -> int:
        """Global ports of a rack that lead out of it, in systems larger than that."""
        inside = self.rack_node_links * (self.nodes_per_rack - 1)
        return (self.node_pool - inside) * self.nodes_per_rack

    @property
    def max_racks(self) -> int:
        """The most racks a system may have."""
        linked = self.max_linked_nodes // self.nodes_per_rack
        return max(linked, self.rack_pool + 1 if self.rack_node_links else 1)


def card(shape: Dragonfly) -> Topology:
    """Make one chip on a card of its own: nothing is wired."""
    return wire(1, (), shape.ports_per_chip)


def node(shape: Dragonfly) -> Topology:
    """Make one fully connected node."""
    return wire(shape.chips_per_node, _inside(shape, 1), shape.ports_per_chip)


def linked_nodes(shape: Dragonfly, n_nodes: int) -> Topology:
    """Make up to `max_linked_nodes` nodes, every pair linked; numbers of links differ by one."""
    if not 1 <= n_nodes <= shape.max_linked_nodes:
        raise TopologyError(
            what="linked nodes", wanted=f"1 to {shape.max_linked_nodes} nodes", got=n_nodes
        )
    cables = [*_inside(shape, n_nodes)]
    cables += _between_nodes(shape, range(n_nodes), shape.node_pool)
    return wire(n_nodes * shape.chips_per_node, cables, shape.ports_per_chip)


def rack(shape: Dragonfly) -> Topology:
    """Make one rack."""
    return multi_rack(shape, 1)


def multi_rack(shape: Dragonfly, n_racks: int) -> Topology:
    """Make a system of whole racks; raises TopologyError beyond `max_racks`."""
    if not 1 <= n_racks <= shape.max_racks:
        raise TopologyError(what="racks", wanted=f"1 to {shape.max_racks}", got=n_racks)
    nodes = shape.nodes_per_rack
    if n_racks * nodes <= shape.max_linked_nodes:
        return linked_nodes(shape, n_racks * nodes)
    cables = [*_inside(shape, n_racks * nodes)]
    inside = shape.rack_node_links * (nodes - 1)
    for first in range(0, n_racks * nodes, nodes):
        cables += _between_nodes(shape, range(first, first + nodes), inside)
    cables += _between_racks(shape, n_racks)
    return wire(n_racks * shape.chips_per_rack, cables, shape.ports_per_chip)


def _inside(shape: Dragonfly, n_nodes: int) -> Iterator[Cable]:
    """Full connection of every node: the port to chip q of the node is q, one less past self."""
    chips = shape.chips_per_node
    for base in range(0, n_nodes * chips, chips):
        for a in range(chips):
            for b in range(a + 1, chips):
                yield Cable(base + a, b - 1, base + b, a, LinkKind.LOCAL)


def _between_nodes(shape: Dragonfly, nodes: range, slots: int) -> Iterator[Cable]:
    """Link every pair over the first `slots` of each node's pool."""
    for a, b, slot_a, slot_b in _pairs(len(nodes), slots):
        yield _pooled(shape, nodes[a], slot_a, nodes[b], slot_b)


def _between_racks(shape: Dragonfly, n_racks: int) -> Iterator[Cable]:
    """Link every pair of racks; a rack's pool takes its nodes in turn."""
    nodes = shape.nodes_per_rack
    taken = shape.rack_node_links * (nodes - 1)
    for a, b, slot_a, slot_b in _pairs(n_racks, shape.rack_pool):
        yield _pooled(
            shape,
            a * nodes + slot_a % nodes,
            taken + slot_a // nodes,
            b * nodes + slot_b % nodes,
            taken + slot_b // nodes,
        )


def _pairs(count: int, slots: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (a, b, slot at a, slot at b) for every link of every pair a < b.

    Each member numbers its peers by how far round the ring they are, so all members look alike.
    Pairs are linked equally often first. The slots that are left link members once more: by turns
    neighbours, as stages of a pipeline are, and those farthest apart, which adds most between the
    halves of the ring.
    """
    per_pair, left = divmod(slots, count - 1) if count > 1 else (0, 0)
    for a in range(count):
        for b in range(a + 1, count):
            ahead, behind = b - a - 1, a - b - 1 + count
            for copy in range(per_pair):
                yield a, b, ahead * per_pair + copy, behind * per_pair + copy
    yield from _once_more(count, left, per_pair * (count - 1))


def _once_more(count: int, left: int, slot: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield links over the last `left` slots, from `slot` on, of a ring of `count` members.

    One slot of each stays free where both numbers are odd.
    """
    if left % 2 and count % 2 == 0:
        half = count // 2
        yield from ((a, a + half, slot, slot) for a in range(half))
        left, slot = left - 1, slot + 1
    farthest = (count - 1) // 2
    for turn in range(left // 2):
        distance = farthest - turn // 2 if turn % 2 else 1 + turn // 2
        for a in range(count):
            b = (a + distance) % count
            yield (a, b, slot, slot + 1) if a < b else (b, a, slot + 1, slot)
        slot += 2


def _pooled(shape: Dragonfly, node_a: int, slot_a: int, node_b: int, slot_b: int) -> Cable:
    chips, first = shape.chips_per_node, shape.local_ports
    one_rack = node_a // shape.nodes_per_rack == node_b // shape.nodes_per_rack
    return Cable(
        node_a * chips + slot_a % chips,
        first + slot_a // chips,
        node_b * chips + slot_b % chips,
        first + slot_b // chips,
        LinkKind.GLOBAL if one_rack else LinkKind.OPTICAL,
    )
