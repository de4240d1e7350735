"""Every key of every profile: another value changes what the machine does, or is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from plain_ops import cost

from chip.ops.experts import columns_apart
from chip.ops.opcodes import Opcode
from chip.spec import MODELLED, ChipSpec
from chip.sram import work_turn
from compiler.codegen.lstm_cell import cell_cycles
from compiler.model.graph import build_graph
from compiler.model.presets import PRESETS
from compiler.pipeline import Options, compile_model
from compiler.place.layout import parse_layout
from compiler.place.network import build_network
from compiler.place.partition import partition
from interconnect.topology import LinkKind
from rack.errors import ProfileError
from rack.machines import profile
from rack.machines.hardware import Hardware
from rack.machines.profile import load_hardware, profile_names
from rack.machines.profile_keys import RANGES, RATES, REMOVED, TEXTS, UNUSED_DELAYS
from rack.reports.exchange import exchange_cycles
from rack.run.session import KNOWN_ERRORS

PROFILES = Path(profile.__file__).parent / "profiles"
KEYS = [
    (name, key)
    for name in profile_names()
    for key in load_hardware(name).sources
    if name == "groqrack" or not key.startswith(("chip.", "delays."))  # one chip in all of them
]
WIDE = {"rows": 1, "k": 8192, "n": 64, "dtype": "int8", "out": "f32"}
LOGITS = {"n": 32_064, "k": 2}
CHOSEN = {"rows": 1, "k": 64, "n": 64, "dtype": "int8", "experts": 4, "chosen": 2}


def with_value(folder: Path, name: str, key: str, value: object) -> Path:
    """Write a profile that inherits a shipped one and has one other value."""
    table, _, entry = key.partition(".")
    text = f'"{value}"' if isinstance(value, str) else str(value)
    path = folder / "other.toml"
    path.write_text(
        f'name = "other"\ninherits = "{name}"\n[{table}]\n'
        f'{entry} = {{ value = {text}, source = "assumption: another" }}\n'
    )
    return path


def others(key: str, value: Any) -> Iterator[object]:
    """Other values of a key, within its bounds."""
    if key in TEXTS:
        yield from (text for text in TEXTS[key] if text != value)
    elif key.startswith("delays."):
        yield from ([d_func, 0] for d_func in (value[0] + 1, 40, 64))
        yield [value[0], 1]
    elif key in RATES:
        yield from (value + 1e-9, 0, 0.5)
    else:
        least, most = RANGES.get(key, (1, 1 << 62))
        for new in (value + 1, value * 2, value * 16, value // 2, value // 16, least, most):
            if least <= new <= most and new != value:
                yield new


def cell(chip: ChipSpec) -> object:
    return [cell_cycles(512, batch, chip) for batch in (1, 400)]


def wide_products(chip: ChipSpec) -> object:
    experts = {**CHOSEN, "apart": columns_apart(64, work_turn(chip))}
    return [
        cost(Opcode.MATMUL, WIDE, chip), cost(Opcode.TOPK, LOGITS, chip),
        cost(Opcode.EXPERTS_EACH, experts, chip),
    ]  # fmt: skip


def places(hardware: Hardware) -> object:
    """Racks, cards and cables."""
    slots = [(hardware.card_of(slot), hardware.rack_of(slot)) for slot in range(80)]
    racks = [hardware.racks(n) for n in (1, 8, 100)]
    return [slots, racks, hardware.max_chips, hardware.ports_per_chip]


def cables(hardware: Hardware) -> object:
    return hardware.topology(72, [(0, 1), (0, 2)]).links


def mistakes(hardware: Hardware) -> object:
    return hardware.errors


def forwarding(hardware: Hardware) -> object:
    return exchange_cycles(hardware, [(0, 1, 2)], 2)


def links(hardware: Hardware) -> object:
    """The links of a layout that takes several racks."""
    chips = partition(build_graph(PRESETS["llama-8b"]), parse_layout("20x8"))
    return build_network(chips, hardware).links


def steps(hardware: Hardware, dtype: str, layout: str) -> object:
    """A small model compiled: its capacity, its links, and seconds of every step."""
    options = Options(dtype=dtype, max_model_len=32, prefill_chunk=4)
    model = compile_model(PRESETS["tiny"], hardware, parse_layout(layout), options)
    seconds = [step.cycles / hardware.chip.clock_hz for step in model.steps.values()]
    return [seconds, model.network, [memory.free_bytes for memory in model.memories]]


BEHAVIOUR: tuple[Callable[[Hardware], object], ...] = (
    places, cables, mistakes, forwarding, links,
    lambda hardware: steps(hardware, "int8", "1x2"),
    lambda hardware: wide_products(hardware.chip),
    lambda hardware: steps(hardware, "fp16", "1x1"),
    lambda hardware: steps(hardware, "int4", "1x1"),
    lambda hardware: cell(hardware.chip),
)  # fmt: skip
"""What a machine does, the quickest to see first."""


@lru_cache(maxsize=64)
def shipped(name: str, part: int) -> object:
    return BEHAVIOUR[part](load_hardware(name))


def differs(machine: Hardware, name: str) -> bool:
    """Tell whether a machine does anything else than a shipped one, or cannot do it."""
    for part, look in enumerate(BEHAVIOUR):
        try:
            if look(machine) != shipped(name, part):
                return True
        except KNOWN_ERRORS:
            return True
    return False


def load(path: Path) -> Hardware | ProfileError:
    try:
        return load_hardware(path)
    except ProfileError as error:
        return error


@pytest.mark.parametrize(("name", "key"), KEYS)
def test_no_key_changes_nothing(tmp_path: Path, name: str, key: str) -> None:
    entry = key.partition(".")[2]
    fixed = entry in MODELLED if key.startswith("chip.") else entry in UNUSED_DELAYS
    accepted = False
    for new in others(key, load_hardware(name).sources[key].value):
        machine = load(with_value(tmp_path, name, key, new))
        if isinstance(machine, ProfileError):  # by its name or that of one that it must fit
            assert machine.key.split(".")[0] == key.split(".")[0]
            assert not fixed or "(only that is modelled)" in str(machine)
            continue
        assert not fixed, f"{key} = {new}: another is modelled than {MODELLED.get(entry)}?"
        if differs(machine, name):
            return
        accepted = True
    assert not accepted, f"{name}: {key}: nothing that was tried changed anything"


def test_chips_of_all_profiles_are_one() -> None:
    chip = load_hardware("groqrack").chip
    assert {load_hardware(name).chip for name in profile_names()} == {chip}


def test_what_a_key_of_its_own_is_not_used_for(tmp_path: Path) -> None:
    """Keys that a choice of another key leaves without effect are refused in a file's own."""
    for name, key, choice in (
        ("lesson", "link.lanes", "link.rate = 'shared_egress'"),
        ("lesson", "system.chips_per_node", "system.cabling = 'free'"),
        ("groqrack", "clock.realign_cycles", "exact clocks"),
        ("groqrack", "clock.seed", "exact clocks"),
        ("groqrack", "errors.seed", "links without errors"),
        ("groqrack", "errors.burst_bits", "links without errors"),
        ("lesson", "errors.optical_burst_rate", "system.cabling = 'free'"),
    ):
        one = 0.5 if key in RATES else 2
        error = load(with_value(tmp_path, name, key, one))
        assert isinstance(error, ProfileError)
        assert error.key == key
        assert choice in error.wanted


