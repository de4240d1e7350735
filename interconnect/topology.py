"""Chips, ports and the cables between them: a pure graph, without rates or time.

A chip is an int, 0..n_chips-1: its physical slot. A cable is bidirectional, takes one port at
each end and makes two directed links; cable c has the link ids 2c and 2c+1. Everything is
deterministic: ids depend on the arguments alone. Of several shortest paths, the one with the lowest
link ids is taken, compared link by link from the source.

`free_cabling` plugs any port into any chip. The node-and-rack shapes are in `dragonfly.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import StrEnum

from interconnect.errors import PortsExhaustedError, TopologyError, UnreachableError


class LinkKind(StrEnum):
    """Where a cable runs."""

    LOCAL = "local"  # inside a node
    GLOBAL = "global"  # between nodes of a rack
    OPTICAL = "optical"  # between racks
    FREE = "free"  # wherever the layout wants it

    @property
    def leaves_node(self) -> bool:
        """Whether it runs between nodes: such cables are few."""
        return self in (LinkKind.GLOBAL, LinkKind.OPTICAL)


@dataclass(frozen=True, slots=True)
class Link:
    """One direction of one cable."""

    id: int
    src: int
    src_port: int
    dst: int
    dst_port: int
    kind: LinkKind


@dataclass(frozen=True, slots=True)
class Cable:
    """What is plugged in: two chips, a port at each."""

    a: int
    a_port: int
    b: int
    b_port: int
    kind: LinkKind


@dataclass(frozen=True, slots=True)
class Topology:
    """A wired set of chips.

    `links[i].id == i`. Raises TopologyError when a link leaves the graph, joins a chip to itself,
    has no way back over the same cable, or when two cables share a port; no chip may use a port
    number of `ports_per_chip` or above.
    """

    n_chips: int
    links: tuple[Link, ...]
    ports_per_chip: int
    _out: tuple[tuple[Link, ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.n_chips < 1:
            raise TopologyError(what="n_chips", wanted="at least 1", got=self.n_chips)
        out: list[list[Link]] = [[] for _ in range(self.n_chips)]
        used: set[tuple[int, int]] = set()
        for number, link in enumerate(self.links):
            self._check(number, link)
            if (link.src, link.src_port) in used:
                raise TopologyError(
                    what=f"chip {link.src} port {link.src_port}", wanted="one cable", got="two"
                )
            used.add((link.src, link.src_port))
            out[link.src].append(link)
        object.__setattr__(self, "_out", tuple(map(tuple, out)))

    def _check(self, number: int, link: Link) -> None:
        if link.id != number:
            raise TopologyError(what="link id", wanted=str(number), got=link.id)
        for chip, port in ((link.src, link.src_port), (link.dst, link.dst_port)):
            if not 0 <= chip < self.n_chips:
                wanted = f"a chip below {self.n_chips}"
                raise TopologyError(what=f"link {link.id}", wanted=wanted, got=chip)
            if not 0 <= port < self.ports_per_chip:
                wanted = f"a port below {self.ports_per_chip}"
                raise TopologyError(what=f"chip {chip}, link {link.id}", wanted=wanted, got=port)
        if link.src == link.dst:
            got = f"chip {link.src} to itself"
            raise TopologyError(what=f"link {link.id}", wanted="two chips", got=got)
        back = self.links[link.id ^ 1] if link.id ^ 1 < len(self.links) else None
        ends = (link.dst, link.dst_port, link.src, link.src_port)
        if back is None or (back.src, back.src_port, back.dst, back.dst_port) != ends:
            wanted = f"link {link.id ^ 1} back over the same cable"
            raise TopologyError(what=f"link {link.id}", wanted=wanted, got=back)

    def links_from(self, chip: int) -> tuple[Link, ...]:
        """Return the links that leave a chip, by id."""
        return self._out[chip]

    def links_between(self, src: int, dst: int) -> tuple[Link, ...]:
        """Return the parallel links from one chip straight to another, by id; may be empty."""
        return tuple(link for link in self._out[src] if link.dst == dst)

    def ports_used(self, chip: int) -> int:
        """Count the ports of a chip that have a cable."""
        return len(self._out[chip])

    @property
    def max_ports_used(self) -> int:
        """Ports with a cable on the busiest chip; 0 when nothing is wired."""
        return max(map(len, self._out))

    @property
    def n_cables(self) -> int:
        """Cables, each of them two links."""
        return len(self.links) // 2


def wire(n_chips: int, cables: Iterable[Cable], ports_per_chip: int) -> Topology:
    """Make the topology of these cables, in this order: cable c becomes links 2c and 2c+1."""
    links: list[Link] = []
    for c in cables:
        links.append(Link(len(links), c.a, c.a_port, c.b, c.b_port, c.kind))
        links.append(Link(len(links), c.b, c.b_port, c.a, c.a_port, c.kind))
    return Topology(n_chips, tuple(links), ports_per_chip)


def free_cabling(n_chips: int, pairs: Sequence[tuple[int, int]], max_ports: int) -> Topology:
    """Plug one cable per pair, in order, each end into the lowest free port of its chip.

    The same pair twice means two parallel cables. Raises PortsExhaustedError for the first chip
    with more cables than ports, TopologyError for a chip that does not exist.
    """
    wanted = [0] * n_chips
    cables = []
    for a, b in pairs:
        for chip in (a, b):
            if not 0 <= chip < n_chips:
                want = f"a chip below {n_chips}"
                raise TopologyError(what=f"cable {a}-{b}", wanted=want, got=chip)
        if a == b:
            raise TopologyError(what=f"cable {a}-{b}", wanted="two chips", got="one")
        cables.append(Cable(a, wanted[a], b, wanted[b], LinkKind.FREE))
        wanted[a] += 1
        wanted[b] += 1
    for chip, count in enumerate(wanted):
        if count > max_ports:
            raise PortsExhaustedError(chip=chip, cables=count, ports=max_ports)
    return wire(n_chips, cables, max_ports)


def shortest_path(
    topology: Topology, src: int, dst: int, allowed: AbstractSet[int] | None = None
) -> tuple[Link, ...]:
    """Return the links of the shortest path; empty when `src` is `dst`.

    Only chips in `allowed` (None: all) forward; the two ends need not be in it. Raises
    UnreachableError, or TopologyError for a chip that does not exist.
    """
    into = _search(topology, src, dst, allowed)
    if dst not in into and src != dst:
        raise UnreachableError(src=src, dst=dst, restricted=allowed is not None)
    return _walk(into, dst)


def paths_from(
    topology: Topology, src: int, allowed: AbstractSet[int] | None = None
) -> dict[int, tuple[Link, ...]]:
    """Return `shortest_path` to every chip that `src` reaches, itself left out, by chip number."""
    into = _search(topology, src, None, allowed)
    return {chip: _walk(into, chip) for chip in sorted(into)}


def _search(
    topology: Topology, src: int, dst: int | None, allowed: AbstractSet[int] | None
) -> dict[int, Link]:
    """Breadth first, links by id: the first link found into each chip, until `dst` has one."""
    for chip in (src, src if dst is None else dst):
        if not 0 <= chip < topology.n_chips:
            wanted = f"a chip below {topology.n_chips}"
            raise TopologyError(what="path", wanted=wanted, got=chip)
    into: dict[int, Link] = {}
    queue = deque([src])
    while queue and dst not in into:
        chip = queue.popleft()
        if chip != src and allowed is not None and chip not in allowed:
            continue
        for link in topology.links_from(chip):
            if link.dst != src and link.dst not in into:
                into[link.dst] = link
                queue.append(link.dst)
    return into


def _walk(into: dict[int, Link], dst: int) -> tuple[Link, ...]:
    path = []
    while (link := into.get(dst)) is not None:
        path.append(link)
        dst = link.src
    return tuple(reversed(path))
