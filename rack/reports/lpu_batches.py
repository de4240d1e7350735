"""What a rack gives to a batch of sequences in flight: one function, `pipeline`.

Sequences follow each other through the stages, each a token at a time. While the pipeline is not
full, each takes as long as alone. Once it is, the rack makes a token every initiation interval
(compiler/schedule/interval), whoever it is for. What KV caches have no room for waits its turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from compiler.pipeline import CompiledModel, Options, compile_model
from compiler.place.allocate import kv_tensors
from compiler.place.buffers import MemoryOptions
from rack.machines.hardware import Hardware

Progress = Callable[[int, int], None]
STAGES = 3  # of a cut pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A decode step on a rack: alone, and one behind the other."""

    chips: int
    clock_hz: int
    alone_cycles: int
    interval_cycles: int
    places: int  # sequences whose KV caches fit

    @property
    def full(self) -> int:
        """Sequences in flight that fill the pipeline; more wait for each other."""
        return -(-self.alone_cycles // self.interval_cycles)

    def in_flight(self, batch: int) -> int:
        """Return how many of a batch are worked on at once."""
        return min(batch, self.places)

    def tokens_per_s(self, batch: int) -> float:
        """Return tokens a second of all sequences together."""
        alone = self.in_flight(batch) * self.clock_hz / self.alone_cycles
        return min(alone, self.clock_hz / self.interval_cycles)


def pipeline(compiled: CompiledModel, context: int) -> Pipeline:
    """Return what a compiled model's decode step with `context` tokens gives to batches."""
    step = compiled.step_for(context)
    return Pipeline(
        chips=compiled.layout.chips,
        clock_hz=compiled.chip.clock_hz,
        alone_cycles=step.cycles,
        interval_cycles=compiled.cycles_until(step.name, step.name),
        places=_places(compiled, context),
    )


def prompt_tokens_per_s(
    compiled: CompiledModel, hardware: Hardware, context: int, progress: Progress
) -> float:
    """Return tokens a second of prompts that follow each other through all stages.

    The slowest stage sets it, so three of the stages are compiled: one has neighbours.
    """
    layout, config = compiled.layout, compiled.config
    if layout.stages > STAGES:
        config = replace(config, num_layers=STAGES * -(-config.num_layers // layout.stages))
        layout = replace(layout, stages=STAGES)
    options = Options(
        dtype=compiled.dtype, int4_group=compiled.int4_group, max_model_len=context,
        prefill_chunk=min(compiled.prefill_chunk, context), buckets=(context,),
        top_k=compiled.top_k,
    )  # fmt: skip
    cut = compile_model(config, hardware, layout, options, progress=progress)
    step = cut.step(cut.prefill_chunk, context, decode=False)
    return step.kind.rows * cut.chip.clock_hz / cut.cycles_until(step.name, step.name)


def _places(compiled: CompiledModel, context: int) -> int:
    """Return how many KV caches of `context` tokens fit where the compiled one and free room are.

    A cache begins a window of its own on each chip, so a real layout may hold one fewer.
    """
    dtype = "int8" if compiled.dtype == "int4" else compiled.dtype
    one = MemoryOptions(dtype=dtype, context=context, rows=(), forward_row_bytes={})
    found = []
    for chip, memory in enumerate(compiled.memories):
        each = sum(size for _, _, size in kv_tensors(compiled.partition, chip, one, compiled.chip))
        if each:
            found.append((memory.kv_bytes + memory.free_bytes) // each)
    return max(1, min(found))
