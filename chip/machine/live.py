"""Slices whose words are gathered or scattered: accessed word by word while the step runs.

The words of a Gather or a Scatter are known only when its addresses come. No access to such a slice
can be resolved beforehand, and poison is looked for in the step itself. A superlane's address is
the first two of its 16 bytes of the map vector, little-endian.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from chip.errors import IssueError
from chip.isa.instructions import SUPERLANE, TILES, Gather, Read, Scatter, Write
from chip.isa.issue import culprit, delays
from chip.machine.collect import Burst, access_cycle, slice_of
from chip.machine.data import BoundCall
from chip.machine.events import I64
from chip.machine.memory import MemoryMap
from chip.machine.order import IssueTask
from chip.machine.resolve import Resolved
from chip.machine.units import Units

NOTHING = 0xFFFF  # the address with which a superlane of a Scatter writes nothing
_LANE = np.arange(TILES)


class LiveSlices:
    """The words of those slices, and the calls of MEM parts there: one issue each."""

    def __init__(
        self, resolved: Resolved, memory: MemoryMap, sram: NDArray[np.uint8], units: Units
    ) -> None:
        self.resolved, self.units = resolved, units
        self._sram = sram.reshape(len(sram), TILES, SUPERLANE)
        bursts = [resolved.bursts[number] for number in sorted(resolved.live)]
        words = resolved.spec.banks * resolved.spec.words_per_bank
        self._vectors: dict[int, I64] = {}  # slice -> the vector that each word is, -1 for none
        for slice_ in {slice_of(burst.issue, resolved.spec) for burst in bursts}:
            own = np.flatnonzero(memory.slice_of == slice_)
            self._vectors[slice_] = np.full(words, -1, np.int64)
            self._vectors[slice_][memory.word_of[own]] = own
        self._found = memory.valid
        self._valid = np.zeros((len(memory.valid) if bursts else 0, TILES), np.bool_)

    def begin(self) -> None:
        """Start a step: only what the memory was given holds something."""
        self._valid[...] = self._found[: len(self._valid), None]

    def tasks(self, burst: Burst) -> list[IssueTask]:
        """Return a burst's issues, each at the cycle of its access."""
        issue = burst.issue
        first = access_cycle(issue, delays(self.resolved.spec))
        return [IssueTask(burst.number, i, i + 1, first + i * issue.d) for i in range(issue.n)]

    def bind(self, burst: Burst, task: IssueTask) -> BoundCall:
        """Bind one access."""
        instruction, name = burst.issue.instruction, culprit(burst.issue, task.first)
        vectors = self._vectors[slice_of(burst.issue, self.resolved.spec)]
        sram, valid, pool = self._sram, self._valid, self.units.pool.reshape(-1, TILES, SUPERLANE)
        rows = [self.units.rows(burst, i, task)[0, 0] for i in range(len(burst.operands))]
        if isinstance(instruction, (Read, Write)):
            assert isinstance(instruction.address, int)
            word = np.full(TILES, instruction.address + task.first * instruction.step)
            mapped: Callable[[], I64] = lambda: word  # noqa: E731
        else:
            mapped = lambda: _addresses(pool[rows[0]], len(vectors), instruction, name)  # noqa: E731
        if isinstance(instruction, (Write, Scatter)):

            def put() -> None:
                words = mapped()
                lanes = np.flatnonzero(words != NOTHING)
                there = vectors[words[lanes]]
                sram[there, lanes] = pool[rows[-1], lanes]
                valid[there, lanes] = True

            return put
        into = int(self.units.row[burst.base + task.first])

        def get() -> None:
            there = vectors[mapped()]
            good = (there >= 0) & valid[there, _LANE]
            if not good.all():
                lane = int(np.argmin(good))
                what = f"superlane {lane} of vector {int(there[lane])} was never written"
                raise IssueError(what, name)
            pool[into] = sram[there, _LANE]

        return get


def _addresses(vector: NDArray[np.uint8], words: int, mem: object, name: str) -> I64:
    """Return each superlane's word. Raises IssueError for one that the slice does not have."""
    found = vector[:, 0].astype(np.int64) | vector[:, 1].astype(np.int64) << 8
    wrong = found >= words
    if isinstance(mem, Scatter):
        wrong &= found != NOTHING
    else:
        assert isinstance(mem, Gather)
    if wrong.any():
        lane = int(np.argmax(wrong))
        what = f"superlane {lane}'s address: wanted words 0 to {words - 1}, got {int(found[lane])}"
        raise IssueError(what, name)
    return found
