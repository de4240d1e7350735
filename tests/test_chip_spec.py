"""What a chip may be."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from schedules import machine

from chip.spec import ChipSpec, pad_vector, vectors

CHIP = machine("groqrack").chip
COUNTS = [field.name for field in fields(ChipSpec) if field.name not in ("delays", "feed_slices")]


def test_vectors() -> None:
    assert [vectors(n) for n in (0, 1, 320, 321)] == [0, 1, 1, 2]
    assert [pad_vector(n) for n in (0, 1, 320, 321)] == [0, 320, 320, 640]


def test_what_follows_from_the_floor_plan() -> None:
    assert CHIP.words_per_bank == 4096  # docs/hardware.md: 4,096 words a bank
    assert CHIP.stream_bytes_per_cycle == 20_480
    assert CHIP.weight_load_cycles == 20


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1, 1.0, True, "4"])
def test_no_positive_integer(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match="wanted a positive integer") as caught:
        replace(CHIP, **{name: value})
    assert str(caught.value) == f"chip.{name}: wanted a positive integer, got {value!r}"


def test_no_feed_slices_or_some() -> None:
    assert replace(CHIP, feed_slices=0).near_slices == 1
    with pytest.raises(ValueError, match=r"^chip.feed_slices: wanted 0 or more, got -1$"):
        replace(CHIP, feed_slices=-1)


@pytest.mark.parametrize("pair", [(-1, 0), (1.0, 0), (1, True), ("4", 0)])
def test_delays_are_cycles(pair: Any) -> None:
    with pytest.raises(ValueError, match=r"^chip\.delays\.READ: wanted \[d_func, d_skew\]"):
        replace(CHIP, delays=(("READ", *pair),))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"lanes": 160}, "chip.lanes: wanted 320, got 160"),
        ({"superlanes": 3}, "chip.superlanes: 3 does not divide 320"),
        (
            {"sram_bytes": 230_686_400},
            "chip.sram_bytes: 230686400 is not a whole number of words in 88 slices x 2 banks "
            "over 2 hemispheres",
        ),
        (
            {"hemispheres": 3},
            "chip.sram_bytes: 230686720 is not a whole number of words in 88 slices x 2 banks "
            "over 3 hemispheres",
        ),
        (
            {"mxm_weight_streams": 17},
            "chip.mxm_weight_streams: 4 planes x 17 exceed 64 streams",
        ),
    ],
)
def test_numbers_that_contradict_each_other(change: dict[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=r"^chip\.") as caught:
        replace(CHIP, **change)
    assert str(caught.value) == text
