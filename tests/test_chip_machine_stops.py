"""RUNTIME_DESKEW on the machine: queues stop together, and nothing goes on meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest
from machine_kit import AT_VXM, COPY, DELAYS, E0, bound, issue, read, resolve, whole_chip
from schedules import WEIGHTS, compiled, find, machine, moved

from chip.errors import IssueError
from chip.floorplan import alu, mem, sxm
from chip.isa.instructions import (
    Alu,
    AluOp,
    Config,
    Deskew,
    Instruction,
    Notify,
    Read,
    RuntimeDeskew,
    Send,
    Sync,
)  # fmt: skip
from chip.isa.issue import Issue
from chip.isa.operands import Immediate, In, Tap
from chip.machine.resolve import resolve as resolve_on
from chip.ops.opcodes import Opcode
from compiler.codegen.lower import lower, lower_operation
from compiler.model.presets import PRESETS
from compiler.pipeline import Options, compile_model
from compiler.place.layout import parse_layout
from rack.run.local import LocalRack

STOP = RuntimeDeskew(cycles=20)
ONE = Alu(op=AluOp.COPY, a=Immediate(1.0), lanes=80)


def stop(queue_cycle: int = 50) -> list[Issue]:
    return [issue(queue, queue_cycle, STOP) for queue in (mem(0, 0), alu(1))]


def test_work_before_and_after_a_stop() -> None:
    later = [read(cycle=70), issue(alu(1), 70 + AT_VXM, COPY)]
    bound(read(), issue(alu(1), AT_VXM, COPY), *stop(), *later).run()


REFUSED = {
    "inside": (
        [read(cycle=69), issue(alu(1), 69 + AT_VXM, COPY), *stop()],
        "an instruction while the queues stop: READ of op69 on MEM_W0 at 69 and RUNTIME_DESKEW of "
        "op50 on MEM_W0 at 50",
    ),
    "repeated into it": (
        [issue(alu(1), 30, ONE, 5, 9), *stop()],
        "an instruction while the queues stop: COPY of op30 on VXM1 at 57 and RUNTIME_DESKEW of",
    ),
    "not over": (
        [issue(alu(1), 48, Alu(op=AluOp.ADD, a=Immediate(1.0), b=Immediate(1.0))), *stop()],
        "an instruction that is not over when the queues stop: ADD of op48 on VXM1 at 48 and "
        "RUNTIME_DESKEW of op50 on MEM_W0 at 50",
    ),
    "on its way": (
        [read(cycle=43), issue(alu(1), 75, COPY), *stop()],
        "nothing on stream E0: COPY of op75",
    ),
    "waits at the port": (
        [
            read(cycle=20, stream=E0),
            issue(sxm(1, 8), 20 + AT_VXM + 12, Send(port=1, stream=E0, wait=29)),
            *stop(),
            issue(sxm(1, 8), 50, STOP),
        ],
        "an instruction that is not over when the queues stop: SEND of op38 on SXM_E8 at 38 and",
    ),
    "its own time": (
        [read(cycle=20), issue(mem(0, 0), 50, STOP), issue(alu(1), 51, STOP)],
        "MEM_W0 does not stop with the others at 51: READ of op20 on MEM_W0 at 20 and RUNTIME_DESK",
    ),
    "no stop": (
        [read(), issue(alu(2), AT_VXM, COPY), *stop()],
        f"VXM2 does not stop with the others at 50: COPY of op{AT_VXM} on VXM2 at {AT_VXM} and "
        "RUNTIME_DESKEW of op50 on MEM_W0 at 50",
    ),
    "no time": (
        [issue(mem(0, 0), 50, RuntimeDeskew(cycles=0))],
        "cycles: wanted 1 or more, got 0: RUNTIME_DESKEW of op50 on MEM_W0 at 50",
    ),
    "repeat": ([issue(mem(0, 0), 50, STOP, 2, 30)], "repeat: wanted one stop, got 2: RUNTIME_DESK"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    issues, text = REFUSED[name]
    with pytest.raises(IssueError) as caught:
        resolve(*issues)
    assert str(caught.value).startswith(text), str(caught.value)


def test_a_value_that_crosses_a_stop() -> None:
    """Its instruction is over, the value still has some way to go."""
    far = [issue(mem(0, 40), 44, Read(address=0, stream=E0)), issue(mem(0, 40), 50, STOP)]
    with pytest.raises(IssueError) as caught:
        resolve(*far, *stop()[1:], issue(alu(1), 44 + AT_VXM + 10, COPY))
    assert "the queues stop" in str(caught.value)
    short = [replace(one, instruction=RuntimeDeskew(cycles=2)) for one in (far[1], stop()[1])]
    with pytest.raises(IssueError) as caught:
        resolve(far[0], *short, issue(alu(1), 44 + AT_VXM + 10, COPY))
    assert str(caught.value) == (
        f"a value on its way while the queues stop: COPY of op{54 + AT_VXM} on VXM1 at "
        f"{54 + AT_VXM} and RUNTIME_DESKEW of op50 on MEM_W40 at 50"
    )


def test_an_operand_of_several_beats_is_not_over_before_the_last() -> None:
    """The result leaves d_func after the last beat."""
    at = 20
    copy = Alu(op=AluOp.COPY, a=In((Tap(E0), Tap(E0, 3))), lanes=160)
    work = [read(cycle=at - AT_VXM), read(cycle=at - AT_VXM + 3), issue(alu(1), at, copy)]
    over = at + 3 + DELAYS["COPY"].d_func
    resolve(*work, *stop(over))
    with pytest.raises(IssueError) as caught:
        resolve(*work, *stop(over - 1))
    assert str(caught.value) == (
        f"an instruction that is not over when the queues stop: COPY of op{at} on VXM1 at {at} and "
        f"RUNTIME_DESKEW of op{over - 1} on MEM_W0 at {over - 1}"
    )


@pytest.mark.parametrize(
    "instruction", [Deskew(), Sync(), Notify(), Config(register=1, value=0)], ids=str
)
def test_what_only_a_queues_start_has(instruction: Instruction) -> None:
    with pytest.raises(IssueError, match="may have only before its queues are released: "):
        resolve(issue(mem(0, 0), 5, instruction))


def test_a_chip_that_stops_in_mid_step_equals_the_fast_executor() -> None:
    """Two chips whose clocks stray so much that they stop in a decode step."""
    often = machine("stops")
    often = replace(often, clock=replace(often.clock, realign_cycles=4096))
    options = Options(max_model_len=32, prefill_chunk=1)
    layout = parse_layout("2x1")
    model = compile_model(PRESETS["tiny"], often, layout, options, kinds="decode")
    programs = model.steps["decode/32"].programs
    assert any(
        begin > program.operations[0].end
        for program in programs[:2]
        for begin, _ in program.realign
    )  # a stop behind some work
    results = []
    for executor in ("fast", "reference"):
        rack = LocalRack(model, WEIGHTS, executor=executor)
        rack.reset()
        steps = [rack.run_step("decode/32", [i], [5 + i]) for i in range(2)]
        results.append([(step.cycles, step.hash_share) for step in steps])
        rack.close()
    assert results[0] == results[1]


def test_a_stop_that_begins_too_early_or_ends_too_late_is_refused() -> None:
    """Two operations with a stop between: from the last instruction's cycle to the next's."""
    model = compiled("1x1", kinds="decode")
    step = model.steps["decode/32"]
    first, second = (find(step, 0, opcode, "") for opcode in (Opcode.ROPE, Opcode.ATTEND))
    later = moved(second, first.end + 20 - second.start)
    last = max(issue.last_cycle for issue in lower_operation(first, model.chip))
    soon = min(issue.cycle for issue in lower_operation(later, model.chip))

    def run(begin: int, end: int) -> None:
        some = replace(step.programs[0], operations=(first, later), realign=((begin, end),))
        issues = lower(some, spec=model.chip, ports={}, slots={})
        resolve_on(issues, model.chip, whole_chip(model.chip))

    run(first.end, later.start)
    for wrong in ((last, later.start), (first.end, soon + 1)):
        with pytest.raises(IssueError, match="and RUNTIME_DESKEW of realign on "):
            run(*wrong)
