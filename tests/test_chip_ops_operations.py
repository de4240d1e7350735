"""Operations: what they touch is what the executor touches, and what they cost follows the spec."""

from __future__ import annotations

from dataclasses import is_dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_ops import (
    TYPES,
    args,
    cycles,
    kv_layout,
    needed,
    operands,
    operation_of,
    result_stream_cycles,
    template,
)
from schedules import compiled, machine

from chip.ops.opcodes import Opcode, bound_values, plain, shape_key, shape_of
from chip.ops.product import Activations, AddTo, LinkRoom, Matmul, Plain
from chip.ops.program import Program
from chip.ops.rows import item_bytes, row_bytes, segment_offsets
from compiler.codegen.products.row import lay_out
from compiler.pipeline import CompiledModel

CHIP = machine("lesson").chip


def test_sizes() -> None:
    assert (item_bytes("int8"), item_bytes("fp16")) == (1, 2)
    assert (row_bytes(80, 4), row_bytes(81, 4), row_bytes(0, 4)) == (320, 640, 0)
    assert segment_offsets((160, 0, 161), 3) == [0, 960, 960, 2880]
    with pytest.raises(KeyError):
        item_bytes("fp8")


def test_every_opcode_is_defined() -> None:
    assert set(TYPES) == set(Opcode)
    assert {t.part for t in TYPES.values()} == {"vector", "weights", "attention", "exchange"}


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize("layout", ["1x1", "1x3+2"])
def test_regions_are_whole_vectors_inside_the_memory(layout: str, dtype: str) -> None:
    model = compiled(layout, dtype=dtype)
    for schedule in model.steps.values():
        for program in schedule.programs[:-1]:
            for operation in program.operations:
                reads, writes = operands(operation.opcode, args(operation))
                assert [region for _, region in reads] == [r for _, r in operation.op.reads()]
                assert [region for _, region in writes] == [r for _, r in operation.op.writes()]
                for name, (address, size) in (*reads, *writes):
                    assert address == args(operation)[name]
                    assert address % 320 == 0
                    assert size % 320 == 0
                    assert 0 < address + size <= CHIP.sram_bytes


def matmul(k: int, n: int, rows: int = 1, dtype: str = "int8") -> dict[str, Any]:
    return {"k": k, "n": n, "rows": rows, "dtype": dtype, "out": "f32"}


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4096), st.integers(1, 4096))
def test_weights_reach_the_mxm_no_faster_than_the_streams(k: int, n: int) -> None:
    """DESIGN 7: 20,480 bytes a cycle."""
    took = cycles(Opcode.MATMUL, matmul(k, n, 1), CHIP)
    assert took > k * n / CHIP.stream_bytes_per_cycle


def test_large_matrices_are_near_the_roofline() -> None:
    """Ten cycles are the activations'; the rest is filling and draining."""
    args = matmul(3200, 12_800, 1)
    roofline = 3200 * 12_800 // CHIP.stream_bytes_per_cycle
    assert roofline < cycles(Opcode.MATMUL, args, CHIP) < roofline + 120


def test_published_plane_load() -> None:
    """ISCA 2020: 320 columns of a plane load in 20 cycles; all four side by side."""
    product = lay_out(operation_of(Opcode.MATMUL, matmul(640, 1280)), CHIP)
    (group,) = product.groups
    windows = [product.times[0, tile].windows for tile in (0, 1)]
    assert [len(cycles) for cycles in windows] == [20, 20]
    assert windows[1][-1] - windows[0][0] == 39
    assert group.lanes == 320


def test_rows_cost_more_than_their_loads() -> None:
    base = cycles(Opcode.MATMUL, matmul(4096, 5120, 4), CHIP)
    assert cycles(Opcode.MATMUL, matmul(4096, 5120, 16), CHIP) < 4 * base
    assert cycles(Opcode.MATMUL, matmul(4096, 5120, 128), CHIP) > 4 * base


