"""The modulo reservation table, and initiation intervals that follow from it."""

from __future__ import annotations

import pytest
from one_operation import CHIP

from chip.floorplan import SXM_QUEUES
from chip.isa.instructions import AluOp
from chip.isa.operands import Immediate
from compiler.codegen.core.builder import Block, Load, Ref
from compiler.codegen.core.reservations import ENDLESS, ReservationTable, Resource

PORT, ACROSS, INWARD = Resource.PORT_W, Resource.ACROSS, Resource.INWARD


def test_a_slot_is_taken_in_every_interval() -> None:
    alone, modulo = ReservationTable(), ReservationTable(interval=8)
    for table in (alone, modulo):
        table.reserve((PORT, 3))
        assert table.conflicts((PORT, 4), (PORT, 3))
        assert not table.conflicts((PORT, 4), (Resource.PORT_E, 3))
    assert not alone.conflicts((PORT, 11))
    assert modulo.conflicts((PORT, 11))
    assert alone.distinct([(PORT, 4), (PORT, 12)])
    assert not modulo.distinct([(PORT, 4), (PORT, 12)])


@pytest.mark.parametrize("resource", list(Resource))
def test_which_slots_a_repetition_may_share(resource: Resource) -> None:
    """Reads that pass the VXM hold `INWARD` too; `ACROSS` alone only says which they are."""
    table = ReservationTable()
    table.reserve((resource, 1), (resource, 9))
    assert table.repeats(5)
    assert table.repeats(8) is (resource is ACROSS)


def test_a_full_interval_is_said() -> None:
    table = ReservationTable(interval=8)
    assert table.next_cycle(40, 47, "copies") == 48
    with pytest.raises(OverflowError, match=r"^no cycle of 8 is left for copies$"):
        table.next_cycle(40, 49, "copies")
    assert ReservationTable().next_cycle(40, 49, "copies") == 50
    with pytest.raises(AssertionError, match=r"^no cycle is left for copies$"):
        ReservationTable().next_cycle(40, 40 + ENDLESS, "copies")


def test_sxm_queues_are_taken_once_a_cycle() -> None:
    block = Block(CHIP, interval=8)
    taken = [block.queue(0, 5 + 8 * (n % 2)) for n in range(SXM_QUEUES)]
    assert taken == list(range(SXM_QUEUES))
    assert block.queue(1, 5) == block.queue(0, 6) == 0
    with pytest.raises(OverflowError, match=r"^no SXM queue is free at cycle 13$"):
        block.queue(0, 13)


def test_the_initiation_interval_is_bounded_by_ports_and_registers() -> None:
    """Four accesses of two beats each take the ports for eight cycles."""
    block = Block(CHIP)
    for vector in (0, 4):
        x = block.alu(AluOp.COPY, Load(Ref("x", vector, 4), "f32"))
        block.alu(AluOp.ADD, x, Immediate(1.0), out=Ref("y", vector, 4))
    block.finish()
    ports = [slot for slot in block._table.taken if slot[0] is PORT]
    assert len(ports) == 8
    interval = block.initiation_interval()
    assert interval >= 8
    assert block.initiation_interval(8) % 8 == 0
    assert block._repeats(interval)
    assert not block._repeats(interval - 1)
    kept = max(node.last_use - node.done for node in block.nodes)
    assert not block._repeats(max(1, kept))


def test_a_block_with_an_interval_repeats_at_it() -> None:
    block = Block(CHIP, interval=16)
    for vector in (0, 4):
        x = block.alu(AluOp.COPY, Load(Ref("x", vector, 4), "f32"))
        block.alu(AluOp.ADD, x, Immediate(1.0), out=Ref("y", vector, 4))
    assert block.finish()._repeats(16)
    assert {slot[1] for slot in block._table.taken} <= set(range(16))
