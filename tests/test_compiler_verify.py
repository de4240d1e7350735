"""The verifier refuses every spoiled schedule by name, and what it lets pass does no harm."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from plain_ops import TYPES, args, operands, with_args
from schedules import (
    buffer_sizes,
    check,
    compiled,
    decode_hashes,
    edit,
    ends,
    find,
    move_transfer,
    moved,
    relocate,
    through_one_slot,
    with_transfer,
)

from chip.errors import ScheduleViolation
from chip.ops.cost import receive_cycles
from chip.ops.opcodes import Opcode
from chip.ops.program import Scheduled
from compiler.errors import ScheduleError
from compiler.ir import StepSchedule
from compiler.pipeline import CompiledModel
from compiler.verify.sources import CONSTANTS
from compiler.verify.verifier import verify

O = Opcode  # noqa: E741
LAYOUTS = [
    ("1x1", "lesson"),
    ("2x2+1", "lesson"),
    ("1x3+2", "groqrack"),
    ("1x13", "lesson"),
    ("2x9", "groqrack"),
]


def decode(
    layout: str, hardware: str = "lesson", dtype: str = "fp16"
) -> tuple[CompiledModel, StepSchedule]:
    """A decode step; in fp16 every operation is one of its own (int8 joins them in products)."""
    model = compiled(layout, hardware, dtype=dtype)
    return model, model.steps["decode/32"]


def refused(model: CompiledModel, schedule: StepSchedule, *texts: str) -> str:
    with pytest.raises(ScheduleError) as caught:
        check(model, schedule)
    for text in texts:
        assert text in str(caught.value), str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("layout", "hardware"), LAYOUTS)
def test_schedules_of_the_compiler_pass(layout: str, hardware: str) -> None:
    model = compiled(layout, hardware)
    for schedule in model.steps.values():
        check(model, schedule)


def test_operands_are_named_in_the_order_of_their_regions() -> None:
    assert set(TYPES) == set(Opcode)
    for model in (compiled("1x3+2"), compiled("1x3+2", dtype="fp16"), compiled("1x1", top_k=3)):
        for schedule in model.steps.values():
            for program in schedule.programs:
                for operation in program.operations:
                    reads, writes = operands(operation.opcode, args(operation))
                    for name, region in (*reads, *writes):
                        assert args(operation)[name] == region[0], (operation, name)


# -- units and durations


@pytest.mark.parametrize(("layout", "hardware"), LAYOUTS)
def test_two_operations_on_a_unit(layout: str, hardware: str) -> None:
    model, schedule = decode(layout, hardware)
    norm = find(schedule, 0, O.NORM, "layers.0.post_attention_layernorm")
    add = find(schedule, 0, O.ADD, "layers.0.self_attn.add")
    spoiled = edit(schedule, 0, norm, moved(norm, add.end - 1 - norm.start))
    refused(
        model, spoiled,
        f"chip 0, VXM, cycle {add.end - 1}: layers.0.post_attention_layernorm (norm) starts while "
        f"layers.0.self_attn.add (add) holds the unit until {add.end}",
    )  # fmt: skip


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize(
    ("opcode", "name"), [(O.MATMUL, "qkv_proj"), (O.SEND, "attend"), (O.RECEIVE, "host.rope")]
)
def test_wrong_duration(opcode: Opcode, name: str, by: int) -> None:
    model, schedule = decode("2x2+1")
    old = find(schedule, 0, opcode, name)
    took = old.end - old.start
    spoiled = edit(schedule, 0, old, replace(old, end=old.end + by))
    refused(
        model, spoiled,
        f"chip 0, cycle {old.start}, {old.name}: {opcode} takes {took} cycles, "
        f"scheduled for {took + by}",
    )  # fmt: skip


def test_a_start_before_the_step() -> None:
    model, schedule = decode("1x1")
    norm = find(schedule, 0, O.NORM, "layers.0.input_layernorm")
    refused(model, edit(schedule, 0, norm, moved(norm, -norm.start - 1)), "chip 0, cycle -1, lay")


def test_a_step_shorter_than_its_operations() -> None:
    model, schedule = decode("1x1")
    last = find(schedule, 1, O.RECEIVE, "host.result").end
    refused(
        model, replace(schedule, cycles=last - 1),
        f"step decode/32: {last - 1} cycles, last end {last}",
    )  # fmt: skip
    empty = tuple(replace(program, operations=()) for program in schedule.programs)
    refused(model, replace(schedule, programs=empty, transfers=()), "cycles, last end 0")


def test_programs_of_other_chips_or_a_base_before_zero() -> None:
    model, schedule = decode("2x2+1")
    swapped = replace(schedule, programs=schedule.programs[::-1])
    text = "wanted a base from 0 and programs of chips 0 to 4 and the host, got base 0 and"
    refused(model, swapped, "step decode/32: " + text, "programs [5, 4, 3, 2, 1, 0]")
    with pytest.raises(ScheduleError, match="got base -1 and"):
        verify([(schedule, -1)], model.costs, model.network.links, model.memories)


# -- transfers and links


@pytest.mark.parametrize(("layout", "hardware"), LAYOUTS[1:])
def test_a_receive_without_a_send_and_a_send_without_a_receive(layout: str, hardware: str) -> None:
    model, schedule = decode(layout, hardware)
    for transfer in schedule.transfers[:: max(1, len(schedule.transfers) // 7)]:
        (src, send), (dst, receive) = ends(schedule, transfer)
        link = model.network.links[transfer.link].name
        where = f"link {link}, {transfer.name}"
        number = f"(transfer {transfer.id})"
        refused(model, edit(schedule, src, send, None), f"{where}: receive without a send {number}")
        refused(
            model, edit(schedule, dst, receive, None), f"{where}: send without a receive {number}"
        )


def test_ends_of_no_transfer() -> None:
    model, schedule = decode("2x2+1")
    transfer = schedule.transfers[5]
    src = ends(schedule, transfer)[0][0]
    kept = tuple(other for other in schedule.transfers if other is not transfer)
    refused(
        model, replace(schedule, transfers=kept),
        f"node {src}, {transfer.name}: send of transfer 5, which does not exist",
    )  # fmt: skip


@pytest.mark.parametrize("opcode", [O.SEND, O.RECEIVE])
def test_an_end_twice(opcode: Opcode) -> None:
    model, schedule = decode("2x2+1")
    old = find(schedule, 0, opcode, "attend")
    programs = list(schedule.programs)
    programs[1] = replace(programs[1], operations=(*programs[1].operations, old))
    refused(
        model, replace(schedule, programs=tuple(programs)),
        f"transfer {old.op.transfer} layers.0.self_attn.attend: {opcode} twice, on 0 and on 1",
    )  # fmt: skip


@pytest.mark.parametrize(
    "change", [{"link": 1}, {"vectors": 2}, {"name": "layers.1.self_attn.attend"}, {"start": 1}]
)
def test_an_end_that_is_not_its_transfers(change: dict[str, Any]) -> None:
    model, schedule = decode("2x2+1")
    send = find(schedule, 0, O.SEND, "layers.0.self_attn.attend")
    if {"link", "vectors"} & set(change):
        new = with_args(send, **change)
    elif "start" in change:
        new = moved(send, change["start"])
    else:
        new = replace(send, **change)
    transfer = schedule.transfers[args(send)["transfer"]]
    wanted = (0, send.start, transfer.link, transfer.vectors, transfer.name)
    got = (0, new.start, args(new)["link"], args(new)["vectors"], new.name)
    link = model.network.links[transfer.link].name
    refused(
        model, edit(schedule, 0, send, new),
        f"link {link}, layers.0.self_attn.attend: send at (node, cycle, link, vectors, name) "
        f"{got}, its transfer from 0 to 1 says {wanted}",
    )  # fmt: skip


def test_a_transfer_between_other_chips_than_its_link() -> None:
    model, schedule = decode("2x2+1")
    transfer = next(t for t in schedule.transfers if t.name.endswith("attend"))
    wrong = with_transfer(schedule, replace(transfer, dst=3))
    refused(model, wrong, "attend: send at", "its transfer from 0 to 3 says")


@pytest.mark.parametrize("change", [{"link": 99}, {"link": -1}, {"vectors": 0}])
def test_a_transfer_on_no_link(change: dict[str, int]) -> None:
    model, schedule = decode("2x2+1")
    transfer = replace(schedule.transfers[3], **change)
    text = f"{transfer.vectors} vectors on link {transfer.link} of {len(model.network.links)}"
    refused(model, with_transfer(schedule, transfer), f"transfer 3 {transfer.name}: {text}")


def busiest(schedule: StepSchedule) -> int:
    """The link with the most transfers, those apart that are only passed on."""
    firsts = [t.link for t in schedule.transfers if "forward" not in args(ends(schedule, t)[0][1])]
    return Counter(firsts).most_common(1)[0][0]


@pytest.mark.parametrize(("layout", "hardware"), LAYOUTS[1:])
def test_a_link_over_capacity(layout: str, hardware: str) -> None:
    model, schedule = decode(layout, hardware)
    link = model.network.links[busiest(schedule)]
    carried = [t for t in schedule.transfers if t.link == link.id]
    carried.sort(key=lambda t: t.depart)
    one, two = next(
        (a, b) for a, b in pairwise(carried) if "forward" not in args(ends(schedule, b)[0][1])
    )
    free = one.depart + one.vectors * link.slot_cycles
    spoiled = move_transfer(schedule, two, free - 1 - two.depart)
    refused(
        model, spoiled,
        f"link {link.name} over capacity, cycle {free - 1}: {two.name} departs while {one.name} "
        f"occupies it until {free}",
    )  # fmt: skip


@pytest.mark.parametrize("by", [-1, 1])
def test_an_arrival_off_by_one(by: int) -> None:
    model, schedule = decode("2x2+1")
    sends = [ends(schedule, transfer)[0][1] for transfer in schedule.transfers]
    passed_on = {args(send).get("forward") for send in sends}
    last_hops = [transfer for transfer in schedule.transfers if transfer.id not in passed_on]
    for transfer in last_hops[::5]:
        link = model.network.links[transfer.link].name
        dst, receive = ends(schedule, transfer)[1]
        shifted = replace(
            transfer, first_arrive=transfer.first_arrive + by, arrive=transfer.arrive + by
        )
        spoiled = edit(with_transfer(schedule, shifted), dst, receive, moved(receive, by))
        refused(
            model, spoiled,
            f"link {link}, {transfer.name}: first vector arrives at {transfer.first_arrive}, "
            f"scheduled for {transfer.first_arrive + by}",
        )  # fmt: skip
        late = with_transfer(schedule, replace(transfer, arrive=transfer.arrive + by))
        refused(
            model, late,
            f"link {link}, {transfer.name}: last vector arrives at {transfer.arrive}, "
            f"scheduled for {transfer.arrive + by}",
        )  # fmt: skip


# -- forwarding

FORWARDING = [("1x13", "lesson"), ("2x9", "groqrack")]


def forwarded(schedule: StepSchedule) -> tuple[int, Scheduled]:
    return next(
        (node, operation)
        for node, program in enumerate(schedule.programs)
        for operation in program.operations
        if "forward" in args(operation)
    )


@pytest.mark.parametrize(("layout", "hardware"), FORWARDING)
def test_forwarded_too_early(layout: str, hardware: str) -> None:
    model, schedule = decode(layout, hardware)
    _, send = forwarded(schedule)
    transfer = schedule.transfers[args(send)["transfer"]]
    came = schedule.transfers[args(send)["forward"]]
    slot = model.network.links[transfer.link].slot_cycles
    ready = came.arrive - (came.vectors - 1) * slot + model.chip.forward_cycles
    spoiled = move_transfer(schedule, transfer, ready - 1 - send.start)
    refused(
        model, spoiled,
        f"link {model.network.links[transfer.link].name}, cycle {ready - 1}: {send.name} is "
        f"forwarded before transfer {came.id} can be passed on at {ready}",
    )  # fmt: skip


@pytest.mark.parametrize(("layout", "hardware"), FORWARDING)
def test_forwarding_what_did_not_come(layout: str, hardware: str) -> None:
    model, schedule = decode(layout, hardware)
    node, send = forwarded(schedule)
    for wrong in (args(send)["transfer"], 10**6):
        spoiled = edit(schedule, node, send, with_args(send, forward=wrong))
        refused(
            model, spoiled,
            f"{send.name}: transfer {args(send)['transfer']} forwards transfer {wrong}, which does "
            f"not come to {node} with {args(send)['vectors']} vectors",
        )  # fmt: skip


@pytest.mark.parametrize(("layout", "hardware"), FORWARDING)
def test_forwarding_from_elsewhere(layout: str, hardware: str) -> None:
    model, schedule = decode(layout, hardware)
    node, send = forwarded(schedule)
    size = args(send)["vectors"] * 320
    wrong = (args(send)["src"] + 320, size)
    spoiled = edit(schedule, node, send, with_args(send, src=wrong[0]))
    refused(
        model, spoiled,
        f"chip {node}, cycle {send.start}: {send.name} is forwarded from {wrong}, but {send.name} "
        f"came to {(args(send)['src'], size)}",
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["2x4+1", "2x8+1"])
def test_a_forward_slot_overwritten_before_it_has_left(layout: str) -> None:
    """All messages through one slot instead of four: two that pass at once collide by name."""
    model, schedule = decode(layout, "groqrack")
    forwarders = model.network.forwarders()
    node = max(forwarders, key=lambda chip: len(forwarders[chip]))
    spoiled = through_one_slot(model, schedule, node)
    text = refused(model, spoiled, f"chip {node}, cycle")
    assert "overwrites live SRAM" in text or "collides with" in text or "before its write" in text


# -- memory


@pytest.mark.parametrize(("layout", "hardware"), LAYOUTS)
def test_attention_output_on_the_residual(layout: str, hardware: str) -> None:
    """Moved in writer and readers alike: only who wrote last gives it away."""
    model, schedule = decode(layout, hardware)
    for chip in range(model.layout.group):
        residual = buffer_sizes(model, chip)["residual"]
        spoiled = relocate(model, schedule, chip, "attn.out", residual[0])
        text = refused(model, spoiled, f"chip {chip}")
        assert re.search("self_attn.(attend|add|o_proj)", text), text


def test_the_text_for_overlapping_live_tensors() -> None:
    model, schedule = decode("1x1")
    residual = buffer_sizes(model, 0)["residual"]
    spoiled = relocate(model, schedule, 0, "attn.out", residual[0])
    add = find(spoiled, 0, O.ADD, "layers.0.self_attn.add")
    refused(
        model, spoiled,
        f"chip 0, cycle {add.start}: layers.0.self_attn.add (add) reads x at {residual}, but "
        f"overlapping live SRAM was last written by layers.0.self_attn.attend (attend)",
    )  # fmt: skip


def test_a_gather_buffer_on_what_is_gathered_from_it() -> None:
    """An operation may not write over what it reads; only `residual +=` may."""
    model, schedule = decode("2x2+1")
    address = buffer_sizes(model, 0)["attn.out"][0]
    spoiled = relocate(model, schedule, 0, "o.in", address)
    gather = find(schedule, 0, O.GATHER, "layers.0.self_attn.o_proj")
    refused(
        model, spoiled,
        f"chip 0, cycle {gather.start}: layers.0.self_attn.o_proj (gather) writes q over live SRAM "
        f"that it reads as src",
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["1x1", "1x2"])
def test_any_buffer_on_any_other_is_refused_or_harmless(layout: str) -> None:
    model = compiled(layout, kinds="decode")
    schedule = model.steps["decode/32"]
    wanted = decode_hashes(model, schedule, 2)
    buffers = buffer_sizes(model, 0)
    tried = passed = 0
    pairs = list(itertools.permutations(buffers, 2))
    for number, (name, other) in enumerate(pairs[layout == "1x2" :: 2]):  # half of them each
        spoiled = relocate(model, schedule, 0, name, buffers[other][0])
        tried += 1
        if accepted(model, spoiled):
            passed += 1
            if number % 5 == 0:
                assert decode_hashes(model, spoiled, 2) == wanted, (name, other)
    assert 0 < passed < tried * 3 / 4


def test_the_residual_on_anything_is_refused() -> None:
    """It lives all the time, so nothing may lie on it, nor it on anything.

    Only a stage that hands it over is done with it before its last product.
    """
    model, schedule = decode("1x2")
    buffers = buffer_sizes(model, 0)
    for name in set(buffers) - {"residual", "scores", "query.scale"}:  # int8 only
        refused(model, relocate(model, schedule, 0, name, buffers["residual"][0]), "chip 0")
        refused(model, relocate(model, schedule, 0, "residual", buffers[name][0]), "chip 0")


def accepted(model: CompiledModel, schedule: StepSchedule) -> bool:
    try:
        check(model, schedule)
    except ScheduleError:
        return False
    return True


@pytest.mark.parametrize(("layout", "hardware"), LAYOUTS)
def test_a_read_before_its_write_ends(layout: str, hardware: str) -> None:
    model, schedule = decode(layout, hardware)
    chip = model.layout.group - 1
    rope = find(schedule, chip, O.ROPE, "layers.0.self_attn.rope")
    product = find(schedule, chip, O.MATMUL, "layers.0.self_attn.qkv_proj")
    spoiled = edit(schedule, chip, rope, moved(rope, product.end - 1 - rope.start))
    text = refused(model, spoiled, f"chip {chip}, cycle {product.end - 1}: layers.0.self_attn.rope")
    late = rf"reads qkv before its write by \S+qkv_proj ends at {product.end}"
    under = rf"overwrites live SRAM that \S+qkv_proj reads until {product.end}"
    assert re.search(f"{late}|{under}", text), text  # the cache's scales may lie on its operands


def test_a_stream_whose_first_vector_comes_too_late() -> None:
    """A received vector is in SRAM only some cycles after the link delivered it."""
    model = compiled("1x5", model="tiny-wide", kinds="decode")
    schedule = model.steps["decode/32"]
    add = find(schedule, 0, O.ADD, "layers.0.self_attn.add")
    arrived = find(schedule, 0, O.RECEIVE, "layers.0.self_attn.o_proj", 3)
    landed = receive_cycles(model.chip)
    early = add.start - 1
    assert (args(arrived)["vectors"], arrived.end + landed) == (1, add.start)
    refused(
        model, edit(schedule, 0, add, moved(add, early - add.start)),
        f"chip 0, cycle {early}: layers.0.self_attn.add reads src before its write by "
        f"layers.0.self_attn.o_proj ends at {arrived.end + landed}",
    )  # fmt: skip


def test_a_read_of_bytes_that_nobody_wrote() -> None:
    model, schedule = decode("1x1")
    receive = find(schedule, 0, O.RECEIVE, "host.residual")
    norm = find(schedule, 0, O.NORM, "layers.0.input_layernorm")
    top = model.memories[0].sram_bytes - 320
    refused(
        model, edit(schedule, 0, receive, with_args(receive, dst=top)),
        f"chip 0, cycle {norm.start}: layers.0.input_layernorm (norm) reads x before its write: "
        f"320 bytes at {args(norm)['x']} hold nothing",
    )  # fmt: skip


def test_a_write_under_a_read_that_goes_on() -> None:
    """RoPE rows that arrive late, on activations that a product still reads."""
    model, schedule = decode("1x1")
    product = find(schedule, 0, O.MATMUL, "layers.0.self_attn.qkv_proj")
    receive = find(schedule, 0, O.RECEIVE, "host.rope")
    transfer = schedule.transfers[args(receive)["transfer"]]
    late = move_transfer(schedule, transfer, product.end - 1 - receive.start)
    again = find(late, 0, O.RECEIVE, "host.rope")
    refused(
        model, edit(late, 0, again, with_args(again, dst=args(product)["x"])),
        f"chip 0, cycle {product.end - 1}: host.rope overwrites live SRAM that "
        f"layers.0.self_attn.qkv_proj reads until {product.end}",
    )  # fmt: skip


def test_two_writers_at_once() -> None:
    model, schedule = decode("1x1")
    product = find(schedule, 0, O.MATMUL, "layers.0.self_attn.qkv_proj")
    host = find(schedule, 1, O.SEND, "host.rope")
    receive = find(schedule, 0, O.RECEIVE, "host.rope")
    transfer = schedule.transfers[args(host)["transfer"]]
    late = move_transfer(schedule, transfer, product.start + 1 - receive.start)
    again = find(late, 0, O.RECEIVE, "host.rope")
    spoiled = edit(late, 0, again, with_args(again, dst=args(product)["y"]))
    refused(
        model, spoiled,
        f"chip 0, cycle {product.start + 1}: write by host.rope collides with write by "
        f"layers.0.self_attn.qkv_proj until {product.end}",
    )  # fmt: skip


@pytest.mark.parametrize("address", [-320, 230_686_720, 230_686_719, 161])
def test_an_address_outside_the_memory(address: int) -> None:
    model, schedule = decode("1x1")
    silu = find(schedule, 0, O.SILU, "layers.0.mlp.silu")
    region = (address, 640)
    refused(
        model, edit(schedule, 0, silu, with_args(silu, y=address)),
        f"chip 0, layers.0.mlp.silu (silu): y at {region} is outside 230686720 bytes of SRAM or "
        f"not on a vector",
    )  # fmt: skip


@pytest.mark.parametrize(
    "operand", ["gamma", "sw", "w"]
)  # others: test_compiler_verify_families.py
def test_a_wrong_constant(operand: str) -> None:
    model, schedule = decode("2x2+1", dtype="fp16" if operand == "gamma" else "int8")
    opcode = O.NORM if operand == "gamma" else O.MATMUL
    one, other = find(schedule, 0, opcode, "", 0), find(schedule, 0, opcode, "", 1)
    spoiled = edit(schedule, 0, one, with_args(one, **{operand: args(other)[operand]}))
    name = one.name + CONSTANTS[operand]
    refused(
        model, spoiled, f"chip 0, {one.name}: operand {operand} at ({args(other)[operand]}, ",
        f"is not its tensor {name} at ({args(one)[operand]}, ",
    )  # fmt: skip


def test_a_constant_that_the_chip_does_not_hold() -> None:
    model, schedule = decode("1x1")
    memory = model.memories[0]
    held = tuple(t for t in memory.tensors if t.name != "layers.0.self_attn.qkv_proj")
    with pytest.raises(ScheduleError, match=r"is not its tensor .*qkv_proj at no address"):
        verify([(schedule, 0)], model.costs, model.network.links, [replace(memory, tensors=held)])


def test_tensors_on_one_another() -> None:
    model, schedule = decode("1x1")
    memory = model.memories[0]
    first, second, *rest = memory.tensors
    wrong = replace(memory, tensors=(first, replace(second, address=first.address), *rest))
    with pytest.raises(ScheduleError, match=r"chip 0: .* overlaps .* or ends beyond 230686720"):
        verify([(schedule, 0)], model.costs, model.network.links, [wrong])


def test_a_write_on_weights() -> None:
    model, schedule = decode("1x1")
    silu = find(schedule, 0, O.SILU, "layers.0.mlp.silu")
    weight = model.memories[0].address("layers.2.mlp.down_proj")
    refused(
        model, edit(schedule, 0, silu, with_args(silu, y=weight)),
        "chip 0: write by layers.0.mlp.silu (silu) overlaps live SRAM of layers.2.mlp.down_proj",
    )  # fmt: skip


def test_the_cache_of_another_layer() -> None:
    """Writer and reader agree, so the step alone is right; the next token's would not be."""
    model, schedule = decode("1x1")
    wrong = model.memories[0].address("layers.0.kv")
    own = model.memories[0].address("layers.1.kv")
    for opcode, name in ((O.ROPE, "layers.1.self_attn.rope"), (O.ATTEND, "layers.1.self_attn.a")):
        old = next(
            o for o in schedule.programs[0].operations
            if o.opcode is opcode and o.name.startswith(name)
        )  # fmt: skip
        schedule = edit(schedule, 0, old, with_args(old, kv=wrong))
    refused(
        model, schedule, f"chip 0, layers.1.self_attn.rope: operand kv at ({wrong}, ",
        f"is not its tensor layers.1.kv at ({own}, ",
    )  # fmt: skip


