"""The memory: exactly its bytes, every vector at one place on the die, nothing outside."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from schedules import machine

from chip.errors import SramError
from chip.sram import Location, Sram, locate, work_start
from chip.sram import places as all_places

CHIP = machine("lesson").chip
SMALL = replace(CHIP, sram_bytes=88 * 2 * 320 * 3)  # three words a bank


def test_every_vector_has_one_place() -> None:
    places = [locate(SMALL, address) for address in range(0, SMALL.sram_bytes, 320)]
    assert len(set(places)) == 2 * 44 * 2 * 3 == len(places)
    assert places[0] == Location(0, 1, 0, 0)
    assert places[-1] == Location(1, 0, 1, 2)  # the work slices come last
    first = work_start(SMALL) // 320
    assert {place.slice for place in places[first:]} == {0}
    assert 0 not in {place.slice for place in places[:first]}


def test_all_places_at_once() -> None:
    slice_of, word_of = all_places(SMALL)
    for vector in range(SMALL.sram_bytes // 320):
        place = locate(SMALL, 320 * vector)
        word = place.bank * SMALL.words_per_bank + place.word
        assert (slice_of[vector], word_of[vector]) == (44 * place.hemisphere + place.slice, word)


def test_a_tiles_streams_read_different_slices() -> None:
    """Any aligned 64 vectors are read at once: 16 for each plane, two planes a hemisphere."""
    for start in range(0, work_start(SMALL) - 64 * 320, 64 * 320):
        window = [locate(SMALL, start + 320 * vector) for vector in range(64)]
        assert len({(place.hemisphere, place.slice) for place in window}) == 64
        sides = [place.hemisphere for place in window]
        assert sides == [0] * 16 + [1] * 16 + [0] * 16 + [1] * 16


@pytest.mark.parametrize("address", [-320, 1, 319, SMALL.sram_bytes, SMALL.sram_bytes + 320])
def test_an_address_that_is_none(address: int) -> None:
    with pytest.raises(SramError) as caught:
        locate(SMALL, address)
    assert str(caught.value) == f"address {address}: wanted a multiple of 320 below 168960"


@pytest.mark.parametrize("size", [0, 319, 321, -320])
def test_a_size_that_is_none(size: int) -> None:
    with pytest.raises(SramError) as caught:
        Sram(size)
    assert str(caught.value) == f"size {size}: wanted whole vectors of 320 bytes"


def test_it_has_exactly_its_bytes_and_starts_as_zeros() -> None:
    sram = Sram(CHIP.sram_bytes)
    assert sram.bytes.nbytes == sram.size == 230_686_720
    assert not sram.bytes[:: 1 << 16].any()
    sram.close()
    assert sram.bytes.nbytes == 0


def test_named_regions() -> None:
    sram = Sram(3200)
    sram.reserve("a", 0, 640)
    sram.reserve("b", 960, 320)
    sram.tensor("b")[:] = 7
    assert sram.bytes[960:1280].tolist() == [7] * 320
    assert sram.tensor("a").nbytes == 640
    with pytest.raises(SramError) as caught:
        sram.reserve("c", 320, 700)
    assert str(caught.value) == "c at [320, 1020) overlaps a at [0, 640)"
    with pytest.raises(SramError) as caught:
        sram.tensor("d")
    assert str(caught.value) == "d: no such tensor; this chip holds ['a', 'b']"


@pytest.mark.parametrize(("address", "size"), [(-320, 320), (3200, 1), (2880, 321), (100, 4)])
def test_a_region_outside(address: int, size: int) -> None:
    with pytest.raises(SramError) as caught:
        Sram(3200).reserve("x", address, size)
    assert str(caught.value) == (
        f"x: [{address}, {address + size}) is outside 3200 bytes of SRAM or not on a vector"
    )


def test_views_share_the_memory() -> None:
    sram = Sram(3200)
    rows = sram.rows(320, np.float32, 3, 5, 640)
    rows[2, 4] = 1.5
    at = 320 + 2 * 640 + 4 * 4
    assert sram.bytes[at : at + 4].view(np.float32)[0] == 1.5
    assert sram.view(640, np.int8, (0,), (1,)).size == 0
    heads = sram.view(16, np.float16, (2, 3), (320, 2))  # a head starts at a superlane
    heads[:] = 1
    assert sram.bytes[16:22].view(np.float16).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("address", "rows", "text"),
    [
        (2880, 2, "view: [2880, 3220) is outside 3200 bytes of SRAM or not on a vector"),
        (-4, 1, "view: [-4, 16) is outside 3200 bytes of SRAM or not on a vector"),
    ],
)
def test_a_view_outside(address: int, rows: int, text: str) -> None:
    with pytest.raises(SramError) as caught:
        Sram(3200).rows(address, np.float32, rows, 5, 320)
    assert str(caught.value) == text
