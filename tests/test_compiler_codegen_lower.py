"""What cannot be lowered is refused by name; what can is in tests/test_chip_run_reference.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from plain_ops import args, scheduled, template, with_args
from schedules import compiled, find, machine

from chip.isa.instructions import Read, Send
from chip.ops.cost import receive_cycles, send_lead_cycles
from chip.ops.opcodes import Opcode
from chip.ops.program import Program, Scheduled
from chip.spec import INT4_GROUPS
from compiler.codegen.estimate import packed_pass_cycles
from compiler.codegen.lower import lower, lower_operation
from compiler.codegen.lower_links import Trip, _early_slots, place_transfers
from compiler.errors import LoweringError
from compiler.model.presets import PRESETS
from compiler.pipeline import Options, compile_model
from compiler.place.layout import parse_layout


@pytest.mark.parametrize(
    ("dtype", "opcode", "args"),
    [
        ("int8", Opcode.NORM, {"rows": 321}),  # one lane for each row's scale
        ("int8", Opcode.ROPE, {"head_dim": 336}),
        ("int8", Opcode.ATTEND, {"heads": 321, "kv_of": (0,) * 321}),  # an accumulator row each
        ("fp16", Opcode.ATTEND, {"head_dim": 168}),
        ("fp16", Opcode.ATTEND, {"heads": 64, "kv_of": (0,) * 64}),  # one slot each, one of zeros
        ("fp16", Opcode.ATTEND, {"heads": 321, "kv_of": tuple(h // 9 for h in range(321))}),
    ],
)
def test_an_operation_without_instructions(
    dtype: str, opcode: Opcode, args: dict[str, Any]
) -> None:
    model = compiled("1x1", dtype=dtype)
    operation = with_args(find(model.steps["prefill2/32"], 0, opcode, ""), **args)
    with pytest.raises(LoweringError) as caught:
        lower_operation(operation, model.chip)
    assert str(caught.value) == (
        f"{operation.name}: {opcode} has no instructions for {dtype} and this shape; its cost is "
        "an estimate"
    )


def test_a_product_with_int4_weights_has_a_cost_alone() -> None:
    """Less than int8's where loads take the time, and never less than the planes stream."""
    model = compiled("1x1", dtype="int4")
    operation = find(model.steps["decode/32"], 0, Opcode.MATMUL, "layers.0.self_attn.qkv_proj")
    with pytest.raises(LoweringError) as caught:
        lower_operation(operation, model.chip)
    assert str(caught.value) == (
        f"{operation.name}: matmul has no instructions for int4 weights and this shape; its cost "
        "is an estimate"
    )
    chip = machine("lesson").chip
    for rows, k, n in ((1, 4096, 1536), (1, 321, 33), (4, 4096, 1536), (64, 1024, 640)):
        shape = {"rows": rows, "k": k, "n": n, "dtype": "int8", "out": "f16"}
        whole = template(Opcode.MATMUL, shape, chip)
        for group in INT4_GROUPS:
            found = template(Opcode.MATMUL, {**shape, "group": group}, chip)
            assert found.cycles > packed_pass_cycles(chip, k, n, rows, group)
            assert not found.lowered
            if rows == 1 and group >= 64 and n > 320:
                assert found.cycles < whole.cycles
            assert max(last for _, last in found.needed.values()) < found.cycles
            assert 0 <= found.stream_cycles < found.cycles