def test_stale_bytes_of_the_layer_before() -> None:
    """Layer 1's product goes elsewhere; its reader finds layer 0's, of the same kind and size."""
    model, schedule = decode("1x1")
    top = model.memories[0].sram_bytes
    schedule = relocate(model, schedule, 0, "mlp.out", top - 640)  # nothing else lies there
    product = find(schedule, 0, O.MATMUL, "layers.1.mlp.down_proj")
    refused(
        model, edit(schedule, 0, product, with_args(product, y=top - 320)),
        "layers.1.mlp.add (add) reads src", "last written by layers.0.mlp.down_proj (matmul)",
    )  # fmt: skip


def test_operands_mixed_up() -> None:
    """Scores read the scales where the query should be: same writer, same size."""
    model, schedule = decode("1x1", dtype="int8")
    attend = find(schedule, 0, O.ATTEND, "layers.0.self_attn.attend")
    spoiled = edit(schedule, 0, attend, with_args(attend, q=args(attend)["sq"]))
    refused(
        model, spoiled, "layers.0.self_attn.attend (attend) reads q at",
        "last written by layers.0.self_attn.rope (rope)",
    )  # fmt: skip


def test_segments_in_each_others_place() -> None:
    model, schedule = decode("1x3+2")
    one = find(schedule, 0, O.RECEIVE, "layers.0.mlp.silu", 0)
    two = find(schedule, 0, O.RECEIVE, "layers.0.mlp.silu", 1)
    places = args(one)["dst"], args(two)["dst"]
    spoiled = edit(schedule, 0, one, with_args(one, dst=places[1]))
    spoiled = edit(spoiled, 0, two, with_args(two, dst=places[0]))
    text = refused(model, spoiled, "chip 0, layers.0.mlp.down_proj (gather): the part of layers")
    assert re.search(r"mlp\.silu from chip [12] lies at \d+ of src, wanted \d+", text)


