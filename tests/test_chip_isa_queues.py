"""Issues in their queues come back on their cycles."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from program_kit import CHIP, patterned, single

from chip.encoding.binary import decode, encode
from chip.errors import IssueError
from chip.floorplan import alu, mem, parse_queue, plane_of, queues
from chip.isa.assembly import KINDS, assemble, disassemble, text_of
from chip.isa.instructions import (
    ICU,
    ISSUED_BY,
    Alu,
    AluOp,
    Deskew,
    Notify,
    Read,
    RuntimeDeskew,
    Sync,
    Write,
    issues,
)  # fmt: skip
from chip.isa.issue import Issue, delays
from chip.isa.operands import Lane, Stream
from chip.isa.queues import Named, Nop, QueueProgram, Repeat, to_issues, to_queues


@settings(max_examples=100, deadline=None, derandomize=True)
@given(patterned())
def test_repeats_are_issued_as_before(issues: list[Issue]) -> None:
    program = to_queues(issues)
    assert single(to_issues(program, CHIP)) == single(issues)


def test_every_queue_has_its_name() -> None:
    assert len(queues(CHIP)) == 144  # docs/hardware.md: 2 x (44 MEM + 14 SXM + 6 MXM) + 16 VXM
    for queue in queues(CHIP):
        assert parse_queue(str(queue), CHIP) == queue
    with pytest.raises(ValueError, match="queue: wanted MEM_W0, SXM_E3, MXM_W2, VXM5"):
        parse_queue("MEM_W44", CHIP)


def test_every_instruction_has_a_queue_and_delays() -> None:
    assert set(delays(CHIP)) == set(KINDS)
    issued = {kind for kinds in ISSUED_BY.values() for kind in kinds}
    for mnemonic, kind in KINDS.items():
        if kind is Alu:
            one = Alu(op=AluOp(mnemonic), a=Lane())
            assert issues(alu(0), one)
            assert not issues(mem(0, 0), one)
        assert kind in issued or kind in ICU
    assert {plane_of(q)[0] for q in queues(CHIP) if q.unit == "MXM"} == {0, 1, 2, 3}


NOTIFY, SYNC = Named(Notify()), Named(Sync())
READ = Read(address=3, stream=Stream(True, 4), step=2)
WRITE = Write(address=9, stream=Stream(False, 1))


def test_queues_keep_the_cycles() -> None:
    given_issues = [
        Issue(mem(0, 0), -7, READ, 5, 3, "a"),
        Issue(mem(0, 0), 20, WRITE, 1, 1, "b"),
        Issue(mem(1, 3), 4, READ, 2, 10, ""),
    ]
    program = to_queues(given_issues)
    assert program.origin == -7
    assert program.queues[mem(0, 0)] == (
        Named(Deskew()), Named(Notify()), Named(Sync()),
        Named(READ, "a"), Repeat(4, 3), Nop(14), Named(WRITE, "b"),
    )  # fmt: skip
    assert sorted(to_issues(program, CHIP), key=str) == sorted(given_issues, key=str)


def test_a_long_wait_is_several_nops() -> None:
    """ISCA 2020, III.A.1: a NOP's count has 16 bits."""
    issues = [Issue(mem(0, 0), 0, READ), Issue(mem(0, 0), 200_000, WRITE)]
    program = to_queues(issues)
    waits = [item.n for item in program.queues[mem(0, 0)] if isinstance(item, Nop)]
    assert waits == [65_535, 65_535, 65_535, 3_394]
    assert to_issues(program, CHIP) == issues
    assert decode(encode(program, CHIP), CHIP) == program
    assert assemble(disassemble(program), CHIP) == program
    for n in (0, 65_536):
        with pytest.raises(ValueError, match=f"NOP: wanted 1 to 65535 cycles, got {n}"):
            Nop(n)


def test_repeats_that_interleave_are_cut() -> None:
    program = to_queues([Issue(mem(0, 0), 0, READ, 4, 4), Issue(mem(0, 0), 5, WRITE, 2, 4)])
    cycles = sorted(
        (issue.cycle + i * issue.d, issue.instruction.name)
        for issue in to_issues(program, CHIP) for i in range(issue.n)
    )  # fmt: skip
    assert cycles == [
        (0, "READ"),
        (4, "READ"),
        (5, "WRITE"),
        (8, "READ"),
        (9, "WRITE"),
        (12, "READ"),
    ]
    addresses = [
        issue.instruction.address for issue in to_issues(program, CHIP)
        if isinstance(issue.instruction, Read)
    ]  # fmt: skip
    assert addresses == [3, 7, 9]
    with pytest.raises(IssueError) as caught:
        to_queues([Issue(mem(0, 0), 0, READ), Issue(mem(0, 0), 0, WRITE, name="b")])
    assert str(caught.value) == (
        "two instructions in MEM_W0 at 0: READ of the program on MEM_W0 at 0 and WRITE of b on "
        "MEM_W0 at 0"
    )


def test_a_queue_stops() -> None:
    stop = RuntimeDeskew(cycles=14)
    issues = [Issue(mem(0, 0), 2, stop), Issue(mem(0, 0), 16, READ)]
    program = to_queues(issues)
    assert program.queues[mem(0, 0)][3:] == (Named(stop), Named(READ))
    assert to_issues(program, CHIP) == issues
    assert text_of(stop) == "RUNTIME_DESKEW cycles=14"
    with pytest.raises(IssueError, match="two instructions in MEM_W0 at 15: RUNTIME_DESKEW of"):
        to_queues([issues[0], Issue(mem(0, 0), 15, READ)])


@pytest.mark.parametrize(
    ("items_", "text"),
    [
        (
            (NOTIFY, SYNC, Repeat(1, 1)),
            "a Repeat that follows no instruction: MEM_W0 at 0",
        ),
        ((Named(READ),), "an instruction before its queue is released: READ on MEM_W0 at 0"),
        ((NOTIFY, Repeat(2, 1)), "an instruction before its queue is released: REPEAT on MEM_W0"),
        ((NOTIFY,), "a queue without a Sync: MEM_W0"),
        ((SYNC,), "Notify: wanted one before the first Sync, got 0"),
        (
            (NOTIFY, Nop(3), NOTIFY, SYNC),
            "Notify: wanted one before the first Sync, got 2: NOTIFY on MEM_W0 at 0 and NOTIFY on "
            "MEM_W0 at 4",
        ),
        (
            (NOTIFY, Nop(99), SYNC),
            "a Sync that no Notify releases: SYNC on MEM_W0 at 100 and NOTIFY on MEM_W0 at 0",
        ),
    ],
)
def test_queues_that_do_not_run(items_: tuple[Any, ...], text: str) -> None:
    with pytest.raises(IssueError, match=text):
        to_issues(QueueProgram(0, {mem(0, 0): items_}), CHIP)