def test_products_that_a_chip_cannot_hold() -> None:
    """32 vectors, two apart, want an odd number of slices; passes of rows, vectors of scales."""
    chip = machine("lesson").chip
    shape = {"k": 64, "n": 64, "out": "f32"}
    even = replace(chip, slices=90, sram_bytes=chip.sram_bytes // 88 * 90)
    few = replace(chip, mxm_accumulator_rows=100)
    for spec, dtype, rows, lowered in (
        (even, "fp16", 1, False), (even, "int8", 1, True),
        (few, "int8", 50, True), (few, "int8", 51, False),
    ):  # fmt: skip
        a = {**shape, "rows": rows, "dtype": dtype}
        assert template(Opcode.MATMUL, a, spec).lowered is lowered


def test_more_of_the_largest_than_lanes() -> None:
    model = compiled("1x1", top_k=3)
    operation = with_args(find(model.steps["decode/32"], 0, Opcode.TOPK, "top_k"), k=161)
    with pytest.raises(LoweringError, match="topk has no instructions for its operands and"):
        lower_operation(operation, model.chip)


def test_more_vectors_at_once_than_a_port_takes() -> None:
    model = compiled("1x2")
    program = model.steps["decode/32"].programs[0]
    send = next(o for o in program.operations if o.opcode is Opcode.SEND)
    crowded = replace(program, operations=(send,) * 40)
    link = args(send)["link"]
    slots = {link: model.network.links[link].slot_cycles}
    with pytest.raises(LoweringError, match=r"vector 0, cycle \d+: no free way between port 0"):
        place_transfers(crowded, model.chip, [], {link: 0}, slots)
    alone = replace(program, operations=(send,))
    assert len(place_transfers(alone, model.chip, [], {link: 0}, slots)) == 2 * send.op.vectors


def test_copies_of_a_message_that_leave_at_once_are_read_once_a_side() -> None:
    model = compiled("1x5", "groqrack")
    program = model.steps["decode/32"].programs[0]
    first = next(o for o in program.operations if o.opcode is Opcode.SEND)
    sends = [
        o for o in program.operations
        if o.opcode is Opcode.SEND and (o.name, o.start) == (first.name, first.start)
    ]  # fmt: skip
    ports = {args(o)["link"]: port for port, o in enumerate(sends)}
    slots = dict.fromkeys(ports, model.network.links[args(first)["link"]].slot_cycles)
    alone = replace(program, operations=tuple(sends))
    issues = [issue.instruction for issue in place_transfers(alone, model.chip, [], ports, slots)]
    vectors = args(first)["vectors"]
    assert len(sends) == 4
    assert sum(isinstance(i, Send) for i in issues) == 4 * vectors
    assert sum(isinstance(i, Read) for i in issues) == 2 * vectors


def test_values_on_a_line_meet_where_one_is_put_over_the_other() -> None:
    """A value that is taken west of the VXM does not mind what is put on its line further east."""
    line = (True, 16, 0)
    arrives, weight = Trip(line, 1, 12), Trip(line, 14, 26)
    assert not arrives.meets(weight)
    assert not weight.meets(arrives)
    assert not Trip(line, 1, 14).meets(weight)  # a unit sees what is strictly upstream of it
    assert Trip(line, 1, 15).meets(weight)
    assert weight.meets(Trip(line, 12, 25))
    assert arrives.meets(Trip(line, 1, 2))


@pytest.mark.parametrize("layout", ["1x1", "1x2", "1x4"])
def test_vectors_find_a_way_beside_products(layout: str) -> None:
    """Wide enough for exchanges that go on while weights load and results drain."""
    config = replace(
        PRESETS["tiny"], hidden_size=2048, intermediate_size=5632, num_layers=1, num_heads=16,
        num_kv_heads=4, head_dim=128,
    )  # fmt: skip
    options = Options(max_model_len=64, prefill_chunk=4, buckets=(64,))
    hardware = machine("groqrack")
    model = compile_model(config, hardware, parse_layout(layout), options, kinds="decode")
    (step,) = model.steps.values()
    links = [link for link in model.network.links if 0 in (link.src, link.dst)]
    ports = {link.id: number // 2 for number, link in enumerate(links)}
    slots = {link.id: link.slot_cycles for link in links}
    issues = lower(step.programs[0], spec=model.chip, ports=ports, slots=slots)
    assert any(isinstance(issue.instruction, Send) for issue in issues)


def test_what_was_whole_or_landed_long_ago_may_wait_longer_at_its_port() -> None:
    """How much earlier a vector may be read depends on when it was made, never on the schedule."""
    spec = compiled("1x1").chip
    lead, landed = send_lead_cycles(spec), receive_cycles(spec)

    def move(opcode: Opcode, start: int, end: int, **args: int) -> Scheduled:
        where = "src" if opcode is Opcode.SEND else "dst"
        every = {where: 6400, "link": 0, "transfer": 0, "vectors": 2, **args}
        return scheduled(opcode=opcode, name="x", args=every, start=start, end=end)

    def early(send: Scheduled, *before: Scheduled) -> int | None:
        operations = (*before, send)
        program = Program(chip=0, step="decode/32", rows=1, operations=operations)
        return _early_slots(send, program, spec, 24)

    came = move(Opcode.RECEIVE, 0, 100)
    assert early(came) is None
    assert early(move(Opcode.SEND, 100 + landed + lead, 999), came) == 0
    assert early(move(Opcode.SEND, 99 + landed + lead, 999), came) is None
    assert early(move(Opcode.SEND, 100, 999, src=0), came) == 0  # other bytes
    passed_on = (spec.forward_cycles - landed - lead) // 24
    assert early(move(Opcode.SEND, 500, 999, forward=0), came) == passed_on > 0
