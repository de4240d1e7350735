"""Wiring: the published counts, port limits, and paths against a brute force."""

from __future__ import annotations

import itertools
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interconnect.dragonfly import Dragonfly, card, linked_nodes, multi_rack, node, rack
from interconnect.errors import PortsExhaustedError, TopologyError, UnreachableError
from interconnect.topology import (
    Link,
    LinkKind,
    Topology,
    free_cabling,
    paths_from,
    shortest_path,
)

GROQ = Dragonfly(chips_per_node=8, nodes_per_rack=9, local_ports=7, global_ports=4)


def pair_counts(topology: Topology, chips_per_group: int) -> Counter[tuple[int, int]]:
    """Count the cables between every two groups of chips."""
    counts: Counter[tuple[int, int]] = Counter()
    for link in topology.links[::2]:
        a, b = sorted((link.src // chips_per_group, link.dst // chips_per_group))
        if a != b:
            counts[a, b] += 1
    return counts


def test_card() -> None:
    assert card(GROQ).n_chips == 1
    assert card(GROQ).links == ()


def test_node_has_28_cables() -> None:
    topology = node(GROQ)
    assert (topology.n_chips, topology.n_cables) == (8, 28)
    assert all(topology.links_between(a, b) for a, b in itertools.permutations(range(8), 2))
    assert {topology.ports_used(chip) for chip in range(8)} == {7}


def test_rack_has_144_cables_between_nodes() -> None:
    topology = rack(GROQ)
    assert topology.n_chips == 72
    assert Counter(link.kind for link in topology.links[::2]) == {
        LinkKind.LOCAL: 9 * 28,
        LinkKind.GLOBAL: 144,
    }
    assert set(pair_counts(topology, 8).values()) == {4}
    assert len(pair_counts(topology, 8)) == 36
    assert {topology.ports_used(chip) for chip in range(72)} == {11}


def test_cables_between_racks_are_optical() -> None:
    for link in multi_rack(GROQ, 2).links:
        node, rack_ = (link.src // n == link.dst // n for n in (8, 72))
        wanted = LinkKind.LOCAL if node else LinkKind.GLOBAL if rack_ else LinkKind.OPTICAL
        assert link.kind is wanted
        assert link.kind.leaves_node is not node


@pytest.mark.parametrize("n_nodes", [2, 5, 9, 10, 12, 17, 18, 27, 33])
def test_every_node_pair_linked(n_nodes: int) -> None:
    topology = linked_nodes(GROQ, n_nodes)
    counts = pair_counts(topology, 8)
    assert len(counts) == n_nodes * (n_nodes - 1) // 2
    least = 32 // (n_nodes - 1)
    assert set(counts.values()) <= {least, least + 1}
    assert {topology.ports_used(chip) for chip in range(topology.n_chips)} == {11}  # none is free


def test_two_racks_have_cables_for_what_their_chips_send() -> None:
    """ISCA 2022, Fig. 2: about 50 GB/s a chip up to 264 chips, half of it to the other half."""
    across = [link for link in multi_rack(GROQ, 2).links[::2] if link.src // 72 != link.dst // 72]
    assert len(across) * 12.5 / 72 >= 25


@pytest.mark.parametrize(("chips", "n_nodes", "free"), [(2, 3, 0), (3, 4, 0), (3, 3, 3), (1, 3, 3)])
def test_ports_stay_free_only_where_both_numbers_are_odd(
    chips: int, n_nodes: int, free: int
) -> None:
    ports = 5
    shape = Dragonfly(
        chips_per_node=chips, nodes_per_rack=1, local_ports=max(1, chips - 1), global_ports=ports
    )
    topology = linked_nodes(shape, n_nodes)
    links = sum(link.kind.leaves_node for link in topology.links)
    assert n_nodes * shape.node_pool - links == free


def test_264_chips_is_the_most_with_every_pair_linked() -> None:
    assert linked_nodes(GROQ, GROQ.max_linked_nodes).n_chips == 264
    with pytest.raises(TopologyError) as caught:
        linked_nodes(GROQ, 34)
    assert str(caught.value) == "topology: linked nodes: wanted 1 to 33 nodes, got 34"


@pytest.mark.parametrize("n_racks", [4, 8, 9])
def test_many_racks(n_racks: int) -> None:
    topology = multi_rack(GROQ, n_racks)
    nodes, racks = pair_counts(topology, 8), pair_counts(topology, 72)
    inside = [count for (a, b), count in nodes.items() if a // 9 == b // 9]
    assert inside == [2] * (36 * n_racks)
    assert set(racks.values()) <= {144 // (n_racks - 1), 144 // (n_racks - 1) + 1}
    assert len(racks) == n_racks * (n_racks - 1) // 2
    assert {topology.ports_used(chip) for chip in range(topology.n_chips)} == {11}


def test_145_racks_is_the_most() -> None:
    assert GROQ.max_racks == 145
    assert GROQ.max_racks * GROQ.chips_per_rack == 10_440
    topology = multi_rack(GROQ, 145)
    assert set(pair_counts(topology, 72).values()) == {1}
    assert max(map(len, paths_from(topology, 0).values())) <= 7
    with pytest.raises(TopologyError) as caught:
        multi_rack(GROQ, 146)
    assert str(caught.value) == "topology: racks: wanted 1 to 145, got 146"


def test_shape_is_checked() -> None:
    with pytest.raises(TopologyError) as caught:
        Dragonfly(chips_per_node=0, nodes_per_rack=9, local_ports=7, global_ports=4)
    assert str(caught.value) == "topology: chips_per_node: wanted at least 1, got 0"
    with pytest.raises(TopologyError) as caught:
        Dragonfly(chips_per_node=8, nodes_per_rack=9, local_ports=6, global_ports=4)
    assert str(caught.value) == (
        "topology: local_ports: wanted 7, one to every other chip of a node, got 6"
    )
    with pytest.raises(TopologyError) as caught:
        Dragonfly(chips_per_node=1, nodes_per_rack=3, local_ports=1, global_ports=1)
    assert str(caught.value) == (
        "topology: nodes_per_rack: wanted at most 2, so that every pair can be linked, got 3"
    )


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.integers(1, 40))
@settings(deadline=None)
def test_any_shape_keeps_to_its_ports(chips: int, nodes: int, ports: int, racks: int) -> None:
    shape = Dragonfly(
        chips_per_node=chips,
        nodes_per_rack=min(nodes, chips * ports + 1),
        local_ports=max(1, chips - 1),
        global_ports=ports,
    )
    topology = multi_rack(shape, min(racks, shape.max_racks))  # Topology checks every port
    if topology.n_chips > 1:
        assert len(paths_from(topology, 0)) == topology.n_chips - 1


def test_free_cabling_takes_ports_in_order() -> None:
    topology = free_cabling(3, [(0, 2), (0, 1), (2, 0)], 11)
    assert topology.links[:4] == (
        Link(0, 0, 0, 2, 0, LinkKind.FREE),
        Link(1, 2, 0, 0, 0, LinkKind.FREE),
        Link(2, 0, 1, 1, 0, LinkKind.FREE),
        Link(3, 1, 0, 0, 1, LinkKind.FREE),
    )
    assert [link.id for link in topology.links_between(0, 2)] == [0, 5]
    assert [link.id for link in topology.links_from(0)] == [0, 2, 5]
    assert topology.max_ports_used == 3
    assert free_cabling(1, [], 11).max_ports_used == 0


def test_free_cabling_refuses() -> None:
    with pytest.raises(PortsExhaustedError) as caught:
        free_cabling(4, [(1, 0), (1, 2), (1, 3)], 2)
    assert str(caught.value) == "topology: chip 1: wanted at most 2 ports, got 3 cables"
    assert (caught.value.chip, caught.value.cables, caught.value.ports) == (1, 3, 2)
    with pytest.raises(TopologyError) as wrong:
        free_cabling(2, [(0, 2)], 2)
    assert str(wrong.value) == "topology: cable 0-2: wanted a chip below 2, got 2"
    with pytest.raises(TopologyError) as wrong:
        free_cabling(2, [(1, 1)], 2)
    assert str(wrong.value) == "topology: cable 1-1: wanted two chips, got one"


def link(number: int, src: int, src_port: int, dst: int, dst_port: int) -> Link:
    return Link(number, src, src_port, dst, dst_port, LinkKind.FREE)


@pytest.mark.parametrize(
    ("n_chips", "links", "text"),
    [
        (0, [], "n_chips: wanted at least 1, got 0"),
        (2, [link(5, 0, 0, 1, 0)], "link id: wanted 0, got 5"),
        (2, [link(0, 0, 0, 2, 0)], "link 0: wanted a chip below 2, got 2"),
        (2, [link(0, 0, 4, 1, 0)], "chip 0, link 0: wanted a port below 4, got 4"),
        (2, [link(0, 1, 0, 1, 1)], "link 0: wanted two chips, got chip 1 to itself"),
        (
            2,
            [link(0, 0, 0, 1, 0)],
            "link 0: wanted link 1 back over the same cable, got None",
        ),
        (
            3,
            [
                *(link(0, 0, 0, 1, 0), link(1, 1, 0, 0, 0)),
                *(link(2, 0, 0, 2, 0), link(3, 2, 0, 0, 0)),
            ],
            "chip 0 port 0: wanted one cable, got two",
        ),
    ],
)
def test_topology_is_checked(n_chips: int, links: list[Link], text: str) -> None:
    with pytest.raises(TopologyError) as caught:
        Topology(n_chips, tuple(links), 4)
    assert str(caught.value) == f"topology: {text}"


def test_path_errors() -> None:
    topology = free_cabling(4, [(0, 1), (1, 2)], 2)
    with pytest.raises(UnreachableError) as caught:
        shortest_path(topology, 0, 3)
    assert str(caught.value) == "topology: chip 0 to chip 3: wanted a path, got none"
    with pytest.raises(UnreachableError) as caught:
        shortest_path(topology, 0, 2, allowed=set())
    assert str(caught.value) == (
        "topology: chip 0 to chip 2: wanted a path, got none over the chips allowed to forward"
    )
    with pytest.raises(TopologyError) as wrong:
        shortest_path(topology, 0, 4)
    assert str(wrong.value) == "topology: path: wanted a chip below 4, got 4"


def test_path_to_itself_is_empty() -> None:
    assert shortest_path(rack(GROQ), 3, 3) == ()


def all_paths(topology: Topology, src: int, dst: int, allowed: set[int]) -> list[list[int]]:
    """List the link ids of every simple path: the definition that the search must meet."""
    found = []

    def walk(chip: int, seen: set[int], ids: list[int]) -> None:
        if chip == dst:
            found.append(ids)
            return
        if chip != src and chip not in allowed:
            return
        for out in topology.links:
            if out.src == chip and out.dst not in seen:
                walk(out.dst, seen | {out.dst}, [*ids, out.id])

    walk(src, {src}, [])
    return found


@given(st.data())
@settings(deadline=None)
def test_shortest_path_against_brute_force(data: st.DataObject) -> None:
    n_chips = data.draw(st.integers(2, 6))
    chips = st.integers(0, n_chips - 1)
    pairs = data.draw(st.lists(st.tuples(chips, chips).filter(lambda p: p[0] != p[1]), max_size=9))
    topology = free_cabling(n_chips, pairs, 20)
    allowed = data.draw(st.sets(chips))
    src, dst = data.draw(chips), data.draw(chips)
    paths = all_paths(topology, src, dst, allowed)
    if not paths:
        assert dst not in paths_from(topology, src, allowed)
        with pytest.raises(UnreachableError):
            shortest_path(topology, src, dst, allowed)
        return
    best = min(paths, key=lambda ids: (len(ids), ids))
    path = shortest_path(topology, src, dst, allowed)
    assert [link.id for link in path] == best
    if src != dst:
        assert paths_from(topology, src, allowed)[dst] == path


def test_paths_of_600_chips_are_quick() -> None:
    topology = multi_rack(GROQ, 9)
    begin = time.perf_counter()
    shortest_path(topology, 0, topology.n_chips - 1)
    assert time.perf_counter() - begin < 0.25  # a few ms; the margin is for a busy machine
