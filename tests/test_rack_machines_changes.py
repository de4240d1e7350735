"""Changed keys of a machine: exact rates, whole numbers, and profiles that take them."""

from __future__ import annotations

from typing import Any

import pytest

from interconnect.spec import LinkSpec
from rack.errors import ConfigError, ProfileError
from rack.machines.changes import changed, plain_key
from rack.machines.profile import ASKED, load_hardware


def test_keys_have_their_package_in_front_or_not() -> None:
    assert plain_key("interconnect.link.lanes") == plain_key("link.lanes") == "link.lanes"
    assert plain_key("chip.clock_hz") == "chip.clock_hz"
    for key in ("interconnect.chip.clock_hz", "link.colour", "gb_per_s", "link", ""):
        assert plain_key(key) is None


@pytest.mark.parametrize(("rate", "bps"), [(12.5, 10**11), ("25", 2 * 10**11), (0.1, 8 * 10**8)])
@pytest.mark.parametrize("machine", ["lesson", "groqrack"])
def test_a_link_of_so_many_gb_per_s(machine: str, rate: Any, bps: int) -> None:
    hardware = load_hardware(machine, changed({"interconnect.link.gb_per_s": rate}))
    assert isinstance(hardware.chip_link, LinkSpec)
    assert hardware.link_spec(1) == hardware.link_spec(11)
    assert hardware.link_spec(1).payload_bps == bps
    plain = load_hardware(machine)
    assert hardware.chip_link.latency_cycles == plain.chip_link.latency_cycles
    assert hardware.chip == plain.chip
    assert hardware.digest() != plain.digest()


def test_the_same_rate_takes_the_same_time_as_the_profiles_own() -> None:
    same = load_hardware("groqrack", changed({"link.gb_per_s": 12.5})).link_spec(11)
    own = load_hardware("groqrack").link_spec(11)
    assert same.payload_bps == own.payload_bps
    assert same.slot_cycles(900_000_000) == own.slot_cycles(900_000_000) == 24


def test_changes_are_values_with_a_source() -> None:
    hardware = load_hardware("lesson", changed({"chip.clock_hz": "8e8", "clock.drift_ppm": 50}))
    assert hardware.chip.clock_hz == 800_000_000
    assert hardware.clock.drift_ppm == 50  # with what else clocks that stray need
    assert hardware.sources["chip.clock_hz"].source == ASKED
    assert hardware.sources["chip.clock_hz"].grade == "assumption"
    assert load_hardware("lesson", {}) == load_hardware("lesson")


def test_rates_of_errors_need_not_be_whole() -> None:
    values = {"interconnect.errors.bit_error_rate": "1e-9", "errors.burst_rate": 0}
    assert changed(values) == {"errors.bit_error_rate": 1e-9, "errors.burst_rate": 0.0}
    hardware = load_hardware("lesson", changed(values))
    assert {one.bit_error_rate for one in hardware.errors.values()} == {1e-9}  # any cable
    assert hardware.digest() == load_hardware("lesson").digest()


def test_delays_and_words() -> None:
    values = {"delays.READ": ["5", 0], "link.rate": "per_link"}
    assert changed(values) == {"delays.READ": [5, 0], "link.rate": "per_link"}


@pytest.mark.parametrize("value", ["x", "", "nan", "inf", True, None, "1e99"])
@pytest.mark.parametrize("key", ["link.latency_ns", "link.gb_per_s"])
def test_a_value_that_is_no_number(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: wanted a number, got "):
        changed({key: value})


@pytest.mark.parametrize("value", [0, -1, "1e-12"])
def test_a_rate_that_no_link_has(value: Any) -> None:
    wanted = "a number above 0 with at most 9 places after the point"
    with pytest.raises(ConfigError, match=f"^link.gb_per_s: wanted {wanted}, got "):
        changed({"link.gb_per_s": value})


def test_a_number_that_is_not_whole() -> None:
    with pytest.raises(ConfigError, match=r"^chip.clock_hz: wanted a whole number, got 1\.5$"):
        changed({"chip.clock_hz": 1.5})


def test_two_keys_that_say_the_same() -> None:
    wanted = "wanted link.lanes once, got it from another key too"
    with pytest.raises(ConfigError, match=f"^link.gb_per_s: {wanted}$"):
        changed({"link.lanes": 4, "link.gb_per_s": 12.5})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"link.lanes": 4}, "link.lanes: wanted no such key with system.cabling = 'free', "),
        ({"chip.clock_hz": 0}, "chip.clock_hz: wanted an integer >= 1, got 0"),
        (
            changed({"errors.burst_rate": 1}),
            "errors.burst_rate: wanted a number from 0 to below 1, got 1.0",
        ),
        ({"chip.colour": 0}, "chip.colour: wanted one of "),
        ({"chip.lanes": 640}, "chip.lanes: wanted 320 (only that is modelled), got 640"),
    ],
)
def test_a_profile_refuses_changes_as_it_refuses_a_file(changes: Any, said: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load_hardware("lesson", changes)
    assert f"lesson.toml: {said}" in str(caught.value)
