"""Read a machine from TOML: `load_hardware("lesson")`, `load_hardware("my.toml")`.

A file has `name`, optionally `inherits` (a shipped profile's name, or a path beside the file), and
the tables chip, delays (each instruction's [d_func, d_skew]), system, link, clock, errors, host
and economics. Every value in them is an inline table that says where it comes from:
`{ value = 4, grade = "A", source = "..." }` or `{ value = 4, source = "assumption: ..." }`; a value
without is refused. So are an unknown key, a number out of bounds (`profile_keys`), a value
that is not modelled, and a key of the file's own that changes nothing beside the others, as
`link.lanes` where all ports share a rate (an inherited one is passed over).
`fitted = "..."` names the published figure that a value was chosen to meet.
Times of links and of the host are `_ns` and `_ps`, which another `chip.clock_hz` leaves as they
are; here they become cycles.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

from chip.isa.instructions import MNEMONICS
from chip.isa.issue import delays
from chip.spec import USES, ChipSpec
from interconnect.bit_errors import ErrorSpec
from interconnect.clock import ClockSpec
from interconnect.fec import PARITY_BYTES
from interconnect.spec import LinkSpec
from interconnect.topology import LinkKind
from rack.errors import ProfileError
from rack.machines.economics import ECONOMIC_KEYS, economics_of
from rack.machines.hardware import Cabling, Hardware, SharedEgress
from rack.machines.profile_keys import (
    COMMON,
    KNOWN,
    LEFT_OPEN,
    MOST_CHIPS,
    MOST_CYCLES,
    MOST_SLOT,
    ONLY,
    RATES,
    REMOVED,
    TABLES,
    UNUSED_DELAYS,
    check,
)
from rack.machines.sourced import GRADES as GRADES
from rack.machines.sourced import Sourced, flattened, parse, text_of

_T = TypeVar("_T")
_FOLDER = Path(__file__).parent / "profiles"
MOST_HEIRS = 8  # files that inherit from each other
ASKED = "assumption: a value that was asked for in place of the profile's"

_CHIP = tuple(f.name for f in fields(ChipSpec) if f.name not in ("delays", *USES))


def profile_names() -> tuple[str, ...]:
    """Return the names of the shipped profiles, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def load_hardware(
    name_or_path: str | Path, changes: Mapping[str, int | float | str | list[int]] | None = None
) -> Hardware:
    """Read a shipped profile by name, or a `.toml` file by path.

    `changes`: other values of some of its keys, by "table.key". Raises ProfileError, naming file
    and key, for anything that is not as described above.
    """
    path = _find(str(name_or_path), "", "profile")
    name, values, own = _read(path, ())
    for key, value in (changes or {}).items():
        _check_known(str(path), key.partition(".")[0], key)
        check(str(path), key, value)
        values[key] = Sourced(value, "assumption", ASKED)
    profile = _Profile(str(path), values)
    for key in changes or own:  # changes may leave keys of the file without effect
        if key not in profile.used and key not in ECONOMIC_KEYS:
            wanted = f"no such key with {profile.choices}"
            raise ProfileError(file=str(path), key=key, wanted=wanted, got="one")
    return profile.build(name)


def _find(name: str, beside: str, key: str) -> Path:
    """Return the file: a shipped profile for a bare name, else a path relative to `beside`."""
    if name in profile_names():
        return _FOLDER / f"{name}.toml"
    path = os.path.join(beside, name)
    if path.endswith(".toml") and os.path.lexists(path):
        return Path(path)
    wanted = f"{', '.join(profile_names())} or the path of a .toml file"
    raise ProfileError(file=f"{name:.200}", key=key, wanted=wanted, got="no such profile")


def _read(path: Path, heirs: tuple[str, ...]) -> tuple[str, dict[str, Sourced], list[str]]:
    """Return the file's name, its values over those it inherits, and its own keys."""
    here = os.path.realpath(path)
    if here in heirs or len(heirs) >= MOST_HEIRS:
        wanted = "an end" if here in heirs else f"at most {MOST_HEIRS} files"
        got = " -> ".join((*heirs, here))
        raise ProfileError(file=str(path), key="inherits", wanted=wanted, got=got)
    document = parse(path)
    name = text_of(path, document, "name")
    values = flattened(path, document, TABLES, _check_known, check)
    own = list(values)
    if "inherits" in document:
        parent = text_of(path, document, "inherits")
        found = _find(parent, os.path.dirname(path), f"inherits in {path}")
        values = _read(found, (*heirs, here))[1] | values
    return name, values, own


def _check_known(file: str, table: str, key: str) -> None:
    if key in REMOVED:
        wanted = f"no such key any more ({REMOVED[key]})"
        raise ProfileError(file=file, key=key, wanted=wanted, got="one")
    if key not in KNOWN:
        known = sorted(k for k in KNOWN if k.startswith(f"{table}."))
        near = ", ".join(k.partition(".")[2] for k in known)
        raise ProfileError(file=file, key=key, wanted=f"one of {near}", got="an unknown key")