def test_the_host_looks_elsewhere() -> None:
    model, schedule = decode("1x1")
    for opcode, name, operand in (
        (O.SEND, "host.rope", "src"), (O.SEND, "host.residual", "src"),
        (O.RECEIVE, "host.result", "dst"),
    ):  # fmt: skip
        old = find(schedule, 1, opcode, name)
        at = args(old)[operand]
        wrong = 0 if at else 320
        spoiled = edit(schedule, 1, old, with_args(old, **{operand: wrong}))
        refused(
            model, spoiled,
            f"host, {name} ({opcode}): at {wrong} of its memory, the driver has it at {at}",
        )  # fmt: skip


def test_an_operation_of_another_model() -> None:
    model, schedule = decode("1x1")
    silu = find(schedule, 0, O.SILU, "layers.0.mlp.silu")
    spoiled = edit(schedule, 0, silu, replace(silu, name="layers.0.mlp.gelu"))
    refused(model, spoiled, "chip 0: layers.0.mlp.gelu (silu) is of no known model")


def test_steps_that_overlap_in_time() -> None:
    model, schedule = decode("1x1")
    span = schedule.cycles
    for base in (span, 2 * span):
        verify([(schedule, 0), (schedule, base)], model.costs, model.network.links, model.memories)
    with pytest.raises(
        ScheduleError, match=r"over capacity|holds the unit|overwrites|last written"
    ):
        verify([(schedule, 0), (schedule, 100)], model.costs, model.network.links, model.memories)


