"""Cables and routes: every pair that talks has a way over links that exist and ports that are."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from schedules import machine

from compiler.errors import LayoutError
from compiler.ir import LinkUse
from compiler.model.graph import build_graph
from compiler.model.presets import PRESETS
from compiler.place.layout import parse_layout
from compiler.place.network import Network, build_network, flows_between
from compiler.place.partition import Partition, partition

LAYOUTS = ["1x1", "2x2+1", "3x4+3", "1x13", "2x9", "1x18", "3x8+8"]


def network(layout: str, hardware: str = "lesson") -> tuple[Partition, Network]:
    split = partition(build_graph(PRESETS["tiny"]), parse_layout(layout))
    return split, build_network(split, machine(hardware))


@pytest.mark.parametrize("hardware", ["lesson", "groqrack"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_message_has_a_tree(layout: str, hardware: str) -> None:
    split, net = network(layout, hardware)
    host = split.layout.chips
    assert [link.id for link in net.links] == list(range(len(net.links)))
    assert len({link.name for link in net.links}) == len(net.links)
    layers = [(group, group) for group in split.groups if len(group.layers)]
    for before, after in (*layers, *itertools.pairwise(split.groups)):
        for source, targets in flows_between(before, after):
            reached = [source]
            for link in (net.links[number] for number in net.routes[source, targets]):
                assert link.src in reached  # what has come can be passed on
                assert link.dst not in reached  # once
                assert not link.is_host
                reached.append(link.dst)
            assert set(targets) <= set(reached)
    for chip in split.groups[0].chips:
        assert len(net.routes[host, (chip,)]) == 1
    for chip in split.groups[-1].chips:
        assert net.links[net.routes[chip, (host,)][0]].name == f"PCIe {chip}->host"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_chip_has_more_cables_than_ports(layout: str) -> None:
    _, net = network(layout)
    chip_links = [link for link in net.links if not link.is_host]
    cables = Counter(link.src for link in chip_links)
    assert max(cables.values(), default=0) <= machine("lesson").ports_per_chip
    assert net.ports_in_use <= machine("lesson").ports_per_chip
    assert net.ports_in_use >= max(cables.values(), default=0)


def test_forwarders_are_named_where_ports_are_short() -> None:
    """They pass on what they do not want; in an exchange everybody wants everything."""
    net = network("2x4+1", "groqrack")[1]  # the head's chip is on a node of its own
    forwarders = net.forwarders()
    assert forwarders
    for chip, flows in forwarders.items():
        for source, targets in flows:
            route = [net.links[link] for link in net.routes[source, targets]]
            assert chip in {link.src for link in route} & {link.dst for link in route}
            assert chip not in (source, *targets)
    assert network("1x13")[1].forwarders() == {}


def test_a_message_leaves_its_node_once() -> None:
    split, net = network("1x16", "groqrack")
    for flow in flows_between(split.groups[0], split.groups[0]):
        links = [net.links[number] for number in net.routes[flow]]
        nodes = [(net.binding[link.src] // 8, net.binding[link.dst] // 8) for link in links]
        assert sum(a != b for a, b in nodes) == 1
    crossing = Counter(
        link.id for route in net.routes.values() for link in (net.links[n] for n in route)
        if not link.is_host and net.binding[link.src] // 8 != net.binding[link.dst] // 8
    )  # fmt: skip
    assert sorted(crossing.values()) == [2] * 8  # over all four cables of two nodes, both ways


def test_groups_begin_and_end_where_the_cables_are() -> None:
    """The last group of a node and the first of the next have direct links."""
    split, net = network("2x4+4", "groqrack")
    assert net.binding == (4, 5, 6, 7, 0, 1, 2, 3, 15, 14, 13, 12)
    out = [net.links[number] for flow in flows_between(split.groups[1], split.groups[2])
           for number in net.routes[flow]]  # fmt: skip
    assert {(link.src, link.dst) for link in out if link.src in split.groups[1].chips} == {
        (4, 11), (5, 10), (6, 9), (7, 8)
    }  # fmt: skip


def test_slots_follow_the_ports_in_use() -> None:
    """The lesson's chip shares its rate over the ports that the layout cables."""
    few, many = network("1x2")[1], network("1x12")[1]
    slot = {net.ports_in_use: net.links[0].slot_cycles for net in (few, many)}
    assert slot[1] < slot[11]
    spec = machine("lesson").link_spec(11)
    assert slot[11] == spec.slot_cycles(machine("lesson").chip.clock_hz)
    assert {link.latency_cycles for link in many.links if not link.is_host} == {216}


def test_a_binding_moves_chips_to_other_slots() -> None:
    split = partition(build_graph(PRESETS["tiny"]), parse_layout("1x3"))
    net = build_network(split, machine("groqrack"), (5, 0, 7))
    plain = build_network(split, machine("groqrack"))
    assert net.binding == (5, 0, 7)
    assert plain.binding == (0, 1, 2)
    pairs = [sorted((link.src, link.dst) for link in n.links) for n in (net, plain)]
    assert pairs[0] == pairs[1]
    assert {link.name for link in net.links} != {link.name for link in plain.links}


@pytest.mark.parametrize(
    ("binding", "text"),
    [
        ((0, 1), "got 2 in a list of 2"),
        ((0, 1, 1), "got 2 in a list of 3"),
        ((0, 1, -1), "got 3 in a list of 3"),
    ],
)
def test_a_binding_that_is_none(binding: tuple[int, ...], text: str) -> None:
    split = partition(build_graph(PRESETS["tiny"]), parse_layout("1x3"))
    with pytest.raises(LayoutError) as caught:
        build_network(split, machine("lesson"), binding)
    assert str(caught.value) == f"binding: wanted 3 different physical slots, {text}"


def test_no_way_between_nodes_that_hold_too_little() -> None:
    split = partition(build_graph(PRESETS["tiny"]), parse_layout("1x1+9"))
    assert build_network(split, machine("groqrack")).binding[8:] == (15, 14)  # with cables
    with pytest.raises(LayoutError) as caught:
        build_network(split, machine("groqrack"), range(10))
    assert str(caught.value) == (
        "layout 1x1+9: topology: chip 0 to chip 8: wanted a path, got none over the chips allowed "
        "to forward"
    )


def test_more_stages_cables_than_ports() -> None:
    with pytest.raises(LayoutError) as caught:
        network("1x1+12")
    assert str(caught.value) == (
        "layout 1x1+12: topology: chip 0: wanted at most 11 ports, got 12 cables"
    )


def test_a_link_as_plain_data() -> None:
    link = network("2x2+1")[1].links[0]
    assert LinkUse.from_list(link.to_list()) == link
