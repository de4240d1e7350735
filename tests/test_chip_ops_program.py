"""Programs as plain data and as text."""

from __future__ import annotations

import msgpack
import pytest
from plain_ops import args, from_list, scheduled
from schedules import compiled

from chip.ops.opcodes import MXM, Opcode
from chip.ops.program import Scheduled, working_order

PROGRAM = compiled("1x3+2").steps["decode/32"].programs[0]


def test_through_msgpack_and_back() -> None:
    for operation in PROGRAM.operations:
        packed = msgpack.packb(operation.to_list())
        assert from_list(msgpack.unpackb(packed)) == operation


def test_an_unknown_opcode() -> None:
    item = PROGRAM.operations[0].to_list()
    with pytest.raises(ValueError, match="'halt' is not a valid Opcode"):
        from_list(["halt", *item[1:]])


def test_units() -> None:
    units = {o.opcode: o.op.units for o in PROGRAM.operations}
    products = [o for o in PROGRAM.operations if o.opcode is Opcode.MATMUL]
    fused = [o for o in products if {"prologue", "epilogue"} & args(o).keys()]
    assert fused
    assert {o.op.units for o in fused} == {(*MXM, "VXM")}
    alone = scheduled(opcode=Opcode.MATMUL, name="x", args={}, start=0, end=1)
    assert alone.op.units == MXM == ("MXM0", "MXM1", "MXM2", "MXM3")
    assert units[Opcode.ROPE] == ("VXM",)
    assert units[Opcode.RECEIVE] == ()
    assert units[Opcode.SEND][0].startswith("C2C:")


def test_a_program_prints_one_line_an_operation() -> None:
    lines = str(PROGRAM).splitlines()
    assert lines[0] == "chip 0 step decode/32 rows 1"
    assert len(lines) == 1 + len(PROGRAM.operations)
    first = PROGRAM.operations[0]
    assert lines[1].split()[:4] == [str(first.start), str(first.end), first.opcode, first.name]


def move(opcode: Opcode, link: int, address: int, vectors: int) -> Scheduled:
    end = "src" if opcode is Opcode.SEND else "dst"
    args = {end: address, "link": link, "transfer": link, "vectors": vectors}
    return scheduled(opcode=opcode, name="x", args=args, start=0, end=1)


def test_a_send_goes_before_receives_it_does_not_pass_on() -> None:
    add = scheduled(
        opcode=Opcode.ADD, name="add", args={"x": 0, "src": 0, "shares": (4,), "rows": 1},
        start=0, end=1,
    )  # fmt: skip
    own = move(Opcode.SEND, 1, 3200, 2)
    other = move(Opcode.SEND, 2, 3200, 2)
    first, second = move(Opcode.RECEIVE, 3, 0, 4), move(Opcode.RECEIVE, 4, 6400, 1)
    passed_on = move(Opcode.SEND, 5, 320, 1)  # of what `first` brings
    listed = [add, first, own, second, other, passed_on]
    assert working_order(listed) == [add, own, other, first, passed_on, second]
