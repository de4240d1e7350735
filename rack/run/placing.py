"""Which machine each card goes to: chips that follow each other stay together. Pure: no Ray.

A frame between machines takes ten times as long as one inside (docs/performance.md). Groups of
chips, and stages that hand over to each other, are neighbours in the order of chips. So a rack is
put on one machine if it fits there, else on as few as possible, each with cards in a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def machines_of_cards(
    racks: Sequence[Sequence[int]], free: Mapping[str, int]
) -> list[list[str]] | None:
    """Return the machine of every card of every rack; None if they do not fit in this order.

    `racks` are the bytes that each card needs; `free` are the bytes that each machine has left. Of
    machines that are alike the first one is taken.
    """
    left, placed = dict(free), []
    for cards in racks:
        found = _one_machine(cards, left) or _in_a_row(cards, left)
        if found is None:
            return None
        for size, machine in zip(cards, found, strict=True):
            left[machine] -= size
        placed.append(found)
    return placed


def _one_machine(cards: Sequence[int], left: Mapping[str, int]) -> list[str] | None:
    """Return the machine on which a rack fits and the least is left over."""
    room = [machine for machine, size in left.items() if size >= sum(cards)]
    return [min(room, key=left.__getitem__)] * len(cards) if room else None


def _in_a_row(cards: Sequence[int], left: Mapping[str, int]) -> list[str] | None:
    """Fill machines one after the other, those with the most room first."""
    found: list[str] = []
    for machine in sorted(left, key=left.__getitem__, reverse=True):
        room = left[machine]
        while len(found) < len(cards) and cards[len(found)] <= room:
            room -= cards[len(found)]
            found.append(machine)
    return found if len(found) == len(cards) else None
