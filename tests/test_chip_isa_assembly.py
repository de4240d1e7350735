"""Programs as text and bytes come back as they were, and on their cycles."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedules import machine

from chip.encoding.binary import decode, encode
from chip.errors import MachineError
from chip.floorplan import alu, mem, parse_queue, plane_of, queues
from chip.isa.assembly import KINDS, assemble, disassemble, parse, text_of
from chip.isa.instructions import (
    ICU,
    ISSUED_BY,
    Alu,
    AluOp,
    Deskew,
    Instruction,
    Notify,
    Read,
    RuntimeDeskew,
    Sync,
    Write,
    issues,
)  # fmt: skip
from chip.isa.issue import Issue, delays
from chip.isa.operands import At, Chain, Held, Immediate, In, Lane, Position, Stream, Tap
from chip.isa.queues import Named, Nop, QueueProgram, Repeat, advanced, to_issues, to_queues

CHIP = machine("groqrack").chip
whole = st.integers(-(1 << 20), 1 << 20)
streams = st.builds(Stream, st.booleans(), st.integers(0, 31))
groups = st.lists(st.builds(Tap, streams, st.integers(0, 7)), max_size=4).map(tuple)
ats = st.builds(At, whole, whole, whole, whole, whole, whole)
floats = st.floats(width=32, allow_nan=False)
sources = st.one_of(
    st.builds(In, groups, st.sampled_from(["i8", "f16", "i32", "f32"])),
    st.builds(Chain, st.integers(0, 15)), st.builds(Held, st.integers(0, 15)),
    st.builds(Immediate, floats), st.builds(lambda v: Immediate(v, "i32"), whole),
    st.builds(Lane, whole, whole), st.builds(Position, whole, whole, whole, whole),
)  # fmt: skip
BY_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "int": whole, "bool": st.booleans(), "int | None": st.none() | whole, "int | At": whole | ats,
    "Stream": streams, "Stream | None": st.none() | streams, "Group": groups, "Source": sources,
    "Source | None": st.none() | sources,
    "tuple[int | None, ...]": st.lists(st.none() | st.integers(0, 319), max_size=40).map(tuple),
}  # fmt: skip


@st.composite
def instructions(draw: st.DrawFn) -> Instruction:
    mnemonic = draw(st.sampled_from(list(KINDS)))
    kind = KINDS[mnemonic]
    values: dict[str, Any] = {
        field.name: draw(BY_TYPE[str(field.type)]) for field in fields(kind) if field.name != "op"
    }
    return kind(**values, **({"op": AluOp(mnemonic)} if kind is Alu else {}))


items = st.one_of(
    st.builds(Nop, st.integers(1, 9999)),
    st.builds(Repeat, st.integers(1, 999), st.integers(1, 99)),
    st.builds(Named, instructions(), st.sampled_from(["", "layers.0.mlp.down_proj"])),
)
own = st.lists(items, max_size=6).map(tuple)
programs = st.builds(
    QueueProgram, whole, st.dictionaries(st.sampled_from(queues(CHIP)), own, max_size=4)
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(instructions())
def test_an_instruction_is_its_text(instruction: Instruction) -> None:
    assert parse(text_of(instruction)) == instruction


@st.composite
def patterned(draw: st.DrawFn) -> list[Issue]:
    """A queue's issues as lowering makes them: loops over a few Reads, with a step of their own."""
    loop = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 90), streams), max_size=5))
    step, out, cycle = draw(st.integers(0, 9)), list[Issue](), 0
    for turn in range(draw(st.integers(1, 12))):
        for gap, address, stream in loop:
            cycle += 1 + gap * draw(st.sampled_from([1, 1, 1, 9]))
            moved = Stream(stream.eastward, (stream.number + 11 * turn) % 32)
            read = Read(address=address + turn * step, stream=moved)
            out.append(Issue(mem(0, 0), cycle, read, name="a"))
    return out


def single(issues: list[Issue]) -> list[tuple[int, str]]:
    """Every issue by itself: its cycle and what is issued then, without the counter's step."""
    return sorted(
        (issue.cycle + i * issue.d, text_of(advanced(issue.instruction, i)).split(" step=")[0])
        for issue in issues for i in range(issue.n)
    )  # fmt: skip


@settings(max_examples=100, deadline=None, derandomize=True)
@given(patterned())
def test_what_is_shortened_is_issued_as_before(issues: list[Issue]) -> None:
    """Repeats found in single issues, ways on, and codes fetched again."""
    program = to_queues(issues)
    assert single(to_issues(program, CHIP)) == single(issues)
    data = encode(program, CHIP)
    assert single(to_issues(decode(data, CHIP), CHIP)) == single(issues)


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


@settings(max_examples=60, deadline=None, derandomize=True)
@given(programs)
def test_a_program_is_its_text_and_its_bytes(program: QueueProgram) -> None:
    assert assemble(disassemble(program), CHIP) == program
    bare = {
        queue: tuple(Named(i.instruction) if isinstance(i, Named) else i for i in held)
        for queue, held in program.queues.items()
    }
    assert decode(encode(program, CHIP), CHIP) == QueueProgram(program.origin, bare)


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
    with pytest.raises(MachineError) as caught:
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
    with pytest.raises(MachineError, match="two instructions in MEM_W0 at 15: RUNTIME_DESKEW of"):
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
    with pytest.raises(MachineError, match=text):
        to_issues(QueueProgram(0, {mem(0, 0): items_}), CHIP)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("READ address=3 stream=E4", "line 1: .*: wanted .queue before the first instruction"),
        (".queue MEM_W0\nFROB", "line 2: 'FROB': instruction: wanted one of READ, "),
        (".queue MEM_W0\nREAD address=3", "line 2: .*: READ: wanted stream"),
        (".queue MEM_W0\nREAD address=3 size=4", "READ: wanted each of .* once, got 'size=4'"),
        (".queue MEM_W0\nREAD address=3 stream=E32", "stream: wanted E0 to E31 or W0 to W31"),
        (".queue VXM0\nNEG a=xyz", "operand: wanted E4:f32, .* got 'xyz'"),
        (".queue MEM_W0\nREPEAT 3", "line 2: 'REPEAT 3'"),
    ],
)
def test_text_that_is_no_program(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        assemble(text, CHIP)


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
