"""EXPERTS_EACH and EXPERTS_SUM: products of one row, one after another, of chosen weights.

Each is the template of a product of one row (row.py, product16.py), whose weights, scales and
biases are those of one of several experts. Before it the slices get the expert's number: a row's
numbers leave the VXM on both sides, and each slice takes the one that is meant. It comes to every
slice behind the last read of the product before, and before the first of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

from chip.errors import TemplateError
from chip.floorplan import Queue, alu, bulk_slices, hops, mem
from chip.isa.instructions import ABC, AluOp
from chip.isa.issue import Issue
from chip.isa.operands import In
from chip.ops.experts import ExpertsEach, ExpertsSum, expert_stride
from chip.ops.product import Activations, Matmul, Plain
from chip.ops.rows import item_bytes
from chip.spec import RUN, VECTOR_BYTES, ChipSpec, pad_vector, vectors
from compiler.codegen.core.builder import Access, Block, Ref
from compiler.codegen.core.chosen import indices
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.control import Bulk
from compiler.codegen.core.law import obey
from compiler.codegen.core.template import Choice, Placed, Stream, Template, parts_of
from compiler.codegen.core.uses import check
from compiler.codegen.products import product16
from compiler.codegen.products.activations import feed_block, never
from compiler.codegen.products.matmul import one_row
from compiler.codegen.products.resources import FEED
from compiler.codegen.products.row_passes import SCALES, Later
from compiler.codegen.products.shares import IN_TURN, Registers, Share

Experts = ExpertsEach | ExpertsSum
OWN = frozenset({"sw", "b"})  # operands in work memory of which each expert has its own


def fits(op: Experts, spec: ChipSpec) -> bool:
    """Tell whether an operation has instructions."""
    if op.every or op.group is not None or op.chosen > SCALES:
        return False
    return op.dtype == "int8" or product16.fits(spec)


class Kind(NamedTuple):
    """What a product's template depends on. `scales`: rows that share a vector of them."""

    op: Matmul
    spec: ChipSpec
    share: Share | None
    scales: int
    registers: Registers


@dataclass(frozen=True, slots=True)
class _Product:
    """The template of one product, and when it takes what; cycles count from its start.

    `first`, `last`: by hop from the VXM, when slices there read weights first and last.
    """

    template: Template
    first: dict[int, int]
    last: dict[int, int]
    ports: frozenset[int]  # when its blocks take the ports of work memory
    near: tuple[int, int] | None  # when it first and last reads what is an expert's there
    busy: frozenset[int]  # when what a block sends on to all slices would meet another value
    begun: dict[int, int]  # when it reads each vector of the sum so far
    added: dict[int, int]  # when it writes it
    filled: int  # when the first activation comes to the planes
    used: int  # when the last one is multiplied


@lru_cache(maxsize=64)
def _product(kind: Kind) -> _Product:
    op, spec, share, scales, registers = kind
    if op.dtype == "int8":
        found = one_row(op, spec, share, scales, registers)
    else:
        found = product16.matmul16(op, spec, share, registers)
    near = [
        cycle for placed in found.placed for access in placed.block.accesses
        if access.ref.operand in OWN for cycle in _taken(placed.block, access, placed.start)
    ]  # fmt: skip
    nodes = [(placed.start, node) for placed in found.placed for node in placed.block.nodes]
    fed = [
        (issue.cycle + start, issue.instruction)
        for stream in found.streams for starts, issues in parts_of(stream, _nowhere)
        for issue in issues if isinstance(issue, Issue) and isinstance(issue.instruction, ABC)
        for start in starts
    ]  # fmt: skip
    return _Product(
        found, *_reads(found, spec),
        ports=frozenset(
            cycle for placed in found.placed for cycle in _ports(placed.block, placed.start)
        ),
        near=(min(near), max(near)) if near else None,
        busy=frozenset(
            start + node.cycle for start, node in nodes
            if node.alu in FEED.alus or any(isinstance(one, In) for one in node.sources)
        ),
        begun=_sums(found, write=False), added=_sums(found, write=True),
        filled=min(cycle for cycle, abc in fed if isinstance(abc, ABC) and abc.stream is not None),
        used=max(cycle for cycle, _ in fed),
    )  # fmt: skip


