"""The reference executor equals the fast one: results bit for bit, departures cycle for cycle."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import sha256

import numpy as np
import pytest
from schedules import WEIGHTS, compiled

from chip.errors import MachineError
from chip.isa import ABC, ACC, IW, LW, Permute, Read, Write
from chip.issue import Issue
from chip.machine.machine import Machine
from chip.machine.resolve import Memory, Resolver
from chip.operand import Stream
from chip.reference import ReferenceChip
from chip.spec import VECTOR_BYTES
from chip.sram import places, work_start
from compiler.lower import lower, lower_operation
from interconnect.frame import Frame
from rack.job import build_chip, chip_job, ports_of
from rack.local import LocalRack
from rack.node import ChipNode

Departures = dict[tuple[int, int, int, int], int]


def watch(rack: LocalRack) -> Departures:
    """Note (node, step number, link, transfer) -> cycle of all that leaves the chips."""
    seen: Departures = {}

    def noted(node: ChipNode, send: Callable[[int, Frame], None], to: int, frame: Frame) -> None:
        seen[node.node, frame.step, frame.link, frame.transfer] = frame.depart_cycle
        send(to, frame)

    for node in rack.nodes:
        node.transport.send = partial(noted, node, node.transport.send)  # type: ignore[assignment, method-assign]
    return seen


def caches(rack: LocalRack) -> list[bytes]:
    """Return every chip's KV cache and its scales."""
    return [
        bytes(node.chip.sram.tensor(tensor.name))
        for node, memory in zip(rack.nodes, rack.compiled.memories, strict=True)
        for tensor in memory.tensors
        if tensor.kind == "kv"
    ]


@pytest.mark.parametrize(
    ("layout", "dtype", "top_k"),
    [
        ("1x1", "int8", 0),
        ("1x1", "int8", 3),
        ("1x2", "int8", 0),
        ("2x2", "int8", 0),
        ("2x4", "int8", 0),
        ("1x1", "fp16", 0),
        ("1x2", "fp16", 3),
        ("2x2", "fp16", 0),
    ],
)
def test_equals_the_fast_executor(layout: str, dtype: str, top_k: int) -> None:
    """A prompt in two chunks, the second not full, then two tokens."""
    model = compiled(layout, dtype=dtype, top_k=top_k)
    racks = [LocalRack(model, WEIGHTS, executor=name) for name in ("fast", "reference")]
    seen = [watch(rack) for rack in racks]
    results = []
    for rack in racks:
        rack.reset()
        steps = [
            ("prefill2/32", 0, 2),
            ("prefill2/32", 2, 1),
            ("decode/32", 3, 1),
            ("decode/32", 4, 1),
        ]
        results.append(
            [
                rack.run_step(name, range(at, at + n), [7 + i for i in range(at, at + n)])
                for name, at, n in steps
            ]
        )
    for fast, reference in zip(*results, strict=True):
        assert (fast.cycles, fast.hash_share) == (reference.cycles, reference.hash_share)
        if fast.logits is not None:
            assert reference.logits is not None
            assert np.array_equal(fast.logits, reference.logits)
        if fast.top is not None:
            assert reference.top is not None
            assert all(map(np.array_equal, fast.top, reference.top))
    assert seen[0]
    assert seen[0] == seen[1]
    assert caches(racks[0]) == caches(racks[1])
    for rack in racks:
        rack.close()


def reference_chip() -> ReferenceChip:
    job = chip_job(compiled(kinds="decode"), 0, WEIGHTS, executor="reference")
    chip = build_chip(job, lambda *_: None)
    assert isinstance(chip, ReferenceChip)
    return chip


def spoiled(issues: list[Issue], seed: int) -> list[Issue]:
    """Shift one issue by a cycle, swap two of a unit, or take another stream."""
    rng = random.Random(seed)
    out = list(issues)
    i = rng.choice([i for i, issue in enumerate(issues) if isinstance(issue.instruction, KINDS)])
    issue, how = out[i], rng.randrange(3)
    stream = getattr(issue.instruction, "stream", None)
    if how == 0:
        return [*out[:i], issue.moved(rng.choice((-1, 1))), *out[i + 1 :]]
    if how == 1 and stream is not None:
        other = Stream(stream.eastward, (stream.number + 1) % 32)
        out[i] = replace(issue, instruction=replace(issue.instruction, stream=other))  # type: ignore[call-arg]
        return out
    same = [j for j, o in enumerate(out) if o.queue == issue.queue and o.cycle != issue.cycle]
    j = rng.choice(same or [i])
    out[i], out[j] = replace(issue, cycle=out[j].cycle), replace(out[j], cycle=issue.cycle)
    return out


KINDS = (Read, Write, LW, IW, ABC, ACC, Permute)


OPERATIONS = ("qkv_proj", "attn.rope", "attend", "o_proj", "gate_up_proj")


def test_a_spoiled_program_is_refused_or_shows() -> None:
    """One instruction shifted, swapped or on a wrong stream: MachineError, or other results.

    A few changes are none: an ALU's register may be read a cycle later. They must stay few.
    """
    model = compiled(kinds="decode")
    rack = LocalRack(model, WEIGHTS)
    rack.run_step("decode/32", [0], [7])
    (node,) = rack.nodes
    sram, spec = node.chip.sram, model.chip
    slice_of, word_of = places(spec)
    memory = Memory(slice_of=slice_of, word_of=word_of, valid=np.ones(len(slice_of), np.bool_))
    work = sram.bytes[work_start(spec) :]
    before = work.copy()

    def result(issues: list[Issue]) -> bytes:
        work[:] = before
        words = sram.bytes.reshape(-1, VECTOR_BYTES)
        Machine(Resolver(spec, memory).resolve(issues), memory, words).run((1,))
        return sha256(work).digest()

    harmless = refused = 0
    for name in OPERATIONS:
        program = model.steps["decode/32"].programs[0]
        operation = next(o for o in program.operations if o.name.endswith(name))
        issues = lower_operation(operation, spec)
        good = result(issues)
        for seed in range(12):
            try:
                harmless += result(spoiled(issues, seed)) == good
            except MachineError:
                refused += 1
    rack.close()
    assert refused > 30
    assert harmless < 12, harmless


def test_a_step_is_lowered_when_it_first_runs() -> None:
    chip = reference_chip()
    assert not chip.machines
    job = chip_job(compiled(kinds="decode"), 0, WEIGHTS)
    slots = {link.id: link.slot_cycles for link in job.links}
    program = job.programs[0]
    issues = list(lower(program, spec=job.spec, ports=ports_of(job), slots=slots))
    chip._lower = lambda _: [*issues, issues[0]]
    with pytest.raises(MachineError, match="two instructions in one queue and cycle: "):
        chip.machine(program)
