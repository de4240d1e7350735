"""What the machine refuses of planes and types, and what its tables refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
from machine_kit import AT_MXM, CHIP, E0, LOADED, W0, bound, issue, resolve

from chip.errors import IssueError
from chip.floorplan import Role, alu, mem, mxm
from chip.isa.instructions import ABC, ACC, LW, Alu, AluOp, Read
from chip.isa.issue import delays
from chip.isa.operands import Held, Immediate, In, Stream, Tap, group

REFUSED = {
    "no weights": (
        [
            issue(mem(0, 0), 0, Read(address=0, stream=W0)),
            issue(mxm(0, Role.FEED), AT_MXM, ABC(stream=W0)),
            issue(mxm(0, Role.DRAIN), AT_MXM + 24, ACC(slot=0, first=True)),
        ],
        f"no weights in the plane: ABC of op{AT_MXM} on MXM_W1 at {AT_MXM}",
    ),
    "column twice": (
        [
            issue(mem(0, 0), -1, Read(address=0, stream=W0)),
            issue(mxm(0, Role.LOAD), AT_MXM - 1, LW(stream=W0, count=1, column=0)),
            *LOADED,
        ],
        f"two weights in one column of the buffer: LW of op{AT_MXM - 1} on MXM_W0 at {AT_MXM - 1} "
        f"and LW of op{AT_MXM} on MXM_W0 at {AT_MXM}",
    ),
    "type": (
        [issue(alu(1), 0, Alu(op=AluOp.NEG, a=In(group(E0, 1), "f8")))],
        "type: wanted i8, f16, i32, f32, got f8: NEG of op0 on VXM1 at 0",
    ),
    "stream": (
        [issue(alu(1), 0, Alu(op=AluOp.NEG, a=In((Tap(Stream(True, 32)),)), lanes=80))],
        "streams: wanted 0 to 31, got E32: NEG of op0 on VXM1 at 0",
    ),
    "beat": (
        [issue(alu(1), 0, Alu(op=AluOp.NEG, a=In((Tap(E0, -1),)), lanes=80))],
        "streams: wanted 0 to 31, got E0@-1: NEG of op0 on VXM1 at 0",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    issues, text = REFUSED[name]
    with pytest.raises(IssueError) as caught:
        resolve(*issues)
    assert str(caught.value).startswith(text), str(caught.value)


def test_an_accumulator_row_that_is_not_there() -> None:
    """The first issue's row is, the Repeat's is not."""
    func = delays(CHIP)["ABC"].d_func
    issues = [
        *LOADED,
        issue(mem(0, 1), 20, Read(address=0, stream=W0), 2),
        issue(mxm(0, Role.FEED), 20 + AT_MXM, ABC(stream=W0), 2),
        issue(mxm(0, Role.DRAIN), 20 + AT_MXM + func, ACC(slot=319, first=True, step=1), 2),
    ]
    text = f"slot: wanted 0 to 319, got 319 to 320: ACC of op{20 + AT_MXM + func} on MXM_W2 at "
    with pytest.raises(IssueError, match=text):
        bound(*issues)


def test_one_register_with_results_of_two_types() -> None:
    issues = [
        issue(alu(3), 0, Alu(op=AluOp.COPY, a=Immediate(1.0))),
        issue(alu(3), 10, Alu(op=AluOp.COPY, a=Immediate(1, "i32"))),
        issue(alu(4), 5, Alu(op=AluOp.NEG, a=Held(3)), 2, 10),
    ]
    with pytest.raises(IssueError, match="results of several types in one operand: NEG of op5"):
        bound(*issues)


def test_delays_of_other_instructions() -> None:
    table = {name: (func, skew) for name, func, skew in CHIP.delays}
    for wrong, text in (
        ({**table, "FROB": (1, 0)}, r"one entry per instruction; check \['FROB'\]"),
        ({k: v for k, v in table.items() if k != "READ"}, r"check \['READ'\]"),
        ({**table, "TRANSPOSE": (19, 0)}, "TRANSPOSE: wanted d_func >= 20, the block's issues"),
    ):
        own = tuple((name, *values) for name, values in wrong.items())
        with pytest.raises(ValueError, match=text):
            delays(replace(CHIP, delays=own))
