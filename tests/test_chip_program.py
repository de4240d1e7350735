"""Programs as plain data and as text."""

from __future__ import annotations

import msgpack
import pytest
from schedules import compiled

from chip.operations import MXM, Opcode
from chip.program import Operation

PROGRAM = compiled("1x3+2").steps["decode/32"].programs[0]


def test_through_msgpack_and_back() -> None:
    for operation in PROGRAM.operations:
        packed = msgpack.packb(operation.to_list())
        assert Operation.from_list(msgpack.unpackb(packed)) == operation


def test_an_unknown_opcode() -> None:
    item = PROGRAM.operations[0].to_list()
    with pytest.raises(ValueError, match="'halt' is not a valid Opcode"):
        Operation.from_list(["halt", *item[1:]])


def test_units() -> None:
    units = {o.opcode: o.units for o in PROGRAM.operations}
    assert units[Opcode.MATMUL] == MXM == ("MXM0", "MXM1", "MXM2", "MXM3")
    assert units[Opcode.NORM] == ("VXM",)
    assert units[Opcode.RECEIVE] == ()
    assert units[Opcode.SEND][0].startswith("C2C:")


def test_a_program_prints_one_line_an_operation() -> None:
    lines = str(PROGRAM).splitlines()
    assert lines[0] == "chip 0 step decode/32 rows 1"
    assert len(lines) == 1 + len(PROGRAM.operations)
    first = PROGRAM.operations[0]
    assert lines[1].split()[:4] == [str(first.start), str(first.end), first.opcode, first.name]
