"""What the MXM does to data: products of installed tiles, summed in accumulator rows."""

from __future__ import annotations

import numpy as np

from chip.errors import IssueError
from chip.floorplan import plane_of
from chip.isa.instructions import ACC
from chip.isa.issue import culprit
from chip.kernels.twin_math import PARTIALS, add_partials, spread, sum_partials
from chip.machine.collect import Burst
from chip.machine.data import Array, BoundCall
from chip.machine.events import I64
from chip.machine.order import IssueTask
from chip.machine.units import Units, joined
from chip.spec import VECTOR_BYTES, ChipSpec


class Accumulators:
    """The accumulators of all planes, and the calls of ACC tasks.

    int8: products of int8 go through fp32 BLAS, exact below 2^24. fp16: a tile's partials are kept
    between its halves, and summed as `Kernels.matmul_f16` defines.
    """

    def __init__(self, spec: ChipSpec, units: Units, tiles: I64, tile_of: I64) -> None:
        self._units, self._tiles, self._tile_of = units, tiles, tile_of
        shape = (spec.mxm_planes, spec.mxm_accumulator_rows, spec.mxm_columns)
        self.sums = np.zeros(shape, np.int32)
        self.floats = self.sums.view(np.float32)  # a plane works in one type at a time
        self._partials: dict[int, Array] = {}

    def weights(self, burst: Burst, task: IssueTask) -> I64:
        """Return the value numbers of the columns that products are of, -1 for none."""
        tile = self._tile(burst, task)
        assert tile is not None, "a task has products of one tile"
        values: I64 = self._tiles[tile]
        return values

    def _tile(self, burst: Burst, task: IssueTask) -> int | None:
        """Return the tile that products are of, None if they are of several."""
        first = burst.operands[0].first
        tiles = np.unique(self._tile_of[first + task.first : first + task.last])
        return int(tiles[0]) if len(tiles) == 1 else None

    def whole(self, burst: Burst, task: IssueTask) -> bool:
        """Tell whether the issues can be done at once: one tile, every row once."""
        acc = burst.issue.instruction
        assert isinstance(acc, ACC)
        if task.n == 1:
            return True
        return acc.step != 0 and (not acc.product or self._tile(burst, task) is not None)

    def acc(self, burst: Burst, task: IssueTask) -> BoundCall:
        """Bind an ACC's issues."""
        acc = burst.issue.instruction
        assert isinstance(acc, ACC)
        plane = plane_of(burst.issue.queue)[0]
        slots = acc.slot + acc.step * np.arange(task.first, task.last)
        if int(slots.min()) < 0 or int(slots.max()) >= self.sums.shape[1]:
            what = f"slot: wanted 0 to {self.sums.shape[1] - 1}, got {slots.min()} to {slots.max()}"
            raise IssueError(what, culprit(burst.issue, task.first))
        one_up = acc.step == 1 or len(slots) == 1
        where = slice(int(slots[0]), int(slots[-1]) + 1) if one_up else slots
        sums = (self.sums if acc.half is None else self.floats)[plane]
        before: list[BoundCall] = []
        if acc.product and acc.half is None:
            before.append(self._int8(burst, task, acc, sums, where))
        elif acc.product:
            before.append(self._fp16(burst, task, acc, plane, slots))
        if not acc.out:
            return joined(before[:-1], before[-1]) if before else lambda: None
        out = self._units.made(burst, task).view(sums.dtype)[:, : acc.lanes]
        return joined(before, lambda: np.copyto(out, sums[where, : acc.lanes]))

    def _operands(
        self, burst: Burst, task: IssueTask, before: list[BoundCall]
    ) -> tuple[Array, Array, I64]:
        """Return activations [issues, 320], weights [columns, 320] as bytes, and the columns."""
        values = self.weights(burst, task)
        columns = np.flatnonzero(values >= 0)
        rows = self._units.row[values[columns]]
        weights = self._units.gather(rows.reshape(1, -1), before).reshape(-1, VECTOR_BYTES)
        rows = self._units.rows(burst, 0, task)
        return self._units.gather(rows, before), weights, columns

    def _int8(
        self, burst: Burst, task: IssueTask, acc: ACC, sums: Array, where: slice | I64
    ) -> BoundCall:
        before: list[BoundCall] = []
        first = acc.first
        if self.weights(burst, task).max() < 0:  # an empty array
            return lambda: sums.__setitem__(where, 0) if first else None
        x, w, columns = self._operands(burst, task, before)
        x, w = x.view(np.int8), w.view(np.int8)
        into = slice(0, len(columns)) if int(columns[-1]) < len(columns) else columns
        rows = where if isinstance(where, slice) or isinstance(into, slice) else where[:, None]

        def multiply() -> None:
            product = np.matmul(x.astype(np.float32), w.astype(np.float32).T).astype(np.int32)
            if first:
                sums[where] = 0
                sums[rows, into] = product
            else:
                sums[rows, into] += product

        return joined(before, multiply)

    def _fp16(self, burst: Burst, task: IssueTask, acc: ACC, plane: int, slots: I64) -> BoundCall:
        before: list[BoundCall] = []
        x, w, columns = self._operands(burst, task, before)
        x, w = x.view(np.float16), w.view(np.float16)
        sums, partials = self.floats[plane], self._partials_of(plane)

        def multiply() -> None:
            p = partials[slots] if acc.half else np.zeros((len(slots), *partials.shape[1:]))
            loaded = p[:, columns]
            add_partials(loaded, spread(x)[:, :, None], spread(w))
            p[:, columns] = loaded
            if not acc.half:
                partials[slots] = p
                return
            if acc.first:
                sums[slots] = 0
            sums[slots] += sum_partials(p)

        return joined(before, multiply)

    def _partials_of(self, plane: int) -> Array:
        """Return the fp64 partials of a pair of planes: [rows, columns, 16]."""
        if plane not in self._partials:
            self._partials[plane] = np.zeros((*self.sums.shape[1:], PARTIALS), np.float64)
        return self._partials[plane]
