"""Compiled tiny models to test with, and ways to spoil a schedule: one operation at a time."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from plain_ops import args, replaced

from chip.ops.opcodes import Opcode
from chip.ops.program import Scheduled
from compiler.ir import ScheduledTransfer, StepSchedule
from compiler.model.presets import PRESETS
from compiler.model.weights import WeightsRef
from compiler.pipeline import CompiledModel, Options, compile_model
from compiler.place.buffers import MemoryOptions, step_buffers
from compiler.place.layout import parse_layout
from compiler.verify.sources import place_of
from compiler.verify.verifier import verify
from rack.machines.hardware import Hardware
from rack.machines.profile import load_hardware
from rack.run.local import LocalRack

WEIGHTS = WeightsRef.synthetic(PRESETS["tiny"], 7)


@lru_cache(maxsize=8)
def machine(name: str) -> Hardware:
    """A shipped profile; "two-ports": the lesson's with two ports, so that five chips must forward.

    "stops": groqrack's with clocks that drift so much that chips stop in mid-step to realign them.
    """
    if name == "two-ports":
        return replace(load_hardware("lesson"), ports_per_chip=2, global_ports=2)
    if name == "stops":
        drift = load_hardware("groqrack-drift")
        return replace(drift, clock=replace(drift.clock, drift_ppm=400, realign_cycles=16_384))
    return load_hardware(name)


@lru_cache(maxsize=64)
def compiled(
    layout: str = "1x1", hardware: str = "lesson", *, model: str = "tiny", dtype: str = "int8",
    kinds: str = "all", top_k: int = 0, chunk: int = 8, context: int = 64,
) -> CompiledModel:  # fmt: skip
    """A small compiled model: chunks of 8 and 2 rows, one bucket of 32 tokens and the context."""
    options = Options(
        dtype=dtype, max_model_len=context, prefill_chunk=chunk, buckets=(32,), top_k=top_k
    )
    return compile_model(
        PRESETS[model], machine(hardware), parse_layout(layout), options, kinds=kinds
    )


def check(model: CompiledModel, schedule: StepSchedule) -> None:
    """Verify one schedule in place of the model's own."""
    verify(
        [(schedule, 0)], model.costs, model.network.links, model.memories, config=model.config,
        sequences=model.sequences,
    )  # fmt: skip


def find(schedule: StepSchedule, node: int, opcode: Opcode, name: str, nth: int = 0) -> Scheduled:
    """The nth operation of this opcode whose name ends so, in a node's program."""
    found = [
        operation
        for operation in schedule.programs[node].operations
        if operation.opcode is opcode and operation.name.endswith(name)
    ]
    return found[nth]


def edit(schedule: StepSchedule, node: int, old: Scheduled, new: Scheduled | None) -> StepSchedule:
    """Put `new` (or nothing) in the place of `old`."""
    programs = list(schedule.programs)
    operations = [new if operation is old else operation for operation in programs[node].operations]
    kept = tuple(operation for operation in operations if operation is not None)
    assert len(kept) < len(operations) or new in kept
    programs[node] = replace(programs[node], operations=kept)
    return replace(schedule, programs=tuple(programs))


def moved(operation: Scheduled, cycles: int) -> Scheduled:
    """The same operation, so many cycles later."""
    return replace(operation, start=operation.start + cycles, end=operation.end + cycles)


def ends(
    schedule: StepSchedule, transfer: ScheduledTransfer
) -> tuple[tuple[int, Scheduled], tuple[int, Scheduled]]:
    """(node, SEND) and (node, RECEIVE) of a transfer."""
    found = {
        operation.opcode: (node, operation)
        for node, program in enumerate(schedule.programs)
        for operation in program.operations
        if args(operation).get("transfer") == transfer.id
    }
    return found[Opcode.SEND], found[Opcode.RECEIVE]


def with_transfer(schedule: StepSchedule, new: ScheduledTransfer) -> StepSchedule:
    """Put a transfer in the place of the one with its number."""
    transfers = tuple(new if old.id == new.id else old for old in schedule.transfers)
    return replace(schedule, transfers=transfers)


def move_transfer(schedule: StepSchedule, transfer: ScheduledTransfer, cycles: int) -> StepSchedule:
    """Move a transfer with both its ends; a later SEND gets the NOPs that this takes."""
    (src, send), (dst, receive) = ends(schedule, transfer)
    later = replace(moved(send, cycles), nop=max(0, send.nop + cycles))
    schedule = edit(schedule, src, send, later)
    schedule = edit(schedule, dst, receive, moved(receive, cycles))
    new = replace(
        transfer, depart=transfer.depart + cycles, first_arrive=transfer.first_arrive + cycles,
        arrive=transfer.arrive + cycles,
    )  # fmt: skip
    return with_transfer(schedule, new)


