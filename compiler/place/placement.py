"""Place logical chips in physical slots when the cables are fixed.

Logical chips fill nodes in order. The walk over the nodes prefers a next node with cables to the
one before, many if possible. In each node, chips with cables from the node before come first and
chips with cables to the next node last, because groups begin and end there. If a layout lays its
own cables, all slots are equally good.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from interconnect.topology import LinkKind, Topology

_Cables = dict[int, dict[int, list[tuple[int, int]]]]
"""node -> neighbour -> (chip, chip at the neighbour) of every cable between them."""


def place(topology: Topology, chips: int) -> tuple[int, ...]:
    """Return the slots of logical chips 0 to `chips` - 1."""
    nodes, node_of = _nodes(topology)
    cables: _Cables = defaultdict(lambda: defaultdict(list))
    for link in topology.links:
        if link.kind.leaves_node:
            cables[node_of[link.src]][node_of[link.dst]].append((link.src, link.dst))
    if not cables:
        return tuple(range(chips))
    walk = _walk(cables, nodes, chips)
    slots: list[int] = []
    for number, node in enumerate(walk):
        following = cables[node][walk[number + 1]] if number + 1 < len(walk) else ()
        before = cables[walk[number - 1]][node] if number else ()
        slots += _chips(nodes[node], slots, before, [chip for chip, _ in following])
    return tuple(slots[:chips])


def _nodes(topology: Topology) -> tuple[list[list[int]], dict[int, int]]:
    """Return the nodes (chips joined by local cables), and the node of each chip."""
    nodes: list[list[int]] = []
    node_of: dict[int, int] = {}
    for first in range(topology.n_chips):
        if first in node_of:
            continue
        node_of[first], chips = len(nodes), [first]
        for chip in chips:
            for link in topology.links_from(chip):
                if link.kind is LinkKind.LOCAL and link.dst not in node_of:
                    node_of[link.dst] = len(nodes)
                    chips.append(link.dst)
        nodes.append(sorted(chips))
    return nodes, node_of


def _walk(cables: _Cables, nodes: Sequence[Sequence[int]], chips: int) -> list[int]:
    """Return nodes, in order, that hold so many chips: the walk with more cables of two."""
    return max(
        (_steps(cables, nodes, chips, eager) for eager in (True, False)),
        key=lambda walk: _worth(cables, walk),
    )


def _worth(cables: _Cables, walk: Sequence[int]) -> tuple[int, int]:
    """Return the count of steps that have a cable, and of all cables along the steps."""
    along = [len(cables[a][b]) for a, b in pairwise(walk)]
    return sum(map(bool, along)), sum(along)


def _steps(cables: _Cables, nodes: Sequence[Sequence[int]], chips: int, eager: bool) -> list[int]:
    """Walk by Warnsdorff's rule: go next to the linked node with the fewest ways onward.

    `eager`: prefer the node with the most cables. If no linked node is left, the walk goes on with
    the first node that it has not seen.
    """
    walk, left = [0], set(range(1, len(nodes)))
    held = len(nodes[0])

    def rank(node: int) -> tuple[int, int, int]:
        onward = sum(other in left for other in cables[node])
        return -len(cables[walk[-1]][node]) * eager, onward, node

    while held < chips:
        linked = [node for node in cables[walk[-1]] if node in left]
        walk.append(min(linked, key=rank) if linked else min(left))
        left.remove(walk[-1])
        held += len(nodes[walk[-1]])
    return walk


def _chips(
    node: Sequence[int], placed: Sequence[int], before: Sequence[tuple[int, int]],
    out: Sequence[int],
) -> list[int]:  # fmt: skip
    """Sort a node's chips: first those with cables from the last chips of the node before."""
    place_of = {slot: place for place, slot in enumerate(placed)}
    peer: dict[int, int] = {}
    for there, here in before:
        peer[here] = max(peer.get(here, 0), 1 + place_of[there])

    def key(chip: int) -> tuple[int, int, int]:
        return (chip in out) - (chip in peer), -peer.get(chip, 0), chip

    return sorted(node, key=key)
