"""Programs as text come back as they were."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from program_kit import CHIP, instructions, programs

from chip.isa.assembly import assemble, disassemble, parse, text_of
from chip.isa.instructions import Instruction
from chip.isa.queues import QueueProgram


@settings(max_examples=200, deadline=None, derandomize=True)
@given(instructions())
def test_an_instruction_is_its_text(instruction: Instruction) -> None:
    assert parse(text_of(instruction)) == instruction


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


@settings(max_examples=60, deadline=None, derandomize=True)
@given(programs)
def test_a_program_is_its_text(program: QueueProgram) -> None:
    assert assemble(disassemble(program), CHIP) == program
