"""Rows about whole machines: paths, bandwidth and capacity by size, links and clocks that stray.

Counted on the topology that schedules are routed on, or played on the clocks of groqrack-drift, the
machine whose links vary as measured. Sections are of ISCA 2022; SR is the GroqRack data sheet.
"""

from __future__ import annotations

from collections.abc import Iterable

from interconnect.topology import Topology
from rack.machines.hardware import Hardware
from rack.machines.profile import load_hardware
from rack.reports.accuracy import Published, Row
from rack.reports.exchange import exchange_cycles
from rack.reports.link_table import measured_links, started_epochs, sync_paths

LARGEST, LINKED = 10_440, 264  # chips of the largest system, and of one with all nodes linked
ACTIVE = 64  # chips of a rack with a spare node
_SHAPE = ("system.chips_per_node", "system.cards_per_rack", "system.*_ports")
_WIRE = ("link.lanes", "link.line_rate_bps", "link.encoding_*")
_FLIGHT = (
    *_WIRE,
    "link.overhead_bytes",
    "link.*latency_ns",
    "chip.clock_hz",
    "chip.forward_cycles",
)


def _rows(
    part: str,
    figures: Iterable[tuple[str, str, Published, str, str, float, tuple[str, ...]]],
    on: Hardware | None = None,
) -> list[Row]:
    return [
        Row(
            part=part, figure=figure, unit=unit, published=published, grade=grade, source=source,
            ours=ours, constants=constants, on=on,
        )
        for figure, unit, published, grade, source, ours, constants in figures
    ]  # fmt: skip


def worst_hops(topology: Topology, sources: int) -> int:
    """Return the hops of the longest way from the first chips of a machine; racks look alike."""
    near = [[link.dst for link in topology.links_from(chip)] for chip in range(topology.n_chips)]
    return max(_depth(near, chip) for chip in range(sources))


def _depth(near: list[list[int]], source: int) -> int:
    """Return the hops to the chip that is farthest from one, breadth first."""
    seen, front, hops = {source}, [source], -1
    while front:
        hops += 1
        front = list({there for chip in front for there in near[chip]} - seen)
        seen.update(front)
    return hops


def path_rows(hardware: Hardware) -> list[Row]:
    """The longest ways that the cabling has, and how long a vector takes on them."""
    rack = hardware.chips_per_rack
    inside, across = (
        worst_hops(hardware.topology(chips), rack) for chips in (rack, LARGEST)
    )  # fmt: skip
    longest = exchange_cycles(hardware, [tuple(range(across + 1))], 1)
    return _rows("link", (
        ("longest way in a rack", "hops", 3, "A", "SR: local, global, local", inside, _SHAPE),
        ("longest way in 10,440 chips", "hops", (1, 5), "A", "2.2: at most five", across, _SHAPE),
        ("end to end on that way", "us", (0, 3), "A", "abstract and 2.2",
         longest * 1e6 / hardware.chip.clock_hz, (*_FLIGHT, *_SHAPE)),
    ))  # fmt: skip


def out_of_node(hardware: Hardware, chips: int) -> float:
    """Return GB/s that a chip of a machine has out of its node, from the cables of the first."""
    topology, node = hardware.topology(chips), hardware.chips_per_node
    cables = sum(
        link.dst >= node for chip in range(node) for link in topology.links_from(chip)
    )  # fmt: skip
    return _gigabytes(hardware) * cables / node


def across_halves(hardware: Hardware, chips: int) -> float:
    """Return GB/s that a chip has into the other half of a machine's racks, each way."""
    topology = hardware.topology(chips)
    half = topology.n_chips // hardware.chips_per_rack // 2 * hardware.chips_per_rack
    cables = sum(
        link.dst >= half for chip in range(half) for link in topology.links_from(chip)
    )  # fmt: skip
    return _gigabytes(hardware) * cables / half


def _gigabytes(hardware: Hardware) -> float:
    return float(hardware.link_spec(hardware.ports_per_chip).payload_bps) / 8e9


