"""EXPERTS_EACH and EXPERTS_SUM: products of one row, one after another, of chosen weights.

Each is the template of a product of one row (row.py, product16.py), whose weights, scales and
biases are those of one of several experts. Before it the slices get the expert's number: a row's
numbers leave the VXM on both sides, and each slice takes the one that is meant. It comes to every
slice behind the last read of the product before, and before the first of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

from chip.floorplan import alu, bulk_slices, hops, mem
from chip.isa.instructions import AluOp
from chip.isa.issue import Issue
from chip.ops.experts import ExpertsEach, ExpertsSum, expert_stride
from chip.ops.product import Activations, Matmul, Plain
from chip.ops.rows import item_bytes, row_bytes
from chip.spec import VECTOR_BYTES, ChipSpec, pad_vector, vectors
from chip.sram import RUN
from compiler.codegen.core.builder import Access, Block, Ref
from compiler.codegen.core.chosen import indices
from compiler.codegen.core.clock import Clock
from compiler.codegen.core.control import Bulk
from compiler.codegen.core.template import Choice, Placed, Stream, Template, parts_of
from compiler.codegen.products import product16
from compiler.codegen.products.activations import feed_block, never
from compiler.codegen.products.matmul import one_row
from compiler.codegen.products.resources import FEED, SHARE
from compiler.codegen.products.row_passes import SCALES, Later
from compiler.codegen.products.shares import Share

Experts = ExpertsEach | ExpertsSum
OWN = frozenset({"sw", "b"})  # operands in work memory of which each expert has its own


def fits(op: Experts, spec: ChipSpec) -> bool:
    """Tell whether an operation has instructions."""
    if op.every or op.group is not None or op.chosen > SCALES:
        return False
    return op.dtype == "int8" or product16.fits(spec)


def experts(op: Experts, spec: ChipSpec) -> Template:
    """The products of each row's chosen experts."""
    line = _Line(op, spec)
    for row in range(op.rows):
        for nth in range(op.chosen):
            line.add(row, nth)
    return line.template()


@dataclass(frozen=True, slots=True)
class _Product:
    """The template of one product, and what comes before it; cycles count from its start.

    `first`, `last`: by hop from the VXM, when slices there read weights first and last.
    """

    template: Template
    first: dict[int, int]
    last: dict[int, int]
    near: int | None  # when it last reads in work memory what is an expert's
    ports: frozenset[int]  # when its blocks take the ports of work memory


@lru_cache(maxsize=64)
def _product(op: Matmul, spec: ChipSpec, share: Share | None, scales: int) -> _Product:
    if op.dtype == "int8":
        found = one_row(op, spec, share, scales)
    else:
        found = product16.matmul16(op, spec, share)
    near = [
        cycle for placed in found.placed for access in placed.block.accesses
        if access.ref.operand in OWN for cycle in _taken(placed.block, access, placed.start)
    ]  # fmt: skip
    ports = {cycle for placed in found.placed for cycle in _ports(placed.block, placed.start)}
    return _Product(found, *_reads(found, spec), max(near, default=None), frozenset(ports))


def _taken(block: Block, access: Access, start: int) -> list[int]:
    """Return when an access takes ports of work memory."""
    return [
        start + block.issue_cycle(access, side, beat) for beat in access.beats for side in (0, 1)
    ]  # fmt: skip


def _ports(block: Block, start: int) -> set[int]:
    """Return when a block takes the ports of work memory."""
    return {cycle for access in block.accesses for cycle in _taken(block, access, start)}


@dataclass(frozen=True, slots=True)
class _Before:
    """What comes before a product: when its blocks start, and take ports; counted as its cycles.

    `numbers`: the row's experts are sent to the slices; `weight`: the product's is fetched.
    """

    numbers: int
    weight: int
    ports: frozenset[int]

    @property
    def early(self) -> int:
        """Cycles from where it starts to the product's start."""
        return -min(self.numbers, self.weight)


@lru_cache(maxsize=64)
def _before(op: Matmul, spec: ChipSpec, share: Share | None, scales: int) -> _Before:
    """Return what comes before a product, as late as may be."""
    product, clock, numbers = _product(op, spec, share, scales), Clock(spec), feed_block(spec, "e")
    leave, weight, own = numbers.nodes[0].done, 0, set[int]()
    if share is not None:
        (turn,) = _weight(spec).passes  # it is beyond the planes before the first weights are there
        weight = clock.of["READ"] + clock.to_mxm - 2 - turn.cycle
        while not product.ports.isdisjoint(own := _ports(_weight(spec), weight)):
            weight -= 1
    at = min(cycle - hop for hop, cycle in product.first.items()) - clock.of["INDEX"] - leave
    while True:
        asked = [*_ports(numbers, at), *([at + leave + clock.near] if product.near else [])]
        if product.ports.union(own).isdisjoint(asked):
            return _Before(at, weight, frozenset(own.union(asked)))
        at -= 1


def _reads(found: Template, spec: ChipSpec) -> tuple[dict[int, int], dict[int, int]]:
    """Return when slices read weights first and last, by their hop from the VXM."""
    ways: dict[tuple[Bulk, int], list[int]] = {}
    for stream in found.streams:
        for starts, issues in parts_of(stream, lambda operand: 0):
            for one in issues:
                if isinstance(one, Bulk):
                    way = one._replace(
                        unit=one.unit._replace(number=0), cycle=0, offset=0, vectors=1, n=1, d=1,
                        stride=0, stream=one.stream._replace(number=0),
                    ), one.offset // RUN % 2  # fmt: skip
                    begins = [one.cycle + start for start in (min(starts), max(starts))]
                    ways.setdefault(way, []).extend([begins[0], begins[1] + (one.n - 1) * one.d])
    first, last = dict[int, int](), dict[int, int]()
    lead = Clock(spec).of["READ"]
    for (one, side), cycles in ways.items():
        for number in bulk_slices(spec):
            queue = mem(side, number)
            hop, way_on = hops(queue, alu(0), spec), hops(queue, one.unit, spec)
            first[hop] = min(first.get(hop, min(cycles)), min(cycles) - lead - way_on)
            last[hop] = max(last.get(hop, 0), max(cycles) - lead - way_on)
    return first, last


