"""Cards on machines: each fits, neighbours stay together, and a rack is on as few as can be."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rack.run.placing import machines_of_cards

sizes = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=4)
rooms = st.dictionaries(st.sampled_from("abcde"), st.integers(0, 40), max_size=5)


@settings(deadline=None)
@given(sizes, rooms)
def test_what_is_placed_fits_and_is_in_a_row(racks: list[list[int]], free: dict[str, int]) -> None:
    placed = machines_of_cards(racks, free)
    if placed is None:  # one machine at least has too little for all
        assert max(free.values(), default=0) < sum(map(sum, racks))
        return
    left = dict(free)
    for cards, machines in zip(racks, placed, strict=True):
        for size, machine in zip(cards, machines, strict=True):
            left[machine] -= size
        changes = sum(one != other for one, other in pairwise(machines))
        assert changes == len(set(machines)) - 1
    assert all(size >= 0 for size in left.values())


@pytest.mark.parametrize(
    ("racks", "free", "wanted"),
    [
        ([[4, 4, 4]], {"a": 12, "b": 90}, ["aaa"]),  # the tightest that holds it
        ([[4, 4], [4, 4]], {"a": 9, "b": 8}, ["bb", "aa"]),  # a rack is not torn to fill one
        ([[4, 4, 4, 4]], {"a": 9, "b": 14}, ["bbba"]),  # the largest first
        ([[5, 5, 4, 4, 4]], {"a": 9, "b": 9, "c": 9}, ["ab" "b" "cc"]),
        ([[2], [2]], {"a": 4, "b": 9}, ["a", "a"]),
        ([[4, 4, 4]], {"a": 7, "b": 7}, None),
        ([[1]], {}, None),
    ],
)  # fmt: skip
def test_racks_by_hand(
    racks: list[list[int]], free: dict[str, int], wanted: list[str] | None
) -> None:
    placed = machines_of_cards(racks, free)
    assert (None if placed is None else ["".join(one) for one in placed]) == wanted
