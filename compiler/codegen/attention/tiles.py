"""How tiles of keys and values get into the planes: keys as they lie, values turned by the SXMs.

Tiles take turns at a side's two planes. A plane holds one tile while the next waits in its weight
buffer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from chip.floorplan import Role, mxm, sxm
from chip.isa.instructions import IW, LW, Transpose
from chip.isa.issue import Issue
from chip.isa.operands import Stream
from chip.spec import RUN, VECTOR_BYTES
from compiler.codegen.attention.resources import TILES
from compiler.codegen.attention.shape import Attention, Tile, place_of
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.control import Bulk

AHEAD = 4  # tiles that the planes and their buffers hold


@dataclass(slots=True)
class Load:
    """One tile on its way: `cycles` at which each run arrives, at the plane or (values) the SXM."""

    tile: Tile
    value: bool
    cycles: list[int]
    ready: int  # when the plane's buffer is full
    installed: int | None = None


@dataclass(slots=True)
class Planes:
    """When tiles are loaded and installed, and until when each is used."""

    clock: Clock
    loads: dict[int, Load] = field(default_factory=dict)  # the latest, by plane of a side
    used: dict[int, int] = field(default_factory=dict)  # the last activation's cycle

    def keys(self, tile: Tile, slots: set[int], departure: int) -> Load:
        """Load keys in the first free outward slots; nothing departs before `departure`."""
        to_plane = self.clock.of["READ"] + self.clock.to_mxm
        at = max(departure, self._buffer_free(tile) - to_plane)
        cycles = []
        for _ in tile.runs(0):
            while at in slots:
                at += 1
            slots.add(at)
            cycles.append(at + to_plane)
            at += 1
        return self._loaded(Load(tile, False, cycles, cycles[-1] + self.clock.of["LW"]))

    def values(self, shape: Attention, tile: Tile, departure: int) -> tuple[Load, int]:
        """Load values; return also the slot behind the last read."""
        turn = self.clock.of["TRANSPOSE"] + self.clock.to_mxm - self.clock.to_sxm
        to_sxm = self.clock.of["READ"] + self.clock.to_sxm
        at = max(departure, self._buffer_free(tile) - turn - to_sxm)
        runs, groups = len(tile.runs(0)), shape.width(tile.group) // RUN
        cycles = [at + to_sxm + i for i in range(runs)]
        ready = cycles[0] + turn + groups - 1 + self.clock.of["LW"]
        return self._loaded(Load(tile, True, cycles, ready)), at + max(runs, groups)

    def _buffer_free(self, tile: Tile) -> int:
        before = self.loads.get(tile.number % 2)
        return 0 if before is None else self.install(before)

    def _loaded(self, load: Load) -> Load:
        self.loads[load.tile.number % 2] = load
        return load

    def install(self, load: Load) -> int:
        """Return when a tile is installed: behind the last use of the one before."""
        if load.installed is None:
            load.installed = max(load.ready, self.used.get(load.tile.number % 2, -1) + 1)
        return load.installed


def load_issues(load: Load, shape: Attention, clock: Clock) -> Iterator[Issue | Bulk]:
    """Yield the Reads of a tile, and what puts it into its planes."""
    layout, tile = shape.layout, load.tile
    offset = layout.head_offset(tile.group * layout.heads_per_group, value=load.value)
    first = offset // VECTOR_BYTES + tile.first
    for side in tile.sides():
        plane, stream = tile.plane(side), Stream(side == 1, TILES.loaded)
        into = mxm(plane, Role.LOAD)
        columns = 0
        for (start, n), cycle in zip(tile.runs(side), load.cycles, strict=False):
            queue, count = (sxm(side, TILES.turn), RUN) if load.value else (into, n)
            yield Bulk(queue, cycle, "kv", first + start, stream, count)
            if not load.value:
                lw = LW(stream=stream, count=n, column=place_of(start))
                yield Issue(into, cycle, lw)
                columns += n
        if load.value:
            groups = shape.width(tile.group) // RUN
            turn = Transpose(src=stream, dst=stream, groups=groups)
            queue, at = sxm(side, TILES.turn), load.cycles[0]
            yield Issue(queue, at, turn, len(tile.runs(side)))
            at += clock.of["TRANSPOSE"] + clock.to_mxm - clock.to_sxm
            lw = LW(stream=stream, count=RUN, column=0, step=RUN)
            yield Issue(into, at, lw, groups)
            columns = RUN * groups
        assert load.installed is not None
        yield Issue(mxm(plane, Role.FEED), load.installed, IW(columns=columns))
