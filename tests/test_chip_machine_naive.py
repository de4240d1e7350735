"""The machine equals a chip stepped register by register, on programs drawn at random."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_kit import CHIP, DELAYS, SLICES, word_major
from naive_machine import NaiveMachine, Refused

from chip.errors import IssueError
from chip.floorplan import Queue, Role, alu, hops, mem, mxm, sxm
from chip.isa.instructions import (
    ABC,
    ACC,
    IW,
    LW,
    Alu,
    AluOp,
    Gather,
    Read,
    Rotate,
    Scatter,
    Shift,
    Transpose,
    Write,
)  # fmt: skip
from chip.isa.issue import Issue
from chip.isa.operands import Held, Immediate, In, Lane, Stream, Tap, group
from chip.machine.machine import Machine
from chip.machine.memory import MemoryMap
from chip.machine.resolve import resolve

WORDS = 16  # of each slice that programs use; the first eight hold data
MAPS = 12  # words that hold addresses: 12 to 15 of every slice
HALF = SLICES // 2


def memory() -> tuple[MemoryMap, np.ndarray]:
    """Small numbers in the first words of every slice, vector = word * slices + slice.

    Maps name words 0 to 7, in their last slices also words that a Scatter must write first.
    """
    word = np.arange(WORDS)
    held = word_major(WORDS, (word < 8) | (word >= MAPS))
    data = np.empty((WORDS * SLICES, 320), np.uint8)
    data.view(np.float32)[...] = np.random.default_rng(2).integers(-9, 9, (len(data), 80))
    maps = np.random.default_rng(3).integers(0, 8, ((WORDS - MAPS) * SLICES, 20)).astype("<u2")
    maps[2 * SLICES :] += np.random.default_rng(4).integers(0, 2, (2 * SLICES, 20)).astype("<u2")
    maps[3 * SLICES :: 2, 5] = 0xFFFF
    data.view("<u2").reshape(-1, 20, 8)[MAPS * SLICES :, :, 0] = maps
    return held, data


class Writer:
    """Draws a program: operations that fit in themselves, at cycles that may collide."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.issues: list[Issue] = []

    def program(self) -> list[Issue]:
        makers: list[Callable[[], None]] = [
            self.vector, self.lanes, self.product, self.halves, self.block, self.mapped,
        ]  # fmt: skip
        for _ in range(self.rng.randint(1, 4)):
            self.rng.choice(makers)()
        for _ in range(self.rng.choice((0, 0, 1))):
            self.spoil()
        return self.issues

    def add(self, queue: Queue, cycle: int, instruction: object, n: int = 1, d: int = 1) -> None:
        self.issues.append(Issue(queue, cycle, instruction, n, d, "test"))  # type: ignore[arg-type]

    def spoil(self) -> None:
        """Shift one issue, or take another stream."""
        i = self.rng.randrange(len(self.issues))
        issue = self.issues[i]
        stream = getattr(issue.instruction, "stream", None)
        if stream is not None and self.rng.random() < 0.4:
            other = Stream(stream.eastward, stream.number ^ 1)
            issue = replace(issue, instruction=replace(issue.instruction, stream=other))
        else:
            issue = issue.moved(self.rng.choice((-1, 1)))
        self.issues[i] = issue

    def fetch(self, unit: Queue, at: int, stream: Stream, count: int, n: int, d: int) -> None:
        """Read vectors so that they reach a unit on neighbouring streams from cycle `at` on."""
        side = 0 if stream.eastward else 1
        first = self.rng.randrange(HALF - count)
        for j in range(count):
            queue = mem(side, first + j)
            cycle = at - hops(queue, unit, CHIP) - DELAYS["READ"].d_func
            word = self.rng.randrange(8 - min(n, 7))
            step = self.rng.choice((0, 1)) if n < 8 else 0
            own = Stream(stream.eastward, stream.number + j)
            self.add(queue, cycle, Read(address=word, stream=own, step=step), n, d)

    def store(self, unit: Queue, at: int, stream: Stream, count: int, n: int, d: int) -> None:
        """Write what a unit puts on streams at cycle `at` on."""
        side = 1 if stream.eastward else 0
        first = self.rng.randrange(HALF - count)
        for j in range(count):
            queue = mem(side, first + j)
            own = Stream(stream.eastward, stream.number + j)
            word = self.rng.randrange(MAPS - min(n, 7))
            step = 1 if n < 8 else 0
            self.add(
                queue,
                at + hops(queue, unit, CHIP),
                Write(address=word, stream=own, step=step),
                n,
                d,
            )

    def stream(self, count: int) -> Stream:
        return Stream(
            self.rng.random() < 0.5, self.rng.choice((0, 4)) + self.rng.randrange(5 - count)
        )

    def vector(self) -> None:
        """Two vectors through a chain of two or three ALUs."""
        rng = self.rng
        n, d, at = rng.randint(1, 4), rng.choice((1, 4, 6)), rng.randrange(60, 90)
        lanes = rng.choice((64, 320))
        count = -(-lanes * 4 // 320)
        source, target = self.stream(count), self.stream(count)
        self.fetch(alu(0), at, source, count, n, d)
        first, second = rng.choice((0, 1, 2)), rng.choice((3, 4, 5))
        op = rng.choice((AluOp.ADD, AluOp.MUL))
        operand = rng.choice((Immediate(2.0), Held(second)))
        taps = group(source, count)
        self.add(alu(first), at, Alu(op=op, a=In(taps), b=Immediate(3.0), lanes=lanes), n, d)
        done = at + DELAYS[op].d_func
        step = Alu(op=AluOp.ADD, a=Held(first), b=operand, lanes=lanes, out=group(target, count))
        if isinstance(operand, Held):
            start = Alu(op=AluOp.COPY, a=Immediate(0.0), lanes=lanes)
            self.add(alu(second), done - DELAYS["COPY"].d_func - rng.randrange(2), start)
        self.add(alu(second), done, step, n, d)
        self.store(alu(0), done + DELAYS["ADD"].d_func, target, count, n, d)
        if rng.random() < 0.3:
            mask = Alu(op=AluOp.GE, a=Lane(0), b=Immediate(5, "i32"), lanes=lanes)
            self.add(alu(6), at, mask)

    def lanes(self) -> None:
        """32-bit lanes through the SXM, in two beats."""
        rng = self.rng
        n, at, side = rng.randint(1, 3), rng.randrange(60, 90), rng.randrange(2)
        unit = sxm(side, rng.randrange(3))
        source = Stream(side == 1, rng.choice((0, 2)))
        target = Stream(side == 0, rng.choice((0, 4)))
        beats = (Tap(source), Tap(source, 1))
        for beat in (0, 1):
            self.fetch(unit, at + beat, source, 1, n, 2)
        amount = rng.randrange(-40, 40)
        kind = rng.choice((Shift, Rotate))
        move = kind(src=beats, dst=group(target, 4), item=4, lanes=160, amount=amount)
        self.add(unit, at, move, n, 2)
        done = at + 1 + DELAYS[move.name].d_func
        at_vxm = done + hops(unit, alu(0), CHIP)
        out = Stream(rng.random() < 0.5, 8)
        copy = Alu(op=AluOp.COPY, a=In(group(target, 4)), out=group(out, 4))
        self.add(alu(9), at_vxm, copy, n, 2)
        self.store(alu(0), at_vxm + DELAYS["COPY"].d_func, out, 4, n, 2)

    def mapped(self) -> None:
        """Words gathered by a map, kept, perhaps scattered by another and read again."""
        rng = self.rng
        at, n, slice_ = rng.randrange(60, 90), rng.randint(1, 2), rng.choice((2, 9))
        queue, source, out = mem(1, slice_), Stream(True, 20), Stream(True, 21)
        self.words(queue, at, source, n, MAPS + rng.choice((0, 0, 0, 2)))
        self.add(queue, at, Gather(map=source, stream=out), n)
        away = mem(1, slice_ + 8)
        keep = at + DELAYS["GATHER"].d_func + hops(queue, away, CHIP)
        self.add(away, keep, Write(address=rng.choice((3, 9)), stream=out, step=1), n)
        if rng.random() < 0.6:
            again = at + rng.choice((2, 3, 4, 9))
            self.words(queue, again, source, 1, MAPS + 2 + rng.randrange(2))
            self.words(queue, again, Stream(True, 22), 1, rng.randrange(8))
            self.add(queue, again, Scatter(map=source, stream=Stream(True, 22)))
            later = again + rng.choice((2, 3, 5))
            if rng.random() < 0.5:
                self.add(queue, later, Read(address=rng.randrange(9), stream=Stream(True, 23)))
            else:
                self.words(queue, later, source, 1, MAPS + 2)
                self.add(queue, later, Gather(map=source, stream=Stream(True, 23)))

    def words(self, unit: Queue, at: int, stream: Stream, n: int, word: int) -> None:
        """Read words so that they reach a slice on a stream from cycle `at` on."""
        queue = mem(0, self.rng.randrange(HALF))
        cycle = at - hops(queue, unit, CHIP) - DELAYS["READ"].d_func
        self.add(queue, cycle, Read(address=word, stream=stream, step=1), n)

    def product(self) -> None:
        """One or two tiles of a few columns, rows from streams or the activation buffer."""
        rng = self.rng
        side, rows, at = rng.randrange(2), rng.randint(1, 3), rng.randrange(60, 90)
        plane = 2 * side + rng.randrange(2)
        load, feed, drain = (mxm(plane, role) for role in Role)
        outward = side == 1
        for tile in range(2):
            self.fetch(load, at, Stream(outward, 8), 4, 2, 1)
            weights = LW(stream=Stream(outward, 8), count=4, column=0, step=4)
            self.add(load, at, weights, 2)
            self.add(feed, at + 2, IW(columns=8))
            go = at + 2 + DELAYS["IW"].d_func
            if rng.random() < 0.5:
                self.fetch(feed, go, Stream(outward, 3), 1, rows, 1)
                self.add(feed, go, ABC(stream=Stream(outward, 3)), rows)
            else:
                self.fetch(feed, go, Stream(outward, 3), 1, rows, 1)
                self.add(feed, go, ABC(stream=Stream(outward, 3), slot=0, step=1), rows)
                go += rows
                self.add(feed, go, ABC(slot=0, step=1), rows)
            out = group(Stream(not outward, 12), 1) if tile else ()
            acc = ACC(slot=1, step=1, first=not tile, lanes=8, out=out)
            self.add(drain, go + DELAYS["ABC"].d_func, acc, rows)
            at = go + rows
        done = go + DELAYS["ABC"].d_func + DELAYS["ACC"].d_func
        at_vxm = done + hops(drain, alu(0), CHIP)
        target = Stream(rng.random() < 0.5, 16)
        taps = group(Stream(not outward, 12), 1)
        copy = Alu(op=AluOp.CVT_F32, a=In(taps, "i32"), lanes=8, out=group(target, 1))
        self.add(alu(7), at_vxm, copy, rows)
        self.store(alu(0), at_vxm + DELAYS["CVT_F32"].d_func, target, 1, rows, 1)

    def halves(self) -> None:
        """A tile or two of fp16 columns, in halves, through a pair of planes."""
        rng = self.rng
        side, rows, at = rng.randrange(2), rng.randint(1, 3), rng.randrange(60, 90)
        load, feed, drain = (mxm(2 * side, role) for role in Role)
        outward, tiles = side == 1, rng.randint(1, 2)
        for half in range(2 * tiles):
            self.fetch(load, at, Stream(outward, 8), 4, 2, 1)
            self.add(load, at, LW(stream=Stream(outward, 8), count=4, column=0, step=4), 2)
            self.add(feed, at + 2, IW(columns=8))
            go = at + 2 + DELAYS["IW"].d_func
            self.fetch(feed, go, Stream(outward, 3), 1, rows, 1)
            self.add(feed, go, ABC(stream=Stream(outward, 3), fp16=True), rows)
            last = half == 2 * tiles - 1
            out = group(Stream(not outward, 12), 1) if last else ()
            add = ACC(slot=1, step=1, first=half < 2, lanes=8, out=out, half=half % 2)
            self.add(drain, go + DELAYS["ABC"].d_func, add, rows)
            at = go + rows
        done = go + DELAYS["ABC"].d_func + DELAYS["ACC"].d_func
        at_vxm = done + hops(drain, alu(0), CHIP)
        target = Stream(rng.random() < 0.5, 16)
        copy = Alu(
            op=AluOp.COPY, a=In(group(Stream(not outward, 12), 1)), lanes=8, out=group(target, 1)
        )
        self.add(alu(7), at_vxm, copy, rows)
        self.store(alu(0), at_vxm + DELAYS["COPY"].d_func, target, 1, rows, 1)

    def block(self) -> None:
        """A transposed block of one or two times 16 vectors."""
        rng = self.rng
        side, n, at = rng.randrange(2), rng.randint(1, 2), rng.randrange(60, 90)
        unit, source, target = sxm(side, 5), Stream(side == 1, 14), Stream(side == 0, 16)
        self.fetch(unit, at, source, 16, n, 1)
        item = rng.choice((1, 2))
        self.add(unit, at, Transpose(src=source, dst=target, groups=2, item=item), n)
        self.store_inward(unit, at + DELAYS["TRANSPOSE"].d_func, target)

    def store_inward(self, unit: Queue, at: int, stream: Stream) -> None:
        for j in range(16):
            queue = mem(unit.hemisphere, j)
            own = Stream(stream.eastward, stream.number + j)
            write = Write(address=10, stream=own, step=1)
            self.add(queue, at + hops(queue, unit, CHIP), write, 2)


def outcome(issues: list[Issue]) -> tuple[str, np.ndarray | None]:
    held, data = memory()
    try:
        Machine(resolve(issues, CHIP, held), held, data).run()
    except IssueError as error:
        return str(error), None
    return "", data


def naive_outcome(issues: list[Issue]) -> tuple[str, np.ndarray | None]:
    held, data = memory()
    words = {
        (int(where), int(word)): data[vector].copy()
        for vector, (where, word) in enumerate(zip(held.slice_of, held.word_of, strict=True))
        if held.valid[vector]
    }
    naive = NaiveMachine(CHIP, words)
    try:
        naive.run(issues)
    except Refused as error:
        return str(error), None
    for (where, word), value in naive.memory.items():
        for lane in naive.partial.get((where, word), range(20)):  # the others are still poison
            part = slice(16 * lane, 16 * lane + 16)
            data[word * SLICES + where, part] = value[part]
    return "", data


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 1 << 30))
def test_equals_the_machine_stepped_by_registers(seed: int) -> None:
    issues = Writer(seed).program()
    refused, data = outcome(issues)
    naive_refused, naive = naive_outcome(issues)
    assert bool(refused) == bool(naive_refused), (refused, naive_refused)
    if data is not None and naive is not None:
        assert np.array_equal(data, naive)


def test_both_outcomes_are_drawn() -> None:
    """For programs with and without addresses from streams."""
    outcomes = Counter[tuple[bool, bool]]()
    for seed in range(60):
        issues = Writer(seed).program()
        mapped = any(isinstance(issue.instruction, (Gather, Scatter)) for issue in issues)
        outcomes[mapped, bool(outcome(issues)[0])] += 1
    assert min(outcomes[key] for key in ((m, r) for m in (0, 1) for r in (0, 1))) > 3, outcomes
