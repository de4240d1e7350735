"""A small chip memory, and programs of a few instructions on the reference machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from schedules import machine

from chip.floorplan import Queue, Role, alu, hops, mem, mxm
from chip.isa.instructions import ABC, ACC, IW, LW, Alu, AluOp, Instruction, Read
from chip.isa.issue import Issue, delays
from chip.isa.operands import In, Stream, group
from chip.machine.crossings import Crossing
from chip.machine.machine import Machine
from chip.machine.memory import MemoryMap
from chip.machine.resolve import Resolved
from chip.machine.resolve import resolve as resolve_on
from chip.spec import ChipSpec
from chip.sram import places

CHIP = machine("groqrack").chip
DELAYS = delays(CHIP)
SLICES, WORDS = CHIP.slices, 8  # words of each slice that `memory` has
E0, W0 = Stream(True, 0), Stream(False, 0)
AT_VXM = DELAYS["READ"].d_func + hops(mem(0, 0), alu(0), CHIP)
AT_MXM = DELAYS["READ"].d_func + hops(mem(0, 0), mxm(0, Role.LOAD), CHIP)


def issue(queue: Queue, cycle: int, instruction: Instruction, n: int = 1, d: int = 1) -> Issue:
    """Issues whose provenance tells their first cycle."""
    return Issue(queue, cycle, instruction, n, d, f"op{cycle}")


def read(slice_: int = 0, cycle: int = 0, address: int = 0, stream: Stream = E0) -> Issue:
    """A word of a western slice, put on a stream."""
    return issue(mem(0, slice_), cycle, Read(address=address, stream=stream))


COPY = Alu(op=AluOp.COPY, a=In(group(E0, 1)), lanes=80)
LOADED = [  # one column of weights in plane 0
    issue(mem(0, 0), 0, Read(address=0, stream=W0)),
    issue(mxm(0, Role.LOAD), AT_MXM, LW(stream=W0, count=1, column=0)),
    issue(mxm(0, Role.FEED), AT_MXM + 1, IW(columns=1)),
]


def product(
    cycle: int, *, fp16: bool = False, half: int | None = None, slot: int = 0
) -> list[Issue]:  # fmt: skip
    """One activation row from a word to the sum of its product."""
    summed = ACC(slot=slot, first=True, half=half)
    return [
        issue(mem(0, 1), cycle - AT_MXM, Read(address=0, stream=W0)),
        issue(mxm(0, Role.FEED), cycle, ABC(stream=W0, fp16=fp16)),
        issue(mxm(0, Role.DRAIN), cycle + DELAYS["ABC"].d_func, summed),
    ]


def memory() -> MemoryMap:
    """Vector = word * slices + slice; the first four words hold data."""
    return word_major(WORDS, np.arange(WORDS) < 4)


def word_major(words: int, valid: NDArray[np.bool_]) -> MemoryMap:
    """Vector = word * slices + slice; `valid` tells which words hold data."""
    vectors = np.arange(words * SLICES)
    word = vectors // SLICES
    return MemoryMap(slice_of=vectors % SLICES, word_of=word, valid=valid[word])


def whole_chip(spec: ChipSpec, valid: NDArray[np.bool_] | None = None) -> MemoryMap:
    """All of a chip's SRAM, in address order; it holds something everywhere unless told."""
    slice_of, word_of = places(spec)
    held = np.ones(len(slice_of), np.bool_) if valid is None else valid
    return MemoryMap(slice_of=slice_of, word_of=word_of, valid=held)


def blank() -> NDArray[np.uint8]:
    """The SRAM of `memory`, all zeros."""
    return np.zeros((WORDS * SLICES, 320), np.uint8)


def resolve(*issues: Issue) -> Resolved:
    """Resolve a program on `memory`."""
    return resolve_on(issues, CHIP, memory())


def bound(
    *issues: Issue, sram: NDArray[np.uint8] | None = None, crossings: tuple[Crossing, ...] = ()
) -> Machine:
    """Resolve a program on `memory` and bind it to an SRAM, a blank one by default."""
    return Machine(resolve(*issues), memory(), blank() if sram is None else sram, crossings)
