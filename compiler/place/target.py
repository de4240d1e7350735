"""The interface of the machine that a model is compiled for.

`rack.machines.hardware.Hardware` implements it; tests have their own. The compiler names no
product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from chip.spec import ChipSpec
from compiler.ir import StepKind
from interconnect.clock import ClockSpec
from interconnect.spec import LinkSpec
from interconnect.topology import LinkKind, Topology


class Target(Protocol):
    """Chip, links, cabling and packaging of a machine."""

    @property
    def name(self) -> str: ...
    @property
    def chip(self) -> ChipSpec: ...
    @property
    def host_link(self) -> LinkSpec: ...
    @property
    def host_turnaround_cycles(self) -> int: ...
    @property
    def clock(self) -> ClockSpec: ...
    @property
    def chips_per_rack(self) -> int: ...
    @property
    def ports_per_chip(self) -> int: ...

    def topology(self, n_chips: int, pairs: Sequence[tuple[int, int]]) -> Topology:
        """Cable at least `n_chips` physical slots; `pairs` are chips that need a cable."""

    def link_spec(self, ports_in_use: int) -> LinkSpec:
        """Return the chip-to-chip link when the busiest chip cables `ports_in_use` ports."""

    def latency_cycles(self, kind: LinkKind) -> int:
        """Return a link's latency by where its cable runs."""


def turnaround_cycles(target: Target, kind: StepKind) -> int:
    """Return what the host takes behind a step: it samples, unless hidden states are the result."""
    return 0 if kind.encode else target.host_turnaround_cycles
