"""The modulo schedule of attention's quads: the shortest interval that is found for a shape.

An interval has some quads, so that its cycles are whole turns of the links at work memory's ports.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from chip.errors import TemplateError
from chip.ops.cost import C2C_TURN
from chip.spec import ChipSpec
from compiler.codegen.attention.modulo import Modulo, Slot, Turn
from compiler.codegen.attention.quads import Builder, Kept, Unit
from compiler.codegen.attention.resources import LOOP
from compiler.codegen.attention.shape import Tile
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.parts import Node
from compiler.codegen.core.uses import Uses, of_nodes

TRIES = 24
WIDEST = 4  # quads of an interval


@dataclass(frozen=True, slots=True)
class Pattern:
    """Quads of one interval, with what each has of instructions and passes of the SXMs."""

    interval: int
    units: tuple[Unit, ...]
    nodes: tuple[tuple[Node, ...], ...]  # by unit
    turns: tuple[tuple[Turn, ...], ...]
    taken: frozenset[Slot]  # by cycle of the interval

    @property
    def uses(self) -> list[Uses]:
        """What each unit asks of the ALUs."""
        return [of_nodes(f"quad {number}", nodes) for number, nodes in enumerate(self.nodes)]

    def unit(self, seat: int) -> Unit:
        """Return the unit of a quad, counted from the first."""
        return self.units[seat % len(self.units)]

    def start(self, seat: int) -> int:
        """Return the start of a quad's interval."""
        return seat // len(self.units) * self.interval

    def ring(self, kept: Kept) -> int:
        """Quads after which what waits in memory may be written over."""
        for ahead in range(1, 1 << 10):
            if all(
                self.start(seat + ahead) + min(self.unit(seat + ahead).when(kept, write=True))
                > self.start(seat) + max(self.unit(seat).when(kept, write=False))
                for seat in range(len(self.units))
            ):
                return ahead
        raise AssertionError(kept)


@lru_cache(maxsize=64)
def pattern(tokens: int, parts: int, looks: bool, spec: ChipSpec) -> Pattern:
    """Return the quads of an interval.

    `tokens`: of a tile; `parts`: vectors of results that a head has part in, at most; `looks`:
    quads differ in what their rows see. Raises TemplateError where no interval is found.
    """
    clock, tile = Clock(spec), Tile(0, 0, 0, tokens)
    least = _least(tile.columns, parts)
    sizes = sorted(
        (interval / units, units, interval)
        for units in range(1, WIDEST + 1)
        for interval in range(C2C_TURN, WIDEST * (least + 64), C2C_TURN)
        if interval >= units * least
    )
    for _, units, interval in sizes[:TRIES]:
        try:
            return _built(clock, tile, parts, looks, units, interval)
        except OverflowError:
            continue
    raise TemplateError(f"ATTEND: no interval is found for quads of {tokens} tokens")


def _least(columns: int, parts: int) -> int:
    """Return a bound: of accesses to one side's bulk memory, and of instructions."""
    accesses = 2 * (columns + (columns + 1) // 2), 2 * (columns + columns // 2 + 1)
    return max(*accesses, (16 * columns + 36 + 14 * parts) // 10)


def _built(
    clock: Clock, tile: Tile, parts: int, looks: bool, units: int, interval: int
) -> Pattern:  # fmt: skip
    modulo = Modulo(clock, interval, LOOP.pinned)
    builder = Builder(modulo, tile, parts, looks=looks)
    for number in range(units):
        builder.quad(number * interval // units)
    if not builder.repeats(interval):
        raise OverflowError("the first quad of the next interval comes too soon")
    firsts = [unit.first_node for unit in builder.units] + [len(modulo.nodes)]
    own = {
        id(node): number
        for number in range(units) for node in modulo.nodes[firsts[number] : firsts[number + 1]]
    }  # fmt: skip
    modulo.finish()
    nodes: list[list[Node]] = [[] for _ in range(units)]
    for node in modulo.nodes:
        origin = node
        while id(origin) not in own:  # a copy of a result that is kept for long
            (source,) = origin.sources
            assert isinstance(source, Node)
            origin = source
        nodes[own[id(origin)]].append(node)
    turns = [unit.first_turn for unit in builder.units] + [len(modulo.turns)]
    return Pattern(
        interval, tuple(builder.units), tuple(map(tuple, nodes)),
        tuple(tuple(modulo.turns[a:b]) for a, b in pairwise(turns)),
        frozenset(modulo.taken),
    )  # fmt: skip
