"""Products of chosen experts: what reads of a chosen block become, and how products overlap."""

from __future__ import annotations

from dataclasses import replace

import pytest
from one_operation import CHIP, placed
from operation_grid import mixture
from plain_ops import operation_of, template

from chip.errors import TemplateError
from chip.floorplan import Role, bulk_slices, mxm
from chip.isa.instructions import Index, Read
from chip.isa.issue import Issue
from chip.isa.operands import Chosen, Stream
from chip.ops.experts import expert_stride
from chip.ops.opcodes import Opcode
from chip.ops.program import Scheduled
from chip.spec import VECTOR_BYTES
from compiler.codegen import table
from compiler.codegen.core.chosen import chosen_reads
from compiler.codegen.core.control import Bulk
from compiler.codegen.core.law import obey
from compiler.codegen.core.template import Choice
from compiler.codegen.lower import lower_operation

EACH, SUM = Opcode.EXPERTS_EACH, Opcode.EXPERTS_SUM
LOAD = mxm(2, Role.LOAD)
CHOICE = {"w": Choice(4, 64)}


def reads(*runs: Bulk) -> list[Issue]:
    found = list(chosen_reads(runs, lambda operand: 0, CHOICE, CHIP))
    assert all(isinstance(one, Issue) for one in found)
    return [one for one in found if isinstance(one, Issue)]


def test_a_window_is_one_read_in_every_slice() -> None:
    """Both planes' runs: 32 vectors of the eastern side, on its 32 streams."""
    west, east = Bulk(LOAD, 90, "w", 16, Stream(True, 0)), Bulk(LOAD, 90, "w", 48, Stream(True, 16))
    found = reads(west, east)
    assert [one.queue.number for one in found] == list(bulk_slices(CHIP))
    (read,) = {one.instruction for one in found}
    assert read == Read(address=Chosen(16, 64, 4, 32), stream=Stream(True, 0))
    halves = reads(Bulk(LOAD, 90, "w", 17, Stream(True, 3), vectors=7, apart=2))
    assert {one.instruction for one in halves} == {
        Read(address=Chosen(17, 64, 4, 7, 2), stream=Stream(True, 3))
    }


def test_runs_that_are_not_in_line() -> None:
    west, east = Bulk(LOAD, 90, "w", 16, Stream(True, 0)), Bulk(LOAD, 90, "w", 80, Stream(True, 16))
    text = (
        "vectors of w that are chosen together: wanted 1 from one stream to the next, got another "
        "on stream 16"
    )
    with pytest.raises(TemplateError, match=text):
        reads(west, east)


@pytest.mark.parametrize(
    ("opcode", "dtype", "k", "n"),
    [(EACH, "int8", 2880, 720), (SUM, "int8", 2880, 360), (EACH, "fp16", 2880, 360)],
)
def test_products_overlap(opcode: Opcode, dtype: str, k: int, n: int) -> None:
    one, four = (
        template(*mixture(opcode, 1, k, n, dtype=dtype, experts=8, chosen=chosen), CHIP).cycles
        for chosen in (1, 4)
    )
    assert one < four < 4 * one
    rows = template(*mixture(opcode, 3, k, n, dtype=dtype, experts=8, chosen=4), CHIP).cycles
    assert rows < 3 * four


def test_what_has_no_instructions() -> None:
    for case in (
        mixture(EACH, 1, 64, 64, every=True),
        mixture(SUM, 1, 64, 64, group=320),
        mixture(SUM, 1, 64, 64, experts=100, chosen=81),
    ):
        assert not template(*case, CHIP).lowered
    even = replace(CHIP, work_slices=2)
    assert template(*mixture(EACH, 1, 64, 64, spec=even), even).lowered
    assert not template(*mixture(EACH, 1, 64, 64, spec=even, dtype="fp16"), even).lowered


def test_every_slice_gets_the_index_before_it_reads() -> None:
    opcode, shape = mixture(SUM, 1, 330, 400, "b")
    op = operation_of(opcode, placed(opcode, shape))
    issues = lower_operation(Scheduled(op=op, name="it", start=0, end=0, nop=0), CHIP)
    stride = expert_stride(330, 400, "int8") // VECTOR_BYTES
    indices = {(one.queue, one.cycle) for one in issues if isinstance(one.instruction, Index)}
    wanted = [
        one for one in issues
        if isinstance(one.instruction, Read) and isinstance(one.instruction.address, Chosen)
    ]  # fmt: skip
    aparts = {one.instruction.address.apart for one in wanted}  # type: ignore[union-attr]
    assert aparts == {stride, op.apart // VECTOR_BYTES}
    for one in wanted:
        assert any(queue == one.queue and at < one.cycle for queue, at in indices)


def test_an_index_in_a_cycle_of_reads_is_unlawful() -> None:
    """Its slice may be the one that holds a vector of the window."""
    opcode, shape = mixture(EACH, 1, 330, 400)
    found = table.laid_out_only(operation_of(opcode, shape), CHIP)
    obey("it", found, CHIP)
    moved = tuple(
        replace(stream, cycle=stream.cycle + 3) if hasattr(stream, "lane") else stream
        for stream in found.streams
    )
    with pytest.raises(TemplateError, match=r"two accesses of one slice in one cycle: .*INDEX"):
        obey("it", replace(found, streams=moved), CHIP)
