"""The MXM's part of a program: which weights each product is of, and which ACC takes it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from chip.errors import IssueError
from chip.machine.collect import Collector
from chip.machine.events import (
    I64,
    InstallEvents,
    LoadEvents,
    ProductEvents,
    duplicate,
    keys,
    latest,
    matches,
    order_of,
    place_of,
)

_ROW_BITS = 12  # a plane has fewer accumulator rows and activation slots than 4096


class Tiles(NamedTuple):
    """Installed weights."""

    operands: I64  # [tiles, columns]: operand numbers of the weights, -1 for none
    of: I64  # [operands]: the tile that an ACC's product is of, -1 for other operands


def resolve_planes(table: Collector, source: I64) -> Tiles:
    """Return the tiles; enter in `source` the activations of each ACC and of each slot's reader.

    Raises IssueError for weights, products and rows that nobody made or nobody takes.
    """
    products, drains = table.products.expand(), table.drains.expand()
    loads, installs = table.loads.expand(), table.installs.expand()
    _check_joined(table, products, drains, loads, installs)
    installed, operands = _tiles(table, loads, installs)
    _resolve_slots(table, source)
    _check_sums(table)
    _check_halves(table)
    fed = products.cycle - table.delays["ABC"].d_func
    tile = latest(installed, keys(products.plane, fed), now=True)
    if (tile < 0).any():
        raise table.refusal("no weights in the plane", products.issue, int(np.argmax(tile < 0)))
    product = _drained(table, products, drains)
    source[drains.operand] = source[products.operand[product]]
    of = np.full(table.operands, -1, np.int64)
    of[drains.operand] = tile[product]
    return Tiles(operands, of)


def _drained(table: Collector, products: ProductEvents, drains: ProductEvents) -> I64:
    """Return the product that each ACC takes: the one that leaves the array in its cycle."""
    key = keys(products.plane, products.cycle)
    order = order_of(key)
    at, there = matches(key[order], keys(drains.plane, drains.cycle))
    if not there.all():
        event = int(np.argmin(there))
        raise table.refusal("no product leaves the array", drains.issue, event)
    product = order[at]
    taken = np.zeros(len(order), np.bool_)
    taken[product] = True
    if not taken.all():
        event = int(np.argmin(taken))
        raise table.refusal("a product that no ACC takes", products.issue, event)
    if (other := products.fp16[product] != drains.fp16).any():
        event = int(np.argmax(other))
        raise IssueError(
            "a product of one type, a sum of another",
            table.culprit(products.issue, product[event]), table.culprit(drains.issue, event),
        )  # fmt: skip
    return product


def _check_joined(
    table: Collector, products: ProductEvents, drains: ProductEvents, loads: LoadEvents,
    installs: InstallEvents,
) -> None:  # fmt: skip
    """A pair of planes joined for fp16 is driven by the even one's queues alone."""
    fp16 = np.flatnonzero(products.fp16)
    joined = products.plane[fp16] + 1
    for events in (loads, installs, products, drains):
        hit = np.isin(events.plane, joined)
        if hit.any():
            event = int(np.argmax(hit))
            plane = int(events.plane[event])
            even = int(fp16[np.flatnonzero(joined == plane)[-1]])
            raise IssueError(
                f"plane {plane} is joined to plane {plane - 1} for fp16",
                table.culprit(events.issue, event), table.culprit(products.issue, even),
            )  # fmt: skip


def _tiles(table: Collector, loads: LoadEvents, installs: InstallEvents) -> tuple[I64, I64]:
    """Return the keys of the installed tiles by plane and cycle, and their weights.

    A column belongs to the first IW of its plane that comes at or after its LW is done. A tile
    holds for activations issued IW's d_func after the IW, or later.
    """
    key = keys(installs.plane, installs.cycle)
    order = order_of(key)
    ordered, wanted = key[order], installs.columns[order]
    tile = np.searchsorted(ordered, keys(loads.plane, loads.cycle))
    there = tile < len(ordered)
    there[there] = place_of(ordered[tile[there]]) == loads.plane[there]
    if not there.all():
        event = int(np.argmin(there))
        raise table.refusal("weights that are never installed", loads.issue, event)
    cell = tile * table.spec.mxm_columns + loads.column
    by_cell = order_of(cell)
    if (twice := duplicate(cell[by_cell])) is not None:
        what = "two weights in one column of the buffer"
        raise table.refusal(what, loads.issue, by_cell[twice], by_cell[twice + 1])
    tiles = np.full((len(ordered), table.spec.mxm_columns), -1, np.int64)
    tiles.reshape(-1)[cell] = loads.operand
    filled = (tiles >= 0).sum(1)
    if (wrong := filled != wanted).any():
        event = int(np.argmax(wrong))
        what = f"weight buffer: wanted {wanted[event]} columns, got {filled[event]}"
        raise table.refusal(what, installs.issue, order[event])
    return ordered + table.delays["IW"].d_func, tiles


def rows_of(plane: I64, row: I64) -> I64:
    """Return plane and accumulator row, or plane and activation slot, as one place."""
    return (plane << _ROW_BITS) + row


def _check_halves(table: Collector) -> None:
    """The halves of a row's fp16 tiles take turns, half 0 first."""
    halves = table.halves.expand()
    key = keys(rows_of(halves.plane, halves.row), halves.cycle)
    order = order_of(key)
    place, half = place_of(key[order]), halves.half[order]
    number = np.arange(len(order)) - np.searchsorted(place, place)  # of the half in its row
    last = np.append(place[1:] != place[:-1], True)[: len(order)]
    wrong = (half != number % 2) | (last & (half == 0))
    if wrong.any():
        event = int(order[np.argmax(wrong)])
        raise table.refusal("half a tile without the other half", halves.issue, event)


def _check_sums(table: Collector) -> None:
    """An accumulator row must have been started."""
    sums = table.sums.expand()
    key = keys(rows_of(sums.plane, sums.row), sums.cycle)
    found = latest(np.sort(key[sums.starts == 1]), key, now=True)
    if (found < 0).any():
        event = int(np.argmax(found < 0))
        raise table.refusal("an accumulator row that was never started", sums.issue, event)


def _resolve_slots(table: Collector, source: I64) -> None:
    """A slot of the activation buffer holds a row until the next fill."""
    fills, reads = table.slot_fills.expand(), table.slot_reads.expand()
    key = keys(rows_of(fills.plane, fills.slot), fills.cycle)
    order = order_of(key)
    found = latest(key[order], keys(rows_of(reads.plane, reads.slot), reads.cycle), now=False)
    if (found < 0).any():
        event = int(np.argmax(found < 0))
        raise table.refusal("nothing in the activation buffer's slot", reads.issue, event)
    source[reads.operand] = source[fills.operand[order[found]]]
