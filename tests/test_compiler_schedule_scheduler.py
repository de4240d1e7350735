"""Schedules keep their promises, and three pieces of arithmetic agree on every transfer (law 3)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_ops import args, cycles, from_list
from schedules import compiled, machine

from chip.ops.cost import CostModel
from chip.ops.opcodes import Opcode
from compiler.errors import ScheduleError
from compiler.ir import HostMemory, LinkUse, ScheduledTransfer, StepKind, StepSchedule
from compiler.place.network import Network
from compiler.schedule.assembly import Assembly
from compiler.schedule.movement import Transfer
from compiler.schedule.scheduler import Scheduler
from compiler.verify.verifier import _check_links, _check_transfers
from interconnect.link import Arrival, LinkModel

CHIP = machine("lesson").chip


def one_link(slot: int, latency: int) -> Network:
    link = LinkUse(
        id=0, name="C2C 0.0->1.0", src=0, dst=1, slot_cycles=slot, latency_cycles=latency,
        rx_window_cycles=0, is_host=False,
    )  # fmt: skip
    return Network(links=(link,), routes={(0, (1,)): (0,)}, binding=(0, 1), ports_in_use=1)


def placed(network: Network, wanted: list[tuple[int, int]]) -> StepSchedule:
    """Transfers of so many vectors, each held back by a buffer that is read until some cycle."""
    scheduler = Scheduler(CostModel(spec=CHIP), network)
    assembly = Assembly(scheduler, network, {})
    address = 0
    for number, (vectors, busy_until) in enumerate(wanted):
        size = vectors * 320
        scheduler.nodes[1].at((address, size)).read(busy_until)
        assembly.place(
            Transfer(
                name=f"transfer.{number}",
                src=0,
                src_address=address,
                targets=((1, address),),
                vectors=vectors,
            )
        )
        address += size
    kind = StepKind(rows=1, bucket=1, decode=True)
    return assembly.finish(kind, HostMemory(embedding=0, rope=0, results={}, size=0), 0)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 400),
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 5000)), min_size=1, max_size=10),
    st.data(),
)
def test_scheduler_link_and_verifier_agree(
    slot: int, latency: int, wanted: list[tuple[int, int]], data: st.DataObject
) -> None:
    network = one_link(slot, latency)
    schedule = placed(network, wanted)
    link = LinkModel(slot, latency)
    for transfer, (vectors, busy_until) in zip(schedule.transfers, wanted, strict=True):
        assert transfer.vectors == vectors
        assert transfer.first_arrive >= busy_until
        assert transfer.depart >= link.busy_until  # it never queues: the schedule waited for it
        arrived = link.carry(transfer.depart, vectors)
        assert arrived == Arrival(transfer.first_arrive, transfer.arrive)
    _check_links([(schedule, 0)], network.links)
    _check_transfers(schedule, network.links)

    number = data.draw(st.integers(0, len(wanted) - 1))
    field = data.draw(st.sampled_from(["depart", "first_arrive", "arrive"]))
    by = data.draw(st.sampled_from([-1, 1]))
    old = schedule.transfers[number]
    new = replace(old, **{field: getattr(old, field) + by})
    others = schedule.transfers[:number] + schedule.transfers[number + 1 :]
    wrong = replace(schedule, transfers=(*others, new))
    with pytest.raises(ScheduleError, match=r"arrives at|over capacity"):
        _check_links([(wrong, 0)], network.links)


@given(st.integers(1, 100), st.integers(1, 100), st.integers(1, 20), st.integers(0, 1000))
def test_a_held_back_transfer_arrives_as_the_buffer_is_free(
    slot: int, latency: int, vectors: int, busy_until: int
) -> None:
    schedule = placed(one_link(slot, latency), [(vectors, busy_until)])
    transfer = schedule.transfers[0]
    send = schedule.programs[0].operations[0]
    assert transfer.first_arrive == max(busy_until, slot + latency)
    assert transfer.depart == send.nop == max(0, busy_until - slot - latency)


@pytest.mark.parametrize("layout", ["1x1", "2x2+1", "1x13"])
def test_operations_last_what_they_cost(layout: str) -> None:
    model = compiled(layout)
    slots = [link.slot_cycles for link in model.network.links]
    for schedule in model.steps.values():
        for program in schedule.programs:
            for o in program.operations:
                if o.opcode is Opcode.SEND:
                    took = args(o)["vectors"] * slots[args(o)["link"]]
                elif o.opcode is Opcode.RECEIVE:
                    took = (args(o)["vectors"] - 1) * slots[args(o)["link"]]
                else:
                    took = cycles(o.opcode, args(o), model.chip)
                assert o.end - o.start == took


@pytest.mark.parametrize("layout", ["1x1", "2x2+1", "1x13"])
def test_a_step_ends_with_its_last_result_and_the_turnaround(layout: str) -> None:
    model = compiled(layout)
    turnaround = machine("lesson").host_turnaround_cycles
    for schedule in model.steps.values():
        host = schedule.programs[-1].operations
        results = [o.end for o in host if o.opcode is Opcode.RECEIVE]
        assert schedule.cycles == max(results) + turnaround
        expected = len(model.layout.head_chips) if schedule.kind.decode else 1
        if model.layout.chips < 13:
            assert len(results) == expected


def test_issue_order_is_kept_on_every_unit() -> None:
    for schedule in compiled("1x3+2").steps.values():
        for program in schedule.programs:
            free: dict[str, int] = {}
            for operation in program.operations:
                for unit in operation.op.units:
                    assert operation.start >= free.get(unit, 0)
                    free[unit] = operation.end


def test_messages_pass_through_on_their_way() -> None:
    """A forwarded transfer is a chain of hops, each with its own SEND and RECEIVE."""
    model = compiled("1x13")
    schedule = model.steps["decode/32"]
    forwards = {
        args(o)["transfer"]: args(o)["forward"]
        for p in schedule.programs
        for o in p.operations
        if "forward" in args(o)
    }
    assert forwards
    by_id = {t.id: t for t in schedule.transfers}
    for after, before in forwards.items():
        one, two = by_id[before], by_id[after]
        assert (one.dst, one.name, one.vectors) == (two.src, two.name, two.vectors)
        assert two.depart >= one.first_arrive + model.chip.forward_cycles


def test_longer_contexts_and_more_rows_cost_more() -> None:
    model = compiled("2x2+1", model="tiny-wide", context=512, chunk=16)
    steps = model.steps
    assert steps["decode/32"].cycles < steps["decode/512"].cycles
    assert steps["prefill4/32"].cycles < steps["prefill16/32"].cycles


def test_a_schedule_prints_every_operation() -> None:
    schedule = compiled("2x2+1").steps["decode/32"]
    lines = str(schedule).splitlines()
    operations = sum(len(program.operations) for program in schedule.programs)
    assert lines[0] == (
        f"step decode/32: {schedule.cycles} cycles, {len(schedule.transfers)} transfers"
    )
    assert len(lines) == 1 + len(schedule.programs) + operations


def test_plain_data_and_back() -> None:
    schedule = compiled("1x13").steps["decode/32"]
    for transfer in schedule.transfers[:50]:
        assert ScheduledTransfer.from_list(transfer.to_list()) == transfer
    for program in schedule.programs:
        for operation in program.operations:
            assert from_list(operation.to_list()) == operation
