"""Read a machine from TOML: `load_hardware("lesson")`, `load_hardware("my.toml")`.

A file has `name`, optionally `inherits` (a shipped profile's name, or a path beside the file), and
the tables chip, delays (each instruction's [d_func, d_skew]), system, link, clock and host. Every
value in them is an inline table that says where it comes from:
`{ value = 4, grade = "A", source = "..." }` or `{ value = 4, source = "assumption: ..." }`; a value
without is refused. So are an unknown key, and a key of the file's own that the chosen
`system.cabling` or `link.rate` does not use (an inherited one is passed over).
`fitted = "..."` names the published figure that a value was chosen to meet.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from chip.isa import MNEMONICS
from chip.spec import ChipSpec
from interconnect.clock import ClockSpec
from interconnect.spec import LinkSpec
from rack.errors import ProfileError
from rack.hardware import Cabling, Hardware, SharedEgress, Sourced

_T = TypeVar("_T")
_FOLDER = Path(__file__).parent / "profiles"
GRADES = ("A", "B", "C", "D", "M")
_TABLES = ("chip", "delays", "system", "link", "clock", "host")
_TEXT = {"system.cabling": ("free", "dragonfly"), "link.rate": ("per_link", "shared_egress")}

_CHIP = tuple(field.name for field in fields(ChipSpec) if field.name != "delays")
_COMMON = (
    *(f"chip.{name}" for name in _CHIP),
    *(f"delays.{name}" for name in MNEMONICS),
    *("system.cabling", "system.chips_per_card", "system.cards_per_rack", "system.chips_per_node"),
    *("system.ports_per_chip", "link.rate"),
    *("link.overhead_bytes", "link.latency_cycles"),
    *(f"clock.{field.name}" for field in fields(ClockSpec)),
    *("host.payload_bps", "host.overhead_bytes", "host.latency_cycles"),
    "host.turnaround_cycles",
)
_ONLY = {  # keys that one choice of a text key needs
    "dragonfly": ("system.local_ports", "system.global_ports"),
    "free": (),
    "per_link": tuple(
        f"link.{key}" for key in ("lanes", "line_rate_bps", "encoding_payload", "encoding_total")
    ),
    "shared_egress": ("link.rack_bps", "link.rack_bps_directions"),
}
_KNOWN = frozenset(_COMMON).union(*_ONLY.values())
_MAY_BE_ZERO = ("overhead_bytes", "turnaround_cycles", "_ppm", "_mcycles", "seed")


def profile_names() -> tuple[str, ...]:
    """Return the names of the shipped profiles, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def load_hardware(name_or_path: str | Path) -> Hardware:
    """Read a shipped profile by name, or a `.toml` file by path.

    Raises ProfileError, naming file and key, for anything that is not as described above.
    """
    path = _find(name_or_path, Path(), "profile")
    name, values = _read(path, ())
    profile = _Profile(str(path), values)
    own = _tables(path, _parse(path))
    for key in own:
        if key not in profile.used:
            wanted = f"no such key with {profile.choices}"
            raise ProfileError(file=str(path), key=key, wanted=wanted, got="one")
    return profile.build(name)


def _find(name: str | Path, beside: Path, key: str) -> Path:
    """Return the file: a shipped profile for a bare name, else a path relative to `beside`."""
    if isinstance(name, str) and name in profile_names():
        return _FOLDER / f"{name}.toml"
    path = beside / name
    if path.suffix == ".toml" and path.is_file():
        return path
    wanted = f"{', '.join(profile_names())} or the path of a .toml file"
    raise ProfileError(file=str(name), key=key, wanted=wanted, got="no such profile")


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(file=str(path), key="file", wanted="TOML", got=str(error)) from error


def _read(path: Path, heirs: tuple[Path, ...]) -> tuple[str, dict[str, Sourced]]:
    """Return the file's name and its values over those it inherits."""
    if path.resolve() in heirs:
        got = " -> ".join(str(heir) for heir in (*heirs, path.resolve()))
        raise ProfileError(file=str(path), key="inherits", wanted="an end", got=got)
    document = _parse(path)
    name, values = _text(path, document, "name"), _tables(path, document)
    if "inherits" not in document:
        return name, values
    parent = _find(_text(path, document, "inherits"), path.parent, f"inherits in {path}")
    return name, _read(parent, (*heirs, path.resolve()))[1] | values


