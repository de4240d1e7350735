"""Which physical slot each logical chip sits in, where the cables are laid already.

Logical chips fill nodes in order. The nodes are walked so that each has cables to the one before,
many if possible, and in each node the chips with cables from the node before come first and those
with cables to the next node last: there the groups begin and end. Where layouts lay their own
cables, slots are as good as each other.
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
        if link.kind is LinkKind.GLOBAL:
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
    """Chips joined by local cables: the nodes, and the node of each chip."""
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
    """The nodes that hold so many chips, in order: of two walks the one that has more cables."""
    return max(
        (_steps(cables, nodes, chips, eager) for eager in (True, False)),
        key=lambda walk: _worth(cables, walk),
    )


def _worth(cables: _Cables, walk: Sequence[int]) -> tuple[int, int]:
    """Steps along a cable, and all cables along the steps."""
    along = [len(cables[a][b]) for a, b in pairwise(walk)]
    return sum(map(bool, along)), sum(along)


def _steps(cables: _Cables, nodes: Sequence[Sequence[int]], chips: int, eager: bool) -> list[int]:
    """Go next to the linked node that has the fewest others left to go on to (Warnsdorff).

    `eager`: first of all to the one with the most cables. Where none is left, the walk goes on
    with the first node that it has not seen.
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
    """A node's chips: first those that the last chips of the node before have cables to."""
    place_of = {slot: place for place, slot in enumerate(placed)}
    peer: dict[int, int] = {}
    for there, here in before:
        peer[here] = max(peer.get(here, 0), 1 + place_of[there])

    def key(chip: int) -> tuple[int, int, int]:
        return (chip in out) - (chip in peer), -peer.get(chip, 0), chip

    return sorted(node, key=key)
