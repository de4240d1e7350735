"""Addresses that come with the step: what the machine refuses, and what Gather and Scatter do."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from machine_kit import CHIP, DELAYS, E0, SLICES, WORDS, bound, issue, resolve

from chip.errors import IssueError
from chip.floorplan import hops, mem
from chip.isa.instructions import Gather, Read, Scatter, Write
from chip.isa.issue import Issue
from chip.isa.operands import At, Stream

E1, E2, E3 = (Stream(True, number) for number in (1, 2, 3))
READ = DELAYS["READ"].d_func
AT_SLICE = READ + hops(mem(0, 5), mem(1, 5), CHIP)  # a word of slice W5, read at cycle 0
PLACE = SLICES // 2 + 5  # slice E5


def word(address: int, stream: Stream, cycle: int = 0) -> Issue:
    """A word of slice W5 that comes to slice E5 at AT_SLICE + cycle."""
    return issue(mem(0, 5 + stream.number), cycle, Read(address=address, stream=stream))


def at_slice(cycle: int, instruction: Gather | Scatter | Read | Write, n: int = 1) -> Issue:
    return issue(mem(1, 5), AT_SLICE + cycle, instruction, n)


def data(*addresses: int) -> np.ndarray:
    """Every vector holds its number; word 0 of slice W5 holds superlanes' addresses, in turn."""
    out = np.repeat(np.arange(WORDS * SLICES), 320).reshape(-1, 320).astype(np.uint8)
    lanes = np.resize(np.array(addresses), 20).astype("<u2")
    out[5].view("<u2")[::8] = lanes
    return out


def run(given: np.ndarray, *issues: Issue) -> np.ndarray:
    bound(*issues, sram=given).run()
    return given