def _text(path: Path, document: dict[str, Any], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str) or not value:
        got = "nothing" if value is None else repr(value)
        raise ProfileError(file=str(path), key=key, wanted="a text", got=got)
    return value


def _tables(path: Path, document: dict[str, Any]) -> dict[str, Sourced]:
    """Flatten a file's own tables to "table.key"; checks every key and entry."""
    values: dict[str, Sourced] = {}
    for table, entries in document.items():
        if table in ("name", "inherits"):
            continue
        if not isinstance(entries, dict) or table not in _TABLES:
            wanted = f"one of name, inherits, {', '.join(f'[{name}]' for name in _TABLES)}"
            raise ProfileError(file=str(path), key=table, wanted=wanted, got="an unknown key")
        for entry, content in entries.items():
            key = f"{table}.{entry}"
            if key not in _KNOWN:
                near = ", ".join(k.partition(".")[2] for k in sorted(_KNOWN) if k.startswith(table))
                raise ProfileError(
                    file=str(path), key=key, wanted=f"one of {near}", got="an unknown key"
                )
            values[key] = _entry(str(path), key, content)
    return values


def _entry(file: str, key: str, content: object) -> Sourced:
    """Check one inline table."""
    shape = '{ value, grade, source } or { value, source = "assumption: ..." }'
    if not isinstance(content, dict) or not {"value", "source"} <= set(content):
        raise ProfileError(file=file, key=key, wanted=shape, got=repr(content))
    if extra := sorted(set(content) - {"value", "grade", "source", "fitted"}):
        raise ProfileError(file=file, key=key, wanted=shape, got=f"also {', '.join(extra)}")
    value, source, grade = content["value"], content["source"], content.get("grade")
    _check_value(file, key, value)
    if not isinstance(source, str) or not source.removeprefix("assumption:").strip():
        raise ProfileError(file=file, key=key, wanted="a source in words", got=repr(source))
    fitted = content.get("fitted", "")
    if not isinstance(fitted, str) or ("fitted" in content and not fitted.strip()):
        wanted = "the figure it was fitted to, in words"
        raise ProfileError(file=file, key=key, wanted=wanted, got=repr(fitted))
    assumed = source.startswith("assumption:")
    if assumed and grade is not None:
        raise ProfileError(file=file, key=key, wanted="no grade on an assumption", got=repr(grade))
    if not assumed and grade not in GRADES:
        wanted = f"a grade ({', '.join(GRADES)}) or a source that starts with 'assumption:'"
        got = "neither" if grade is None else repr(grade)
        raise ProfileError(file=file, key=key, wanted=wanted, got=got)
    return Sourced(value, grade or "assumption", source, fitted)


def _check_value(file: str, key: str, value: object) -> None:
    if key in _TEXT:
        if value not in _TEXT[key]:
            wanted = " or ".join(map(repr, _TEXT[key]))
            raise ProfileError(file=file, key=key, wanted=wanted, got=repr(value))
        return
    if key.startswith("delays."):
        pair = value if isinstance(value, list) else []
        if len(pair) != 2 or not all(type(cycles) is int and cycles >= 0 for cycles in pair):
            wanted = "[d_func, d_skew], integers >= 0"
            raise ProfileError(file=file, key=key, wanted=wanted, got=repr(value))
        return
    least = 0 if key.endswith(_MAY_BE_ZERO) else 1
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        wanted = f"an integer >= {least}"
        raise ProfileError(file=file, key=key, wanted=wanted, got=repr(value))