def test_bytes_that_another_step_left_are_no_source() -> None:
    model, schedule = decode("1x1")
    top, size = model.memories[0].sram_bytes, buffer_sizes(model, 0)["head.in"][1]
    schedule = relocate(model, schedule, 0, "head.in", top - 2 * size)
    norm = find(schedule, 0, O.NORM, "norm", -1)
    second = edit(schedule, 0, norm, with_args(norm, q=top - size))
    steps = [(schedule, 0), (second, schedule.cycles)]
    with pytest.raises(
        ScheduleError, match=r"lm_head \(matmul\) reads x .* written by norm \(norm"
    ):
        verify(steps, model.costs, model.network.links, model.memories)


# -- any single mutation

MUTATED = {"1x1": "lesson", "1x2+1": "groqrack", "1x5": "two-ports"}  # the last forwards
ADDRESSES = (
    "x", "src", "dst", "y", "r", "q", "qs", "s", "qkv", "rope", "sq", "kv", "w", "sw", "gamma",
)  # fmt: skip


@pytest.fixture(scope="module")
def originals() -> dict[str, tuple[CompiledModel, StepSchedule, list[int]]]:
    out = {}
    assert forwarded(compiled("1x5", "two-ports", kinds="decode").steps["decode/32"])
    for layout, hardware in MUTATED.items():
        model = compiled(layout, hardware, kinds="decode")
        schedule = model.steps["decode/32"]
        out[layout] = model, schedule, decode_hashes(model, schedule)
    return out