def test_clocks_that_stray_have_the_rest_from_groqrack_drift(tmp_path: Path) -> None:
    machine = load_hardware(with_value(tmp_path, "groqrack", "clock.drift_ppm", 50))
    drift = load_hardware("groqrack-drift")
    assert machine.clock.realign_cycles == drift.clock.realign_cycles
    assert machine.sources["clock.seed"] == drift.sources["clock.seed"]


def test_links_that_err_have_the_rest_from_groqrack_errors(tmp_path: Path) -> None:
    machine = load_hardware(with_value(tmp_path, "groqrack", "errors.global_burst_rate", 1e-9))
    shipped = load_hardware("groqrack-errors")
    of, far = (machine.errors[kind] for kind in (LinkKind.LOCAL, LinkKind.GLOBAL))
    assert (of.errs, far.burst_rate, far.bit_error_rate) == (False, 1e-9, 0)
    assert machine.sources["errors.seed"] == shipped.sources["errors.seed"]
    assert (far.burst_bits, far.seed) == (16, 1)
    assert machine.digest() == load_hardware("groqrack").digest() == shipped.digest()


@pytest.mark.parametrize("value", [1, 1.0, -0.1, "nan", "inf", "true"])
def test_a_rate_that_is_none(tmp_path: Path, value: object) -> None:
    path = with_value(tmp_path, "groqrack", "errors.bit_error_rate", 0.5)
    path.write_text(path.read_text().replace("0.5", str(value)))
    error = load(path)
    wanted = "wanted a number from 0 to below 1, got"
    assert str(error).startswith(f"{path}: errors.bit_error_rate: {wanted} ")


def test_packets_without_room_for_parity_make_no_errors(tmp_path: Path) -> None:
    path = with_value(tmp_path, "groqrack", "link.overhead_bytes", 7)
    assert isinstance(load(path), Hardware)
    text = '[errors]\nburst_rate = { value = 1e-9, source = "assumption: a try" }\n'
    path.write_text(path.read_text() + text)
    wanted = "wanted at least 8: links that make errors send parity, got 7"
    assert str(load(path)) == f"{path}: link.overhead_bytes: {wanted}"


def test_a_profile_of_its_own_may_leave_errors_open(tmp_path: Path) -> None:
    """Those written before there were any: their links make none."""
    shipped = (PROFILES / "groqrack.toml").read_text(encoding="utf-8")
    before, _, rest = shipped.partition("[errors]")
    path = tmp_path / "own.toml"
    path.write_text(before + rest[rest.index("[host]") :], encoding="utf-8")
    assert load_hardware(path) == load_hardware("groqrack")


def test_ports_move_together(tmp_path: Path) -> None:
    path = with_value(tmp_path, "groqrack", "system.ports_per_chip", 16)
    text = 'global_ports = { value = 9, source = "assumption: all 16 of the die" }\n'
    path.write_text(path.read_text() + text)
    assert differs(load_hardware(path), "groqrack")


@pytest.mark.parametrize("key", REMOVED)
def test_a_key_of_earlier_versions(tmp_path: Path, key: str) -> None:
    path = with_value(tmp_path, "groqrack", key, 1)
    text = f"{path}: {key}: wanted no such key any more ({REMOVED[key]}), got one"
    assert str(load(path)) == text
