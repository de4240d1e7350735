"""Blocks of memory that a slice's index says: what a read of them gets, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from machine_kit import CHIP, DELAYS, E0, W0, issue, resolve_on, whole_chip

from chip.errors import IssueError
from chip.floorplan import bulk_slices, hops, mem
from chip.isa.instructions import Gather, Index, Instruction, Read, Write
from chip.isa.issue import Issue
from chip.isa.operands import Chosen, Stream
from chip.machine.machine import Machine
from chip.spec import VECTOR_BYTES
from chip.sram import bulk_place, near_place, work_start

WORK = work_start(CHIP) // VECTOR_BYTES
READ, INDEX = DELAYS["READ"].d_func, DELAYS["INDEX"].d_func
NUMBERS = WORK + 1  # a vector of the eastern work slice; block 3 stands in its value 2
BLOCKS = Chosen(base=16, apart=64, choices=4, count=16)  # a run of the eastern side
NEAR = Chosen(base=WORK + 3, apart=2, choices=4)
OUT = 1000  # cycle at which a block is read, on its way from the VXM outwards
BULK = bulk_slices(CHIP)


def out(number: int, cycle: int, instruction: Instruction) -> Issue:
    """In an eastern slice's queue, where a value that leaves the VXM at a cycle passes it."""
    queue = mem(1, number)
    return issue(queue, cycle + hops(queue, mem(1, 0), CHIP), instruction)


def numbered(cycle: int = 20, lane: int = 2, slices: Iterable[int] = (0, *BULK)) -> list[Issue]:
    """Give slices their index: it comes from the western work slice, past the eastern ones."""
    _, own, word = near_place(CHIP, NUMBERS - 1)
    passes = hops(mem(0, own), mem(1, 0), CHIP)
    read = issue(mem(0, own), cycle - READ - passes, Read(address=word, stream=E0))
    return [read, *(out(number, cycle, Index(stream=E0, lane=lane)) for number in slices)]


def block(chosen: Chosen = BLOCKS, slices: Iterable[int] = BULK) -> list[Issue]:
    """Read it in these slices."""
    return [out(number, OUT, Read(address=chosen, stream=E0)) for number in slices]


def kept(stream: int = 0) -> Issue:
    """Write what is on a stream to a word of the last slice."""
    return out(BULK[-1], OUT + READ, Write(address=8000, stream=Stream(True, stream)))


def sram() -> np.ndarray:
    """Every vector is its number; the index stands in one of the work slices."""
    vectors = CHIP.sram_bytes // VECTOR_BYTES
    found = np.repeat(np.arange(vectors, dtype=np.uint32), VECTOR_BYTES // 4).reshape(vectors, -1)
    found[NUMBERS - 1] = 0
    found[NUMBERS - 1, 2] = 3
    found[NUMBERS - 1, 5] = 4
    return found.view(np.uint8)


def run(issues: list[Issue], *, unwritten: int | None = None) -> np.ndarray:
    given = sram()
    valid = np.ones(len(given), np.bool_)
    if unwritten is not None:
        valid[unwritten] = False
    memory = whole_chip(CHIP, valid)
    Machine(resolve_on(issues, CHIP, memory), memory, given).run()
    return given.view(np.uint32)


def written(found: np.ndarray) -> int:
    """Return the number of the vector that `kept` wrote."""
    memory = whole_chip(CHIP)
    side = CHIP.slices // CHIP.hemispheres + BULK[-1]
    at = np.flatnonzero((memory.slice_of == side) & (memory.word_of == 8000))
    return int(found[at[0], 0])


def test_each_slice_reads_the_vector_that_it_holds() -> None:
    found = run([*numbered(), *block(), kept()])
    assert written(found) == 16 + 3 * 64  # the first of block 3, on the first stream
    sixth = replace(BLOCKS, base=21)
    assert written(run([*numbered(), *block(sixth), kept()])) == 21 + 3 * 64
    pairs = replace(BLOCKS, base=18, count=8, spread=2)
    assert written(run([*numbered(), *block(pairs), kept(3)])) == 24 + 3 * 64


def test_a_slice_beside_the_vxm_reads_by_itself() -> None:
    side, number, _ = near_place(CHIP, NEAR.base)
    assert (side, number) == (1, 0)
    found = run([*numbered(), *block(NEAR, [0]), kept()])
    assert written(found) == NEAR.base + 3 * 2


def test_the_latest_index_counts() -> None:
    again = numbered(OUT - INDEX, lane=0)
    assert written(run([*numbered(), *again, *block(), kept()])) == 16
    late = numbered(OUT + 1, lane=0)
    assert written(run([*numbered(), *late, *block(), kept()])) == 16 + 3 * 64


@pytest.mark.parametrize(
    ("issues", "text"),
    [
        (block(), "no index in the slice's register"),
        ([*numbered(lane=5), *block()], "the slice's index: wanted 0 to 3, got 4"),
        ([*numbered(), *block(slices=BULK[:20])],
         "no slice that has this read holds vector [0-9]+ of the chosen block"),
        ([*numbered(), *block(slices=BULK[1:])],
         "a read of a chosen block that no slice on the stream's way leads"),
        ([*numbered(), *block(replace(BLOCKS, count=33))], "streams: wanted 1 to 32, got 33"),
        ([*numbered(), *block(replace(BLOCKS, choices=0))],
         "the chosen block: wanted vectors of one block at least, got Chosen"),
        ([*numbered(lane=80)], "lane: wanted 0 to 79, got 80"),
        ([*numbered(), *block(replace(BLOCKS, apart=1 << 20))],
         "a chosen block among vectors that were never written"),
        ([*numbered(), *(replace(one, n=2) for one in block())],
         "repeat: wanted one read of the chosen block, got 2"),
    ],
)  # fmt: skip
def test_what_is_refused(issues: list[Issue], text: str) -> None:
    with pytest.raises(IssueError, match=text):
        run(issues)


def test_a_block_that_is_written_or_that_nobody_wrote() -> None:
    with pytest.raises(IssueError, match="a chosen block among vectors that were never written"):
        run([*numbered(), *block()], unwritten=16 + 2 * 64)
    gather = out(BULK[4], 400, Gather(map=E0, stream=W0))
    with pytest.raises(IssueError, match="a chosen block in a slice whose words are gathered"):
        run([*numbered(), *numbered(400, slices=()), gather, *block()])
    side, number, word = bulk_place(CHIP, 16 + 64)
    read = issue(mem(0, 0), 0, Read(address=0, stream=W0))
    queue = mem(side, number)
    first = issue(mem(0, 5), 0, Read(address=0, stream=Stream(True, 7)))
    at = READ + hops(mem(0, 5), queue, CHIP)
    write = issue(queue, at, Write(address=word, stream=Stream(True, 7)))
    with pytest.raises(IssueError, match="a write among words whose addresses are known at run"):
        run([read, first, write, *numbered(300), *block()])