def harmless(original: tuple[CompiledModel, StepSchedule, list[int]], new: StepSchedule) -> None:
    """What the verifier lets pass is refused by the chip's own clocks, or changes nothing."""
    model, _, wanted = original
    if not accepted(model, new):
        return
    try:
        got = decode_hashes(model, new)
    except ScheduleViolation as violation:
        assert "is not the chip's own" in str(violation)  # noqa: PT017  (both ways are right)
        return
    assert got == wanted


SLOW = settings(
    max_examples=80, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


@SLOW
@given(st.sampled_from(list(MUTATED)), st.data(), st.integers(-1000, 1000))
def test_one_operation_moved_in_time(
    originals: dict[str, Any], layout: str, data: st.DataObject, by: int
) -> None:
    assume(by)
    model, schedule, _ = originals[layout]
    node = data.draw(st.integers(0, model.layout.chips))
    old = data.draw(st.sampled_from(schedule.programs[node].operations))
    new = edit(schedule, node, old, moved(old, by))
    if old.opcode in (O.SEND, O.RECEIVE) or by < 0:
        assert not accepted(model, new)  # an end without its other end; or before its operands
        return
    if accepted(model, new):
        with pytest.raises(ScheduleViolation, match="the schedule's start is not the chip's own"):
            decode_hashes(model, new)


@SLOW
@given(st.sampled_from(list(MUTATED)), st.data(), st.integers(-1000, 1000))
def test_one_transfer_moved_in_time(
    originals: dict[str, Any], layout: str, data: st.DataObject, by: int
) -> None:
    assume(by)
    schedule = originals[layout][1]
    transfer = data.draw(st.sampled_from(schedule.transfers))
    harmless(originals[layout], move_transfer(schedule, transfer, by))


@SLOW
@given(st.sampled_from(list(MUTATED)), st.data(), st.integers(-12, 12))
def test_one_address_moved(
    originals: dict[str, Any], layout: str, data: st.DataObject, by: int
) -> None:
    assume(by)
    model, schedule, _ = originals[layout]
    node = data.draw(st.integers(0, model.layout.chips))
    old = data.draw(st.sampled_from(schedule.programs[node].operations))
    name = data.draw(st.sampled_from(sorted(set(ADDRESSES) & set(args(old)))))
    new = with_args(old, **{name: args(old)[name] + 320 * by})
    spoiled = edit(schedule, node, old, new)
    if name in (*CONSTANTS, "kv") or node == model.layout.chips:
        assert not accepted(model, spoiled)
        return
    harmless(originals[layout], spoiled)
