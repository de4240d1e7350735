"""The MXM's part of a program: which weights each product is of, and which ACC takes it."""

from __future__ import annotations

import numpy as np

from chip.errors import MachineError
from chip.isa.issue import delays
from chip.machine.check import culprit
from chip.machine.collect import Collector
from chip.machine.tables import I64, duplicate, keys, latest, place_of
from chip.spec import ChipSpec


class MatrixResolver:
    """Matches loads, installs, products and sums of all planes in a table of events."""

    table: Collector
    source: I64  # [places]: value numbers of operands
    tile_of: I64  # [places]: the tile that an ACC's product is of

    def __init__(self, spec: ChipSpec) -> None:
        self.spec = spec

    def _name(self, burst: int, index: int) -> str:
        return culprit(self.table.bursts[burst].issue, index)

    def _refuse(self, what: str, index: I64, burst: I64, *events: int) -> MachineError:
        return MachineError(what, *(self._name(int(burst[e]), int(index[e])) for e in events))

    def _planes(self) -> I64:
        """Return each installed tile's places of weights; match products with what takes them."""
        self._joined()
        tiles, installed = self._tiles()
        self._activations()
        self._sums()
        self._halves()
        index, (plane, ready, step, place, fp16, burst) = self.table.products.expand()
        func = delays(self.spec)["ABC"].d_func
        ready = ready + step * index
        tile = latest(installed, keys(plane, ready - func), now=True)
        if (tile < 0).any():
            what = "no weights in the plane"
            raise self._refuse(what, index, burst, int(np.argmax(tile < 0)))
        key = keys(plane, ready)
        order = np.argsort(key, kind="stable")
        drain_index, (plane, cycle, step, drain_place, drain_fp16, drain) = (
            self.table.drains.expand()
        )
        wanted = keys(plane, cycle + step * drain_index)
        at = np.searchsorted(key[order], wanted)
        there = at < len(order)
        there[there] = key[order][at[there]] == wanted[there]
        if not there.all():
            raise self._refuse(
                "no product leaves the array", drain_index, drain, int(np.argmin(there))
            )
        taken = np.zeros(len(order), np.bool_)
        taken[order[at]] = True
        if not taken.all():
            what = "a product that no ACC takes"
            raise self._refuse(what, index, burst, int(np.argmin(taken)))
        product = order[at]
        if (other := fp16[product] != drain_fp16).any():
            event = int(np.argmax(other))
            raise MachineError(
                "a product of one type, a sum of another",
                self._name(int(burst[product[event]]), int(index[product[event]])),
                self._name(int(drain[event]), int(drain_index[event])),
            )
        self.source[drain_place + drain_index] = self.source[(place + index)[product]]
        self.tile_of[drain_place + drain_index] = tile[product]
        return tiles

    def _joined(self) -> None:
        """A pair of planes joined for fp16 is driven by the even one's queues alone."""
        table = self.table
        joined = {row[1] + 1: row[-1] for row in table.products.rows if row[-2]}
        for events in (table.loads, table.installs, table.products, table.drains):
            for row in events.rows:
                if row[1] in joined:
                    what = f"plane {row[1]} is joined to plane {row[1] - 1} for fp16"
                    raise MachineError(what, self._name(row[-1], 0), self._name(joined[row[1]], 0))

    def _halves(self) -> None:
        """The halves of a row's fp16 tiles take turns, half 0 first."""
        index, (plane, slot, slot_step, cycle, step, half, burst) = self.table.halves.expand()
        key = keys(plane * 4096 + slot + slot_step * index, cycle + step * index)
        order = np.argsort(key, kind="stable")
        place, half = place_of(key[order]), half[order]
        number = np.arange(len(order)) - np.searchsorted(place, place)
        last = np.append(place[1:] != place[:-1], True)[: len(order)]
        wrong = (half != number % 2) | (last & (half == 0))
        if wrong.any():
            event = int(order[np.argmax(wrong)])
            raise self._refuse("half a tile without the other half", index, burst, event)

    def _tiles(self) -> tuple[I64, I64]:
        index, (plane, cycle, step, columns, install) = self.table.installs.expand()
        key = keys(plane, cycle + step * index)
        order = np.argsort(key, kind="stable")
        ordered, columns, install = key[order], columns[order], install[order]
        index, (plane, ready, step, column, column_step, place, place_step, load) = (
            self.table.loads.expand()
        )
        ready = ready + step * index
        tile = np.searchsorted(ordered, keys(plane, ready))
        there = tile < len(ordered)
        there[there] = place_of(ordered[tile[there]]) == plane[there]
        if not there.all():
            what = "weights that are never installed"
            raise self._refuse(what, index, load, int(np.argmin(there)))
        column = column + column_step * index
        cell = tile * self.spec.mxm_columns + column
        by_cell = np.argsort(cell, kind="stable")
        if (twice := duplicate(cell[by_cell])) is not None:
            what = "two weights in one column of the buffer"
            raise self._refuse(what, index, load, by_cell[twice], by_cell[twice + 1])
        tiles = np.full((len(ordered), self.spec.mxm_columns), -1, np.int64)
        tiles.reshape(-1)[cell] = place + place_step * index
        filled = (tiles >= 0).sum(1)
        wrong = filled != columns
        if wrong.any():
            event = int(np.argmax(wrong))
            what = f"weight buffer: wanted {columns[event]} columns, got {filled[event]}"
            raise MachineError(what, culprit(self.table.bursts[int(install[event])].issue))
        func = delays(self.spec)["IW"].d_func
        return tiles, ordered + func

    def _sums(self) -> None:
        """An accumulator row must have been started."""
        index, (plane, slot, slot_step, cycle, step, starts, burst) = self.table.sums.expand()
        key = keys(plane * 4096 + slot + slot_step * index, cycle + step * index)
        found = latest(np.sort(key[starts == 1]), key, now=True)
        if (found < 0).any():
            what = "an accumulator row that was never started"
            raise self._refuse(what, index, burst, int(np.argmax(found < 0)))

    def _activations(self) -> None:
        """A slot of the activation buffer holds a row until the next fill."""
        index, (plane, slot, slot_step, cycle, step, place, _) = self.table.fills.expand()
        key = keys(plane * 4096 + slot + slot_step * index, cycle + step * index)
        order = np.argsort(key, kind="stable")
        use_index, (plane, slot, slot_step, cycle, step, use_place, user) = self.table.uses.expand()
        wanted = keys(plane * 4096 + slot + slot_step * use_index, cycle + step * use_index)
        found = latest(key[order], wanted, now=False)
        if (found < 0).any():
            what = "nothing in the activation buffer's slot"
            raise self._refuse(what, use_index, user, int(np.argmax(found < 0)))
        self.source[use_place + use_index] = self.source[(place + index)[order[found]]]
