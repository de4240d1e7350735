"""Compile a model for a layout: the passes in order.

graph -> partition -> network -> memory -> steps -> schedule -> verify -> schedule_hash. Each pass
is a function of the results before it. Nothing here reads weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import msgpack

from chip.ops.cost import CostModel
from chip.ops.kv import ring_of
from chip.ops.program import Computation
from chip.ops.rows import row_bytes
from chip.spec import INT4_GROUPS, ChipSpec, vectors
from compiler.codegen.cost import cost_model
from compiler.codegen.table import check_law
from compiler.errors import CapacityError, CompilerError
from compiler.ir import Memory, StepKind, StepSchedule
from compiler.model.config import ModelConfig
from compiler.model.graph import build_graph
from compiler.parallel import Checks, collector_off
from compiler.place.allocate import allocate_chip, bytes_needed, chip_classes
from compiler.place.buffers import FORWARD_SLOTS, MemoryOptions, tokens_kept
from compiler.place.layout import Layout
from compiler.place.network import Network, build_network
from compiler.place.partition import Partition, partition
from compiler.place.target import Target, turnaround_cycles
from compiler.schedule.assembly import Assembly, Times
from compiler.schedule.interval import initiation_cycles
from compiler.schedule.movement import forward_rows
from compiler.schedule.scheduler import Scheduler
from compiler.schedule.steps import StepPlanner, slower_paces
from compiler.verify.pairs import check_pairs
from compiler.verify.verifier import verify

FORMAT_VERSION = 4
MAX_CHUNK = 128  # most prompt tokens per prefill step by default: no more than rings allow
MIN_CHUNK = 16  # prefill chunk for which the default context leaves room
FIRST_BUCKET = 256
MAX_SEQUENCES = 1 << 16  # slots: far more than any SRAM has room for
WORTH_FORKING = 200  # programs; verifying one takes some 10 ms
DTYPES = ("int8", "int4", "fp16")
FEED_SLICES = {"int8": 2, "fp16": 1}  # of a hemisphere: a slice for each array of the MXM
ROOMY = 3  # work slices that hold the rows of a whole sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a compilation; None lets the compiler choose."""

    dtype: str = "int8"
    int4_group: int | None = None  # rows of K to a scale of int4 weights: a whole tile by default
    max_model_len: int | None = None
    prefill_chunk: int | None = None
    buckets: tuple[int, ...] | None = None
    top_k: int = 0  # 0 returns all logits, K returns the K largest of each head chip
    binding: tuple[int, ...] | None = None
    sequences: int = 1  # slots, each with a KV cache of its own
    batch: int = 1  # most rows of a decode step, each of another slot

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise CompilerError(f"dtype: wanted one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.int4_group is not None:
            if self.dtype != "int4":
                raise CompilerError(
                    f"int4_group: wanted dtype int4, whose weights have groups, got {self.dtype}"
                )
            if self.int4_group not in INT4_GROUPS:
                known = ", ".join(map(str, INT4_GROUPS))
                raise CompilerError(f"int4_group: wanted one of {known}, got {self.int4_group}")
        for name in ("max_model_len", "prefill_chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CompilerError(f"{name}: wanted at least 1, got {value}")
        if self.top_k < 0:
            raise CompilerError(f"top_k: wanted 0 or more, got {self.top_k}")
        if not 1 <= self.sequences <= MAX_SEQUENCES:
            raise CompilerError(f"sequences: wanted 1 to {MAX_SEQUENCES}, got {self.sequences}")
        if not 1 <= self.batch <= self.sequences:
            wanted = f"1 to {self.sequences}, as many as there are sequences"
            raise CompilerError(f"batch: wanted {wanted}, got {self.batch}")
        if self.buckets is not None and (
            not self.buckets or list(self.buckets) != sorted({*self.buckets}) or self.buckets[0] < 1
        ):
            raise CompilerError(f"buckets: wanted rising positive sizes, got {self.buckets}")

    @property
    def rows_dtype(self) -> str:
        """The type of activations and of the KV cache."""
        return "int8" if self.dtype == "int4" else self.dtype

    @property
    def group(self) -> int | None:
        """Rows of K to a scale of int4 weights; None for others."""
        return (self.int4_group or INT4_GROUPS[0]) if self.dtype == "int4" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledModel:
    """A compiled model: each chip's memory and programs, to the cycle.

    `int4_group`: rows of K to a scale of int4 weights; None for others.
    """

    config: ModelConfig
    target_name: str
    chip: ChipSpec
    layout: Layout
    dtype: str
    int4_group: int | None
    max_model_len: int
    prefill_chunk: int
    buckets: tuple[int, ...]
    top_k: int
    partition: Partition
    network: Network
    memories: tuple[Memory, ...]
    steps: dict[str, StepSchedule]
    schedule_hash: str
    costs: CostModel
    sequences: int = 1
    batch: int = 1
    _intervals: dict[tuple[str, str], int] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def step(self, rows: int, context: int, *, decode: bool) -> StepSchedule:
        """Return the step for so many rows or more, for contexts up to `context`.

        A decode step's rows are of different slots, all up to `batch` of them.
        """
        bucket = next((b for b in self.buckets if b >= context), None)
        if bucket is None:
            raise CompilerError(f"context: wanted at most {self.max_model_len}, got {context}")
        sizes = self.decode_sizes if decode else sorted(self.prefill_sizes)
        size = next(size for size in sizes if size >= rows)
        return self.steps[StepKind(rows=size, bucket=bucket, decode=decode).name]

    def cycles_until(self, name: str, following: str | None) -> int:
        """Return the cycles from the base of step `name` to the base of the next step.

        If `following` is given, it may begin before this step has ended. Raises KeyError for an
        unknown step.
        """
        return self.steps[name].cycles if following is None else self.interval(name, following)

    def interval(self, first: str, then: str) -> int:
        """Return the least cycles from the base of step `first` to the base of a later `then`.

        With clocks that stray steps never overlap, because clocks are set at the start of a step.
        Raises KeyError for an unknown step.
        """
        key = first, then
        if key not in self._intervals:
            step, later = self.steps[first], self.steps[then]
            alone = self.network.clock.strays
            self._intervals[key] = step.cycles if alone else initiation_cycles(step, later)
        return self._intervals[key]

    def encode_step(self, tokens: int) -> StepSchedule:
        """Return the step for a sequence of an encoder."""
        size = next((b for b in self.buckets if b >= tokens), None)
        if size is None:
            raise CompilerError(f"tokens: wanted at most {self.max_model_len}, got {tokens}")
        return self.steps[encode_kind(size).name]

    def step_for(self, context: int) -> StepSchedule:
        """Return the decode step with so many tokens in context, or an encoder's for so many."""
        if self.config.encoder is not None:
            return self.encode_step(context)
        return self.step(1, context, decode=True)

    @property
    def prefill_sizes(self) -> tuple[int, ...]:
        return prefill_sizes(self.prefill_chunk)

    @property
    def decode_sizes(self) -> tuple[int, ...]:
        """Row counts of decode steps, rising."""
        return decode_sizes(self.batch)


def prefill_sizes(chunk: int) -> tuple[int, ...]:
    """Return the row counts of prefill steps: the chunk, then quarters of it down to 4."""
    sizes = [chunk]
    while sizes[-1] > 4:
        sizes.append(sizes[-1] // 4)
    return tuple(sizes)


def decode_sizes(batch: int) -> tuple[int, ...]:
    """Return the row counts of decode steps, rising: the powers of two below `batch`, and it."""
    sizes = [1]
    while 2 * sizes[-1] < batch:
        sizes.append(2 * sizes[-1])
    return tuple(sorted({*sizes, batch}))


def encode_sizes(context: int) -> tuple[int, ...]:
    """Token counts that an encoder is compiled for, rising: `prefill_sizes`, but no single one."""
    return tuple(sorted({size for size in prefill_sizes(context) if size > 1} | {context}))


def encode_kind(size: int) -> StepKind:
    """Return the step of an encoder for up to so many tokens."""
    return StepKind(rows=size, bucket=size, decode=False, encode=True)


def context_buckets(
    options: Options, context: int, *, encoder: bool = False, kept: int | None = None
) -> tuple[int, ...]:
    """Return the context sizes that attention is compiled for; the last is the whole context.

    `kept`: the most tokens that any layer keeps. All longer contexts are alike.
    """
    if options.buckets is not None:
        return (*(bucket for bucket in options.buckets if bucket < context), context)
    if encoder:
        return encode_sizes(context)
    out, bucket, longest = [], FIRST_BUCKET, context if kept is None else kept
    while bucket < longest:
        out.append(bucket)
        bucket *= 2
    return (*out, context)


def step_kinds(
    sizes: Sequence[int], buckets: Sequence[int], decode_rows: Sequence[int] = (1,)
) -> list[StepKind]:
    """Return every step of a model: decode, then prefill sizes, for every bucket."""
    decode = [
        StepKind(rows=rows, bucket=bucket, decode=True)
        for rows in decode_rows for bucket in buckets
    ]  # fmt: skip
    return decode + [
        StepKind(rows=size, bucket=bucket, decode=False) for size in sizes for bucket in buckets
    ]


def asked_context(config: ModelConfig, options: Options) -> int | None:
    """Return the context asked for, if any. Raises CompilerError for more than the model has."""
    limit, asked = config.max_position_embeddings, options.max_model_len
    if asked is not None and asked > limit:
        raise CompilerError(f"max_model_len: {config.name} has {limit} positions, got {asked}")
    return asked


def fit_options(
    split: Partition, network: Network, spec: ChipSpec, options: Options
) -> MemoryOptions:
    """Choose the largest context that fits, then the largest prefill chunk.

    Values that were asked for are taken as they are; `allocate_chip` refuses what does not fit.
    Raises CompilerError if the context asked for is more than the model's positions.
    """
    asked, is_encoder = asked_context(split.config, options), split.config.encoder is not None
    forward = forward_rows(split, network)
    enough = _fits(split, network, spec, options)
    context = asked or largest_context(split, network, spec, options)
    if is_encoder:
        if asked is None:  # less is no step; what does not fit is refused with its bytes
            context = max(context, min(2, split.config.max_position_embeddings))
        return _encoder_memory(options, context, forward, split.config.name)
    chunk = min(options.prefill_chunk or MIN_CHUNK, context)
    _check_rings(split.config, chunk, context)
    if options.prefill_chunk is None:
        most = min(MAX_CHUNK, context, _rows_at_once(split, network))
        while chunk * 2 <= most and enough(context, chunk * 2):
            chunk *= 2
    return _memory_options(options, context, chunk, forward)


def _check_rings(config: ModelConfig, chunk: int, context: int) -> None:
    """Refuse a chunk whose last rows would write over tokens that its first row sees."""
    for window in {window for window in config.windows if window is not None}:
        ring = ring_of(window, context)
        if ring is not None and chunk > (most := ring - window + 1):
            raise CompilerError(
                f"prefill_chunk: {config.name} keeps {ring} tokens for a window of {window}, so it "
                f"wants at most {most}, got {chunk}"
            )


def largest_context(split: Partition, network: Network, spec: ChipSpec, options: Options) -> int:
    """Return the largest context that fits with the chunk asked for, else with the smallest."""
    limit = split.config.max_position_embeddings
    enough = _fits(split, network, spec, options)
    if split.config.encoder is not None:
        return _largest(lambda context: enough(context, context), limit)
    chunk = options.prefill_chunk or min(MIN_CHUNK, limit)
    return _largest(lambda context: enough(context, min(chunk, context)), limit)


def _fits(
    split: Partition, network: Network, spec: ChipSpec, options: Options
) -> Callable[[int, int], bool]:
    """Return a test of whether a context and a prefill chunk fit all chips."""
    forward = forward_rows(split, network)
    chips = chip_classes(split, forward).values()

    def enough(context: int, chunk: int) -> bool:
        memory = _memory_options(options, context, chunk, forward)
        return any(
            all(bytes_needed(split, c, memory, one) <= spec.sram_bytes for c in chips)
            for one in ways_to_fit(options, spec)
        )

    return enough


def ways_to_fit(options: Options, spec: ChipSpec) -> list[ChipSpec]:
    """Return the chip in every way to use its near slices in which a layout may fit.

    One is tried for one sequence. For several, whose caches are whole turns apart, turns of more
    near slices may be so much shorter that more of them fit.
    """
    return [spec] if options.sequences == 1 else [spec, wide(options.rows_dtype, spec)]


def most_sequences(
    split: Partition, network: Network, spec: ChipSpec, options: Options, context: int
) -> int:
    """Return the most slots of a context that fit, with the chunk asked for, else the smallest.

    0 if not even as many fit as the batch has rows.
    """
    chunk = min(options.prefill_chunk or MIN_CHUNK, context)

    def fits(sequences: int) -> bool:
        asked = replace(options, sequences=sequences)
        return _fits(split, network, spec, asked)(context, chunk)

    low, high = options.batch - 1, MAX_SEQUENCES
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low if low >= options.batch else 0


def _rows_at_once(split: Partition, network: Network) -> int:
    """Return how many rows' residuals pass a link while a chip may count on its own."""
    if not network.sync:
        return MAX_CHUNK
    slot = max(link.slot_cycles for link in network.links)
    row = vectors(row_bytes(split.config.hidden_size, 4)) * slot
    return network.clock.realign_cycles // row


def _memory_options(
    options: Options, context: int, chunk: int, forward: dict[int, int]
) -> MemoryOptions:
    decode_rows = decode_sizes(options.batch)
    rows = tuple(sorted({*decode_rows, *prefill_sizes(chunk)}))
    return MemoryOptions(
        dtype=options.rows_dtype, context=context, rows=rows, forward_row_bytes=forward,
        top_k=options.top_k, group=options.group, sequences=options.sequences,
        decode_rows=decode_rows, prefill_rows=chunk,
    )  # fmt: skip


def _encoder_memory(
    options: Options, context: int, forward: dict[int, int], name: str
) -> MemoryOptions:  # fmt: skip
    """Return what an encoder's memory must hold: a step has the rows of a whole sequence."""
    sizes = context_buckets(options, context, encoder=True)
    if sizes[0] < 2:
        raise CompilerError(
            f"max_model_len: wanted 2 or more, as {name} is an encoder, got {sizes[0]}"
        )
    for key, value in (("prefill_chunk", options.prefill_chunk), ("top_k", options.top_k)):
        if value not in (None, 0, context):
            raise CompilerError(f"{key}: wanted none, as {name} is an encoder, got {value}")
    if options.sequences > 1:
        got = f"got {options.sequences}"
        raise CompilerError(f"sequences: wanted 1, as {name} is an encoder, {got}")
    return MemoryOptions(
        dtype=options.rows_dtype, context=context, rows=sizes, forward_row_bytes=forward,
        group=options.group,
    )  # fmt: skip


def _largest(fits: Any, limit: int) -> int:
    """Return the largest multiple of 16 (or `limit`) that fits; at least 1 is returned."""
    if fits(limit):
        return limit
    low, high = 0, limit // 16
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle * 16):
            low = middle
        else:
            high = middle - 1
    return max(1, low * 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """The ground on which steps are scheduled: a compiled model without its cycles."""

    partition: Partition
    network: Network
    memory: MemoryOptions
    memories: tuple[Memory, ...]
    buckets: tuple[int, ...]
    costs: CostModel

    def planner(self, kind: StepKind) -> StepPlanner:
        """Return the planner of one step."""
        return StepPlanner(
            self.partition, self.network, list(self.memories), kind, self.memory, self.costs
        )

    @property
    def chunk(self) -> int:
        """Rows of the largest prefill step."""
        return self.memory.prefill_rows or self.memory.rows[-1]

    @property
    def kinds(self) -> list[StepKind]:
        """Every step of the model."""
        if self.partition.config.encoder is not None:
            return [encode_kind(size) for size in self.buckets]
        return step_kinds(prefill_sizes(self.chunk), self.buckets, self.memory.decode_rows)


def roomy(config: ModelConfig, target: Target) -> ChipSpec:
    """Return the chip by which it is decided what fits: an encoder may have more work slices."""
    spec = target.chip
    if config.encoder is None or spec.slices_per_hop < ROOMY:
        return spec
    return replace(spec, work_slices=ROOMY)


@collector_off()
def lay_out(config: ModelConfig, target: Target, layout: Layout, options: Options) -> Ground:
    """Deal a model over chips, cable the chips and give every tensor its address.

    Products leave gaps for vectors of links, more of them for faster links. Where that costs more
    than it brings, links are driven at a slower pace: the one at which a decode step takes the
    fewest cycles, so that no link is too fast. Raises LayoutError, CapacityError or CompilerError.
    """
    split = partition(build_graph(config), layout)
    placed = _Placed(split, target, options)
    ground = _on_links(placed, 0)
    slot = max((link.slot_cycles for link in ground.network.links if not link.is_host), default=0)
    if config.encoder is not None or not slot or not (paces := slower_paces(slot)):
        return ground
    grounds = [ground]
    for pace in paces:
        with suppress(CapacityError):  # other ways may take other buffers
            grounds.append(_on_links(placed, pace))
    kind = StepKind(rows=1, bucket=ground.buckets[0], decode=True)
    return min(grounds, key=lambda one: schedule_step(one, kind, target).cycles)


class _Placed:
    """A partition in memory. All networks that ask for the same are given the same."""

    def __init__(self, split: Partition, target: Target, options: Options) -> None:
        self.split, self.target, self.options = split, target, options
        self._known: dict[object, tuple[MemoryOptions, ChipSpec, tuple[Memory, ...]]] = {}

    def on(self, network: Network) -> tuple[MemoryOptions, ChipSpec, tuple[Memory, ...]]:
        """Return what memory holds, the chip and the memories. Raises as `lay_out` does."""
        forward = forward_rows(self.split, network)
        key = (*sorted(forward.items()), _rows_at_once(self.split, network))
        if key not in self._known:
            self._known[key] = self._place(network)
        return self._known[key]

    def _place(self, network: Network) -> tuple[MemoryOptions, ChipSpec, tuple[Memory, ...]]:
        split, target = self.split, self.target
        memory = fit_options(split, network, roomy(split.config, target), self.options)
        spec = _near_slices(split, memory, target.chip)
        chips = range(split.layout.chips)
        return memory, spec, tuple(allocate_chip(split, chip, memory, spec) for chip in chips)


def _on_links(placed: _Placed, pace: int) -> Ground:
    """Lay a partition out, links at a pace (`build_network`)."""
    split, options = placed.split, placed.options
    config = split.config
    network = build_network(split, placed.target, options.binding, pace)
    memory, spec, memories = placed.on(network)
    context = memory.context
    kept = max(tokens_kept(config, layer, context) for layer in range(config.num_layers))
    return Ground(
        partition=split, network=network, memory=memory, memories=memories,
        buckets=context_buckets(options, context, encoder=config.encoder is not None, kept=kept),
        costs=cost_model(spec),
    )  # fmt: skip


def _near_slices(split: Partition, memory: MemoryOptions, spec: ChipSpec) -> ChipSpec:
    """Return the chip with as many work and feed slices as its memory leaves room for.

    Where no way fits, it is the one that lacks the least, so that what is missing is told.
    An encoder, whose steps have the rows of whole sequences, may take more work slices instead.
    """
    chips = chip_classes(split, memory.forward_row_bytes).values()

    def fits(one: ChipSpec) -> bool:
        return all(bytes_needed(split, chip, memory, one) <= spec.sram_bytes for chip in chips)

    def needed(one: ChipSpec) -> int:
        return max(bytes_needed(split, chip, memory, one) for chip in chips)

    choices = [wide(memory.dtype, spec)]
    if split.config.encoder is not None:
        choices += [replace(spec, work_slices=ROOMY)] * (spec.slices_per_hop >= ROOMY)
    elif memory.sequences == 1 and not fits(spec):  # refused, however the slices are used
        return spec
    found = next(filter(fits, choices), None)
    if found is None and memory.sequences > 1:
        return min((spec, *choices), key=needed)
    return found or spec


def wide(dtype: str, spec: ChipSpec) -> ChipSpec:
    """Return a chip with the most work and feed slices, for products in `dtype`.

    More of them make steps of many rows faster, and nothing slower. All lie as near to the VXM as
    the first, so that no way is longer; fp16 needs an odd number of the others.
    """
    most = replace(spec, work_slices=2, feed_slices=FEED_SLICES[dtype])
    return most if most.near_slices <= spec.slices_per_hop else spec


def forward_slots(planner: StepPlanner) -> dict[int, tuple[list[int], int]]:
    """Return each forwarding chip's addresses for messages that pass through; 0 are in use."""
    return {
        chip: ([buffers[f"forward.{slot}"] for slot in range(FORWARD_SLOTS)], 0)
        for chip, buffers in enumerate(planner.buffers)
        if "forward.0" in buffers
    }


def schedule_step(ground: Ground, kind: StepKind, target: Target) -> StepSchedule:
    """Plan one step and place it in time."""
    planner = ground.planner(kind)
    return assembled(ground, planner, target, Scheduler(ground.costs, ground.network))


def assembled(ground: Ground, planner: StepPlanner, target: Target, times: Times) -> StepSchedule:
    """Place a planned step at given times."""
    assembly = Assembly(times, ground.network, forward_slots(planner))
    for item in planner.plan():
        assembly.place(item)
    turnaround = turnaround_cycles(target, planner.kind)
    return assembly.finish(planner.kind, planner.host, turnaround)


@collector_off()
def compile_model(
    config: ModelConfig,
    target: Target,
    layout: Layout,
    options: Options | None = None,
    *,
    kinds: str = "all",
    contexts: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda done, steps: None,
) -> CompiledModel:
    """Compile a model for a layout on a machine.

    `kinds`: "all" steps, "decode" steps only, or an "estimate" (the smallest bucket's decode
    step, not verified; nothing may run it); an encoder's steps count as decode steps. `contexts`
    keeps only the buckets that these contexts need; a larger one counts as the largest. `progress`
    is called often with the steps done and the steps in all; an error that it raises ends the
    compilation. Raises LayoutError, CapacityError or CompilerError. A ScheduleError is our own bug.
    """
    ground = lay_out(config, target, layout, options or Options())
    return compile_on(ground, config, target, layout, kinds, contexts, progress)


@collector_off()
def compile_on(
    ground: Ground, config: ModelConfig, target: Target, layout: Layout, kinds: str = "all",
    contexts: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda done, steps: None,
    *, forks: bool = True,
) -> CompiledModel:  # fmt: skip
    """Compile steps on a ground of the same model, machine and layout, as `compile_model` does.

    Several compilations may share one ground. Without `forks` all checks run in this process.
    """
    network = ground.network
    wanted = _wanted(kinds, ground, _holding(contexts, ground.buckets))
    steps: dict[str, StepSchedule] = {}
    about = (
        ground.costs, network.links, ground.memories, network.clock, network.sync, config,
        ground.memory.sequences,
    )  # fmt: skip
    lawful = 0  # shapes whose templates are checked
    forked = forks and layout.chips * len(wanted) > WORTH_FORKING
    with Checks(forked=forked, tick=lambda: progress(len(steps), len(wanted))) as checks:
        for kind in wanted:
            progress(len(steps), len(wanted))
            step = schedule_step(ground, kind, target)
            steps[kind.name] = step
            if kinds != "estimate":
                checks.add(partial(verify, [(step, 0)], *about))
                shapes = list(ground.costs.known)
                checks.add(partial(check_laws, shapes[lawful:], ground.costs.spec))
                lawful = len(shapes)
        compiled = compiled_model(config, target, layout, ground, steps)
        if kinds != "estimate":
            every = list(steps.values())
            checks.add(partial(check_pairs, every, compiled.interval, ground.costs, network.links))
    progress(len(steps), len(wanted))
    if kinds == "estimate":
        return compiled
    return replace(compiled, schedule_hash=schedule_digest(compiled))


def check_laws(shapes: Sequence[Computation], spec: ChipSpec) -> None:
    """Raise TemplateError for an operation that the machine would refuse."""
    for shape in shapes:
        check_law(shape, spec)


def compiled_model(
    config: ModelConfig, target: Target, layout: Layout, ground: Ground,
    steps: dict[str, StepSchedule],
) -> CompiledModel:  # fmt: skip
    """Return a compiled model that has no hash yet."""
    return CompiledModel(
        config=config, target_name=target.name, chip=ground.costs.spec, layout=layout,
        dtype=ground.memory.dtype if ground.memory.group is None else "int4",
        int4_group=ground.memory.group, max_model_len=ground.memory.context,
        prefill_chunk=ground.chunk, buckets=ground.buckets, top_k=ground.memory.top_k,
        partition=ground.partition, network=ground.network, memories=ground.memories, steps=steps,
        schedule_hash="", costs=ground.costs, sequences=ground.memory.sequences,
        batch=ground.memory.decode_rows[-1],
    )  # fmt: skip


def _holding(contexts: Sequence[int] | None, buckets: tuple[int, ...]) -> tuple[int, ...]:
    """Return the buckets that the contexts fall into; all without contexts."""
    if contexts is None:
        return buckets
    cut = [min(context, buckets[-1]) for context in contexts]
    return tuple(sorted({next(b for b in buckets if b >= context) for context in cut}))


def _wanted(kinds: str, ground: Ground, buckets: tuple[int, ...]) -> list[StepKind]:
    if kinds == "estimate":
        buckets = buckets[:1]
    return [
        kind
        for kind in ground.kinds
        if kind.bucket in buckets and (kinds == "all" or kind.decode or kind.encode)
        and (kinds != "estimate" or kind.rows == 1 or kind.encode)
    ]  # fmt: skip


def schedule_digest(compiled: CompiledModel) -> str:
    """Return the SHA-256 of everything that decides what runs when: 64 hex digits.

    The model's name is left out: a folder may have any name.
    """
    digest = hashlib.sha256()
    config = {key: value for key, value in compiled.config.to_dict().items() if key != "name"}
    head = [
        FORMAT_VERSION, config, str(compiled.layout), compiled.dtype,
        compiled.max_model_len, compiled.prefill_chunk, compiled.buckets, compiled.top_k,
        compiled.network.binding, [link.to_list() for link in compiled.network.links],
    ]  # fmt: skip
    if compiled.sequences > 1:
        head.append([compiled.sequences, compiled.batch])
    digest.update(msgpack.packb(head))
    for schedule in compiled.steps.values():
        digest.update(msgpack.packb([schedule.name, schedule.cycles]))
        for program in schedule.programs:
            operations = [operation.to_list() for operation in program.operations]
            digest.update(msgpack.packb(operations))
            if program.realign:
                digest.update(msgpack.packb(program.realign))
    return digest.hexdigest()
