"""Bound operations do what the kernels do, on views of SRAM, and touch nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from plain_ops import operation_of
from schedules import WEIGHTS, compiled

from chip.kernels import load
from chip.ops.opcodes import Opcode
from chip.run.executor import Binder, StepState
from chip.sram import Sram, feed_start
from compiler.pipeline import CompiledModel
from rack.run.job import build_chip, chip_job

SIZE = 1 << 20


def op(opcode: Opcode, **args: Any) -> Any:
    return operation_of(opcode, args)


def binder() -> tuple[Sram, Binder]:
    sram = Sram(SIZE * 320 // 64)
    return sram, Binder(sram, load())


def state(rows: int) -> StepState:
    return StepState(rows=rows, positions=np.arange(rows, dtype=np.int64))


def test_only_valid_rows_are_computed() -> None:
    sram, bind = binder()
    x = sram.rows(0, np.float32, 4, 64, 320)
    x[:] = np.arange(256).reshape(4, 64)
    sram.rows(3200, np.float32, 1, 64, 320)[:] = 1
    q, s = sram.rows(6400, np.int8, 4, 320, 320), sram.view(9600, np.float32, (4,), (4,))
    q[:], s[:] = 99, 99
    args = {"x": 0, "gamma": 3200, "q": 6400, "s": 9600, "rows": 4, "hidden": 64}
    run = bind.bind(op(Opcode.NORM, eps=1e-5, dtype="int8", **args))
    run(state(2))
    assert (np.abs(q[:2, :64]).max(axis=1) == 127).all()
    assert not q[:2, 64:].any()  # K is padded with zeros
    assert (q[2:] == 99).all()
    assert (s[2:] == 99).all()


def test_gather_and_add_join_segments_of_any_share() -> None:
    sram, bind = binder()
    shares, rows = (160, 0, 30), 2
    values = np.arange(rows * 190, dtype=np.float32).reshape(rows, 190) / 64
    sram.rows(0, np.float16, rows, 160, 320)[:] = values[:, :160]
    sram.rows(640, np.float16, rows, 30, 320)[:] = values[:, 160:]
    x = sram.rows(6400, np.float32, rows, 190, 960)
    x[:] = 1
    bind.bind(op(Opcode.ADD, x=6400, src=0, shares=shares, rows=rows))(state(rows))
    assert np.array_equal(x, values + 1)
    q = sram.rows(12800, np.float16, rows, 320, 640)
    run = bind.bind(op(Opcode.GATHER, src=0, q=12800, shares=shares, rows=rows, dtype="fp16"))
    run(state(rows))
    assert np.array_equal(q[:, :190], values.astype(np.float16))
    assert not q[:, 190:].any()


def test_the_largest_logits_and_their_columns() -> None:
    sram, bind = binder()
    logits = sram.view(0, np.float32, (100,), (4,))
    logits[:] = np.random.default_rng(1).permutation(100)
    bind.bind(op(Opcode.TOPK, x=0, y=640, n=100, k=5, first_column=1000))(state(1))
    ids = sram.view(640, np.uint32, (5,), (4,))
    values = sram.view(660, np.float32, (5,), (4,))
    assert values.tolist() == [99, 98, 97, 96, 95]
    assert [logits[i - 1000] for i in ids.astype(int)] == values.tolist()


def test_silu_saturation_is_counted() -> None:
    sram, bind = binder()
    x = sram.rows(0, np.float32, 1, 8, 320)
    x[:] = [[1e4, 1, 0, -1, 1e4, 1, 1, 1]]
    here = state(1)
    run = bind.bind(op(Opcode.SILU, x=0, y=320, rows=1, n=4, k=8, dtype="int8"))
    run(here)
    run(here)
    assert here.saturated == 2
    assert sram.rows(320, np.float16, 1, 4, 320)[0, 0] == 65504


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize("layout", ["1x1", "1x3+2"])
def test_an_operation_writes_only_what_it_says(layout: str, dtype: str) -> None:
    """Every operation of a decode step, on a random memory: all other bytes stay."""
    model = compiled(layout, dtype=dtype, kinds="decode")
    for chip in range(model.layout.chips):
        check_writes(model, chip)


def check_writes(model: CompiledModel, chip: int) -> None:
    memory = model.memories[chip]
    sram = build_chip(chip_job(model, chip, WEIGHTS), lambda *_: None).sram
    bind, rng = Binder(sram, load()), np.random.default_rng(chip)
    here = StepState(rows=1, positions=np.array([3]))
    fixed = [(t.address, t.address + t.size) for t in memory.tensors if t.kind != "kv"]
    ends = [max((t.address + t.size for t in memory.tensors if t.address < last), default=0)
            for last in (memory.work_start, memory.sram_bytes)]  # fmt: skip
    feed = feed_start(model.chip)
    spans = [
        slice(0, ends[0] + 3200), slice(feed, feed + memory.buffer_bytes + 3200),
        slice(memory.work_start, ends[1] + memory.buffer_bytes + 3200),
    ]  # bulk, feed and work slices, as far as they are in use and a little beyond  # fmt: skip

    def contents() -> Any:
        return np.concatenate([sram.bytes[span] for span in spans])

    def place(address: int) -> int:
        number = sum(address >= span.start for span in spans) - 1
        before = sum(span.stop - span.start for span in spans[:number])
        return before + address - spans[number].start

    for operation in model.steps["decode/32"].programs[chip].operations:
        if operation.opcode in (Opcode.SEND, Opcode.RECEIVE):
            continue
        for address, size in [r for _, r in operation.op.writes()]:
            sram.bytes[address : address + size] = 0xAA
        for address, size in [r for _, r in operation.op.reads()]:
            if not any(a <= address < b for a, b in fixed):  # finite fp16 and fp32, not tiny
                sram.bytes[address : address + size] = rng.integers(56, 60, size)
        before = contents()
        bind.bind(operation.op)(here)
        changed = np.flatnonzero(before != contents())
        allowed = np.zeros(len(before), bool)
        for address, size in [r for _, r in operation.op.writes()]:
            allowed[place(address) : place(address) + size] = True
        assert allowed[changed].all(), operation
        assert changed.size, operation
    assert any(here.hash_shares) or not any(s.kind == "weight" and s.name == "lm_head"
                                      for s in memory.tensors)  # fmt: skip
