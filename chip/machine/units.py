"""Binds VXM and SXM tasks to rows of the pool: where operands are found and results are put."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from chip.errors import IssueError
from chip.isa.instructions import BLOCK_STREAMS, Alu, Lanes, Transpose
from chip.isa.issue import culprit
from chip.isa.operands import Chain, Held, Immediate, In, Lane, Position, Source
from chip.machine.collect import Burst
from chip.machine.data import (
    DTYPES,
    Array,
    BoundCall,
    SaturationCounter,
    alu,
    move_lanes,
    result_type,
)
from chip.machine.events import I64
from chip.machine.order import IssueTask
from chip.spec import VECTOR_BYTES

_UNSIGNED: Mapping[int, type[np.generic]] = {1: np.uint8, 2: np.uint16, 4: np.uint32}


class Units:
    """Makes the calls of VXM and SXM tasks, which must be bound in the order in which they run."""

    def __init__(self, pool: Array, source: I64, row: I64, maker: I64, bursts: list[Burst]) -> None:
        self.pool, self.source, self.row, self.bursts = pool, source, row, bursts
        self.maker = maker  # [values]: the burst that makes each
        self.counter = SaturationCounter()
        self.positions = np.zeros(1, np.int64)  # of the step's rows; the rest stand at 0

    # -- vectors

    def rows(self, burst: Burst, operand: int, task: IssueTask) -> I64:
        """Return an operand's pool rows: [issues, vectors]."""
        return self.row[self.values(burst, operand, task)]

    def values(self, burst: Burst, operand: int, task: IssueTask) -> I64:
        """Return an operand's value numbers: [issues, vectors]."""
        first, n, width = burst.operands[operand]
        return self.source[first : first + n * width].reshape(n, width)[task.first : task.last]

    def gather(self, rows: I64, before: list[BoundCall]) -> Array:
        """Return [issues, vectors * 320] bytes: a view, or scratch that a call in `before` fills.

        [1, ...] where all issues see the same.
        """
        if len(rows) > 1 and (rows == rows[0]).all():
            rows = rows[:1]
        n, width = rows.shape
        flat = np.ascontiguousarray(rows).reshape(-1)
        if not len(flat) or (np.diff(flat) == 1).all():
            return self.pool[flat[0] : flat[0] + len(flat)].reshape(n, width * VECTOR_BYTES)
        pool, scratch = self.pool, np.empty((len(flat), VECTOR_BYTES), np.uint8)
        before.append(lambda: np.take(pool, flat, axis=0, out=scratch, mode="clip"))  # type: ignore[arg-type]
        return scratch.reshape(n, width * VECTOR_BYTES)

    def made(self, burst: Burst, task: IssueTask) -> Array:
        """Return the bytes of a task's results: [issues, per * 320]."""
        first = int(self.row[burst.base]) + task.first * burst.per
        rows = self.pool[first : first + task.n * burst.per]
        return rows.reshape(task.n, burst.per * VECTOR_BYTES)

    # -- VXM

    def alu(self, burst: Burst, task: IssueTask) -> BoundCall:
        """Bind an ALU's issues."""
        instruction = burst.issue.instruction
        assert isinstance(instruction, Alu)
        before: list[BoundCall] = []
        operands, types, number = [], [], 0
        for source in instruction.sources:
            if isinstance(source, (In, Chain, Held)):
                operand, kind = self._stored(burst, source, number, task, before)
                number += 1
            else:
                operand, kind = self._made_here(source, task, before)
            operands.append(operand[:, : instruction.lanes] if operand.shape[1] > 1 else operand)
            types.append(kind)
        name = culprit(burst.issue, task.first)
        kind = result_type(instruction.op, tuple(types), name)
        burst.dtype = kind
        out = self.made(burst, task).view(DTYPES[kind])[:, : instruction.lanes]
        return joined(before, alu(instruction.op, operands, out, self.counter))

    def _stored(
        self,
        burst: Burst,
        source: In | Chain | Held,
        number: int,
        task: IssueTask,
        before: list[BoundCall],
    ) -> tuple[Array, str]:
        if isinstance(source, In):
            kind = source.dtype
            rows = self.rows(burst, number, task)
        else:
            values = self.values(burst, number, task)[:, 0]
            makers = [self.bursts[i] for i in np.unique(self.maker[values]).tolist()]
            kinds = {maker.dtype for maker in makers}
            if len(kinds) != 1:
                raise IssueError(
                    "results of several types in one operand", culprit(burst.issue, task.first)
                )
            (kind,) = kinds
            rows = self.row[values][:, None] + np.arange(makers[0].per)
        return self.gather(rows, before).view(DTYPES[kind]), kind

    def _made_here(
        self, source: Source, task: IssueTask, before: list[BoundCall]
    ) -> tuple[Array, str]:
        """Return an immediate, lane numbers, or positions that a call in `before` brings."""
        issue = np.arange(task.first, task.last, dtype=np.int32)[:, None]
        if isinstance(source, Immediate):
            return np.array([[source.value]], DTYPES[source.dtype]), source.dtype
        if isinstance(source, Lane):
            lanes = np.arange(VECTOR_BYTES, dtype=np.int32) + np.int32(source.offset)
            return lanes + np.int32(source.step) * issue, "i32"
        assert isinstance(source, Position)
        rows = (source.row + source.step * issue[:, 0]).astype(np.int64)
        out = np.zeros((len(rows), 1), np.int32)
        if int(rows.max()) >= len(self.positions):
            self.positions.resize(int(rows.max()) + 1, refcheck=False)

        def stand() -> None:
            at = self.positions[rows]
            out[:, 0] = (at % source.modulus if source.modulus else at) + source.offset

        before.append(stand)
        return out, "i32"

    # -- SXM

    def lanes(self, burst: Burst, task: IssueTask) -> BoundCall:
        """Bind an SXM instruction's issues."""
        sxm = burst.issue.instruction
        assert isinstance(sxm, Lanes)
        before: list[BoundCall] = []
        kind = _UNSIGNED[sxm.item]
        operands = [
            self.gather(self.rows(burst, i, task), before).view(kind)[:, : sxm.lanes]
            for i in range(len(burst.operands))
        ]
        out = self.made(burst, task).view(kind)[:, : sxm.out_lanes]
        return joined(before, move_lanes(sxm, operands, out))

    def transpose(self, burst: Burst, task: IssueTask) -> BoundCall:
        """Bind a block's transposition."""
        sxm = burst.issue.instruction
        assert isinstance(sxm, Transpose)
        before: list[BoundCall] = []
        tokens = BLOCK_STREAMS * task.n
        rows = self.rows(burst, 0, task).reshape(1, tokens)
        kind = _UNSIGNED[sxm.item]
        block = self.gather(rows, before).reshape(tokens, VECTOR_BYTES).view(kind)
        block = block[:, : BLOCK_STREAMS * sxm.groups]
        first = int(self.row[burst.base])
        out = self.pool[first : first + burst.count].view(kind)[:, :tokens]
        return joined(before, lambda: np.copyto(out, block.T))


def joined(before: list[BoundCall], last: BoundCall) -> BoundCall:
    """Return one call that does all."""
    if not before:
        return last
    if len(before) == 1:
        (one,) = before

        def both() -> None:
            one()
            last()

        return both
    calls: tuple[BoundCall, ...] = (*before, last)

    def every() -> None:
        for call in calls:
            call()

    return every
