"""What attention's passes have in common: masks, maxima, and numbers of heads that go to memory.

A quad's vectors have a quarter of the lanes for each head (chip/ops/scratch.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from chip.isa.instructions import AluOp
from chip.isa.issue import Issue
from chip.isa.operands import Held, Immediate, Lane, Position
from chip.ops.scratch import COLUMN
from compiler.codegen.attention.resources import EDGES, LANE_NUMBERS, MASKS, MAXIMUM, STORE
from compiler.codegen.attention.wires import Wires
from compiler.codegen.core.clock import Clock


def mask(wires: Wires, row: int, column: int, due: int) -> Issue:
    """Yield the mask of a column's tokens up to a row's position."""
    seen = Position(row, 0, -COLUMN * column)
    at = due - wires.clock.of["LE"]
    return wires.alu(MASKS.mask, at, AluOp.LE, Held(LANE_NUMBERS.lane), seen)


def running_best(wires: Wires, times: list[int], columns: int) -> Iterator[Issue]:
    """Maximum of columns whose pairs are in `MASKS.chosen` from the given cycles on."""
    for pair, time in enumerate(times):
        other = Held(MASKS.chosen[1]) if 2 * pair + 1 < columns else Held(MASKS.chosen[0])
        yield wires.alu(MAXIMUM.pair, time + 1, AluOp.MAX, Held(MASKS.chosen[0]), other)
        best = Held(MAXIMUM.best) if pair else Held(MAXIMUM.pair)
        at = time + 1 + wires.clock.of["MAX"]
        yield wires.alu(MAXIMUM.best, at, AluOp.MAX, Held(MAXIMUM.pair), best)


def keep(wires: Wires, number: int, vector: int, cycle: int) -> Iterator[Issue]:
    """Put a register's numbers of a quad into work memory; they leave a COPY after `cycle`."""
    writes, taps = wires.store("stats", vector, 4, cycle + wires.clock.of["COPY"])
    yield wires.alu(STORE.store, cycle, AluOp.COPY, Held(number), out=taps)
    yield from writes


def stored(clock: Clock) -> int:
    """Cycles from the issue of `keep` until what it writes may be read."""
    return clock.of["COPY"] + clock.near + clock.of["WRITE"] + 2


def lanes_within(wires: Wires) -> Iterator[Issue]:
    """Put every lane's number within its quarter into `LANE_NUMBERS.lane`."""
    late = wires.clock.of["GE"]
    for i, number in enumerate(EDGES.edges):
        edge = COLUMN * (i + 1)
        step = wires.clock.of["CHOOSE"]
        yield wires.alu(number, i * step, AluOp.GE, Lane(), Immediate(edge, "i32"))
        below = Held(LANE_NUMBERS.lane) if i else Lane()
        yield wires.alu(
            LANE_NUMBERS.lane, late + i * step, AluOp.CHOOSE, Held(number), Lane(-edge), below
        )
