"""A chip's own clocks equal the compiler's schedule, and refuse any other."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_ops import args, with_args
from schedules import compiled

from chip.errors import ProgramError, ScheduleViolation
from chip.ops.opcodes import Opcode
from chip.ops.program import Program
from chip.run.clocks import UnitClocks
from compiler.codegen.cost import cost_model
from compiler.pipeline import CompiledModel

LAYOUTS = [("1x1", "lesson"), ("2x2+1", "lesson"), ("1x13", "lesson"), ("2x9", "groqrack")]


def slots(model: CompiledModel) -> dict[int, int]:
    return {link.id: link.slot_cycles for link in model.network.links}


@pytest.mark.parametrize(("layout", "hardware"), LAYOUTS)
def test_the_schedule_is_the_chips_own(layout: str, hardware: str) -> None:
    model = compiled(layout, hardware)
    for schedule in model.steps.values():
        for program in schedule.programs:
            UnitClocks(program, model.costs, slots(model)).check()


def spoil(program: Program, number: int, **changes: int) -> Program:
    operations = list(program.operations)
    operations[number] = replace(operations[number], **changes)
    return replace(program, operations=tuple(operations))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(-500, 500).filter(bool))
def test_one_operation_at_another_time(data: st.DataObject, by: int) -> None:
    model = compiled("1x3+2")
    program = model.steps["decode/32"].programs[data.draw(st.integers(0, 5))]
    movable = [n for n, o in enumerate(program.operations) if o.opcode is not Opcode.RECEIVE]
    number = data.draw(st.sampled_from(movable))
    operation = program.operations[number]
    wrong = spoil(program, number, start=operation.start + by, end=operation.end + by)
    with pytest.raises(ScheduleViolation) as caught:
        UnitClocks(wrong, model.costs, slots(model)).check()
    error = caught.value
    assert error.what == "the schedule's start is not the chip's own"
    assert (error.wanted, error.got) == (operation.start + by, operation.start)
    assert (error.chip, error.operation) == (program.chip, operation.name)
    assert (error.cycle, error.step) == (operation.start + by, "decode/32")
    link = args(operation).get("link")
    assert error.link == (None if link is None else str(link))


def test_an_operation_of_another_length() -> None:
    model = compiled("1x1")
    program = model.steps["decode/32"].programs[0]
    number = next(n for n, o in enumerate(program.operations) if o.opcode is Opcode.MATMUL)
    end = program.operations[number].end
    with pytest.raises(ScheduleViolation) as caught:
        UnitClocks(spoil(program, number, end=end + 1), model.costs, slots(model)).check()
    assert str(caught.value) == (
        f"chip 0, step decode/32, cycle {program.operations[number].start}, "
        f"layers.0.self_attn.qkv_proj: the schedule's end is not the chip's own: "
        f"wanted {end + 1}, got {end}"
    )


def test_a_receive_into_a_buffer_that_is_still_read() -> None:
    model = compiled("1x2")
    program = model.steps["decode/32"].programs[0]
    number, gather = next(
        (n, o) for n, o in enumerate(program.operations) if args(o).get("prologue") == "gather"
    )
    receive = program.operations[number - 1]
    assert receive.opcode is Opcode.RECEIVE
    again = replace(
        with_args(receive, transfer=999), start=gather.start,
        end=gather.start + receive.end - receive.start,
    )  # fmt: skip
    operations = (*program.operations[: number + 1], again)
    with pytest.raises(ScheduleViolation) as caught:
        UnitClocks(replace(program, operations=operations), model.costs, slots(model)).check()
    assert (caught.value.wanted, caught.value.got) == (gather.start, gather.end)


def test_a_slower_chip_or_link_would_not_keep_the_schedule() -> None:
    model = compiled("2x2+1")
    program = model.steps["decode/32"].programs[2]
    for name in ("READ", "ABC", "PERMUTE", "MUL", "EXP"):
        delays = tuple((n, func + 8 * (n == name), skew) for n, func, skew in model.chip.delays)
        slower = replace(model.chip, delays=delays)
        with pytest.raises(ScheduleViolation):
            UnitClocks(program, cost_model(slower), slots(model)).check()
    with pytest.raises(ScheduleViolation):
        UnitClocks(program, model.costs, {n: slot + 1 for n, slot in slots(model).items()}).check()


def test_a_slower_forward_is_noticed_by_the_chip_that_forwards() -> None:
    model = compiled("1x13")
    slower = replace(model.chip, forward_cycles=model.chip.forward_cycles + 1)
    for program in model.steps["decode/32"].programs:
        clocks = UnitClocks(program, cost_model(slower), slots(model))
        if any("forward" in args(operation) for operation in program.operations):
            with pytest.raises(ScheduleViolation):
                clocks.check()
        else:
            clocks.check()


def test_a_link_that_the_chip_does_not_have() -> None:
    model = compiled("2x2+1")
    program = model.steps["decode/32"].programs[0]
    with pytest.raises(ProgramError) as caught:
        UnitClocks(program, model.costs, {77: 5}).check()
    first = program.operations[0]
    assert str(caught.value) == (
        f"chip 0, {first.name}: no link {args(first)['link']}; this chip has [77]"
    )


def test_idle_cycles_that_a_program_asks_for_are_kept() -> None:
    model = compiled("1x1")
    program = model.steps["decode/32"].programs[0]
    send = len(program.operations) - 1
    last = program.operations[send]
    assert last.opcode is Opcode.SEND
    held = spoil(program, send, start=last.start + 7, end=last.end + 7, nop=last.nop + 7)
    UnitClocks(held, model.costs, slots(model)).check()
