"""Attention's accesses to memory: which cycles the ports are taken, Reads and Writes at addresses.

Work memory: an access takes the ports of both work slices at once. Neighbouring vectors lie in
different slices, so a cycle reads or writes one vector or two neighbours, wherever they lie. One
cycle in `C2C_TURN` is the links'.

Bulk memory: a value that leaves the VXM at cycle d passes slice h at d + h, and so does a read that
goes outwards with it. A value that arrives at the VXM at cycle a is read at a - h - READ. So
accesses of one direction meet only in the same cycle. Accesses of different directions are kept
apart by `Clock.after_outward` and `Clock.after_inward`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from chip.floorplan import alu, mem
from chip.isa.instructions import Alu, AluOp, Read, Write
from chip.isa.issue import Issue
from chip.isa.operands import Group, Source, Stream, Tap
from chip.ops.cost import C2C_TURN
from chip.spec import RUN, VECTOR_BYTES
from chip.sram import near_place, work_start
from compiler.codegen.attention.resources import ITEMS
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.control import Bulk
from compiler.codegen.core.parts import LANES
from compiler.codegen.core.traffic import BLOCKS


@dataclass(slots=True)
class Ports:
    """Cycles at which the work slices' ports are taken."""

    taken: set[int] = field(default_factory=set)

    def free(self, cycle: int) -> bool:
        return cycle >= 0 and cycle % C2C_TURN != C2C_TURN - 1 and cycle not in self.taken

    def seek(self, cycle: int, count: int = 1) -> list[int]:
        """Return the first free cycles from here on."""
        out: list[int] = []
        while len(out) < count:
            if self.free(cycle):
                out.append(cycle)
            cycle += 1
        return out

    def take(self, cycle: int, count: int = 1) -> list[int]:
        """Take the first free cycles from here on."""
        out = self.seek(cycle, count)
        self.taken.update(out)
        return out

    def take_run(self, cycle: int, count: int) -> int:
        """Take the first cycles from here on that follow each other."""
        while not all(self.free(cycle + i) for i in range(count)):
            cycle += 1
        self.taken.update(range(cycle, cycle + count))
        return cycle


def paired(vectors: Sequence[int]) -> list[list[int]]:
    """Put neighbours together: the vectors that a cycle of the work slices' ports takes."""
    out: list[list[int]] = []
    for vector in dict.fromkeys(vectors):
        if out and len(out[-1]) == 1 and vector == out[-1][0] + 1:
            out[-1].append(vector)
        else:
            out.append([vector])
    return out


class Wires:
    """Reads, writes and operands of one template, at the addresses that `base` gives."""

    def __init__(self, clock: Clock, base: Callable[[str], int]) -> None:
        self.clock, self.spec, self.base = clock, clock.spec, base

    def alu(
        self, number: int, cycle: int, op: AluOp, *sources: Source, out: Group = (),
        lanes: int = LANES, n: int = 1, d: int = 1,
    ) -> Issue:  # fmt: skip
        a, b, c = (*sources, None, None)[:3]
        assert a is not None
        return Issue(alu(number), cycle, Alu(op=op, a=a, b=b, c=c, lanes=lanes, out=out), n, d)

    # -- work memory

    def tap(self, operand: str, vector: int, beat: int = 0) -> Tap:
        """Return where a vector of work memory arrives at the VXM."""
        side = near_place(self.spec, self.base(operand) + vector)[0]
        return Tap(Stream(side == 0, BLOCKS.to_vxm), beat)

    def fetch(self, operand: str, vectors: Sequence[int], port: int) -> Iterator[Issue]:
        """Read a vector, or two neighbours, at a cycle of the ports."""
        for vector in vectors:
            side, index, word = near_place(self.spec, self.base(operand) + vector)
            read = Read(address=word, stream=Stream(side == 0, BLOCKS.to_vxm))
            yield Issue(mem(side, index), port, read)

    def fetched(
        self, operand: str, vectors: Sequence[int], ports: Sequence[int], lanes: Sequence[int]
    ) -> tuple[list[Issue], Group]:
        """Read vectors in pairs at ports' cycles; `lanes`: the vectors of the operand, in order."""
        pairs = paired(vectors)
        reads = [
            issue
            for pair, port in zip(pairs, ports, strict=True)
            for issue in self.fetch(operand, pair, port)
        ]
        at = {v: port for pair, port in zip(pairs, ports, strict=True) for v in pair}
        return reads, tuple(self.tap(operand, v, at[v] - ports[0]) for v in lanes)

    def store(self, operand: str, first: int, count: int, cycle: int) -> tuple[list[Issue], Group]:
        """Write vectors that leave the VXM from `cycle` on, two a cycle: (Writes, taps)."""
        writes, taps = [], []
        for n in range(count):
            side, index, word = near_place(self.spec, self.base(operand) + first + n)
            stream = Stream(side == 1, BLOCKS.from_vxm)
            taps.append(Tap(stream, n // 2))
            at = cycle + n // 2 + self.clock.near
            writes.append(Issue(mem(side, index), at, Write(address=word, stream=stream)))
        return writes, tuple(taps)

    # -- items in bulk memory

    def item(self, vector: int, cycle: int, *, write: bool) -> Iterator[Bulk]:
        """Read an item that arrives at the VXM at `cycle`, or write one that leaves it then."""
        side = vector // RUN % 2
        stream = Stream(side == 1, ITEMS.written) if write else Stream(side == 0, ITEMS.read)
        yield Bulk(alu(0), cycle, "scratch", vector, stream, 4, write=write)


def items(side: int, *, inward: bool) -> Group:
    """Return the streams of an item that comes from a side, or goes there."""
    eastward = (side == 0) if inward else (side == 1)
    first = ITEMS.read if inward else ITEMS.written
    return tuple(Tap(Stream(eastward, first + n)) for n in range(4))


class VxmOnly(Wires):
    """Ways to memory that are left out: what a pass asks of the VXM does not depend on them."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock, lambda _: work_start(clock.spec) // VECTOR_BYTES)

    def fetch(self, operand: str, vectors: Sequence[int], port: int) -> Iterator[Issue]:
        return iter(())

    def item(self, vector: int, cycle: int, *, write: bool) -> Iterator[Bulk]:
        return iter(())
