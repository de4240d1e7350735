"""One row's product: weights stream through the planes at full rate.

The activations are put into the planes' slots once, tile by tile, so that from then on a tile
takes no longer than its weights: only a cycle in which an activation arrives is lost to them. Two
tiles are in the planes (one in the array, one in the buffer) before the first activation comes.
Tiles beyond the slots share the last one, and are sent again for every group of columns.
"""

from __future__ import annotations

from collections.abc import Iterator

from chip.floorplan import Role, mxm
from chip.isa.instructions import ABC, ACC, IW
from chip.isa.issue import Issue
from chip.isa.operands import Stream
from chip.ops.product import Activations
from compiler.codegen.core.builder import C2C_TURN, Block
from compiler.codegen.core.template import Placed
from compiler.codegen.products.columns import ColumnGroup, Columns
from compiler.codegen.products.drains import RowDrains, TileTimes
from compiler.codegen.products.product import ARRIVAL, PINNED, feed_block, never, row_scale
from compiler.codegen.products.prologue import FEED, SCALE, outward, prologue

SUMS = 8  # accumulator rows that groups take in turn
FEED_PACE = 2  # cycles between activations: every other cycle of the ports is left to others


class RowProduct(RowDrains):
    """The timeline of a product of one row."""

    def _lay_out(self) -> None:
        self.half_rate, source = False, self.op.source
        slots = self.spec.mxm_activation_slots
        self.resident = self.tiles if self.tiles <= slots else slots - 1
        self.times = {}
        self.first = self.delay["READ"].d_func + self.to_mxm
        groups = self._groups()
        load = sum(len(block.windows(0)) for block in groups[0])
        self.prologue = None
        if not isinstance(source, Activations):
            self.prologue = prologue(source, self.op.k, self.spec)
        at = self.first
        if self.prologue is not None:
            self.filled = list(self.prologue.filled[: self.resident])
            at = max(at, self.filled[0] - 2 * load)
        else:
            self.filled = self._fills(at + 2 * load)
        self._gaps_from = self._passed_from(groups, at)
        self._taken = {*self.filled, *self._scale_cycles()}
        self._taken |= self.prologue.busy if self.prologue is not None else set()
        self._drained: set[int] = set()  # cycles at which sums are put out by themselves
        self._used = 0  # when the latest tile is multiplied
        free = 0  # from when on the work on a group's sums may begin
        for number, blocks in enumerate(groups):
            if number >= SUMS:  # its accumulator row is that of an earlier group
                at = max(at, self.groups[number - SUMS].drain - self.delay["ABC"].d_func)
            for tile in range(self.tiles):
                at = self._time_tile(blocks, tile, at)
            summed = self.times[blocks[0].first, self.tiles - 1].use + self.delay["ABC"].d_func
            delay = self._drain_delay(len(self._widths(blocks)))
            drain = max(summed, free + self._lead(blocks) - delay)
            if drain > summed:
                self._drained.add(drain)
            self.groups.append(ColumnGroup(blocks, 0, 0, 0, drain, number % SUMS, 0))
            start = drain + delay - ARRIVAL
            block = self.drain(blocks, start)
            free = drain + delay + self._hold(blocks, block)
            self._taken.update(start + cycle for cycle in outward(block))
        self._place_drains()

    # -- room for what passes between links and work memory

    def _passed_from(self, groups: list[tuple[Columns, ...]], at: int) -> int:
        """Return from when on vectors may pass the loads, which begin at a cycle.

        `gaps`: at least one finds an outward stream in so many cycles; `gaps_last`: it need not but
        in the last so many cycles.
        """
        loads = sum(len(block.windows(t)) for g in groups for block in g for t in range(self.tiles))
        last = self.op.links.gaps_last
        return 0 if last is None else max(0, at + loads - last)

    def _is_gap(self, cycle: int) -> bool:
        """Tell whether the streams at the planes are a link's: it reads in its turn of the port."""
        period = self.op.links.gaps
        far, _ = self.port_leads
        return bool(period and cycle >= self._gaps_from and (cycle - far) % period == C2C_TURN - 1)

    def _in_turn(self, cycle: int) -> bool:
        """Tell whether an activation that arrives at a cycle is read in a link's turn."""
        return (cycle - self.feed_delay) % C2C_TURN in self.link_turns

    # -- when things happen

    def _fills(self, first: int) -> list[int]:
        """Return when the activation of each tile that has a slot of its own arrives."""
        first = max(first, self.feed_delay)
        return [first + FEED_PACE * tile for tile in range(self.resident)]

    def _scale_cycles(self) -> list[int]:
        """Return when, seen from the planes, the row's scale is on its way to an SXM."""
        return [] if self.prologue is not None else [self.filled[-1] + 1]

    def _time_tile(self, blocks: tuple[Columns, ...], tile: int, at: int) -> int:
        """Time a tile whose first window may arrive at a cycle; return the next one's cycle."""
        windows = []
        for _ in range(sum(len(block.windows(tile)) for block in blocks)):
            while at in self._taken or self._is_gap(at):
                at += 1
            windows.append(at)
            at += 1
        shared = tile >= self.resident
        if shared:
            while at in self._taken or at <= self._used or self._is_gap(at) or self._in_turn(at):
                at += 1
            self._taken.add(at)
            at += 1
        filled = at - 1 if shared else self.filled[tile]
        install = max(at, self._used + 1)
        while install in self._taken:
            install += 1
        use = max(install, filled) + 1
        while use in self._taken or use + self.delay["ABC"].d_func in self._drained:
            use += 1
        self._used = use
        times = TileTimes(windows, filled if shared else None, install, use)
        self.times[blocks[0].first, tile] = times
        return max(at, install)

    def _time(self, g: ColumnGroup, tile: int) -> TileTimes:
        return self.times[g.blocks[0].first, tile]

    def window_cycle(self, g: ColumnGroup, tile: int, number: int, plane: int) -> int:
        return self._time(g, tile).windows[number]

    def multiplied(self, g: ColumnGroup, tile: int) -> int:
        return self._time(g, tile).use + self.delay["ABC"].d_func

    def _multiply(self, g: ColumnGroup, tile: int) -> Iterator[Issue]:
        times, out = self._time(g, tile), self.multiplied(g, tile)
        slot = min(tile, self.spec.mxm_activation_slots - 1)
        filled = times.filled
        if filled is None and g is self.groups[0]:
            filled = self.filled[tile]
        for plane in range(4):
            feed, acc = mxm(plane, Role.FEED), mxm(plane, Role.DRAIN)
            if filled is not None:
                yield Issue(feed, filled, ABC(stream=Stream(plane >= 2, FEED), slot=slot))
            yield Issue(feed, times.install, IW(columns=self._columns(g, tile, plane)))
            yield Issue(feed, times.use, ABC(slot=slot))
            if out != g.drain:  # else the sum leaves as it is made
                yield Issue(acc, out, ACC(slot=g.parity, first=tile == 0))

    # -- the activations

    def feeds(self) -> list[Placed]:
        """Return what brings the activations, or makes them, and those that are sent again."""
        block = feed_block(self.spec, "x" if self.prologue is None else "q")
        fed = [
            (tile, times.filled) for (_, tile), times in self.times.items()
            if times.filled is not None
        ]  # fmt: skip
        if self.prologue is None:
            fed += enumerate(self.filled)
        before = self.prologue
        first = self._scale() if before is None else Placed(block=before.block, start=0)
        return [
            first,
            *(Placed(block=block, start=at - self.feed_delay, shift={"x": tile, "q": tile})
              for tile, at in fed),
        ]  # fmt: skip

    def _scale(self) -> Placed:
        """Fetch the row's scale, once."""
        block = Block(self.spec, pinned=PINNED | {SCALE}, busy=never)
        row_scale(block, 1, SCALE)
        (step,) = block.finish().passes
        return Placed(block=block, start=self._scale_cycles()[0] - 1 - step.cycle)
