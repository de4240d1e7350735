"""Route every message to its targets: a tree of links, each link used once.

A message goes to one chip or to several. It leaves a node as rarely as possible, because cables
between nodes are few. Of such ways it takes the fastest, by hops and by the messages that already
wait for each link. A target on the way passes on what it receives. Any other chip needs a slot to
hold the message.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from interconnect.errors import UnreachableError
from interconnect.topology import Link, LinkKind, Topology

Flow = tuple[int, tuple[int, ...]]
"""(source, targets) of a message."""


@dataclass(slots=True)
class Router:
    """Routes messages that travel at the same time, one after another.

    Only chips in `allowed` pass messages on. `hop_cycles`: from one chip's departure to the next
    one's, over a link of a node; `farther_cycles`: what other kinds of link add to that;
    `message_cycles`: how long a message occupies a link.
    """

    topology: Topology
    allowed: AbstractSet[int]
    hop_cycles: int
    message_cycles: int
    farther_cycles: Mapping[LinkKind, int] = field(default_factory=dict)
    _load: dict[int, int] = field(default_factory=dict)  # link -> messages

    def tree(self, flow: Flow) -> tuple[Link, ...]:
        """Return the links of a message's tree, nearest to the source first.

        Raises UnreachableError if a target cannot be reached.
        """
        search = _Search(self, *flow)
        search.run()
        for link in search.tree:
            self._load[link.id] = self._load.get(link.id, 0) + 1
        return tuple(search.tree)

    def waiting(self, link: Link) -> int:
        """Return the cycles for which other messages occupy a link."""
        return self._load.get(link.id, 0) * self.message_cycles


class _Search:
    """One message's tree, grown to the next target until it has all."""

    def __init__(self, router: Router, source: int, targets: tuple[int, ...]) -> None:
        self.router, self.source, self.targets = router, source, frozenset(targets)
        self.tree: list[Link] = []
        self._joined = {source}
        # chip -> (cables between nodes that the tree lacks, cycles until the message is there)
        self.best: dict[int, tuple[int, int]] = {source: (0, 0)}
        self._into: dict[int, Link] = {}
        self._heap = [(0, 0, -1, source)]

    def run(self) -> None:
        missing = set(self.targets)
        while missing:
            if not self._heap:
                raise UnreachableError(src=self.source, dst=min(missing), restricted=True)
            crossings, cycles, _, chip = heapq.heappop(self._heap)
            if (crossings, cycles) > self.best[chip]:
                continue
            if chip in missing:
                missing -= self._join(chip)
            elif chip == self.source or chip in self.router.allowed:
                self._relax(chip)

    def _join(self, target: int) -> set[int]:
        """Add the way to a target to the tree; return the chips on it."""
        way = []
        chip = target
        while chip not in self._joined:
            way.append(self._into[chip])
            chip = way[-1].src
        for link in reversed(way):
            self.tree.append(link)
            self._joined.add(link.dst)
            cycles = self.best[link.dst][1]
            self.best[link.dst] = (0, cycles)
            heapq.heappush(self._heap, (0, cycles, link.id, link.dst))
        return {link.dst for link in way}

    def _relax(self, chip: int) -> None:
        crossings, cycles = self.best[chip]
        for link in self.router.topology.links_from(chip):
            if link.dst in self._joined:
                continue
            new = (crossings + link.kind.leaves_node, cycles + self._cycles(link))
            if link.dst not in self.best or new < self.best[link.dst]:
                self.best[link.dst] = new
                self._into[link.dst] = link
                heapq.heappush(self._heap, (*new, link.id, link.dst))

    def _cycles(self, link: Link) -> int:
        """Return the cost of a hop in cycles, with a message's time more for a mere forwarder."""
        aside = 0 if link.dst in self.targets else self.router.message_cycles
        hop = self.router.hop_cycles + self.router.farther_cycles.get(link.kind, 0)
        return hop + self.router.waiting(link) + aside
