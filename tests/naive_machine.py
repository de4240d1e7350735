"""A chip stepped cycle by cycle, register by register: what `chip.machine` must equal.

Slow and simple: every stream register is a dictionary entry that moves one place a cycle, every
issue is an event. It knows the instructions that tests give it, without run-time addresses and C2C.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.floorplan import plane_of, position
from chip.isa.instructions import (
    ABC,
    ACC,
    IW,
    LW,
    Alu,
    AluOp,
    Gather,
    Instruction,
    Lanes,
    Read,
    Scatter,
    Transpose,
    Write,
)  # fmt: skip
from chip.isa.issue import Issue, delays
from chip.isa.operands import (
    ITEM_BYTES,
    Chain,
    Group,
    Held,
    Immediate,
    In,
    Lane,
    Stream,
    Tap,
    group,
)  # fmt: skip
from chip.isa.queues import advanced
from chip.machine.data import DTYPES, lane_map
from chip.spec import ChipSpec

Vector = NDArray[Any]
START, MIDDLE, END = range(3)  # of a cycle: what becomes visible, what is sampled, what is stored


class Refused(Exception):
    """The program asks for what the hardware cannot do."""


class NaiveMachine:
    """memory: (slice, word) -> 320 bytes; words that it lacks are poison."""

    def __init__(self, spec: ChipSpec, memory: dict[tuple[int, int], Vector]) -> None:
        self.spec, self.delays = spec, delays(spec)
        self.memory = {place: value.copy() for place, value in memory.items()}
        self.partial: dict[tuple[int, int], set[int]] = {}  # superlanes that a Scatter wrote
        self.events: defaultdict[tuple[int, int], list[Callable[[], None]]] = defaultdict(list)
        self.streams: dict[tuple[Stream, int], Vector] = {}
        self.driven: dict[tuple[Stream, int], Vector] = {}
        self.used: set[tuple[object, ...]] = set()
        self.now = 0
        self.registers: dict[int, tuple[int, Vector]] = {}
        self.buffers: defaultdict[int, dict[int, Vector]] = defaultdict(dict)
        self.arrays: dict[int, dict[int, Vector]] = {}
        self.slots: dict[tuple[int, int], Vector] = {}
        self.products: dict[tuple[int, int], Vector] = {}
        self.sums: dict[tuple[int, int], Vector] = {}
        self.halves: dict[tuple[int, int], Vector] = {}  # fp64 partials of a tile's first half
        self.joined: set[int] = set()  # planes whose partner has fp16 products
        self.planes: set[int] = set()  # in use

    def run(self, issues: Sequence[Issue]) -> None:
        """Step to the end; `memory` then holds the result. Raises Refused."""
        for issue in issues:
            if isinstance(issue.instruction, Transpose):
                self._block(issue, issue.instruction)
            for i in range(issue.n):
                at = issue.cycle + i * issue.d
                self._once(("queue", issue.queue, at))
                instruction = advanced(issue.instruction, i)
                if not isinstance(instruction, Transpose):
                    self._issue(issue, instruction, at)
        if not self.events:
            return
        self.now = min(cycle for cycle, _ in self.events)
        while self.events:
            for phase in (START, MIDDLE, END):
                for event in self.events.pop((self.now, phase), []):
                    event()
            self._move()
            self.now += 1
        if self.products or self.halves or any(self.buffers.values()):
            raise Refused("a product, half a tile or weights left over")
        if self.joined & self.planes:
            raise Refused("a joined plane at work")

    # -- instructions

    def _issue(self, issue: Issue, instruction: Instruction, c: int) -> None:
        at = position(issue.queue, self.spec)
        delay = self.delays[instruction.name]
        done = c + delay.d_func
        if isinstance(instruction, Read):
            self._read(issue, instruction, c, done, at)
        elif isinstance(instruction, Write):
            self._write(issue, instruction, c + delay.d_skew, done, at)
        elif isinstance(instruction, Gather):
            self._gather(issue, instruction, c + delay.d_skew, done, at)
        elif isinstance(instruction, Scatter):
            self._scatter(issue, instruction, c + delay.d_skew, done, at)
        elif isinstance(instruction, Alu):
            self._alu(issue.queue.number, instruction, c, at)
        elif isinstance(instruction, Lanes):
            self._lanes(instruction, c, done, at)
        else:
            assert isinstance(instruction, (LW, IW, ABC, ACC))
            self._mxm(plane_of(issue.queue)[0], instruction, c, done, at)

    def _alu(self, number: int, alu: Alu, c: int, at: int) -> None:
        operands: list[list[Vector]] = []
        skew = self.delays[alu.name].d_skew
        late = 0
        for source in alu.sources:
            found: list[Vector] = []
            operands.append(found)
            if isinstance(source, In):
                late = max([late, *(tap.beat for tap in source.taps)])
                self._sample(at, source.taps, c + skew, found)
            elif isinstance(source, (Held, Chain)):
                self._at(c + skew, MIDDLE, lambda s=source, f=found: f.append(self._held(s)))  # type: ignore[misc]
            elif isinstance(source, Lane):
                found.append(np.arange(320, dtype=np.int32) + np.int32(source.offset))
            else:
                assert isinstance(source, Immediate)
                found.append(np.full(320, source.value, DTYPES[source.dtype]))
        done = c + late + self.delays[alu.name].d_func
        result: list[Vector] = []

        def complete() -> None:
            self._once(("alu", number, self.now))
            values = [
                _typed(found, source.dtype) if isinstance(source, In) else found[0]
                for found, source in zip(operands, alu.sources, strict=True)
            ]
            made = _evaluate(alu.op, values)
            made[alu.lanes :] = 0
            result.append(made)
            self.registers[number] = (self.now, made)

        self._at(done, START, complete)
        self._drive(at, alu.out, done, lambda: result[0])

    def _held(self, source: Held | Chain) -> Vector:
        if source.alu not in self.registers:
            raise Refused("no result")
        at, value = self.registers[source.alu]
        if isinstance(source, Chain) and at != self.now:
            raise Refused("no result just now")
        return value

    def _lanes(self, sxm: Lanes, c: int, done: int, at: int) -> None:
        found: list[Vector] = []
        self._sample(at, sxm.src, c, found)
        source = lane_map(sxm)
        kind = {1: np.uint8, 2: np.uint16, 4: np.uint32}[sxm.item]

        def move() -> Vector:
            values = np.zeros(320, kind)
            bytes_ = np.concatenate(found).view(kind)[: sxm.lanes]
            values[: len(bytes_)] = bytes_
            return np.where(source >= 0, values[source], 0).astype(kind)

        self._drive(at, sxm.dst, done + max(tap.beat for tap in sxm.src), move)

    def _block(self, issue: Issue, sxm: Transpose) -> None:
        at, found = position(issue.queue, self.spec), [list[Vector]() for _ in range(issue.n)]
        for i, vectors in enumerate(found):
            self._sample(at, group(sxm.src, 16), issue.cycle + i, vectors)
        first = issue.cycle + self.delays["TRANSPOSE"].d_func

        def turned(i: int) -> Vector:
            side = 320 // sxm.item
            block = np.zeros((side, side), {1: np.uint8, 2: np.uint16}[sxm.item])
            rows = np.array([vector for vectors in found for vector in vectors])
            block[: len(rows)] = rows.view(block.dtype)
            return np.ascontiguousarray(block.T[16 * i : 16 * i + 16]).reshape(-1)

        for i in range(sxm.groups):
            self._drive(at, group(sxm.dst, 16), first + i, lambda i=i: turned(i))  # type: ignore[misc]

    def _mxm(self, plane: int, mxm: LW | IW | ABC | ACC, c: int, done: int, at: int) -> None:
        self.planes.add(plane)
        if isinstance(mxm, LW):
            found: list[Vector] = []
            self._sample(at, group(mxm.stream, mxm.count), c, found)

            def load() -> None:
                for j, vector in enumerate(found):
                    if mxm.column + j in self.buffers[plane]:
                        raise Refused("two weights in one column")
                    self.buffers[plane][mxm.column + j] = vector.view(np.int8)

            self._at(done, START, load)
        elif isinstance(mxm, IW):
            self._at(c, MIDDLE, lambda: self._install(plane, mxm, done))
        elif isinstance(mxm, ABC):
            self._feed(plane, mxm, c, done, at)
        else:
            sums: list[Vector] = []
            self._at(c, END, lambda: sums.append(self._drain(plane, mxm)))
            self._drive(at, mxm.out, done, lambda: sums[0][: mxm.lanes])

    def _install(self, plane: int, mxm: IW, done: int) -> None:
        taken, self.buffers[plane] = self.buffers[plane], {}
        if len(taken) != mxm.columns:
            raise Refused("columns of the buffer")
        self._at(done, START, lambda: self.arrays.__setitem__(plane, taken))

    def _feed(self, plane: int, mxm: ABC, c: int, done: int, at: int) -> None:
        found: list[Vector] = []
        if mxm.stream is not None:
            self._sample(at, (Tap(mxm.stream),), c, found)

        def act() -> None:
            if mxm.stream is not None and mxm.slot is not None:
                self.slots[plane, mxm.slot] = found[0]
                return
            if mxm.stream is None:
                assert mxm.slot is not None
                if (plane, mxm.slot) not in self.slots:
                    raise Refused("an empty slot")
                found.append(self.slots[plane, mxm.slot])
            if plane not in self.arrays:
                raise Refused("no weights")
            if mxm.fp16:
                self.joined.add(plane + 1)
                self.products[plane, done] = np.array(
                    [
                        self.arrays[plane].get(j, np.zeros(320, np.uint8)).view(np.float16)
                        * found[0].view(np.float16).astype(np.float64)
                        for j in range(320)
                    ]
                )
                return
            product = np.zeros(320, np.int32)
            for column, weights in self.arrays[plane].items():
                product[column] = found[0].view(np.int8).astype(np.int32) @ weights.astype(np.int32)
            self.products[plane, done] = product

        buffer_read = mxm.stream is None
        self._at(c, MIDDLE if buffer_read else END, act)

    def _drain(self, plane: int, mxm: ACC) -> Vector:
        if not mxm.first and mxm.half != 0 and (plane, mxm.slot) not in self.sums:
            raise Refused("an accumulator never started")
        if mxm.product:
            if (plane, self.now) not in self.products:
                raise Refused("no product")
            product = self.products.pop((plane, self.now))
            if (product.dtype == np.float64) != (mxm.half is not None):
                raise Refused("a product of another type")
            if mxm.half is not None:
                return self._half(plane, mxm, product)
            before = 0 if mxm.first else self.sums[plane, mxm.slot]
            self.sums[plane, mxm.slot] = before + product
        return self.sums[plane, mxm.slot]

    def _half(self, plane: int, mxm: ACC, product: Vector) -> Vector:
        """Lane by lane into 16 partials; behind half 1 a tree, and the row's sum."""
        at = plane, mxm.slot
        if (mxm.half == 1) != (at in self.halves):
            raise Refused("half a tile")
        partials = self.halves.pop(at) if mxm.half else np.zeros((320, 16))
        for lane in range(160):
            partials[:, lane % 16] += product[:, lane]
        if not mxm.half:
            self.halves[at] = partials
            return self.sums.get(at, np.zeros(320, np.float32))
        while partials.shape[1] > 1:
            left, right = np.split(partials, 2, axis=1)
            partials = left + right
        tile = partials[:, 0].astype(np.float32)
        before = np.float32(0) if mxm.first else self.sums[at]
        self.sums[at] = before + tile
        return self.sums[at]

    # -- registers

    def _once(self, place: tuple[object, ...]) -> None:
        if place in self.used:
            raise Refused(f"twice: {place}")
        self.used.add(place)

    def _at(self, cycle: int, phase: int, event: Callable[[], None]) -> None:
        self.events[cycle, phase].append(event)

    def _move(self) -> None:
        moved = {}
        for (stream, at), value in (self.streams | self.driven).items():
            beyond = at + (1 if stream.eastward else -1)
            if 0 <= beyond < 64:
                moved[stream, beyond] = value
        self.streams, self.driven = moved, {}

    # -- operands and results

    def _sample(self, at: int, taps: Group, cycle: int, into: list[Vector]) -> None:
        """Have the taps' vectors appended to `into`, in order, as they come."""
        into.extend(np.empty(0) for _ in taps)
        for place, (stream, beat) in enumerate(taps):

            def take(place: int = place, stream: Stream = stream) -> None:
                if (stream, at) not in self.streams:
                    raise Refused(f"nothing on {stream} at {at} in {self.now}")
                into[place] = self.streams[stream, at]

            self._at(cycle + beat, MIDDLE, take)

    def _drive(self, at: int, taps: Group, cycle: int, data: Callable[[], Vector]) -> None:
        """Put the vectors of `data`, bytes in host order, on the taps' streams."""
        for place, (stream, beat) in enumerate(taps):

            def put(place: int = place, stream: Stream = stream) -> None:
                if (stream, at) in self.driven:
                    raise Refused(f"two values on {stream} at {at}")
                flat = np.zeros(320 * len(taps), np.uint8)
                made = data().reshape(-1).view(np.uint8)[: len(flat)]
                flat[: len(made)] = made
                self.driven[stream, at] = flat[320 * place : 320 * (place + 1)]

            self._at(cycle + beat, MIDDLE, put)

    # -- memory

    def _place(self, issue: Issue, word: object) -> tuple[int, int]:
        assert isinstance(word, int)
        half = self.spec.slices // 2
        return issue.queue.hemisphere * half + issue.queue.number, word

    def _read(self, issue: Issue, read: Read, c: int, done: int, at: int) -> None:
        place = self._place(issue, read.address)
        found: list[Vector] = []

        def access() -> None:
            self._read_port(place[0], (place[1] // 4096,))
            self._whole(place)
            found.append(self.memory[place].copy())

        self._at(c, MIDDLE, access)
        self._drive(at, (Tap(read.stream),), done, lambda: found[0])

    def _read_port(self, where: int, banks: tuple[int, ...]) -> None:
        self._once(("read", where, self.now))
        for bank in banks:
            self._once(("read", where, bank, self.now))

    def _write_port(self, where: int, banks: tuple[int, ...]) -> None:
        self._once(("write", where, self.now))
        for bank in banks:
            self._once(("read", where, bank, self.now))  # nothing else has the bank

    def _whole(self, place: tuple[int, int], lane: int | None = None) -> None:
        """Refuse poison in a word, or in one superlane of it."""
        wanted = set(range(20)) if lane is None else {lane}
        if place not in self.memory or not wanted <= self.partial.get(place, wanted):
            raise Refused(f"{place} was never written")

    def _write(self, issue: Issue, write: Write, sample: int, done: int, at: int) -> None:
        place, found = self._place(issue, write.address), list[Vector]()
        self._sample(at, (Tap(write.stream),), sample, found)

        def store() -> None:
            self._write_port(place[0], (place[1] // 4096,))
            self.memory[place] = found[0].copy()
            self.partial.pop(place, None)

        self._at(done, END, store)

    def _gather(self, issue: Issue, gather: Gather, sample: int, done: int, at: int) -> None:
        words: list[Vector] = []
        found: list[Vector] = []
        where = self._place(issue, 0)[0]
        self._sample(at, (Tap(gather.map),), sample, words)

        def access() -> None:
            self._read_port(where, (0, 1))
            out = np.zeros(320, np.uint8)
            for lane, word in enumerate(_map(words[0])):
                self._whole((where, word), lane)
                part = slice(16 * lane, 16 * lane + 16)
                out[part] = self.memory[where, word][part]
            found.append(out)

        self._at(done - self.delays["READ"].d_func, MIDDLE, access)
        self._drive(at, (Tap(gather.stream),), done, lambda: found[0])

    def _scatter(self, issue: Issue, scatter: Scatter, sample: int, done: int, at: int) -> None:
        words: list[Vector] = []
        data: list[Vector] = []
        where = self._place(issue, 0)[0]
        self._sample(at, (Tap(scatter.map),), sample, words)
        self._sample(at, (Tap(scatter.stream),), sample, data)

        def store() -> None:
            self._write_port(where, (0, 1))
            for lane, word in enumerate(_map(words[0])):
                if word == 0xFFFF:
                    continue
                if word >= 8192:
                    raise Refused(f"word {word}")
                place, part = (where, word), slice(16 * lane, 16 * lane + 16)
                if place not in self.memory:
                    self.memory[place], self.partial[place] = np.zeros(320, np.uint8), set()
                self.memory[place][part] = data[0][part]
                if place in self.partial:
                    self.partial[place].add(lane)

        self._at(done, END, store)


def _typed(found: list[Vector], dtype: str) -> Vector:
    values = np.zeros(320, DTYPES[dtype])
    bytes_ = np.concatenate(found)
    n = min(320, len(bytes_) // ITEM_BYTES[dtype])
    values[:n] = bytes_[: n * ITEM_BYTES[dtype]].view(DTYPES[dtype])
    return values


def _evaluate(op: AluOp, v: list[Vector]) -> Vector:
    functions: dict[AluOp, Callable[[], Vector]] = {
        AluOp.COPY: lambda: v[0].copy(),
        AluOp.NEG: lambda: -v[0],
        AluOp.ADD: lambda: v[0] + v[1],
        AluOp.MUL: lambda: v[0] * v[1],
        AluOp.MAX: lambda: np.maximum(v[0], v[1]),
        AluOp.GE: lambda: (v[0] >= v[1]).astype(np.int32),
        AluOp.CHOOSE: lambda: np.where(v[0] != 0, v[1], v[2]),
        AluOp.CVT_F32: lambda: v[0].astype(np.float32),
        AluOp.CVT_I8: lambda: np.clip(np.rint(v[0]), -127, 127).astype(np.int8),
    }
    return functions[op]()


def _map(vector: Vector) -> list[int]:
    """Each superlane's address: two bytes of its sixteen."""
    return [int(vector[16 * lane]) + 256 * int(vector[16 * lane + 1]) for lane in range(20)]
