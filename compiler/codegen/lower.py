"""Bind a chip's program for one step to instructions: templates at addresses and absolute cycles.

An operation's template (compiler/codegen) fixes every cycle; here its memory operands get their
slice and stream from the operand's address (`chip.sram.near_place`), its rows their numbers, and
all cycles the operation's start. Transfers are placed around the computations
(compiler/codegen/lower_links.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from chip.floorplan import Queue, alu, mem, sxm
from chip.isa.instructions import Alu, Permute, Read, RuntimeDeskew, Write
from chip.isa.issue import Issue
from chip.isa.operands import Group, Held, Immediate, In, Position, Source, Stream, Tap
from chip.ops.moves import Receive, Send
from chip.ops.opcodes import bound_values
from chip.ops.product import GatherFirst, Matmul
from chip.ops.program import Program, Scheduled
from chip.ops.rows import segment_offsets
from chip.ops.vector import Add, Gather
from chip.spec import VECTOR_BYTES, ChipSpec
from chip.sram import near_place
from compiler.codegen.core.builder import (
    LANES,
    Access,
    Given,
    Load,
    Node,
    NodeSource,
    Pass,
    Ref,
    Row,
)
from compiler.codegen.core.parts import Fixed
from compiler.codegen.core.template import Placed, Template
from compiler.codegen.core.traffic import BLOCKS
from compiler.codegen.lower_links import place_transfers
from compiler.codegen.table import template
from compiler.errors import LoweringError


def lower(
    program: Program, *, spec: ChipSpec, ports: Mapping[int, int], slots: Mapping[int, int]
) -> list[Issue]:
    """Return the instructions of one chip's step, cycles relative to the step's base.

    `ports`: the port of each link; `slots`: cycles between its vectors.
    """
    out: list[Issue] = []
    for operation in program.operations:
        if not isinstance(operation.op, Send | Receive):
            out += lower_operation(operation, spec)
    out += place_transfers(program, spec, out, ports, slots)
    return out + stops(program, {issue.queue for issue in out})


def stops(program: Program, queues: Iterable[Queue]) -> list[Issue]:
    """Return what stops these queues while the program's counter is set right."""
    return [
        Issue(queue, begin, RuntimeDeskew(cycles=end - begin), name="realign")
        for begin, end in program.realign for queue in sorted(queues)
    ]  # fmt: skip


def lower_operation(operation: Scheduled, spec: ChipSpec) -> list[Issue]:
    """Return the instructions of one operation that computes. Raises LoweringError."""
    op = operation.op
    assert not isinstance(op, Send | Receive), "transfers are lowered together"
    found = template(op, spec)
    if not found.lowered:
        raise LoweringError(
            f"{operation.name}: {op.opcode} has no instructions for "
            f"{getattr(op, 'dtype', 'its operands')} and this shape; its cost is an estimate"
        )
    return [
        Issue(i.queue, i.cycle + operation.start, i.instruction, i.n, i.d, operation.name)
        for i in bind(found, bases_of(op), bound_values(op), spec)
    ]


def bind(
    found: Template, bases: Mapping[str, int], given: Mapping[str, int], spec: ChipSpec
) -> list[Issue]:  # fmt: skip
    """Return a template's instructions from cycle 0.

    `bases`: the first vector of every operand; `given`: numbers that instructions are given.
    """
    issues: list[Issue] = []
    for placed in found.placed:
        for n in range(placed.n):
            binder = _Binder(spec, placed, placed.row + n, bases, found.row_vectors, given)
            issues += binder.issues(placed.start + n * placed.interval)
    for stream in found.streams:
        issues += stream.issues(bases.__getitem__)
    return issues


def bases_of(op: object) -> dict[str, int]:
    """First vector of every operand; `src:n` is segment n of a gather buffer."""
    bases = {name: value // VECTOR_BYTES for name, value in bound_values(op).items()}
    rows, of = (op.rows, op.source) if isinstance(op, Matmul) else (getattr(op, "rows", 1), op)
    if isinstance(of, Gather | Add | GatherFirst):
        for number, offset in enumerate(segment_offsets(of.shares, rows)[:-1]):
            bases[f"src:{number}"] = (of.src + offset) // VECTOR_BYTES
    return bases


class _Binder:
    """Binds one block for one row."""

    def __init__(
        self, spec: ChipSpec, placed: Placed, row: int, bases: Mapping[str, int],
        row_vectors: Mapping[str, int], given: Mapping[str, int],
    ) -> None:  # fmt: skip
        self.spec, self.block, self.row, self.given = spec, placed.block, row, given
        self.shift, self.bases, self.row_vectors = placed.shift, bases, row_vectors

    def vector(self, ref: Ref) -> int:
        """Return the SRAM vector that a reference means in this row."""
        name = ref.operand
        moved = self.row * self.row_vectors.get(name, 0) + self.shift.get(name, 0)
        return self.bases[name] + ref.vector + moved

    def taps(self, ref: Ref, *, write: bool) -> Group:
        """Streams of a reference's vectors, from the VXM or to it.

        A side's slices have a stream each, if they are read or written at once.
        """
        first, wide = self.vector(ref), self.block.wide(ref)
        out = []
        for n in range(ref.count):
            side, number = self._stream(ref, first + n, write=write)
            stream = Stream((side == 1) == write, number)
            out.append(Tap(stream, n // wide * self.block.stride))
        return tuple(out)

    def _stream(self, ref: Ref, vector: int, *, write: bool) -> tuple[int, int]:
        """Return the side of a vector, and the stream that it has to the VXM or from it."""
        side, index, _ = near_place(self.spec, vector)
        if ref.operand in self.block.feed:
            return side, BLOCKS.feed_from_vxm if write else BLOCKS.feed_to_vxm
        nth = index if index < self.spec.work_slices else index - self.spec.work_slices
        return side, (BLOCKS.from_vxm if write else BLOCKS.to_vxm) + nth

    def issues(self, start: int) -> Iterator[Issue]:
        """Yield the block's instructions from cycle `start`."""
        for node in self.block.nodes:
            assert node.alu is not None
            yield Issue(alu(node.alu), start + node.cycle, self._alu(node))
        for access in self.block.accesses:
            yield from self._access(access, start)
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
        first = self.vector(access.ref)
        for n in range(access.ref.count):
            side, index, word = near_place(self.spec, first + n)
            beat = n // access.wide * access.stride
            cycle = start + self.block.issue_cycle(access, side, beat)
            if access.write:
                number = self._stream(access.ref, first + n, write=True)[1]
                stream = Stream(side == 1, number)
                yield Issue(mem(side, index), cycle, Write(address=word, stream=stream))
            else:
                eastward = side == 0 if access.sxm is None else access.sxm == 1
                number = BLOCKS.to_sxm + side
                if access.sxm is None:
                    number = self._stream(access.ref, first + n, write=False)[1]
                read = Read(address=word, stream=Stream(eastward, number))
                yield Issue(mem(side, index), cycle, read)

    def _pass(self, step: Pass) -> Permute:
        src = step.src
        if isinstance(src, Ref):
            eastward = step.hemisphere == 1
            first = self.vector(src)
            sides = [near_place(self.spec, first + n)[0] for n in range(src.count)]
            src = tuple(
                Tap(Stream(eastward, BLOCKS.to_sxm + side), n // 2 * self.block.stride)
                for n, side in enumerate(sides)
            )
        spread = (self.row,) * LANES if step.map is None else step.map
        return Permute(
            src=src, dst=step.dst, item=step.item, lanes=step.lanes, out_lanes=step.out_lanes,
            map=spread,
        )  # fmt: skip
