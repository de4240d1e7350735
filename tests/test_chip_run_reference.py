"""The reference executor equals the fast one: results bit for bit, departures cycle for cycle."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from schedules import WEIGHTS, compiled

from chip.errors import IssueError
from chip.run.reference import ReferenceChip
from compiler.codegen.lower import lower
from interconnect.frame import Frame
from rack.run.job import build_chip, chip_job, ports_of
from rack.run.local import LocalRack
from rack.run.node import ChipNode

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


def test_a_step_is_lowered_when_it_first_runs() -> None:
    chip = reference_chip()
    assert not chip.machines
    job = chip_job(compiled(kinds="decode"), 0, WEIGHTS)
    slots = {link.id: link.slot_cycles for link in job.links}
    program = job.programs[0]
    issues = list(lower(program, spec=job.spec, ports=ports_of(job.links, 0), slots=slots))
    chip._lower = lambda _, __: [*issues, issues[0]]
    with pytest.raises(IssueError, match="two instructions in one queue and cycle: "):
        chip.machine(program)
