"""Clocks and links of a machine, played: how its links are measured, how a program starts on it.

Measuring (ISCA 2022, 3.1 and Table 2): a chip sends its counter (HAC) to its neighbour, which
reflects it at its own next clock edge; what the counter has gone on by when it is back, modulo its
period, is twice the latency. Whole periods are known from the kind of cable.

Starting (ISCA 2022, 3.2): the root starts at an epoch and tells its children, who start at the next
epoch of their own counters, and so on down the tree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from interconnect.clock import MICRO, ChipClock, ClockSpec, Jitter, SyncHop, SyncPath, build_clocks
from interconnect.topology import Link, LinkKind, paths_from
from rack.errors import MachineError
from rack.machines.hardware import Hardware

MEASURED = 100_000  # times, as published


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A link's latency in cycles, as measured often."""

    least: float
    mean: float
    most: float
    deviation: float


def _straying(hardware: Hardware) -> ClockSpec:
    if not hardware.clock.strays:
        raise MachineError(
            machine=hardware.name, what="clocks and links to play", wanted="some that stray",
            got="exact ones",
        )  # fmt: skip
    return hardware.clock


def _latency(hardware: Hardware, link: Link) -> int:
    """Return what training finds for a cable's direction (compiler/place/network.py)."""
    mean = hardware.latency_cycles(link.kind)
    cable = f"{link.src}.{link.src_port}->{link.dst}.{link.dst_port}"
    return hardware.clock.trained_cycles(mean, cable)


def measured_links(hardware: Hardware, times: int = MEASURED) -> list[Measured]:
    """Measure each link from the first chip to the others of its node.

    Raises MachineError for a machine whose clocks are exact.
    """
    _straying(hardware)
    links = hardware.topology(hardware.chips_per_node).links_from(0)
    return [_measure(hardware, link, times) for link in links if link.kind is LinkKind.LOCAL]


def _measure(hardware: Hardware, link: Link, times: int) -> Measured:
    spec, there = hardware.clock, _latency(hardware, link)
    near = ChipClock(spec, link.src, spec.drift_of(link.src))
    far = spec.phase_of(link.dst), MICRO + spec.drift_of(link.dst)
    sent = np.arange(times, dtype=np.int64) * spec.hac_exchange_cycles
    flights = np.arange(times, dtype=np.int64)
    flown = there * MICRO + Jitter(spec, f"out {link.id}").of(flights)
    reflected = _edges(near.reads(sent) + flown, *far)
    back = reflected + there * MICRO + Jitter(spec, f"back {link.id}").of(flights)
    read = _edges(back, 0, near.period) // near.period
    period = spec.hac_period_cycles
    rest = (read - sent) % period
    nominal = 2 * hardware.latency_cycles(link.kind)
    whole = np.rint((nominal - rest) / period).astype(np.int64)
    latency = (rest + whole * period) / 2
    return Measured(
        least=float(latency.min()), mean=float(latency.mean()), most=float(latency.max()),
        deviation=float(latency.std()),
    )  # fmt: skip


def _edges(times: np.ndarray, phase: int, period: int) -> np.ndarray:
    """Return a clock's next edges at or after these times."""
    return -(-(times - phase) // period) * period + phase


def sync_paths(hardware: Hardware, chips: int) -> list[SyncPath]:
    """Return each chip's way down the tree from the first, in a machine of these many."""
    ways = {0: (), **paths_from(hardware.topology(chips), 0)}
    return [
        tuple(SyncHop(link.dst, _latency(hardware, link)) for link in ways[chip])
        for chip in range(chips)
    ]


def started_epochs(hardware: Hardware, chips: int) -> int:
    """Play the start of a program; return the epoch of the counters at which the last chip starts.

    Raises MachineError for a machine whose clocks are exact.
    """
    spec, paths = _straying(hardware), sync_paths(hardware, chips)
    clocks = dict(zip(range(chips), build_clocks(spec, 0, paths), strict=True))
    epochs = {0: 0}
    for path in sorted(paths, key=len):
        if not path:
            continue
        parent, hop = path[-2].slot if len(path) > 1 else 0, path[-1]
        told = _epoch(clocks[parent], epochs[parent], spec) + hop.latency_cycles * MICRO
        told += int(Jitter(spec, f"start {parent}->{hop.slot}").of(np.zeros(1, np.int64))[0])
        epoch = epochs[parent] + 1
        while _epoch(clocks[hop.slot], epoch, spec) < told:
            epoch += 1
        epochs[hop.slot] = epoch
    return max(epochs.values())


def _epoch(clock: ChipClock, number: int, spec: ClockSpec) -> int:
    """Return the real time at which a chip's counter begins an epoch."""
    return int(clock.reads(np.array([number * spec.hac_period_cycles], np.int64))[0])