class _Profile:
    """The values of one profile, inherited ones included, on the way to a Hardware."""

    def __init__(self, file: str, values: dict[str, Sourced]) -> None:
        self._file, self._values = file, values
        cabling, rate = self._get("system.cabling").value, self._get("link.rate").value
        others = (*self._clocks(), *self._mistakes(str(cabling)))
        self.choices = (
            f"system.cabling = {cabling!r}, link.rate = {rate!r} and {' and '.join(others)}"
        )
        chosen = (str(cabling), str(rate), *others)
        keys = [*COMMON, *(key for choice in chosen for key in ONLY[choice])]
        keys.sort(key=lambda key: TABLES.index(key.partition(".")[0]))
        self.used = {key: self._get(key) for key in keys}
        self._check_unused_delays()

    def _get(self, key: str) -> Sourced:
        if key not in self._values and (shipped := LEFT_OPEN.get(key)):
            self._values[key] = _read(_FOLDER / f"{shipped}.toml", ())[1][key]
        if key not in self._values:
            raise ProfileError(file=self._file, key=key, wanted="a value", got="nothing")
        return self._values[key]

    def _clocks(self) -> list[str]:
        """Return how the clocks stray, as ONLY has it."""
        drift, jitter, sigma = (
            self._get(f"clock.{key}").value
            for key in ("drift_ppm", "jitter_ps", "latency_sigma_ps")
        )
        strays = ["straying clocks"] if drift or jitter else []
        return strays + (["drawn latencies"] if strays or sigma else ["exact clocks"])

    def _mistakes(self, cabling: str) -> list[str]:
        """Return which mistakes links make, as ONLY has it."""
        near = [key for key in RATES if key in COMMON or key in ONLY[cabling]]
        rates = [key for key in near if self._get(key).value]
        bursts = ["bursts"] if any(key.endswith("burst_rate") for key in rates) else []
        return [*(["links that err"] if rates else ["links without errors"]), *bursts]

    def _check_unused_delays(self) -> None:
        """Refuse delays that would change nothing: those of groqrack stand."""
        shipped = _read(_FOLDER / "groqrack.toml", ())[1]
        for key in (f"delays.{name}" for name in UNUSED_DELAYS):
            base, own = shipped[key].value, self.used[key].value
            if own != base:
                wanted = f"{base} (only that is modelled)"
                raise ProfileError(file=self._file, key=key, wanted=wanted, got=str(own))

    def _int(self, key: str) -> int:
        value = self.used[key].value
        assert isinstance(value, int), key  # _check_value saw it
        return value

    def _rate(self, key: str) -> float:
        value = self.used[key].value
        assert isinstance(value, int | float), key  # as in `_int`
        return value

    def _cycles(self, key: str) -> int:
        """Return `_ns` in the chip's cycles, `_ps` in thousandths of them; rounded up.

        What has neither unit stays as it is. Raises ProfileError for too many.
        """
        value = self._int(key)
        if not key.endswith(("_ns", "_ps")):
            return value
        cycles = -(-value * self._int("chip.clock_hz") // 10**9)
        if cycles > MOST_CYCLES:
            unit = "cycles" if key.endswith("_ns") else "thousandths of a cycle"
            wanted = f"at most {MOST_CYCLES} {unit} of chip.clock_hz"
            raise ProfileError(file=self._file, key=key, wanted=wanted, got=str(cycles))
        return cycles

    def _table(self, table: str, *keys: str) -> dict[str, int]:
        return {key: self._int(f"{table}.{key}") for key in keys}

    def _delays(self) -> tuple[tuple[str, int, int], ...]:
        pairs = [(name, self.used[f"delays.{name}"].value) for name in MNEMONICS]
        return tuple((name, pair[0], pair[1]) for name, pair in pairs if isinstance(pair, list))

    def _chip(self) -> ChipSpec:
        chip = ChipSpec(**self._table("chip", *_CHIP), delays=self._delays())
        delays(chip)  # ValueError for delays that no program can be made with
        return chip

    def _built(self, key: str, make: Callable[[], _T]) -> _T:
        """Run a constructor; what it finds wrong concerns several keys of the file together."""
        try:
            return make()
        except ProfileError:
            raise
        except ValueError as error:
            wanted = "numbers that fit together"
            raise ProfileError(file=self._file, key=key, wanted=wanted, got=str(error)) from error

    def build(self, name: str) -> Hardware:
        """Make the Hardware; ProfileError when the numbers contradict each other."""
        clock = {
            key.removeprefix("clock.").replace("_ps", "_mcycles"): self._cycles(key)
            for key in self.used
            if key.startswith("clock.")
        }
        system = self._table("system", "chips_per_card", "cards_per_rack", "ports_per_chip")
        chips = system["chips_per_card"] * system["cards_per_rack"]
        if chips > MOST_CHIPS:
            wanted = f"at most {MOST_CHIPS} chips a rack"
            raise ProfileError(
                file=self._file, key="system.cards_per_rack", wanted=wanted, got=str(chips)
            )
        cabling = Cabling(str(self.used["system.cabling"].value))
        if cabling is Cabling.FREE:
            system |= {"chips_per_node": chips}
            system |= {"local_ports": 0, "global_ports": system["ports_per_chip"]}
        else:
            system |= self._table("system", "chips_per_node", "local_ports", "global_ports")
            self._check_dragonfly(system)
        local = "link.latency_ns"
        far = [f"link.{kind}_latency_ns" for kind in (LinkKind.GLOBAL, LinkKind.OPTICAL)]
        hardware = Hardware(
            name=name,
            chip=self._built("chip", self._chip),
            cabling=cabling,
            chip_link=self._built("link", lambda: self._link(chips)),
            host_link=self._built("host", self._host),
            global_latency_cycles=self._cycles(far[0] if far[0] in self.used else local),
            optical_latency_cycles=self._cycles(far[1] if far[1] in self.used else local),
            clock=self._built("clock", lambda: ClockSpec(**clock)),
            errors=self._errors(),
            host_turnaround_cycles=self._cycles("host.turnaround_ns"),
            sources=self.used,
            economics=economics_of(self._file, self._values),
            **system,
        )
        self._check_slots(hardware)
        if cabling is Cabling.DRAGONFLY:
            self._built("system", hardware.dragonfly)
        return hardware

    def _check_dragonfly(self, system: dict[str, int]) -> None:
        chips = system["chips_per_card"] * system["cards_per_rack"]
        if chips % system["chips_per_node"]:
            wanted = f"a divisor of the {chips} chips of a rack"
            got = str(system["chips_per_node"])
            raise ProfileError(file=self._file, key="system.chips_per_node", wanted=wanted, got=got)
        ports = system["local_ports"] + system["global_ports"]
        if ports != system["ports_per_chip"]:
            wanted = f"local_ports + global_ports = {ports}"
            got = str(system["ports_per_chip"])
            raise ProfileError(file=self._file, key="system.ports_per_chip", wanted=wanted, got=got)

    def _check_slots(self, hardware: Hardware) -> None:
        """Refuse links so slow that a vector takes more cycles than any run could have."""
        clock = hardware.chip.clock_hz
        slowest = hardware.link_spec(hardware.ports_per_chip)
        for key, link in (("link", slowest), ("host", hardware.host_link)):
            if (cycles := link.slot_cycles(clock)) > MOST_SLOT:
                wanted = f"at most {MOST_SLOT} cycles for a vector"
                raise ProfileError(file=self._file, key=key, wanted=wanted, got=str(cycles))

    def _link(self, chips: int) -> LinkSpec | SharedEgress:
        common = self._wire("link")
        if self.used["link.rate"].value == "per_link":
            serdes = ("lanes", "line_rate_bps", "encoding_payload", "encoding_total")
            return LinkSpec(**self._table("link", *serdes), **common)
        shares = self._int("link.rack_bps_directions") * chips
        return SharedEgress(egress_bps=Fraction(self._int("link.rack_bps"), shares), **common)

    def _errors(self) -> dict[LinkKind, ErrorSpec]:
        """Return the errors of each kind of link between chips: of all alike with free cabling.

        Raises ProfileError where packets have no room for the code's parity.
        """
        more = [key for key in ("burst_bits", "seed") if f"errors.{key}" in self.used]
        common, out = self._table("errors", *more), {}
        for kind in LinkKind:
            far = f"errors.{kind}_" if f"errors.{kind}_burst_rate" in self.used else "errors."
            out[kind] = ErrorSpec(
                bit_error_rate=self._rate(f"{far}bit_error_rate"),
                burst_rate=self._rate(f"{far}burst_rate"),
                **common,
            )
        room = self._int("link.overhead_bytes")
        if room < PARITY_BYTES and any(one.errs for one in out.values()):
            wanted = f"at least {PARITY_BYTES}: links that make errors send parity"
            key = "link.overhead_bytes"
            raise ProfileError(file=self._file, key=key, wanted=wanted, got=str(room))
        return out

    def _host(self) -> LinkSpec:
        return LinkSpec.from_payload_rate(self._int("host.payload_bps"), **self._wire("host"))

    def _wire(self, table: str) -> dict[str, int]:
        """Return what all kinds of links have."""
        latency = self._cycles(f"{table}.latency_ns")
        return {**self._table(table, "overhead_bytes"), "latency_cycles": latency}
