"""One machine: its chip, its links, how racks are filled and wired. Made by `profile`.

Slots are numbered card by card, rack by rack. Two ways of cabling: `dragonfly` (nodes and racks
as built) and `free` (each layout plugs its own cables). Two ways of rating a link: a LinkSpec of
its own, or an even share of a chip's egress.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from typing import Any

from chip.spec import USES, ChipSpec
from interconnect.bit_errors import ErrorSpec
from interconnect.clock import ClockSpec
from interconnect.dragonfly import Dragonfly, multi_rack
from interconnect.spec import LinkSpec
from interconnect.topology import LinkKind, Topology, free_cabling
from rack.errors import MachineError
from rack.machines.economics import Economics
from rack.machines.sourced import Sourced as Sourced


class Cabling(StrEnum):
    """Who decides which port reaches which chip."""

    FREE = "free"  # the layout
    DRAGONFLY = "dragonfly"  # the machine


@lru_cache(maxsize=4)
def _wired(shape: Dragonfly, n_racks: int) -> Topology:
    """Wire whole racks; every layout that is tried on them asks again."""
    return multi_rack(shape, n_racks)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedEgress:
    """A chip's egress, shared evenly over its cabled ports; bits per second, exact."""

    egress_bps: Fraction
    overhead_bytes: int
    latency_cycles: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A machine to lay models out on. Every duration is in chip cycles."""

    name: str
    chip: ChipSpec
    chips_per_card: int
    cards_per_rack: int
    chips_per_node: int
    cabling: Cabling
    ports_per_chip: int
    local_ports: int  # 0 with free cabling
    global_ports: int  # all ports with free cabling
    chip_link: LinkSpec | SharedEgress
    host_link: LinkSpec
    global_latency_cycles: int  # of a cable between nodes; with free cabling as any other
    optical_latency_cycles: int  # of a cable between racks
    clock: ClockSpec
    errors: Mapping[LinkKind, ErrorSpec] = field(hash=False)  # they move no cycle
    host_turnaround_cycles: int  # result at the host to next step message
    sources: dict[str, Sourced] = field(hash=False, compare=False, repr=False)
    economics: Economics = field(hash=False, compare=False, repr=False)

    @property
    def chips_per_rack(self) -> int:
        """Chips in one rack."""
        return self.chips_per_card * self.cards_per_rack

    @property
    def max_chips(self) -> int | None:
        """The most chips that can be wired; None when there is no limit."""
        if self.cabling is Cabling.FREE:
            return None
        return self.dragonfly().max_racks * self.chips_per_rack

    def dragonfly(self) -> Dragonfly:
        """Return the shape of the cabling; MachineError when it is the layout's to choose."""
        if self.cabling is Cabling.FREE:
            raise MachineError(
                machine=self.name, what="cabling", wanted="dragonfly", got=str(self.cabling)
            )
        return Dragonfly(
            chips_per_node=self.chips_per_node,
            nodes_per_rack=self.chips_per_rack // self.chips_per_node,
            local_ports=self.local_ports,
            global_ports=self.global_ports,
        )

    def link_spec(self, ports_in_use: int) -> LinkSpec:
        """Return the link between chips, when the busiest chip has `ports_in_use` ports cabled.

        Raises MachineError outside 1..ports_per_chip.
        """
        if not 1 <= ports_in_use <= self.ports_per_chip:
            wanted = f"1 to {self.ports_per_chip}"
            raise MachineError(
                machine=self.name, what="ports in use", wanted=wanted, got=ports_in_use
            )
        link = self.chip_link
        if isinstance(link, LinkSpec):
            return link
        return LinkSpec.from_payload_rate(
            link.egress_bps / ports_in_use,
            overhead_bytes=link.overhead_bytes,
            latency_cycles=link.latency_cycles,
        )

    def latency_cycles(self, kind: LinkKind) -> int:
        """Return a link's latency by where its cable runs."""
        if kind is LinkKind.OPTICAL:
            return self.optical_latency_cycles
        return self.global_latency_cycles if kind.leaves_node else self.chip_link.latency_cycles

    @property
    def errs(self) -> bool:
        """Whether a link between chips makes errors."""
        return any(one.errs for one in self.errors.values())

    def link_kind(self, src: int, dst: int) -> LinkKind:
        """Return where a cable between two slots runs."""
        if self.cabling is Cabling.FREE:
            return LinkKind.FREE
        if self.rack_of(src) != self.rack_of(dst):
            return LinkKind.OPTICAL
        same = src // self.chips_per_node == dst // self.chips_per_node
        return LinkKind.LOCAL if same else LinkKind.GLOBAL

    def topology(self, n_chips: int, pairs: Sequence[tuple[int, int]] = ()) -> Topology:
        """Wire a machine that holds `n_chips`.

        Free cabling: those chips and a cable per pair. Dragonfly: the fewest whole racks (so the
        topology may have more chips), cabled as built; `pairs` is ignored, a pair without a link
        has to be forwarded. Raises MachineError for a count that cannot be built, and
        PortsExhaustedError for too many pairs.
        """
        n_racks = self.racks(n_chips)
        if self.cabling is Cabling.FREE:
            return free_cabling(n_chips, pairs, self.ports_per_chip)
        return _wired(self.dragonfly(), n_racks)

    def racks(self, n_chips: int) -> int:
        """Return the racks that hold `n_chips`; MachineError when there is no such machine."""
        most = self.max_chips
        if n_chips < 1 or (most is not None and n_chips > most):
            wanted = "at least 1" if most is None else f"1 to {most}"
            raise MachineError(machine=self.name, what="chips", wanted=wanted, got=n_chips)
        return -(-n_chips // self.chips_per_rack)

    def card_of(self, slot: int) -> int:
        """Return the card a slot is on, counted over all racks."""
        return slot // self.chips_per_card

    def rack_of(self, slot: int) -> int:
        """Return the rack a slot is in."""
        return slot // self.chips_per_rack

    def to_dict(self) -> dict[str, Any]:
        """Return every value that moves a cycle, nested, in JSON's types.

        A Fraction is "numerator/denominator".
        """
        link = {
            key: str(value) if isinstance(value, Fraction) else value
            for key, value in asdict(self.chip_link).items()
        }
        return {
            "name": self.name,
            "chip": {
                **{key: value for key, value in asdict(self.chip).items() if key not in USES},
                "delays": {name: [func, skew] for name, func, skew in self.chip.delays},
            },
            "chips_per_card": self.chips_per_card,
            "cards_per_rack": self.cards_per_rack,
            "chips_per_node": self.chips_per_node,
            "cabling": str(self.cabling),
            "ports_per_chip": self.ports_per_chip,
            "local_ports": self.local_ports,
            "global_ports": self.global_ports,
            "chip_link": {"kind": type(self.chip_link).__name__, **link},
            "global_latency_cycles": self.global_latency_cycles,
            "optical_latency_cycles": self.optical_latency_cycles,
            "host_link": asdict(self.host_link),
            "clock": asdict(self.clock),
            "host_turnaround_cycles": self.host_turnaround_cycles,
        }

    def digest(self) -> str:
        """Return the SHA-256 of all values but the name, as 64 hex digits."""
        values = self.to_dict()
        del values["name"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
