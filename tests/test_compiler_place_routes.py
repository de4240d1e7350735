"""Trees: whoever wants a message gets it once, over the cables that are least in demand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.place.placement import place
from compiler.place.routes import Router
from interconnect.dragonfly import Dragonfly, linked_nodes, multi_rack
from interconnect.errors import UnreachableError
from interconnect.topology import Cable, LinkKind, Topology, free_cabling, wire

SHAPE = Dragonfly(chips_per_node=4, nodes_per_rack=3, local_ports=3, global_ports=2)


def router(topology: Topology, allowed: frozenset[int] | None = None) -> Router:
    everyone = frozenset(range(topology.n_chips)) if allowed is None else allowed
    return Router(topology, everyone, hop_cycles=700, message_cycles=100)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_trees_reach_everybody_once(data: st.DataObject) -> None:
    topology = multi_rack(SHAPE, 2)
    ways = router(topology)
    chips = st.integers(0, topology.n_chips - 1)
    for _ in range(3):
        source = data.draw(chips)
        targets = data.draw(st.sets(chips, min_size=1)) - {source}
        reached = [source]
        for link in ways.tree((source, tuple(sorted(targets)))):
            assert link.src in reached
            assert link.dst not in reached
            reached.append(link.dst)
        assert targets <= set(reached)
        if targets:
            assert reached[-1] in targets  # no way is longer than what it is for


def test_inside_a_node_everybody_is_reached_directly() -> None:
    ways = router(linked_nodes(SHAPE, 1))
    for source in range(4):
        tree = ways.tree((source, tuple(chip for chip in range(4) if chip != source)))
        assert {link.src for link in tree} == {source}


def test_messages_share_the_cables_between_nodes() -> None:
    topology = linked_nodes(SHAPE, 2)  # eight cables from node to node
    ways = router(topology)
    crossing = []
    for source in range(4):
        tree = ways.tree((source, (4, 5, 6, 7)))
        crossing += [link.id for link in tree if link.kind is LinkKind.GLOBAL]
    assert len(crossing) == len(set(crossing)) == 4


def test_a_longer_cable_counts() -> None:
    """Two ways of two hops: the one without a slow link is taken, whatever its number."""
    kinds = (LinkKind.OPTICAL, LinkKind.OPTICAL, LinkKind.GLOBAL, LinkKind.GLOBAL)
    ends = ((0, 0, 1, 0), (1, 1, 3, 0), (0, 1, 2, 0), (2, 1, 3, 1))
    cables = [Cable(*end, kind) for end, kind in zip(ends, kinds, strict=True)]
    ways = Router(
        wire(4, cables, 2), frozenset(range(4)), hop_cycles=700, message_cycles=100,
        farther_cycles={LinkKind.OPTICAL: 1},
    )  # fmt: skip
    assert [link.dst for link in ways.tree((0, (3,)))] == [2, 3]


def test_a_target_without_a_way() -> None:
    line = free_cabling(4, [(0, 1), (1, 2), (2, 3)], 2)
    assert [link.dst for link in router(line).tree((0, (3,)))] == [1, 2, 3]
    with pytest.raises(UnreachableError) as caught:
        router(line, frozenset({0, 3})).tree((0, (3,)))
    assert str(caught.value) == (
        "topology: chip 0 to chip 3: wanted a path, got none over the chips allowed to forward"
    )


@pytest.mark.parametrize("racks", [1, 2, 3, 5])
def test_places_follow_the_cables(racks: int) -> None:
    topology = multi_rack(SHAPE, racks)
    slots = place(topology, topology.n_chips)
    assert sorted(slots) == list(range(topology.n_chips))
    nodes = [slots[first] // 4 for first in range(0, len(slots), 4)]
    for number, (a, b) in enumerate(itertools.pairwise(nodes)):
        node = slots[4 * number : 4 * number + 4]
        last = [
            chip for chip in node
            if any(link.dst // 4 == b for link in topology.links_from(chip))
        ]  # fmt: skip
        assert last, f"node {a} has no cable to node {b}"
        assert racks > 1 or node[-1] in last


def test_where_no_node_is_left_to_go_on_to() -> None:
    """A star: from a leaf the walk goes on with a node that it has no cable to."""
    star = wire(4, [Cable(0, n, n + 1, 0, LinkKind.GLOBAL) for n in range(3)], 3)
    assert place(star, 4) == (0, 1, 2, 3)


def test_free_cables_leave_chips_where_they_are() -> None:
    assert place(free_cabling(3, [(0, 1)], 2), 3) == (0, 1, 2)