def bandwidth_rows(hardware: Hardware) -> list[Row]:
    """Bandwidth of a chip by the size of the machine (Fig. 2)."""
    keys, rack = (*_WIRE, *_SHAPE), hardware.chips_per_rack
    small = (
        (f"bandwidth of a chip out of its node, {chips} chips", "GB/s", 50.0, "A", "Fig. 2, 2.2",
         out_of_node(hardware, chips), keys)
        for chips in (rack, 2 * rack, 3 * rack)
    )  # fmt: skip
    large = (
        (f"bandwidth of a chip into the other half, {chips:,} chips", "GB/s", 14.0, "A",
         "Fig. 2: about 14 beyond 264 chips", across_halves(hardware, chips), keys)
        for chips in (8 * rack, LARGEST)
    )  # fmt: skip
    return _rows("link", (*small, *large))


def machine_rows(hardware: Hardware) -> list[Row]:
    """What racks and systems hold and do."""
    chip, rack = hardware.chip, hardware.topology(hardware.chips_per_rack)
    tops = chip.mxm_planes * chip.mxm_rows * chip.mxm_columns * 2 * chip.clock_hz
    sram, mxm = ("chip.sram_bytes",), ("chip.clock_hz", "chip.mxm_*")
    ports = sum(rack.ports_used(one) for one in range(ACTIVE))
    return _rows("system", (
        ("SRAM of 264 chips", "GiB", 56, "A", "2.2", LINKED * chip.sram_bytes / 2**30, sram),
        ("SRAM of 10,440 chips", "TB", (2, None), "A", "2.2: more than 2 TB",
         LARGEST * chip.sram_bytes / 1e12, sram),
        ("SRAM of a rack, 64 chips active", "GB", 14, "A", "SR", ACTIVE * chip.sram_bytes / 1e9,
         sram),
        ("peak of a rack, int8, 64 chips active", "POPS", 48, "A", "SR", ACTIVE * tops / 1e15, mxm),
        ("bandwidth out of the nodes of a rack, 64 chips active", "TB/s", 3.2, "A",
         "SR: bisection", ACTIVE * out_of_node(hardware, hardware.chips_per_rack) / 1e3,
         (*_WIRE, *_SHAPE)),
        ("connectors of a rack, 64 chips active", "ports", 704, "A", "SR", ports, _SHAPE),
    ))  # fmt: skip


def clock_rows(hardware: Hardware) -> list[Row]:
    """The table of seven links, and the start of a program, played on clocks that stray."""
    on = hardware if hardware.clock.strays else load_hardware("groqrack-drift")
    links = measured_links(on)
    keys = ("link.latency_ns", "clock.*", "chip.clock_hz")
    table = "Table 2: 100,000 measurements each, inside a node"

    def mean(name: str) -> float:
        return float(sum(getattr(link, name) for link in links)) / len(links)

    spread = max(link.mean for link in links) - min(link.mean for link in links)
    racks = on.chips_per_rack
    wanted = max(
        sum(hop.latency_cycles // on.clock.hac_period_cycles + 1 for hop in path)
        for path in sync_paths(on, racks)
    )
    figures = (
        ("latency of seven links, measured: least", "cycles", (209, 211), "A", table,
         mean("least"), keys),
        ("latency of seven links, measured: mean", "cycles", (216.27, 217.35), "A", table,
         mean("mean"), keys),
        ("latency of seven links, measured: most", "cycles", (225, 228), "A", table,
         mean("most"), keys),
        ("latency of seven links, measured: standard deviation", "cycles", (2.63, 2.93), "A",
         table, mean("deviation"), keys),
        ("latency of seven links, measured: largest mean less the smallest", "cycles", 1.08, "A",
         table, spread, keys),
        ("start of a program on a rack", "epochs", wanted, "A",
         "3.2: (floor(latency / 252) + 1) epochs a level", started_epochs(on, racks),
         (*keys, *_SHAPE)),
    )  # fmt: skip
    return _rows("clocks", figures, on)