def _sums(found: Template, *, write: bool) -> dict[int, int]:
    """Return when each vector of the sum over the products is first read, or is written."""
    out = dict[int, int]()
    for placed in found.placed:
        for access in placed.block.accesses:
            if access.ref.operand == "t" and access.write == write:
                first = access.ref.vector + placed.shift.get("t", 0)
                for n in range(access.ref.count):
                    beat = access.beats[n // access.wide]
                    cycles = [placed.block.issue_cycle(access, side, beat) for side in (0, 1)]
                    out[first + n] = placed.start + (max(cycles) if write else min(cycles))
    return out


def _nowhere(operand: str) -> int:
    return 0


def _taken(block: Block, access: Access, start: int) -> list[int]:
    """Return when an access takes ports of work memory."""
    return [
        start + block.issue_cycle(access, side, beat) for beat in access.beats for side in (0, 1)
    ]  # fmt: skip


def _ports(block: Block, start: int) -> set[int]:
    """Return when a block takes the ports of work memory."""
    return {cycle for access in block.accesses for cycle in _taken(block, access, start)}


def _reads(found: Template, spec: ChipSpec) -> tuple[dict[int, int], dict[int, int]]:
    """Return when slices read weights first and last, by their hop from the VXM."""
    ways: dict[tuple[Queue, bool, int], list[int]] = {}
    for stream in found.streams:
        for starts, issues in parts_of(stream, _nowhere):
            for one in issues:
                if isinstance(one, Bulk):
                    way = one.unit._replace(number=0), one.stream.eastward, one.offset // RUN % 2
                    begins = [one.cycle + start for start in (min(starts), max(starts))]
                    ways.setdefault(way, []).extend([begins[0], begins[1] + (one.n - 1) * one.d])
    first, last = dict[int, int](), dict[int, int]()
    lead = Clock(spec).of["READ"]
    for (unit, _, side), cycles in ways.items():
        for number in bulk_slices(spec):
            queue = mem(side, number)
            hop, on = hops(queue, alu(0), spec), hops(queue, unit, spec)
            first[hop] = min(first.get(hop, min(cycles)), min(cycles) - lead - on)
            last[hop] = max(last.get(hop, 0), max(cycles) - lead - on)
    return first, last


@dataclass(frozen=True, slots=True)
class _Before:
    """What comes before a product: when its blocks start, and take ports; counted as its cycles.

    `numbers`: the row's experts are sent to the slices; `near`: to work slices, where the product
    before may still be at work; `weight`: the product's is fetched.
    """

    numbers: int
    near: int | None
    weight: int
    ports: frozenset[int]

    @property
    def early(self) -> int:
        """Cycles from where it starts to the product's start."""
        return -min(self.numbers, self.weight)


@lru_cache(maxsize=64)
def _before(kind: Kind) -> _Before:
    """Return what comes before a product, as late as may be."""
    spec, share = kind.spec, kind.share
    product, clock, numbers = _product(kind), Clock(spec), feed_block(spec, "e")
    leave, weight, own = numbers.nodes[0].done, 0, set[int]()
    if share is not None:
        fetched = _weight(spec, kind.registers.weight)
        (turn,) = fetched.passes  # it is beyond the planes before the first weights are there
        weight = clock.of["READ"] + clock.to_mxm - 2 - turn.cycle
        while not product.ports.isdisjoint(own := _ports(fetched, weight)):
            weight -= 1
    at = min(cycle - hop for hop, cycle in product.first.items()) - clock.of["INDEX"] - leave
    while not product.ports.union(own).isdisjoint(asked := _ports(numbers, at)):
        at -= 1
    own |= asked
    if product.near is None:
        return _Before(at, None, weight, frozenset(own))
    near = product.near[0] - clock.near - clock.of["INDEX"] - leave
    while near > at:
        asked = _ports(numbers, near) | {near + leave + clock.near}
        copied = near + numbers.nodes[0].cycle
        if product.ports.union(own).isdisjoint(asked) and copied not in product.busy:
            break
        near -= 1
    return _Before(at, near, weight, frozenset(own | asked))


@lru_cache(maxsize=64)
def _apart(one: Kind, other: Kind, least: int) -> int:
    """Return the fewest cycles from a product's start to the next one's, at least so many.

    Where they overlap, the law of templates is asked of both.
    """
    spec = one.spec
    ahead, behind, before = _product(one), _product(other), _before(other)
    leave = feed_block(spec, "e").nodes[0].done
    last = max(at - hop for hop, at in ahead.last.items())
    least = max(
        least, last + 1 + Clock(spec).of["READ"] - before.numbers - leave,  # behind the last values
        *([] if before.near is None or ahead.near is None else
          [ahead.near[1] + 1 - before.near - leave - Clock(spec).near]),
        ahead.used + 1 - behind.filled,
        *(at + 1 - behind.begun[vector] for vector, at in ahead.added.items()),
    )  # fmt: skip
    asked = behind.ports | before.ports
    alone = ahead.template.cycles + before.early
    for start in range(least, alone):
        if ahead.ports.isdisjoint(start + at for at in asked) and _lawful(one, other, start):
            return start
    return max(least, alone)


def _lawful(one: Kind, other: Kind, start: int) -> bool:
    """Tell whether a product may start so many cycles behind another."""
    line = Line(one.spec)
    line.put(one, 0, _Row(0, 0, 0, {}))
    line.put(other, start, _Row(0, 0, 0, {}))
    found = Template(placed=tuple(line.placed), cycles=0, streams=tuple(line.streams))
    try:
        check("products", found.asked())
        obey("products", found, one.spec)
    except TemplateError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Indices:
    """An expert's number on its way to the slices: it leaves the VXM at a cycle."""

    spec: ChipSpec
    cycle: int
    lane: int
    slices: range  # of each hemisphere, that take it

    def issues(self, base: Callable[[str], int]) -> Iterator[Issue | Bulk]:
        """Yield what takes it."""
        yield from indices(self.spec, self.cycle, FEED.stream, self.lane, self.slices)


class _Row(NamedTuple):
    """Which product: of a row's nth expert, from row `own` of x, its operands so far on."""

    row: int
    nth: int
    own: int
    moved: Mapping[str, int]


@dataclass(slots=True)
class Line:
    """Products on their cycles, one after another."""

    spec: ChipSpec
    placed: list[Placed] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)

    def put(self, kind: Kind, start: int, of: _Row) -> None:
        """Place a product, and what comes before it."""
        product, before, numbers = _product(kind), _before(kind), feed_block(self.spec, "e")
        ways = [(before.numbers, bulk_slices(self.spec))]
        if before.near is not None:
            ways.append((before.near, range(self.spec.work_slices)))
        for early, slices in ways:
            at = start + early
            self.placed.append(Placed(block=numbers, start=at, shift={"e": of.row}))
            leave = at + numbers.nodes[0].done
            self.streams.append(Indices(self.spec, leave, of.nth, slices))
        if kind.share is not None:
            weight = _weight(self.spec, kind.registers.weight)
            shift = {"g": of.row}
            self.placed.append(
                Placed(block=weight, start=start + before.weight, row=of.nth, shift=shift)
            )
        for block in product.template.placed:
            shift = {name: block.shift.get(name, 0) + more for name, more in of.moved.items()}
            self.placed.append(
                replace(
                    block, start=start + block.start, shift={**block.shift, **shift},
                    row=of.own % SCALES,
                )
            )  # fmt: skip
        self.streams += [Later(stream, start) for stream in product.template.streams]


