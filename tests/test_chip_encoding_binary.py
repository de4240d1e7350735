"""Programs as bytes come back as they were, and take few."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from program_kit import CHIP, patterned, programs, single

from chip.encoding.binary import decode, encode
from chip.floorplan import Role, alu, mem, mxm, sxm
from chip.isa.fields import KINDS
from chip.isa.instructions import ACC, Alu, AluOp, Permute, Read
from chip.isa.issue import Issue
from chip.isa.operands import Held, Immediate, In, Stream, Tap, group
from chip.isa.queues import Named, Nop, QueueProgram, Repeat, to_issues, to_queues

E0 = Stream(True, 0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(programs)
def test_a_program_is_its_bytes(program: QueueProgram) -> None:
    bare = {
        queue: tuple(Named(i.instruction) if isinstance(i, Named) else i for i in held)
        for queue, held in program.queues.items()
    }
    assert decode(encode(program, CHIP), CHIP) == QueueProgram(program.origin, bare)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(patterned())
def test_what_is_shortened_is_issued_as_before(issues: list[Issue]) -> None:
    """Repeats found in single issues, recent deltas, and codes fetched again."""
    program = to_queues(issues)
    data = encode(program, CHIP)
    assert single(to_issues(decode(data, CHIP), CHIP)) == single(issues)


def test_the_numbers_of_mnemonics() -> None:
    """After END, AGAIN, NOP and REPEAT."""
    assert " ".join(KINDS) == (
        "READ WRITE GATHER SCATTER LW IW ABC ACC SHIFT ROTATE PERMUTE DISTRIBUTE SELECT TRANSPOSE "
        "SEND RECEIVE DESKEW RUNTIME_DESKEW SYNC NOTIFY IFETCH CONFIG COPY NEG ABS ADD SUB MUL OR "
        "EQ LE GE CHOOSE MAX MIN EXP RSQRT TANH CVT_F32 CVT_I32 CVT_I8 CVT_F16 "
        "INDEX"
    )


def test_the_bytes_of_small_programs() -> None:
    """Sizes of programs count in what a plan reports, so the form must not change unseen."""
    w4, w15, w26 = (Stream(False, number) for number in (4, 15, 26))
    reads = (
        Named(Read(address=3, stream=w4)), Nop(2), Named(Read(address=6, stream=w15)), Nop(2),
        Named(Read(address=9, stream=w26)), Repeat(3, 2),
    )  # fmt: skip
    waits = (Nop(20), Named(Read(address=1, stream=E0))) * 20
    again = Named(Read(address=1, stream=E0))
    gaps = (again, again, Nop(15), again, Nop(16), again)  # 15 is the longest that a delta holds
    wraps = tuple(Named(Read(address=1, stream=Stream(True, (20 + 11 * n) % 32))) for n in range(4))
    taps = (Tap(Stream(False, 1), 2),)
    permute = Permute(src=group(E0, 1), dst=taps, map=(None, 0, 1))
    choose = Alu(op=AluOp.CHOOSE, a=Held(3), b=Immediate(2.0), c=In(group(E0, 1), "i8"), lanes=80)
    half = ACC(slot=1, first=True, half=0)
    for queue, items, wanted in (
        (mem(0, 4), reads, "0000 0208 0406010624 0204 0406010c2f 82 030604 00"),
        (sxm(0, 0), (Named(permute),), "0002 04020100040002 02b001 0e 4601 000001 21 0400 00"),
        (alu(0), (Named(choose),), "0000 028002 24 1e 1106 01 0800000040 01 00010000 a001 00"),
        (mxm(0, Role.DRAIN), (Named(half),), "0000 02ec01 0b 460201010000"),
        (mem(0, 0), gaps, "0000 0200 0406010200 0406010200 8f 0220 80 00"),
        (mem(0, 0), wraps, "0000 0200 0406010214 040601021f 80 80 00"),
        (mem(0, 0), waits, "0000 0200 0228 0406010200 0228 0406010200 0228 80 01044400"),
    ):
        data = encode(QueueProgram(0, {queue: items}), CHIP)
        assert data.hex() == "54535032" + wanted.replace(" ", "")


def test_loops_take_few_bytes() -> None:
    """A slice's weights, 32 words in 43 cycles, take a byte each; told once, they come again."""
    reads = [
        Issue(mem(0, 4), 43 * (n // 32) + n % 32 * 43 // 32,
              Read(address=n, stream=Stream(False, (4 + 11 * n) % 32)))
        for n in range(32 * 20)
    ]  # fmt: skip
    few, many = (len(encode(to_queues(reads[: 32 * n]), CHIP)) for n in (2, 20))
    assert few < 2 * 32 + 30
    assert many - few < 8
    rows = [
        Issue(alu(n % 3), 9 * n, Alu(op=AluOp.ADD, a=Held(n % 7), b=Immediate(2.0), lanes=64))
        for n in range(21 * 40)
    ]
    few, many = (len(encode(to_queues(rows[: 21 * n]), CHIP)) for n in (4, 40))
    assert many - few < 16


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"ELF1", "program: wanted it to start with b'TSP2', got b'ELF1'"),
        (b"TSP2", "program: wanted more than its 0 bytes"),
        (b"TSP2\x00\x00\x02\xff\x7f", "queue: wanted 0 to 143"),
        (b"TSP2\x00\x00\x02\x00\x7f", "instruction: wanted 2 to "),
        (b"TSP2\x00\x00\x02\x00\x80", "queue: wanted one of its last 0 deltas, got 0"),
        (b"TSP2\x00\x00\x02\x00\x02\x02\x01\x04\x04", "queue: wanted 1 to 1 codes back"),
    ],
)
def test_bytes_that_are_no_program(data: bytes, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        decode(data, CHIP)


def test_bytes_with_operands_that_are_none() -> None:
    """A program of one instruction, with one byte of its operand another."""
    held = Named(Alu(op=AluOp.NEG, a=Held(3)))
    turned = Named(Permute(src=(), dst=(), map=(None,)))
    for queue, item, before, after, text in (
        (alu(0), held, bytes([17, 6]), bytes([99, 6]), "operand: no kind 99"),
        (sxm(0, 0), turned, bytes([0, 0]), bytes([8, 0]), "map: wanted 0 to 0, got 4"),
    ):
        data = encode(QueueProgram(0, {queue: (item,)}), CHIP)
        at = data.rindex(before)
        with pytest.raises(ValueError, match=text):
            decode(data[:at] + after + data[at + 2 :], CHIP)