def attend(**changes: int) -> dict[str, Any]:
    args = {
        "rows": 1, "heads": 4, "kv_heads": 2, "head_dim": 16, "context": 640, "bucket": 320,
        "dtype": "int8", "hidden": 64, "shares": (32, 32), "n": 64, "k": 64, "out": "f32",
        "eps": 1e-5, "kv_of": (0, 0, 1, 1),
    }  # fmt: skip
    return {**args, **changes}


COMPUTING = [o for o in Opcode if o not in (Opcode.SEND, Opcode.RECEIVE)]


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize("opcode", COMPUTING)
def test_costs_are_positive_and_grow(opcode: Opcode, dtype: str) -> None:
    small = cycles(opcode, attend(dtype=dtype), CHIP)
    more = {"rows": 64, "k": 640 if opcode is Opcode.MATMUL else 64}
    large = cycles(opcode, attend(dtype=dtype, **more), CHIP)
    assert small > 0
    assert opcode is Opcode.TOPK or small < large
    delays = tuple((name, func + 10 * (name == "READ"), skew) for name, func, skew in CHIP.delays)
    if template(opcode, attend(dtype=dtype), CHIP).lowered:
        assert cycles(opcode, attend(dtype=dtype), replace(CHIP, delays=delays)) != small
    assert 0 <= result_stream_cycles(opcode, attend(dtype=dtype), CHIP) < small


def test_attention_costs_its_bucket_not_its_context() -> None:
    base = cycles(Opcode.ATTEND, attend(), CHIP)
    assert cycles(Opcode.ATTEND, attend(context=6400), CHIP) == base
    assert cycles(Opcode.ATTEND, attend(bucket=640), CHIP) > base
    assert kv_layout(attend()).context == 640


def test_a_product_needs_its_activations_after_its_first_weights() -> None:
    args = matmul(4096, 4096)
    first, last = needed(Opcode.MATMUL, "x", args, CHIP)
    assert 0 < first == needed(Opcode.MATMUL, "s", args, CHIP)[0] < last
    assert needed(Opcode.MATMUL, "w", args, CHIP) == (0, 0)
    for opcode in COMPUTING:
        for name, _ in operands(opcode, attend())[0]:
            first, last = needed(opcode, name, attend(), CHIP)
            assert 0 <= first <= last < cycles(opcode, attend(), CHIP)


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_a_shape_has_no_address(dtype: str) -> None:
    """Layers that differ in addresses alone have one cost, and one template."""
    model = compiled("1x3+2", dtype=dtype)
    for program in model.steps["decode/32"].programs[:-1]:
        for operation in program.operations:
            shape = shape_of(operation.op)
            assert set(bound_values(shape).values()) == {0}
            assert bound_values(shape).keys() == bound_values(operation.op).keys()
            assert plain(shape) == plain(operation.op) | bound_values(shape)
            assert shape_key(shape) == shape_key(operation.op)
            assert not any(map(is_dataclass, plain(shape).values()))  # parts are marked as such
    operations = [o.op for p in programs_of(model) for o in p.operations]
    assert len({*map(shape_key, operations)}) == len({*map(shape_of, operations)})
    assert len(model.costs.known) < sum(len(p.operations) for p in programs_of(model)) / 2


def test_an_absent_operand_is_another_shape() -> None:
    """Shares of a list of logits have a first column, other products of the same sizes none."""
    source, result = Activations(x=64, s=None), Plain(y=128)
    one = Matmul(rows=1, k=64, n=32, dtype="fp16", out="f32", source=source, result=result, w=0)
    for other in (
        replace(one, first_column=0),
        replace(one, source=replace(source, s=0)),
        replace(one, n=64),
        replace(one, links=LinkRoom(pace=2)),
        replace(one, result=AddTo(r=0)),
    ):
        assert shape_key(other) != shape_key(one)
        assert shape_of(other) != shape_of(one)
    moved = replace(one, w=320, source=replace(source, x=0), result=replace(result, y=0))
    assert shape_key(moved) == shape_key(one)
    assert shape_of(moved) == shape_of(one)


def programs_of(model: CompiledModel) -> list[Program]:
    """Every program that computes, of all steps."""
    return [program for step in model.steps.values() for program in step.programs[:-1]]