def test_a_gather_takes_a_word_for_each_superlane() -> None:
    """A Scatter puts them back at other words; 0xffff writes nothing."""
    given = data(0, 3)
    before = given.copy()
    target = mem(1, 9)
    arrives = AT_SLICE + DELAYS["GATHER"].d_func + hops(mem(1, 5), target, CHIP)
    keep = issue(target, arrives, Write(address=2, stream=E2))
    after = run(given, word(0, E0), at_slice(0, Gather(map=E0, stream=E2)), keep)
    got = after[2 * SLICES + SLICES // 2 + 9].reshape(20, 16)
    assert np.array_equal(got[::2], before[PLACE].reshape(20, 16)[::2])
    assert np.array_equal(got[1::2], before[3 * SLICES + PLACE].reshape(20, 16)[1::2])

    given = data(6, 0xFFFF)
    after = run(given, word(0, E0), word(1, E1), at_slice(0, Scatter(map=E0, stream=E1)))
    own = after[6 * SLICES + PLACE].reshape(20, 16)
    assert (own[::2] == (SLICES + 6) % 256).all()
    assert np.array_equal(own[1::2], before[6 * SLICES + PLACE].reshape(20, 16)[1::2])


KEPT = Read(address=0, stream=E3)
RUN_TIME = At(SLICES, 1, 1, 0, SLICES)  # word 1 of any slice
AFTER = AT_SLICE + DELAYS["SCATTER"].d_func
SPOILED = {
    "address": (
        (8192,),
        [word(0, E0), at_slice(0, Gather(map=E0, stream=E2))],
        f"superlane 0's address: wanted words 0 to 8191, got 8192: GATHER of op{AT_SLICE} on "
        f"MEM_E5 at {AT_SLICE}",
    ),
    "scattered address": (
        (0xFFFF, 9000),
        [word(0, E0), word(0, E1), at_slice(0, Scatter(map=E0, stream=E1))],
        "superlane 1's address: wanted words 0 to 8191, got 9000: SCATTER",
    ),
    "poison": (
        (3, 4),
        [word(0, E0), at_slice(0, Gather(map=E0, stream=E2))],
        f"superlane 1 of vector {4 * SLICES + PLACE} was never written: GATHER",
    ),
    "read of poison": (
        (0,),
        [
            word(0, E0),
            at_slice(0, Gather(map=E0, stream=E2)),
            at_slice(3, Read(address=5, stream=E3)),
        ],
        f"superlane 0 of vector {5 * SLICES + PLACE} was never written: READ",
    ),
    "read port": (
        (0,),
        [word(0, E0), at_slice(0, Gather(map=E0, stream=E2)), at_slice(1, KEPT)],
        f"two reads of one slice in one cycle: READ of op{AT_SLICE + 1} on MEM_E5 at "
        f"{AT_SLICE + 1} and GATHER of op{AT_SLICE} on MEM_E5 at {AT_SLICE}",
    ),
    "bank": (
        (0,),
        [word(0, E0), word(0, E1), at_slice(0, Scatter(map=E0, stream=E1)), at_slice(2, KEPT)],
        f"a read and a write in one bank and cycle: READ of op{AFTER} on MEM_E5 at {AFTER} and "
        f"SCATTER of op{AT_SLICE} on MEM_E5 at {AT_SLICE}",
    ),
    "write port": (
        (0,),
        [
            word(0, E0), word(0, E1), at_slice(0, Scatter(map=E0, stream=E1)),
            word(0, E2, 2), at_slice(2, Write(address=1, stream=E2)),
        ],
        "two writes to one slice in one cycle: WRITE of",
    ),
    "both kinds": (
        (0,),
        [
            word(0, E0), at_slice(0, Gather(map=E0, stream=E2)),
            at_slice(9, Read(address=RUN_TIME, stream=E3)),
        ],
        "a run-time address in a slice whose words are gathered or scattered: READ of "
        f"op{AT_SLICE + 9} on MEM_E5 at {AT_SLICE + 9} and GATHER of",
    ),
    "write among": (
        (0,),
        [
            word(0, E0), at_slice(0, Write(address=1, stream=E0)),
            issue(mem(0, 0), 50, Read(address=RUN_TIME, stream=E3)),
        ],
        "a write among words whose addresses are known at run time only: WRITE of "
        f"op{AT_SLICE} on MEM_E5 at {AT_SLICE} and READ of op50 on MEM_W0 at 50",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_refused(name: str) -> None:
    addresses, issues, text = SPOILED[name]
    with pytest.raises(IssueError) as caught:
        run(data(*addresses), *issues)
    assert str(caught.value).startswith(text), str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_reads_around_writes_whose_addresses_come_with_the_step() -> None:
    """A burst of reads is before or after such writes, never among or on both sides of them."""
    write = Write(address=RUN_TIME, stream=E0)
    made = [issue(mem(0, 5), 0, Read(address=0, stream=E0), 2), at_slice(0, write, 2)]
    other = mem(1, 6)
    read = Read(address=1, stream=E3)
    with pytest.raises(IssueError) as caught:
        resolve(*made, issue(other, AT_SLICE + 1, read))
    assert str(caught.value) == (
        "a read among writes whose addresses are known at run time only: READ of "
        f"op{AT_SLICE + 1} on MEM_E6 at {AT_SLICE + 1} and WRITE of op{AT_SLICE} on MEM_E5 at "
        f"{AT_SLICE}"
    )
    with pytest.raises(IssueError) as caught:
        resolve(*made, issue(other, AT_SLICE, read, 2, 4))
    assert str(caught.value).startswith(
        "reads before and after a write whose address is known at run time only: READ of "
    )
    resolve(*made, issue(other, AT_SLICE, read), issue(other, AT_SLICE + 2, read))


def test_a_run_time_write_that_its_slice_does_not_have() -> None:
    """It must stand in the queue of every slice that may hold the vector."""
    given = data(0)
    write = Write(address=RUN_TIME, stream=E0)
    with pytest.raises(IssueError, match="no queue of the slice that holds vector 88 has this"):
        run(given, word(0, E0), at_slice(0, write))
