"""How long vectors take along given paths of a machine, as the scheduler places them.

For questions about the network alone: no model, no program, one transfer a path.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from chip.ops.cost import CostModel
from chip.spec import VECTOR_BYTES
from compiler.ir import HostMemory, LinkUse, StepKind
from compiler.place.network import Network
from compiler.place.routes import Flow
from compiler.schedule.assembly import Assembly
from compiler.schedule.movement import Transfer
from compiler.schedule.scheduler import Scheduler
from rack.machines.hardware import Hardware

ChipPath = tuple[int, ...]
"""Chips that a vector goes through, source first."""


def all_to_all(chips: int) -> list[ChipPath]:
    """Routes of an all-gather, nearest rank first."""
    return [(chip, (chip + step) % chips) for step in range(1, chips) for chip in range(chips)]


def exchange_cycles(hardware: Hardware, paths: Sequence[ChipPath], vectors: int) -> int:
    """Cycles until `vectors` have gone along each path, all starting at once, as scheduled."""
    spec, clock = hardware.link_spec(hardware.ports_per_chip), hardware.chip.clock_hz
    hops = sorted({hop for path in paths for hop in itertools.pairwise(path)})
    links = {
        (src, dst): LinkUse(
            id=number, name=f"C2C {src}->{dst}", src=src, dst=dst,
            slot_cycles=spec.slot_cycles(clock), latency_cycles=spec.latency_cycles,
            rx_window_cycles=0, is_host=False,
        )
        for number, (src, dst) in enumerate(hops)
    }  # fmt: skip
    routes: dict[Flow, tuple[int, ...]] = {
        (path[0], (path[-1],)): tuple(
            links[hop].id for hop in itertools.pairwise(path)
        )
        for path in paths
    }  # fmt: skip
    chips = 1 + max(chip for path in paths for chip in path)
    network = Network(
        links=tuple(links.values()), routes=routes, binding=tuple(range(chips)),
        ports_in_use=hardware.ports_per_chip,
    )  # fmt: skip
    size = vectors * VECTOR_BYTES
    forward = {chip: ([size * chips], size) for chip in range(chips)}
    assembly = Assembly(Scheduler(CostModel(spec=hardware.chip), network), network, forward)
    for number, path in enumerate(paths):  # each to a place of its own
        assembly.place(
            Transfer(
                name="exchange", src=path[0], src_address=path[0] * size, vectors=vectors,
                targets=((path[-1], (chips + 1 + number) * size),),
            )
        )  # fmt: skip
    host = HostMemory(embedding=0, rope=0, results={}, size=0)
    return assembly.finish(StepKind(rows=1, bucket=1, decode=False), host, 0).cycles
