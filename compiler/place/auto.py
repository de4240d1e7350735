"""Choose a layout: the fewest racks that fit, then the fewest emulated cycles per token.

Each group size gets the fewest stages that fit, because more stages only add hops. The head group
is none, the smallest that fits, one of the group's size, or all chips that are left. Candidates are
ranked by a model cut to two stages; the best few are then scheduled whole. Ties: fewer chips, then
smaller groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from chip.spec import ChipSpec
from compiler.errors import CapacityError, CompilerError, LayoutError
from compiler.model.config import ModelConfig
from compiler.model.graph import build_graph
from compiler.pipeline import (
    MIN_CHUNK,
    Options,
    asked_context,
    compile_model,
    context_buckets,
    decode_sizes,
    prefill_sizes,
    roomy,
    ways_to_fit,
)
from compiler.place.allocate import bytes_needed, chip_classes
from compiler.place.buffers import MemoryOptions
from compiler.place.layout import Layout
from compiler.place.partition import COLUMN_UNIT, Partition, partition
from compiler.place.target import Target

GROUP_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16)
MIN_CONTEXT = 1728  # an automatic layout has room for this, or for the model's own limit if smaller
ENCODED = 128  # the same of an encoder: tokens of a sequence
RANK_BUCKET = 512  # context at which candidates are compared
FINALISTS = 3
MAX_RACKS = 64
MAX_HEAD = 1024  # chips of a head group


@dataclass
class _Search:
    config: ModelConfig
    target: Target
    options: Options

    @cached_property
    def chip(self) -> ChipSpec:
        return roomy(self.config, self.target)

    @cached_property
    def memory(self) -> MemoryOptions:
        asked = asked_context(self.config, self.options)
        most = ENCODED if self.config.encoder is not None else MIN_CONTEXT
        context = asked or min(most, self.config.max_position_embeddings)
        if self.config.encoder is not None:
            rows = context_buckets(self.options, context, encoder=True)
            return MemoryOptions(
                dtype=self.options.rows_dtype, context=context, rows=rows, forward_row_bytes={},
                group=self.options.group,
            )  # fmt: skip
        longest = asked or self.config.max_position_embeddings
        chunk = min(self.options.prefill_chunk or min(MIN_CHUNK, context), longest)
        decoded = decode_sizes(self.options.batch)
        return MemoryOptions(
            dtype=self.options.rows_dtype, context=context, rows=(*decoded, *prefill_sizes(chunk)),
            forward_row_bytes={}, top_k=self.options.top_k, group=self.options.group,
            sequences=self.options.sequences, decode_rows=decoded,
        )  # fmt: skip

    def excess(self, layout: Layout) -> int:
        """Return the bytes that the fullest chip lacks; zero or less if the layout fits."""
        split = partition(build_graph(self.config), layout)
        return self._missing(split, list(chip_classes(split, {}).values()))

    def head_excess(self, head: int) -> int:
        """Return the same for a head group alone."""
        layout = Layout(stages=1, group=1, head=head)
        split = partition(build_graph(replace(self.config, num_layers=1)), layout)
        chips = [chip for chip in chip_classes(split, {}).values() if chip in layout.head_chips]
        return self._missing(split, chips)

    def _missing(self, split: Partition, chips: Sequence[int]) -> int:
        """Return the bytes that the fullest of some chips lacks, used as it lacks the least."""
        needed = min(
            max(bytes_needed(split, chip, self.memory, spec) for chip in chips)
            for spec in ways_to_fit(self.options, self.chip)
        )
        return needed - self.chip.sram_bytes

    def fewest_stages(self, group: int, most: int) -> int | None:
        """Return the fewest stages of `group` chips that hold the layers, or None."""
        head = self.smallest_head
        low, high = 1, min(most, self.config.num_layers)
        if high < 1 or self.excess(Layout(stages=high, group=group, head=head)) > 0:
            return None
        while low < high:
            middle = (low + high) // 2
            if self.excess(Layout(stages=middle, group=group, head=head)) > 0:
                low = middle + 1
            else:
                high = middle
        return low

    @cached_property
    def smallest_head(self) -> int:
        if self.config.encoder is not None:
            return 0
        low, high = 1, MAX_HEAD
        if self.head_excess(high) > 0:
            name = self.config.name
            raise CompilerError(f"{name}: no group of chips up to {MAX_HEAD} holds the LM head")
        while low < high:
            middle = (low + high) // 2
            if self.head_excess(middle) > 0:
                low = middle + 1
            else:
                high = middle
        return low

    def candidates(self, chips: int) -> Iterator[Layout]:
        """Yield the layouts of at most `chips` chips that fit."""
        for group in GROUP_SIZES:
            stages = self.fewest_stages(group, chips // group)
            if stages is None:
                continue
            left = chips - stages * group
            shared = Layout(stages=stages, group=group)
            if self.excess(shared) <= 0:
                yield shared
            if self.config.encoder is not None:
                continue
            units = -(-self.config.vocab_size // COLUMN_UNIT)  # further chips would be empty
            for head in sorted({self.smallest_head, group, min(left, units)}):
                if self.smallest_head <= head <= left:
                    yield Layout(stages=stages, group=group, head=head)

    def estimate(self, layout: Layout) -> int:
        """Return the estimated cycles per token, from models cut to one and to two stages.

        If the chips of a cut machine cannot be connected, the whole model is scheduled instead.
        """
        if layout.stages <= 2:
            return self.cycles(layout, self.config)
        per_stage = -(-self.config.num_layers // layout.stages)
        try:
            one, two = (
                self.cycles(
                    replace(layout, stages=stages),
                    replace(self.config, num_layers=stages * per_stage),
                )
                for stages in (1, 2)
            )
        except LayoutError:
            return self.cycles(layout, self.config)
        return two + (two - one) * (self.config.num_layers - 2 * per_stage) // per_stage

    def cycles(self, layout: Layout, config: ModelConfig) -> int:
        """Return the cycles of one decode step at RANK_BUCKET, or of an encoder's largest step."""
        context = self.memory.context
        if config.encoder is not None:
            options = replace(self.options, max_model_len=context, buckets=(context,))
            compiled = compile_model(config, self.target, layout, options, kinds="estimate")
            return compiled.encode_step(context).cycles
        bucket = min(RANK_BUCKET, context)
        options = replace(self.options, max_model_len=context, buckets=(bucket,))
        compiled = compile_model(config, self.target, layout, options, kinds="estimate")
        return compiled.steps[f"decode/{bucket}"].cycles


