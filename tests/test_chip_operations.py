"""Operations: what they touch is what the executor touches, and what they cost follows the spec."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from schedules import compiled, machine

from chip.cost import cycles, mxm_pass_cycles, needed, result_stream_cycles
from chip.operations import (
    DEFINITIONS,
    Opcode,
    item_bytes,
    kv_layout,
    operands,
    row_bytes,
    segment_offsets,
)

CHIP = machine("lesson").chip


def test_sizes() -> None:
    assert (item_bytes("int8"), item_bytes("fp16")) == (1, 2)
    assert (row_bytes(80, 4), row_bytes(81, 4), row_bytes(0, 4)) == (320, 640, 0)
    assert segment_offsets((160, 0, 161), 3) == [0, 960, 960, 2880]
    with pytest.raises(KeyError):
        item_bytes("fp8")


@pytest.mark.parametrize("opcode", [Opcode.SEND, Opcode.RECEIVE])
def test_the_link_decides_how_long_a_transfer_takes(opcode: Opcode) -> None:
    with pytest.raises(ValueError, match="its duration") as caught:
        cycles(opcode, {}, CHIP)
    assert str(caught.value) == f"{opcode}: its duration is the link's, not the chip's"


def test_every_opcode_is_defined() -> None:
    assert set(DEFINITIONS) == set(Opcode)
    assert {d.part for d in DEFINITIONS.values()} == {"vector", "weights", "attention", "exchange"}


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize("layout", ["1x1", "1x3+2"])
def test_regions_are_whole_vectors_inside_the_memory(layout: str, dtype: str) -> None:
    model = compiled(layout, dtype=dtype)
    for schedule in model.steps.values():
        for program in schedule.programs[:-1]:
            for operation in program.operations:
                reads, writes = operands(operation.opcode, operation.args)
                assert [region for _, region in reads] == operation.regions()[0]
                assert [region for _, region in writes] == operation.regions()[1]
                for name, (address, size) in (*reads, *writes):
                    assert address == operation.args[name]
                    assert address % 320 == 0
                    assert size % 320 == 0
                    assert 0 < address + size <= CHIP.sram_bytes


def matmul(k: int, n: int, rows: int = 1, dtype: str = "int8") -> dict[str, Any]:
    return {"k": k, "n": n, "rows": rows, "dtype": dtype}


@given(st.integers(1, 8192), st.integers(1, 8192), st.sampled_from(["int8", "fp16"]))
def test_weights_reach_the_mxm_no_faster_than_the_streams(k: int, n: int, dtype: str) -> None:
    """DESIGN 7: 20,480 bytes a cycle; with one row and a large matrix nothing else counts."""
    roofline = k * n * item_bytes(dtype) / CHIP.stream_bytes_per_cycle
    took = mxm_pass_cycles(matmul(k, n, 1, dtype), CHIP, k, n, 1)
    assert took >= roofline


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_large_matrices_are_at_the_roofline(dtype: str) -> None:
    args = matmul(3200, 12_800, 1, dtype)
    roofline = 3200 * 12_800 * item_bytes(dtype) // CHIP.stream_bytes_per_cycle
    assert mxm_pass_cycles(args, CHIP, 3200, 12_800, 1) == roofline
    assert cycles(Opcode.MATMUL, args, CHIP) < 1.1 * roofline


def test_published_plane_load() -> None:
    """ISCA 2020: an int8 plane of 320 x 320 loads in 20 cycles; four load side by side."""
    assert mxm_pass_cycles(matmul(320, 1280), CHIP, 320, 1280, 1) == 20


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_fp16_costs_and_rows(dtype: str) -> None:
    base = cycles(Opcode.MATMUL, matmul(4096, 5120, 1, dtype), CHIP)
    assert cycles(Opcode.MATMUL, matmul(4096, 5120, 10, dtype), CHIP) == base  # under the load
    assert cycles(Opcode.MATMUL, matmul(4096, 5120, 200, dtype), CHIP) > 4 * base


def attend(**changes: int) -> dict[str, Any]:
    args = {
        "rows": 1, "heads": 4, "kv_heads": 2, "head_dim": 16, "context": 640, "bucket": 320,
        "dtype": "int8", "hidden": 64, "shares": (32, 32), "n": 64, "k": 64,
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
    slower = replace(CHIP, mem_latency_cycles=CHIP.mem_latency_cycles + 10)
    assert cycles(opcode, attend(dtype=dtype), slower) >= small + 20
    assert 0 <= result_stream_cycles(opcode, attend(dtype=dtype), CHIP) < small


def test_attention_costs_its_bucket_not_its_context() -> None:
    base = cycles(Opcode.ATTEND, attend(), CHIP)
    assert cycles(Opcode.ATTEND, attend(context=6400), CHIP) == base
    assert cycles(Opcode.ATTEND, attend(bucket=640), CHIP) > base
    assert kv_layout(attend()).context == 640


def test_a_product_needs_its_activations_after_its_first_weights() -> None:
    args = matmul(4096, 4096)
    assert needed(Opcode.MATMUL, "x", args, CHIP) == needed(Opcode.MATMUL, "s", args, CHIP)
    assert needed(Opcode.MATMUL, "x", args, CHIP) == (20, 20)
    assert needed(Opcode.MATMUL, "w", args, CHIP) == (0, 0)
    first, last = needed(Opcode.ADD, "src", attend(rows=8), CHIP)
    assert (first, last) == (0, 7)
    for opcode in COMPUTING:
        for name in DEFINITIONS[opcode].reads:
            first, last = needed(opcode, name, attend(), CHIP)
            assert 0 <= first <= last < cycles(opcode, attend(), CHIP)
