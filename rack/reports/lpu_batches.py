"""What a rack gives to a batch of sequences in flight: `crowd`.

Sequences follow each other through the stages, each a token at a time. While the pipeline is not
full, each takes as long as alone. Once it is, the rack begins a step every initiation interval
(compiler/schedule/interval); with many sequences a step of several rows serves as many of them
(rack/reports/sequences). What KV caches have no room for waits its turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from compiler.errors import CapacityError
from compiler.model.config import ModelConfig
from compiler.pipeline import (
    CompiledModel,
    Options,
    compile_model,
    lay_out,
    most_sequences,
    roomy,
)
from compiler.place.layout import Layout
from rack.machines.hardware import Hardware
from rack.reports.sequences import Pace, paces, token_cycles

Progress = Callable[[int, int], None]
STAGES = 3  # of a cut pipeline
ROWS = 4  # most of a decode step that is compared: products of more rows take as much longer


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Decode steps on a rack: alone, and one behind the other; of one row, and of more."""

    chips: int
    clock_hz: int
    paces: tuple[Pace, ...]  # by rising rows, from one
    places: int  # sequences whose KV caches fit

    @property
    def alone_cycles(self) -> int:
        """Cycles of a token of one sequence."""
        return self.paces[0].cycles

    @property
    def interval_cycles(self) -> int:
        """Cycles from one step of a row to the next."""
        return self.paces[0].interval_cycles

    def in_flight(self, batch: int) -> int:
        """Return how many of a batch are worked on at once."""
        return min(batch, self.places)

    def tokens_per_s(self, batch: int) -> float:
        """Return tokens a second of all sequences together."""
        served = self.in_flight(batch)
        return served * self.clock_hz / token_cycles(self.paces, served)


def slots_that_fit(
    config: ModelConfig, hardware: Hardware, layout: Layout, options: Options, context: int
) -> int:
    """Return how many sequences of a context a layout has room for, beside a small prefill."""
    asked = replace(options, prefill_chunk=None)
    try:
        ground = lay_out(config, hardware, layout, asked)
    except CapacityError:
        return 0
    chip = roomy(config, hardware)
    return most_sequences(ground.partition, ground.network, chip, asked, context)


def crowd(
    compiled: CompiledModel, hardware: Hardware, context: int, progress: Progress
) -> Pipeline:
    """Return what a model's decode steps give to batches: compiled anew, with all slots that fit.

    If its prefill leaves no room for another slot, it has one.
    """
    config, layout, options = compiled.config, compiled.layout, _options(compiled, context)
    most = max(1, slots_that_fit(config, hardware, layout, options, context))
    if most > 1:
        options = replace(
            options, sequences=most, batch=min(ROWS, most), prefill_chunk=None
        )  # fmt: skip
    slots = compile_model(
        config, hardware, layout, options, kinds="decode", contexts=(context,), progress=progress
    )
    return Pipeline(
        chips=layout.chips, clock_hz=compiled.chip.clock_hz, paces=paces(slots, context),
        places=most,
    )  # fmt: skip


def _options(compiled: CompiledModel, context: int) -> Options:
    """Return the options of a compiled model for one context."""
    return Options(
        dtype=compiled.dtype, int4_group=compiled.int4_group, max_model_len=context,
        prefill_chunk=min(compiled.prefill_chunk, context), buckets=(context,),
        top_k=compiled.top_k,
    )  # fmt: skip


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
    options = _options(compiled, context)
    cut = compile_model(config, hardware, layout, options, progress=progress)
    step = cut.step(cut.prefill_chunk, context, decode=False)
    return step.kind.rows * cut.chip.clock_hz / cut.cycles_until(step.name, step.name)
