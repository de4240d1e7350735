"""Addresses: nothing overlaps that lives at the same time, and what does not fit is refused."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from schedules import compiled, machine

from chip.spec import ChipSpec
from chip.sram import feed_start
from compiler.errors import CapacityError
from compiler.model.graph import build_graph
from compiler.model.presets import PRESETS
from compiler.place.allocate import (
    allocate_chip,
    bytes_needed,
    chip_classes,
    constants,
    kv_tensors,
    place_buffers,
)
from compiler.place.buffers import Buffer, MemoryOptions, step_buffers
from compiler.place.layout import parse_layout
from compiler.place.partition import Partition, partition

CHIP = machine("lesson").chip
OPTIONS = MemoryOptions(dtype="int8", context=64, rows=(1, 8), forward_row_bytes={})


@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12
    )
)
def test_buffers_that_meet_do_not_overlap(shapes: list[tuple[int, int, int]]) -> None:
    buffers = [
        Buffer(name=str(n), size=320 * size, first=min(a, b), last=max(a, b))
        for n, (size, a, b) in enumerate(shapes)
    ]
    offsets, total = place_buffers(tuple(buffers))
    for one, two in combinations(buffers, 2):
        a, b = offsets[one.name], offsets[two.name]
        if one.first <= two.last and two.first <= one.last and one.size and two.size:
            assert a + one.size <= b or b + two.size <= a
    assert all(offset % 320 == 0 for offset in offsets.values())
    live = [sum(b.size for b in buffers if b.first <= t <= b.last) for t in range(10)]
    assert max(live) <= total <= sum(b.size for b in buffers)


@pytest.mark.parametrize("layout", ["1x1", "2x2+1", "1x13"])
def test_a_memory_adds_up(layout: str) -> None:
    model = compiled(layout)
    assert model.chip.feed_slices == 2
    for memory in model.memories:
        spans = sorted((t.address, t.size) for t in memory.tensors)
        assert all(a + size <= b for (a, size), (b, _) in pairwise(spans))
        assert all(address % 320 == 0 and size % 320 == 0 for address, size in spans)
        kept = memory.constant_bytes + memory.kv_bytes  # weights and caches in whole windows
        assert 0 <= kept - sum(size for _, size in spans) < len(spans) * 64 * 320
        end = max(at + size for at, size in spans if at >= memory.work_start)
        far = max(at + size for at, size in spans if at < memory.work_start)
        for buffers in memory.buffers.values():
            for name, at in buffers.items():
                near = end if at >= memory.work_start else feed_start(model.chip)
                first = far if name == "scores" else near
                assert first <= at <= first + memory.buffer_bytes
        assert memory.free_bytes == memory.sram_bytes - kept - memory.buffer_bytes
        for tensor in memory.tensors:
            bulk = tensor.kind == "weight" or (tensor.kind == "kv" and tensor.name.endswith("kv"))
            assert (tensor.address < memory.work_start) == bulk
            assert not bulk or tensor.address % (64 * 320) == 0
        for tensor in memory.tensors:
            assert memory.address(tensor.name) == tensor.address


def test_the_head_group_holds_the_head_and_no_cache() -> None:
    split = partition(build_graph(PRESETS["tiny"]), parse_layout("2x2+1"))
    names = [name for name, _, _ in constants(split, 4, "int8")]
    assert names == ["norm", "lm_head", "lm_head.scale"]
    assert kv_tensors(split, 4, "int8", 64) == []
    assert [name for name, _, _ in kv_tensors(split, 2, "int8", 64)] == [
        "layers.1.kv", "layers.1.kv.scale", "layers.2.kv", "layers.2.kv.scale",
    ]  # fmt: skip
    assert not any("scale" in name for name, _, _ in constants(split, 4, "fp16"))
    names = {buffer.name for buffer in step_buffers(split, 4, 8, OPTIONS)}
    assert "logits" not in names  # a prefill step has no head


def test_classes_cover_what_chips_need() -> None:
    split = partition(build_graph(PRESETS["tiny"]), parse_layout("3x5+2"))
    needs = {bytes_needed(split, chip, OPTIONS, CHIP) for chip in chip_classes(split, {}).values()}
    assert needs == {bytes_needed(split, chip, OPTIONS, CHIP) for chip in range(split.layout.chips)}


def _missing(split: Partition, spec: ChipSpec) -> int:
    return max(0, bytes_needed(split, 0, OPTIONS, spec) - spec.sram_bytes)


def test_what_does_not_fit() -> None:
    split = partition(build_graph(PRESETS["tiny"]), parse_layout("1x1"))
    slice_bytes = 88 * 2 * 320
    words = next(
        n for n in range(1, 8192)
        if not _missing(split, replace(CHIP, sram_bytes=slice_bytes * n))
    )  # fmt: skip
    small = replace(CHIP, sram_bytes=slice_bytes * (words - 1))
    missing = _missing(split, small)
    with pytest.raises(CapacityError) as caught:
        allocate_chip(split, 0, OPTIONS, small)
    error, has = caught.value, small.sram_bytes
    assert (error.chip, error.needed, error.available) == (0, has + missing, has)
    assert str(error) == (
        f"layout 1x1, context 64: chip 0 wants {has + missing:,} bytes of SRAM and has {has:,}: "
        f"{missing:,} bytes missing"
    )
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    advised = CapacityError(
        chip=1, needed=7, available=5, layout="1x1", context=3, smallest="2x2+1"
    )
    assert str(pickle.loads(pickle.dumps(advised))).endswith(
        "2 bytes missing; the smallest layout that fits is 2x2+1"
    )
