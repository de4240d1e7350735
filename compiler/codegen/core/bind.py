"""A template bound to addresses: memory operands get their slice and stream, rows their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from chip.floorplan import alu, mem, sxm
from chip.isa.instructions import Alu, Permute, Read, Write
from chip.isa.issue import Issue
from chip.isa.operands import Chosen, Group, Held, Immediate, In, Position, Source, Stream, Tap
from chip.spec import ChipSpec
from chip.sram import near_place
from compiler.codegen.core.builder import (
    LANES,
    SXM_WIDE,
    Access,
    Given,
    Load,
    Node,
    NodeSource,
    Pass,
    Ref,
    Row,
)
from compiler.codegen.core.chosen import chosen_reads
from compiler.codegen.core.control import one_by_one
from compiler.codegen.core.parts import Fixed
from compiler.codegen.core.template import Choice, Placed, Template
from compiler.codegen.core.traffic import BLOCKS

NONE_CHOSEN: Mapping[str, Choice] = {}


class Place(NamedTuple):
    """Where a vector is, and with which beat of its access it comes."""

    side: int
    slice_: int
    word: int
    beat: int
    nth: int  # of the slices of its kind
    vector: int = 0


def bind(
    found: Template, bases: Mapping[str, int], given: Mapping[str, int], spec: ChipSpec
) -> list[Issue]:  # fmt: skip
    """Return a template's instructions from cycle 0.

    `bases`: the first vector of every operand; `given`: numbers that instructions are given.
    """
    issues: list[Issue] = []
    for placed in found.placed:
        for n in range(placed.n):
            binder = Binder(
                spec, placed, placed.row + n, bases, found.row_vectors, given, found.chosen
            )
            issues += binder.issues(placed.start + n * placed.interval)
    for stream in found.streams:
        ways = stream.issues(bases.__getitem__)
        if found.chosen:
            ways = chosen_reads(ways, bases.__getitem__, found.chosen, spec)
        issues += one_by_one(ways, bases.__getitem__, spec)
    return issues


class Binder:
    """Binds one block for one row. Without `bases`: wherever its vectors may lie, all at once."""

    def __init__(
        self, spec: ChipSpec, placed: Placed, row: int, bases: Mapping[str, int] | None,
        row_vectors: Mapping[str, int], given: Mapping[str, int],
        chosen: Mapping[str, Choice] = NONE_CHOSEN,
    ) -> None:  # fmt: skip
        self.spec, self.block, self.row, self.given = spec, placed.block, row, given
        self.shift, self.bases, self.row_vectors = placed.shift, bases, row_vectors
        self.chosen = chosen

    def places(self, ref: Ref, *, sxm: bool = False) -> Iterator[Place]:
        """Yield where the vectors that a reference means in this row are."""
        wide = self.block.wide(ref, sxm=sxm)
        if self.bases is None:
            yield from self._anywhere(ref, wide, sxm=sxm)
            return
        name, work = ref.operand, self.spec.work_slices
        moved = self.row * self.row_vectors.get(name, 0) + self.shift.get(name, 0)
        first = self.bases[name] + ref.vector + moved
        for n in range(ref.count):
            side, slice_, word = near_place(self.spec, first + n)
            nth = slice_ if slice_ < work else slice_ - work
            yield Place(side, slice_, word, n // wide, nth, first + n)

    def _anywhere(self, ref: Ref, wide: int, *, sxm: bool) -> Iterator[Place]:
        """Yield all slices that a beat may take: it has their streams and ports to itself."""
        slices = range(min(self.spec.work_slices, wide // 2))
        if ref.operand in self.block.feed:
            slices = range(self.spec.work_slices, self.spec.work_slices + 1)
        for beat in range(-(-ref.count // wide)):
            for nth, slice_ in enumerate(slices):
                for side in (0, 1):
                    yield Place(side, slice_, 0, beat, nth)

    def taps(self, ref: Ref, *, write: bool) -> Group:
        """Streams of a reference's vectors, from the VXM or to it.

        A side's slices have a stream each, if they are read or written at once.
        """
        stride = self.block.stride
        return tuple(
            Tap(self._stream(ref, at, write=write), at.beat * stride) for at in self.places(ref)
        )

    def _stream(self, ref: Ref, at: Place, *, write: bool) -> Stream:
        """Return the stream that a vector has to the VXM or from it."""
        towards = (at.side == 1) == write
        if ref.operand in self.block.feed:
            return Stream(towards, BLOCKS.feed_from_vxm if write else BLOCKS.feed_to_vxm)
        return Stream(towards, (BLOCKS.from_vxm if write else BLOCKS.to_vxm) + at.nth)

    def issues(self, start: int) -> Iterator[Issue]:
        """Yield the block's instructions from cycle `start`."""
        yield from self.works(start)
        for access in self.block.accesses:
            yield from self._access(access, start)

    def works(self, start: int) -> Iterator[Issue]:
        """Yield those of the VXM and the SXMs."""
        for node in self.block.nodes:
            assert node.alu is not None
            yield Issue(alu(node.alu), start + node.cycle, self._alu(node))
        for step in self.block.passes:
            yield Issue(sxm(step.hemisphere, step.queue), start + step.cycle, self._pass(step))

    def _alu(self, node: Node) -> Alu:
        sources: list[Source | None] = [self._source(source) for source in node.sources]
        sources += [None] * (3 - len(sources))
        out = node.out or ()
        if isinstance(out, Ref):
            out = self.taps(out, write=True)
        first, second, third = sources
        assert first is not None
        return Alu(op=node.op, a=first, b=second, c=third, lanes=node.lanes, out=out)

    def _source(self, source: NodeSource) -> Source:
        if isinstance(source, Node):
            assert source.alu is not None
            return Held(source.alu)
        if isinstance(source, Load):
            return In(self.taps(source.ref, write=False), source.dtype)
        if isinstance(source, Row):
            return Immediate(self.row * source.times + source.plus, "i32")
        if isinstance(source, Given):
            return Immediate(self.given[source.name], "i32")
        if isinstance(source, Position):
            return Position(self.row + source.row, 0, source.offset, source.modulus)
        return source.source if isinstance(source, Fixed) else source

    def _access(self, access: Access, start: int) -> Iterator[Issue]:
        for at in self.places(access.ref, sxm=access.sxm is not None):
            cycle = start + self.block.issue_cycle(access, at.side, at.beat * access.stride)
            queue = mem(at.side, at.slice_)
            if access.write:
                stream = self._stream(access.ref, at, write=True)
                yield Issue(queue, cycle, Write(address=at.word, stream=stream))
                continue
            stream = self._stream(access.ref, at, write=False)
            if access.sxm is not None:
                stream = self._to_sxm(at, access.wide)
            yield Issue(queue, cycle, Read(address=self._address(access.ref, at), stream=stream))

    def _address(self, ref: Ref, at: Place) -> int | Chosen:
        """Return the address of a vector that is read: that of a chosen block, if it is of one."""
        choice = self.chosen.get(ref.operand)
        return at.word if choice is None else Chosen(at.vector, choice.apart, choice.choices)

    def _to_sxm(self, at: Place, wide: int) -> Stream:
        """Return the stream of a vector to the eastern SXM, `wide` of which go in a cycle."""
        nth = at.nth if wide > 2 else 0
        return Stream(True, BLOCKS.to_sxm + 2 * (SXM_WIDE - 1 - nth) + at.side)

    def _pass(self, step: Pass) -> Permute:
        src = step.src
        if isinstance(src, Ref):
            wide, stride = self.block.wide(src, sxm=True), self.block.stride
            src = tuple(
                Tap(self._to_sxm(at, wide), at.beat * stride) for at in self.places(src, sxm=True)
            )
        spread = (self.row,) * LANES if step.map is None else step.map
        return Permute(
            src=src, dst=step.dst, item=step.item, lanes=step.lanes, out_lanes=step.out_lanes,
            map=spread,
        )  # fmt: skip