def experts(op: Experts, spec: ChipSpec) -> Template:
    """The products of each row's chosen experts."""
    line, start, previous = Line(spec), 0, None
    free = 0  # where the product before the previous one has ended
    needed: dict[str, tuple[int, int]] = {}
    for row in range(op.rows):
        for nth in range(op.chosen):
            kind = _kind(op, spec, nth, row * op.chosen + nth)
            if previous is None:
                start = _before(kind).early
                taken = _product(kind).template.needed
                needed = {name: (start + at, start + at) for name, (at, _) in taken.items()}
            else:
                least = free + _before(kind).early - start
                free = start + _product(previous).template.cycles
                start += _apart(previous, kind, max(least, 0))
            line.put(kind, start, _of(op, row, nth))
            previous = kind
    assert previous is not None
    last = _product(previous).template
    stride = expert_stride(op.k, op.n, op.dtype, op.group) // VECTOR_BYTES
    columns = Choice(op.experts, op.apart // VECTOR_BYTES)
    return Template(
        placed=tuple(line.placed), cycles=start + last.cycles, needed=needed,
        stream_cycles=last.stream_cycles if op.rows == 1 else 0, streams=tuple(line.streams),
        chosen={"w": Choice(op.experts, stride), **dict.fromkeys(OWN, columns)},
    )  # fmt: skip


def _of(op: Experts, row: int, nth: int) -> _Row:
    """Return which product is that of a row's nth expert."""
    each, summed = row * op.chosen + nth, isinstance(op, ExpertsSum)
    own, out = (each, row) if summed else (row, each)
    moved = {
        "x": own * vectors(pad_vector(op.k) * item_bytes(op.dtype)), "s": own // SCALES,
        "y": out * vectors(op.n * (2 if summed else 4)),
    }  # fmt: skip
    return _Row(row, nth, own, moved)


def _kind(op: Experts, spec: ChipSpec, nth: int, number: int) -> Kind:
    """Return the kind of the product of a row's nth expert; `number`: of all before it."""
    summed = isinstance(op, ExpertsSum)
    product = Matmul(
        rows=1, k=op.k, n=op.n, dtype=op.dtype, out="f16" if summed else "f32",
        source=Activations(x=0, s=op.s), result=Plain(y=0), w=0,
        sw=None if op.sw is None else 0, b=None if op.b is None else 0,
    )  # fmt: skip
    share = Share(first=nth == 0, last=nth == op.chosen - 1) if summed else None
    scales = 1 if op.rows * (op.chosen if summed else 1) == 1 else SCALES
    return Kind(product, spec, share, scales, IN_TURN[number % 2])


@lru_cache(maxsize=8)
def _weight(spec: ChipSpec, on: int) -> Block:
    """Return the block that keeps the weight of the block's row's product in an ALU."""
    b = Block(spec, pinned=FEED.pinned | {on}, busy=never)
    at, operand = b.through_sxm(Ref("g", 0, 1), None, 4, SCALES)
    b.alu(AluOp.COPY, operand, at=at, on=on)
    return b.finish()