BUFFERS = {  # the allocator's buffers, and who has them as which operand (any layer, any stage)
    "attn.in": "norm input_layernorm q, matmul self_attn.qkv_proj x",
    "attn.in.scale": "norm input_layernorm s, matmul self_attn.qkv_proj s",
    "qkv": "matmul self_attn.qkv_proj y, rope self_attn.rope qkv",
    "query": "rope self_attn.rope q, attend self_attn.attend q",
    "query.scale": "rope self_attn.rope sq, attend self_attn.attend sq",
    "scores": "attend self_attn.attend scratch",
    "stats": "attend self_attn.attend stats",
    "attn.out": "attend self_attn.attend y, send self_attn.attend src, "
    "receive self_attn.attend dst, gather self_attn.o_proj src",
    "o.in": "gather self_attn.o_proj q, matmul self_attn.o_proj x",
    "o.in.scale": "gather self_attn.o_proj s, matmul self_attn.o_proj s",
    "o.out": "matmul self_attn.o_proj y, send self_attn.o_proj src, "
    "receive self_attn.o_proj dst, add self_attn.add src",
    "mlp.in": "norm post_attention_layernorm q, matmul mlp.gate_up_proj x",
    "mlp.in.scale": "norm post_attention_layernorm s, matmul mlp.gate_up_proj s",
    "gate_up": "matmul mlp.gate_up_proj y, silu mlp.silu x",
    "mlp.mid": "silu mlp.silu y, send mlp.silu src, receive mlp.silu dst, gather mlp.down_proj src",
    "down.in": "gather mlp.down_proj q, matmul mlp.down_proj x",
    "down.in.scale": "gather mlp.down_proj s, matmul mlp.down_proj s",
    "mlp.out": "matmul mlp.down_proj y, send mlp.down_proj src, receive mlp.down_proj dst, "
    "add mlp.add src",
    "handed": "receive mlp.down_proj dst, add mlp.add src",
    "residual": "receive residual dst, norm input_layernorm x, add self_attn.add x, "
    "norm post_attention_layernorm x, add mlp.add x, norm norm x, send self_attn.add src, "
    "receive self_attn.add dst, send mlp.add src, receive mlp.add dst",
    "rope": "receive rope dst, rope self_attn.rope rope, send rope src",
    "head.in": "norm norm q, matmul lm_head x",
    "head.in.scale": "norm norm s, matmul lm_head s",
    "logits": "matmul lm_head y, send result src",
}


def buffer_sizes(model: CompiledModel, chip: int) -> dict[str, tuple[int, int]]:
    """(address, bytes) of a chip's decode buffers, empty ones left out."""
    options = MemoryOptions(
        dtype=model.dtype, context=model.max_model_len, rows=(1,), forward_row_bytes={}
    )
    sizes = {b.name: b.size for b in step_buffers(model.partition, chip, 1, options)}
    addresses = model.memories[chip].buffers[1]
    return {name: (addresses[name], size) for name, size in sizes.items() if size}


def relocate(
    model: CompiledModel, schedule: StepSchedule, chip: int, buffer: str, address: int
) -> StepSchedule:
    """Move a buffer, for everything that a chip does with it."""
    users, (old, size) = BUFFERS[buffer].split(", "), buffer_sizes(model, chip)[buffer]
    operations = []
    for operation in schedule.programs[chip].operations:
        place = place_of(operation.name)[1]
        values = {
            key: value - old + address
            if f"{operation.opcode} {place} {key}" in users and old <= value < old + size
            else value
            for key, value in args(operation).items()
        }
        operations.append(replaced(operation, values))
    programs = list(schedule.programs)
    programs[chip] = replace(programs[chip], operations=tuple(operations))
    return replace(schedule, programs=tuple(programs))


def through_one_slot(model: CompiledModel, schedule: StepSchedule, chip: int) -> StepSchedule:
    """Let every vector that a chip passes on go through the first of its forward slots."""
    buffers = model.memories[chip].buffers[1]
    slots = {buffers[f"forward.{slot}"] for slot in range(4)}
    operations = [
        replaced(
            operation,
            {
                key: buffers["forward.0"] if key in ("src", "dst") and value in slots else value
                for key, value in args(operation).items()
            },
        )
        for operation in schedule.programs[chip].operations
    ]
    programs = list(schedule.programs)
    programs[chip] = replace(programs[chip], operations=tuple(operations))
    return replace(schedule, programs=tuple(programs))


def decode_hashes(model: CompiledModel, schedule: StepSchedule, steps: int = 3) -> list[int]:
    """Run decode steps with this schedule alone, on chips; the hash share of each."""
    rack = LocalRack(replace(model, steps={schedule.name: schedule}), WEIGHTS)
    try:
        rack.reset()
        return [rack.run_step(schedule.name, [i], [40 + i]).hash_share for i in range(steps)]
    finally:
        rack.close()
