"""What cannot be lowered is refused by name; what can is in tests/test_chip_reference.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
from schedules import compiled, find

from chip.operations import Opcode
from compiler.errors import LoweringError
from compiler.lower import lower_operation
from compiler.lower_links import place_transfers


def test_an_operation_without_instructions() -> None:
    model = compiled("1x1", dtype="fp16")
    attend = find(model.steps["decode/32"], 0, Opcode.ATTEND, "attend")
    with pytest.raises(LoweringError) as caught:
        lower_operation(attend, model.chip)
    assert str(caught.value) == (
        f"{attend.name}: attend has no instructions for fp16 and this shape; its cost is an "
        "estimate"
    )


def test_more_vectors_at_once_than_a_port_takes() -> None:
    model = compiled("1x2")
    program = model.steps["decode/32"].programs[0]
    send = next(o for o in program.operations if o.opcode is Opcode.SEND)
    crowded = replace(program, operations=(send,) * 40)
    link = send.args["link"]
    slots = {link: model.network.links[link].slot_cycles}
    with pytest.raises(LoweringError, match=r"vector 0, cycle \d+: no free way between port 0"):
        place_transfers(crowded, model.chip, [], {link: 0}, slots)
    alone = replace(program, operations=(send,))
    assert len(place_transfers(alone, model.chip, [], {link: 0}, slots)) == 2 * send.args["vectors"]
