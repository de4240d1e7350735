"""What templates ask of the VXM's ALUs: an unlawful one cannot be built."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from one_operation import CHIP
from operation_grid import attention, vector_work
from plain_ops import operation_of, template

from chip.errors import TemplateError
from chip.floorplan import alu
from chip.isa.instructions import Alu, AluOp
from chip.isa.issue import Issue
from chip.isa.operands import Held, In, Stream, Tap
from chip.ops.attention import Attend
from chip.spec import ChipSpec
from compiler.codegen import table
from compiler.codegen.attention.attend import attend
from compiler.codegen.core.template import Template
from compiler.codegen.core.uses import Use, Uses, check, clash, of_issues, together


def uses(what: str, *rows: tuple[int, int, int, int, str], starts: tuple[int, ...] = (0,)) -> Uses:
    return replace(together(what, [Use(*row) for row in rows]), starts=np.array(starts))


def test_one_instruction_an_alu_and_cycle() -> None:
    one = uses("scores", (4, 10, 14, 14, "ADD"), (5, 11, 15, 15, "ADD"))
    other = uses("block", (4, 3, 4, 4, "COPY"), starts=(0, 7))
    assert clash([one]) is clash([other]) is None
    assert clash([one, other]) == (
        "two instructions for one ALU in one cycle: ADD of scores on VXM4 at 10 and COPY of block "
        "on VXM4 at 10"
    )


@pytest.mark.parametrize(("landed", "lawful"), [(13, True), (14, False), (16, False), (17, True)])
def test_a_register_keeps_a_result_until_its_last_use(landed: int, lawful: bool) -> None:
    kept = uses("scores", (4, 10, 14, 16, "ADD"))
    copy = uses("tops", (4, landed - 1, landed, landed, "COPY"))
    assert (clash([kept, copy]) is None) is lawful
    assert clash([kept, uses("tops", (5, landed - 1, landed, landed, "COPY"))]) is None


def test_both_are_named() -> None:
    every = [uses("scores", (4, 10, 14, 16, "ADD")), uses("tops", (4, 14, 15, 15, "COPY"))]
    with pytest.raises(TemplateError) as caught:
        check("attend of rows 2", every)
    assert str(caught.value) == (
        "attend of rows 2: two results in one ALU's register: ADD of scores on VXM4 at 10, used "
        "until 16, and COPY of tops on VXM4 at 14, in at 15"
    )


def issue(number: int, cycle: int, op: AluOp, a: In | Held) -> Issue:
    return Issue(alu(number), cycle, Alu(op=op, a=a, b=a if op is AluOp.ADD else None, c=None))


def test_of_instructions() -> None:
    """A result lands behind the last vector of its operands, and is kept for who reads it."""
    late = In(tuple(Tap(Stream(True, n), n) for n in range(4)), "i32")
    add = issue(4, 10, AluOp.ADD, late)
    found = of_issues("pass", [add, issue(5, 20, AluOp.COPY, Held(4))], CHIP)
    assert found == [(4, 10, 17, 20, "ADD"), (5, 20, 21, 21, "COPY")]
    early = [add, issue(5, 16, AluOp.COPY, Held(4))]
    with pytest.raises(TemplateError, match=r"^pass: nothing is in VXM4's register yet at 16$"):
        of_issues("pass", early, CHIP)
    assert len(of_issues("pass", early, CHIP, kept=(4,))) == 2


def moved(found: Template, block: int, cycles: int) -> Template:
    """Move one of a template's blocks."""
    placed = list(found.placed)
    placed[block] = replace(placed[block], start=placed[block].start + cycles)
    return replace(found, placed=tuple(placed))


def test_attention_that_meets_itself_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores' maxima begin while the last scores come: seven cycles earlier they collide."""
    shape_opcode, shape = attention(32, 8, 128, 256, 2)
    built = attend(operation_of(shape_opcode, shape), CHIP)
    assert clash(built.asked()) is None

    def unlawful(op: Attend, spec: ChipSpec) -> Template:
        return moved(built, 0, -7)

    monkeypatch.setattr(table.attend, "attend", unlawful)
    table._template.cache_clear()
    with pytest.raises(TemplateError, match=r"rows 2, .*: two results .* of Scores .* of block 0"):
        template(shape_opcode, shape, CHIP)
    table._template.cache_clear()


def test_any_block_that_meets_another_is_found() -> None:
    """What an operation places twice in one cycle is refused, whatever the operation."""
    for opcode, shape in list(vector_work())[::331]:
        found = template(opcode, shape, CHIP)
        assert clash(found.asked()) is None
        twice = replace(found, placed=(*found.placed, found.placed[0]))
        assert "two instructions for one ALU in one cycle" in str(clash(twice.asked()))


@pytest.mark.parametrize("delay", ["COPY", "ADD", "MUL", "MAX", "OR", "CVT_F32", "EXP", "CHOOSE"])
def test_attention_keeps_the_law_at_other_delays(delay: str) -> None:
    """What a profile may say of an ALU is what the reservation goes by."""
    for more in (1, 3):
        delays = tuple((n, f + more * (n == delay), s) for n, f, s in CHIP.delays)
        chip = replace(CHIP, delays=delays)
        for case in (attention(8, 2, 128, 256, 8), attention(7, 7, 30, 100, 1)):
            assert template(*case, chip).lowered