@dataclass(frozen=True, slots=True)
class Indices:
    """An expert's number on its way to the slices: it leaves the VXM at a cycle."""

    spec: ChipSpec
    cycle: int
    lane: int
    near: bool  # work slices take it, too

    def issues(self, base: Callable[[str], int]) -> Iterator[Issue | Bulk]:
        """Yield what takes it."""
        yield from indices(self.spec, self.cycle, FEED.stream, self.lane, self.near)


@dataclass(slots=True)
class _Line:
    """Products on their cycles, one after another."""

    op: Experts
    spec: ChipSpec
    placed: list[Placed] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    needed: dict[str, tuple[int, int]] = field(default_factory=dict)
    end: int = 0  # of the product before
    _ports: frozenset[int] = frozenset()  # that it takes
    _last: dict[int, int] = field(default_factory=dict)  # reads of it

    def add(self, row: int, nth: int) -> None:
        """Place the product of a row's nth expert behind the others."""
        op, spec = self.op, self.spec
        summed = isinstance(op, ExpertsSum)
        share = Share(first=nth == 0, last=nth == op.chosen - 1) if summed else None
        each = row * op.chosen + nth
        own = each if summed else row  # of x's rows
        scales = 1 if op.rows * (op.chosen if summed else 1) == 1 else SCALES
        kind = _product_of(op), spec, share, scales
        product = _product(*kind)
        start = self._begin(_before(*kind), row, nth, product.near is not None)
        moved = {"x": own * vectors(pad_vector(op.k) * item_bytes(op.dtype))}
        out = row if summed else each
        moved["y"] = out * row_bytes(op.n, 2 if summed else 4) // VECTOR_BYTES
        moved["s"] = own // SCALES
        for block in product.template.placed:
            shift = {name: block.shift.get(name, 0) + more for name, more in moved.items()}
            self.placed.append(
                replace(
                    block, start=start + block.start, shift={**block.shift, **shift},
                    row=own % SCALES,
                )
            )  # fmt: skip
        self.streams += [Later(stream, start) for stream in product.template.streams]
        if not self.needed:
            taken = product.template.needed
            self.needed = {name: (start + at, start + at) for name, (at, _) in taken.items()}
        self.end = start + product.template.cycles
        self._ports = frozenset(start + at for at in product.ports)
        self._last = {hop: start + at for hop, at in product.last.items()}
        if product.near is not None:
            self._last[hops(mem(0, 0), alu(0), spec)] = start + product.near

    def _begin(self, before: _Before, row: int, nth: int, near: bool) -> int:
        """Place what comes before a product; return when it starts."""
        spec, numbers = self.spec, feed_block(self.spec, "e")
        leave = numbers.nodes[0].done
        behind = max((at - hop - leave + 1 for hop, at in self._last.items()), default=0)
        start = max(self.end, before.early, behind - before.numbers)
        while not self._ports.isdisjoint(start + at for at in before.ports):
            start += 1
        at = start + before.numbers
        self.placed.append(Placed(block=numbers, start=at, shift={"e": row}))
        self.streams.append(Indices(spec, at + leave, nth, near))
        if isinstance(self.op, ExpertsSum):
            weight = Placed(
                block=_weight(spec), start=start + before.weight, row=nth, shift={"g": row}
            )
            self.placed.append(weight)
        return start

    def template(self) -> Template:
        """Return all of it."""
        op = self.op
        stride = expert_stride(op.k, op.n, op.dtype, op.group) // VECTOR_BYTES
        columns = Choice(op.experts, op.apart // VECTOR_BYTES)
        share = isinstance(op, ExpertsSum)
        last = _product(
            _product_of(op), self.spec, Share(op.chosen == 1, last=True) if share else None,
            1 if op.rows * (op.chosen if share else 1) == 1 else SCALES,
        )  # fmt: skip
        return Template(
            placed=tuple(self.placed), cycles=self.end, needed=self.needed,
            stream_cycles=last.template.stream_cycles if op.rows == 1 else 0,
            streams=tuple(self.streams),
            chosen={"w": Choice(op.experts, stride), **dict.fromkeys(OWN, columns)},
        )  # fmt: skip


def _product_of(op: Experts) -> Matmul:
    """Return the shape of one expert's product."""
    summed = isinstance(op, ExpertsSum)
    return Matmul(
        rows=1, k=op.k, n=op.n, dtype=op.dtype, out="f16" if summed else "f32",
        source=Activations(x=0, s=op.s), result=Plain(y=0), w=0,
        sw=None if op.sw is None else 0, b=None if op.b is None else 0,
    )  # fmt: skip


@lru_cache(maxsize=8)
def _weight(spec: ChipSpec) -> Block:
    """Return the block that keeps the weight of the block's row's product."""
    b = Block(spec, pinned=FEED.pinned | {SHARE.weight}, busy=never)
    at, operand = b.through_sxm(Ref("g", 0, 1), None, 4, SCALES)
    b.alu(AluOp.COPY, operand, at=at, on=SHARE.weight)
    return b.finish()
