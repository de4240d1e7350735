"""`--layout auto`: the fewest racks, then the fewest cycles; and what to say when nothing fits."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from schedules import machine

from compiler.errors import CapacityError, CompilerError, LayoutError
from compiler.model.presets import PRESETS
from compiler.pipeline import Options, compile_model
from compiler.place import auto
from compiler.place.auto import choose_layout, smallest_layout

TINY = PRESETS["tiny"]
SMALL = replace(machine("lesson").chip, slices=16, sram_bytes=16 * 2 * 320 * 30)  # 307,200 bytes
LITTLE = replace(machine("lesson"), chip=SMALL)
OPTIONS = Options(max_model_len=32, prefill_chunk=4, buckets=(32,))


def cycles(layout: object) -> int:
    model = compile_model(TINY, LITTLE, layout, OPTIONS, kinds="decode")  # type: ignore[arg-type]
    return model.steps["decode/32"].cycles


def test_the_fewest_cycles_in_one_rack() -> None:
    best = choose_layout(TINY, LITTLE, OPTIONS)
    assert best.chips <= LITTLE.chips_per_rack
    search = auto._Search(TINY, LITTLE, OPTIONS)
    every = list(search.candidates(LITTLE.chips_per_rack))
    assert best in every
    found = []
    for layout in every:
        with suppress(CapacityError, LayoutError):  # links, and what passes through, come later
            found.append(cycles(layout))
    assert cycles(best) == min(found)


def test_candidates_fit_and_fewer_stages_would_not() -> None:
    search = auto._Search(TINY, LITTLE, OPTIONS)
    for layout in search.candidates(18):
        assert search.excess(layout) <= 0
        if layout.stages > 1 and layout.head:
            assert search.excess(replace(layout, stages=layout.stages - 1)) > 0


def test_the_smallest_layout_that_fits() -> None:
    smallest = smallest_layout(TINY, LITTLE, OPTIONS)
    assert smallest is not None
    assert smallest.chips > 1
    compile_model(TINY, LITTLE, smallest, OPTIONS, kinds="decode")
    search = auto._Search(TINY, LITTLE, OPTIONS)
    assert smallest.chips == min(layout.chips for layout in search.candidates(18))
    assert str(smallest_layout(TINY, machine("lesson"), OPTIONS)) == "1x1"


def test_a_model_that_one_chip_holds_may_still_use_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "GROUP_SIZES", (1, 2, 4))
    best = choose_layout(TINY, machine("lesson"), OPTIONS)
    assert best.chips <= 18


def test_spares_have_room_in_the_racks() -> None:
    """On fixed cables a layout that takes all chips would leave none to take a lost one's place."""
    groqrack = machine("groqrack")
    all_chips = replace(groqrack, cards_per_rack=8)  # one node
    widest = max(layout.chips for layout in auto._Search(TINY, all_chips, OPTIONS).candidates(8))
    assert widest == 8
    for spares in (1, 6):
        assert choose_layout(TINY, all_chips, OPTIONS, spares=spares).chips <= 8 - spares
    beyond = choose_layout(TINY, all_chips, OPTIONS, spares=8)
    assert beyond.chips <= 8  # of two racks


def test_more_racks_are_taken_only_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "FINALISTS", 1)
    monkeypatch.setattr(auto, "GROUP_SIZES", (1, 2))
    chip = replace(SMALL, sram_bytes=SMALL.sram_bytes * 2)
    tight = replace(LITTLE, cards_per_rack=1, chip=chip)  # two chips a rack
    best = choose_layout(TINY, tight, OPTIONS)
    smallest = smallest_layout(TINY, tight, OPTIONS)
    assert smallest is not None
    assert -(-best.chips // 2) == -(-smallest.chips // 2) > 1


def test_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "MAX_RACKS", 1)
    huge = replace(TINY, num_layers=60)
    with pytest.raises(CompilerError) as caught:
        choose_layout(huge, LITTLE, OPTIONS)
    assert str(caught.value) == "tiny: no layout of up to 1 racks of lesson holds it"
    assert smallest_layout(huge, LITTLE, OPTIONS) is None


def test_the_head_group_is_sized_by_its_fullest_chip() -> None:
    """20 superlanes of vocabulary over 3 chips are 6, 7 and 7: the first one holds least."""
    search = auto._Search(TINY, LITTLE, OPTIONS)
    needs = {head: search.head_excess(head) for head in range(1, 21)}
    assert needs[1] > needs[2] > needs[20]  # in whole windows of 64 columns
    assert all(needs[head] >= needs[head + 1] for head in range(1, 20))
    for head in (2, 3, 5, 6, 7):
        room = needs[head] + SMALL.sram_bytes
        exact = _Exactly(search, room)
        assert exact.smallest_head == min(h for h in needs if needs[h] <= needs[head])


class _Exactly(auto._Search):
    """A search for chips of just so many bytes, which a floor plan need not have."""

    def __init__(self, like: auto._Search, room: int) -> None:
        super().__init__(like.config, like.target, like.options)
        self.room = room

    def head_excess(self, head: int) -> int:
        return super().head_excess(head) + self.target.chip.sram_bytes - self.room


def test_a_head_that_no_group_holds() -> None:
    wide = replace(TINY, hidden_size=40_000, num_layers=1)
    with pytest.raises(CompilerError) as caught:
        choose_layout(wide, LITTLE, OPTIONS)
    assert str(caught.value) == "tiny: no group of chips up to 1024 holds the LM head"


def test_llama_8b_needs_no_more_than_the_racks_it_fills() -> None:
    layout = smallest_layout(PRESETS["llama-8b"], machine("lesson"), Options(max_model_len=512))
    assert layout is not None
    assert 33 <= layout.chips <= 45  # 7.5 GB of int8 weights, 230 MB a chip


def test_no_more_context_than_the_model_has() -> None:
    with pytest.raises(CompilerError, match=r"^max_model_len: tiny has 256 positions, got 9999$"):
        choose_layout(TINY, LITTLE, replace(OPTIONS, max_model_len=9999))


def test_a_prefill_chunk_longer_than_the_context_is_as_long_as_it() -> None:
    search = auto._Search(TINY, LITTLE, replace(OPTIONS, prefill_chunk=10**5))
    assert search.memory == auto._Search(TINY, LITTLE, replace(OPTIONS, prefill_chunk=32)).memory