class _Profile:
    """The values of one profile, inherited ones included, on the way to a Hardware."""

    def __init__(self, file: str, values: dict[str, Sourced]) -> None:
        self._file, self._values = file, values
        cabling, rate = self._get("system.cabling").value, self._get("link.rate").value
        self.choices = f"system.cabling = {cabling!r}, link.rate = {rate!r}"
        self.used = {
            key: self._get(key) for key in (*_COMMON, *_ONLY[str(cabling)], *_ONLY[str(rate)])
        }

    def _get(self, key: str) -> Sourced:
        if key not in self._values:
            raise ProfileError(file=self._file, key=key, wanted="a value", got="nothing")
        return self._values[key]

    def _int(self, key: str) -> int:
        value = self.used[key].value
        assert isinstance(value, int), key  # _check_value saw it
        return value

    def _table(self, table: str, *keys: str) -> dict[str, int]:
        return {key: self._int(f"{table}.{key}") for key in keys}

    def _delays(self) -> tuple[tuple[str, int, int], ...]:
        pairs = [(name, self.used[f"delays.{name}"].value) for name in MNEMONICS]
        return tuple((name, pair[0], pair[1]) for name, pair in pairs if isinstance(pair, list))

    def _built(self, key: str, make: Callable[[], _T]) -> _T:
        """Run a constructor; what it finds wrong concerns several keys of the file together."""
        try:
            return make()
        except ValueError as error:
            wanted = "numbers that fit together"
            raise ProfileError(file=self._file, key=key, wanted=wanted, got=str(error)) from error

    def build(self, name: str) -> Hardware:
        """Make the Hardware; ProfileError when the numbers contradict each other."""
        chip_table = self._table("chip", *_CHIP)
        clock = self._table("clock", *(field.name for field in fields(ClockSpec)))
        system = self._table(
            "system", "chips_per_card", "cards_per_rack", "chips_per_node", "ports_per_chip"
        )
        cabling = Cabling(str(self.used["system.cabling"].value))
        if cabling is Cabling.FREE:
            ports = {"local_ports": 0, "global_ports": system["ports_per_chip"]}
        else:
            ports = self._table("system", "local_ports", "global_ports")
            self._check_dragonfly(system, ports)
        hardware = Hardware(
            name=name,
            chip=self._built("chip", lambda: ChipSpec(**chip_table, delays=self._delays())),
            cabling=cabling,
            chip_link=self._built("link", lambda: self._link(system)),
            host_link=self._built("host", self._host),
            clock=self._built("clock", lambda: ClockSpec(**clock)),
            host_turnaround_cycles=self._int("host.turnaround_cycles"),
            sources=self.used,
            **system,
            **ports,
        )
        if cabling is Cabling.DRAGONFLY:
            self._built("system", hardware.dragonfly)
        return hardware

    def _check_dragonfly(self, system: dict[str, int], ports: dict[str, int]) -> None:
        chips = system["chips_per_card"] * system["cards_per_rack"]
        if chips % system["chips_per_node"]:
            wanted = f"a divisor of the {chips} chips of a rack"
            got = str(system["chips_per_node"])
            raise ProfileError(file=self._file, key="system.chips_per_node", wanted=wanted, got=got)
        if sum(ports.values()) != system["ports_per_chip"]:
            wanted = f"local_ports + global_ports = {sum(ports.values())}"
            got = str(system["ports_per_chip"])
            raise ProfileError(file=self._file, key="system.ports_per_chip", wanted=wanted, got=got)

    def _link(self, system: dict[str, int]) -> LinkSpec | SharedEgress:
        common = self._table("link", "overhead_bytes", "latency_cycles")
        if self.used["link.rate"].value == "per_link":
            serdes = ("lanes", "line_rate_bps", "encoding_payload", "encoding_total")
            return LinkSpec(**self._table("link", *serdes), **common)
        chips = system["chips_per_card"] * system["cards_per_rack"]
        shares = self._int("link.rack_bps_directions") * chips
        return SharedEgress(egress_bps=Fraction(self._int("link.rack_bps"), shares), **common)

    def _host(self) -> LinkSpec:
        common = self._table("host", "overhead_bytes", "latency_cycles")
        return LinkSpec.from_payload_rate(self._int("host.payload_bps"), **common)