def choose_layout(
    config: ModelConfig, target: Target, options: Options,
    progress: Callable[[int, int], None] = lambda done, layouts: None, *, spares: int = 0,
) -> Layout:  # fmt: skip
    """Return the layout that `--layout auto` means. Raises CompilerError if none fits.

    `spares` chips of its racks are left free.
    `progress` is called with the layouts tried and their count; an error that it raises ends the
    search.
    """
    search = _Search(config, target, replace(options, binding=None))
    for racks in range(1, MAX_RACKS + 1):
        ranked = []
        candidates = list(search.candidates(racks * target.chips_per_rack - spares))
        for tried, layout in enumerate(candidates):
            progress(tried, len(candidates))
            try:
                ranked.append((search.estimate(layout), layout.chips, layout.group, layout))
            except (LayoutError, CapacityError):
                continue  # cannot be cabled, or forwarding buffers do not fit
        ranked.sort(key=lambda item: item[:3])
        final = []
        for _, chips, group, layout in ranked:
            progress(len(candidates), len(candidates))
            try:
                final.append((search.cycles(layout, config), chips, group, layout))
            except (LayoutError, CapacityError):
                continue
            if len(final) == FINALISTS:
                break
        if final:
            return min(final, key=lambda item: item[:3])[3]
    raise CompilerError(
        f"{config.name}: no layout of up to {MAX_RACKS} racks of {target.name} holds it"
    )


def smallest_layout(config: ModelConfig, target: Target, options: Options) -> Layout | None:
    """Return the layout with the fewest chips that fits, for a CapacityError's advice."""
    search = _Search(config, target, replace(options, binding=None))
    for racks in range(1, MAX_RACKS + 1):
        found = list(search.candidates(racks * target.chips_per_rack))
        if found:
            return min(found, key=lambda layout: (layout.chips, layout.group))
    return None
