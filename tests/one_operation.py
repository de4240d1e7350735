"""One operation on random data, lowered on the reference machine and by the fast executor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from machine_kit import CHIP, whole_chip
from numpy.typing import NDArray
from plain_ops import args, cycles, operands, scheduled

from chip.isa.instructions import Write
from chip.kernels import Kernels
from chip.machine.machine import Machine
from chip.machine.resolve import resolve
from chip.ops.opcodes import Opcode
from chip.ops.program import Scheduled
from chip.run.executor import Binder, StepState
from chip.spec import VECTOR_BYTES, ChipSpec, pad_vector
from chip.sram import Sram, feed_start, work_start
from compiler.codegen.lower import lower_operation

BULK = ("w", "kv")
PRODUCTS = (Opcode.MATMUL, Opcode.EXPERTS_EACH, Opcode.EXPERTS_SUM)


def placed(
    opcode: Opcode, shape: Mapping[str, Any], first: int = 0, spec: ChipSpec = CHIP
) -> dict[str, Any]:
    """Give an operation's operands addresses: weights in bulk memory, the others in work memory.

    Work operands begin `first` vectors into it. Rows for the MXM lie in feed slices, if there are.
    """
    a = dict(shape)
    known = ("x", "s", "sw", "b", "gamma", "beta", "src", "r", "qs", "qkv", "rope", "q", "sq",
             "kvs", "scratch", "stats", "y", "w", "kv", "gq", "gk", "post", "sinks", "e",
             "g", "t")  # fmt: skip
    names = [name for name in known if a.get(name) is True]
    bulk, work = 0, work_start(spec) + first * VECTOR_BYTES
    sizes = dict.fromkeys(names, 0)
    for name in names:
        a[name] = 0
    for side in operands(opcode, a):
        for name, (_, size) in side:
            sizes[name] = size
    for name in names:
        if name in BULK or (name == "scratch" and a["dtype"] == "int8"):
            a[name], bulk = bulk, bulk + -(-sizes[name] // (64 * VECTOR_BYTES)) * 64 * VECTOR_BYTES
        elif name == "x" and opcode in PRODUCTS and spec.feed_slices:
            a[name] = feed_start(spec)
        else:
            a[name], work = work, work + pad_vector(sizes[name])
    return a


def both(
    opcode: Opcode, a: Mapping[str, Any], data: Mapping[str, NDArray[Any]],
    positions: tuple[int, ...], spec: ChipSpec = CHIP,
) -> tuple[list[bytes], int]:  # fmt: skip
    """Run an operation both ways on `data`; the bytes of its results, and what saturated.

    Operands without data are random, results zero at first. Asserts that both are equal, and that
    the machine's last write is within the cost.
    """
    rng = np.random.default_rng(3)
    touched = operands(opcode, a)
    results, counts = [], []
    operation = scheduled(
        opcode=opcode, name=str(opcode), args=dict(a), start=0, end=cycles(opcode, a, spec), nop=0
    )
    noise = {region: rng.integers(0, 256, region[1]).astype(np.uint8) for _, region in touched[0]}
    for lowered in (False, True):
        sram = Sram(spec.sram_bytes)
        for (at, size), bytes_ in noise.items():
            sram.bytes[at : at + size] = bytes_
        for name, value in data.items():
            flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
            sram.bytes[a[name] : a[name] + len(flat)] = flat
        if lowered:
            counts.append(_lowered(operation, sram, positions, spec))
        else:
            state = StepState(rows=len(positions), positions=np.array(positions, np.int64))
            Binder(sram, Kernels()).bind(operation.op)(state)
            counts.append(state.saturated)
        wanted = [region for name, region in touched[1] if name not in ("scratch", "stats", "t")]
        results.append([bytes(sram.bytes[at : at + size]) for at, size in wanted])
        sram.close()
    assert counts[0] == counts[1]
    assert results[0] == results[1]
    return results[0], counts[0]


def _lowered(operation: Scheduled, sram: Sram, positions: tuple[int, ...], spec: ChipSpec) -> int:
    valid = np.zeros(spec.sram_bytes // VECTOR_BYTES, np.bool_)
    read, written = operands(operation.opcode, args(operation))
    for _, (at, size) in [*read, *(pair for pair in written if pair[0] in ("kv", "kvs"))]:
        valid[at // VECTOR_BYTES : -(-(at + size) // VECTOR_BYTES)] = True
    memory = whole_chip(spec, valid)
    issues = lower_operation(operation, spec)
    assert min(issue.cycle for issue in issues) >= 0
    assert max(i.last_cycle for i in issues if isinstance(i.instruction, Write)) < operation.end
    resolved = resolve(issues, spec, memory)
    run = Machine(resolved, memory, sram.bytes.reshape(-1, VECTOR_BYTES))
    run.run(positions)
    return run.units.counter.saturated
