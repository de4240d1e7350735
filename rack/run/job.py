"""The job of one chip process: small, picklable, the same for every transport.

A job has no weights in it: a chip opens the `WeightsRef` and reads only its own columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chip.kernels import load as load_kernels
from chip.kernels.packed import BLOCK, groups_of, packed_vectors
from chip.kernels.quant import write_tiles
from chip.ops.cost import CostModel
from chip.ops.moves import Receive, Send
from chip.ops.opcodes import Region
from chip.ops.program import Program
from chip.run.chip import Carrier, Chip, ChipLink, Departure, Watch
from chip.spec import VECTOR_BYTES, ChipSpec
from chip.sram import NONE, Sram
from compiler.ir import LinkUse, Tensor
from compiler.model.operation import Kind, WeightTensor
from compiler.model.weights import WeightSource, WeightsRef
from compiler.place.allocate import GROUP_SCALE
from compiler.place.partition import Piece, Weight, biases_of, weights_of
from rack.run.flagged import LinkErrors

if TYPE_CHECKING:  # a chip's process needs no compiler
    from compiler.pipeline import CompiledModel
    from rack.run.stored import Images

PROCESS_BYTES = 100 << 20  # assumption: a chip process beside its SRAM: NumPy, ZeroMQ, Ray
BLOCK_COLUMNS = 320  # columns quantised and tiled at a time: one block of the tiled layout


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorLoad:
    """One constant to load: matrices, by their columns, or vectors, by their parts.

    Several lie one behind the other, in equal shares of the tensor.
    """

    tensor: Tensor
    weights: tuple[Weight, ...] = ()
    vectors: tuple[tuple[Piece, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipJob:
    """One logical chip: its memory, programs and links. `host` is the host's node id."""

    index: int
    spec: ChipSpec
    dtype: str
    int4_group: int | None
    loads: tuple[TensorLoad, ...]
    caches: tuple[Tensor, ...]
    programs: tuple[Program, ...]
    links: tuple[LinkUse, ...]  # at this chip's ports, both directions
    weights: WeightsRef
    host: int
    used_bytes: int  # of SRAM: weights, cache, buffers
    constant_regions: tuple[Region, ...]  # of SRAM, in the order of its image
    costs: CostModel  # of the programs' operations, on the spec they were compiled for
    images: Images | None = None  # read the constants from here instead of the weights
    image: str | None = None  # begin with this file's bytes, which have the constants (shared.py)
    executor: str = "fast"  # or "reference"
    sequences: int = 1  # slots of the KV cache
    errors: LinkErrors = field(default_factory=dict)  # of the links that make some


def chip_links(links: tuple[LinkUse, ...]) -> dict[int, ChipLink]:
    """Return a chip's view of its links."""
    return {
        link.id: ChipLink(
            name=link.name, slot_cycles=link.slot_cycles, rx_window_cycles=link.rx_window_cycles
        )
        for link in links
    }


def links_of(compiled: CompiledModel, node: int) -> tuple[LinkUse, ...]:
    """Return the links with one end at a node."""
    return tuple(link for link in compiled.network.links if node in (link.src, link.dst))


def programs_of(compiled: CompiledModel, node: int) -> tuple[Program, ...]:
    """Return a node's programs, one for each step."""
    return tuple(step.programs[node] for step in compiled.steps.values())


def loads_of(compiled: CompiledModel, index: int) -> tuple[TensorLoad, ...]:
    """Return the constants of a chip, in the order of its memory."""
    memory = compiled.memories[index]
    matrices: dict[str, tuple[Weight, ...]] = {}
    vectors: dict[str, tuple[tuple[Piece, ...], ...]] = {}
    for group, rank in compiled.partition.groups_of(index):
        for name, piece in compiled.partition.vectors_of(group, rank).items():
            vectors[name] = ((piece,),)
        for op in compiled.partition.ops(group):
            if op.is_product:
                matrices[op.name] = weights_of(compiled.config, group, rank, op)
                if op.biases:
                    vectors[f"{op.name}.bias"] = biases_of(compiled.config, group, rank, op)
            elif op.kind in (Kind.NORM, Kind.LAYER_NORM):
                vectors[op.name] = ((_whole(op.tensors[0]),),)
                vectors |= {f"{op.name}.bias": ((_whole(bias),),) for bias in op.biases}
    loads = []
    for tensor in memory.tensors:
        if tensor.kind == "weight":
            loads.append(TensorLoad(tensor=tensor, weights=matrices[tensor.name]))
        elif tensor.kind in ("norm", "bias"):
            loads.append(TensorLoad(tensor=tensor, vectors=vectors[tensor.name]))
        elif tensor.kind in ("scale", GROUP_SCALE):
            loads.append(TensorLoad(tensor=tensor))
    return tuple(loads)


def chip_job(
    compiled: CompiledModel, index: int, weights: WeightsRef, images: Images | None = None,
    executor: str = "fast",
) -> ChipJob:  # fmt: skip
    """Return one chip's part of a compiled model."""
    memory = compiled.memories[index]
    programs = programs_of(compiled, index)
    operations = (o for program in programs for o in program.operations)
    computing = (o.op for o in operations if not isinstance(o.op, Send | Receive))
    return ChipJob(
        index=index,
        spec=compiled.chip,
        dtype=compiled.dtype,
        int4_group=compiled.int4_group,
        loads=loads_of(compiled, index),
        caches=tuple(tensor for tensor in memory.tensors if tensor.kind == "kv"),
        programs=programs,
        links=links_of(compiled, index),
        weights=weights,
        host=compiled.layout.chips,
        used_bytes=memory.sram_bytes - memory.free_bytes,
        constant_regions=memory.constant_regions,
        images=images,
        executor=executor,
        costs=compiled.costs.only(computing),
        sequences=compiled.sequences,
    )


def ports_of(links: Sequence[LinkUse], node: int) -> dict[int, int]:
    """Return link -> port: a chip's links numbered in their order, each direction from 0 on."""
    out = [sorted(link.id for link in links if link.src == node)]
    out.append(sorted(link.id for link in links if link.dst == node))
    return {link: port for links in out for port, link in enumerate(links)}


def reserve_tensors(job: ChipJob, sram: Sram) -> None:
    """Reserve every constant and cache of a chip. Raises SramError if two overlap.

    Only caches of layers may, which lie in turns where there are slots.
    """
    for load in job.loads:
        sram.reserve(load.tensor.name, load.tensor.address, load.tensor.size)
    turns = frozenset(tensor.name for tensor in job.caches) if job.sequences > 1 else NONE
    for tensor in job.caches:
        sram.reserve(tensor.name, tensor.address, tensor.size, turns)


def load_weights(job: ChipJob, sram: Sram, source: WeightSource) -> None:
    """Load weights, scales, biases and norms to their addresses; fill the caches with zeros."""
    for load in job.loads:
        if load.vectors:
            whole = sram.tensor(load.tensor.name).view(np.float32)
            for to, parts in zip(_shares(whole, load.vectors), load.vectors, strict=True):
                values = np.concatenate([_read_vector(source, piece) for piece in parts])
                to[: len(values)] = values
        elif load.weights and job.int4_group is not None:
            _load_packed(load, job.int4_group, sram, source)
        elif load.weights:
            _load_matrices(load, job.dtype, sram, source)


def _shares(whole: NDArray[Any], parts: Sequence[object]) -> NDArray[Any]:
    """Cut a tensor's memory into equal shares, one for each of its parts."""
    return whole.reshape(len(parts), -1)


def _whole(tensor: WeightTensor) -> Piece:
    return Piece(tensor=tensor.name, start=0, stop=tensor.rows, offset=tensor.offset)


def _read_vector(source: WeightSource, piece: Piece) -> NDArray[np.float32]:
    values = source.vector(piece.tensor)[piece.start : piece.stop]
    return values + np.float32(piece.offset) if piece.offset else values


def _load_matrices(load: TensorLoad, dtype: str, sram: Sram, source: WeightSource) -> None:
    """Write matrices into their tiles."""
    name, weights = load.tensor.name, load.weights
    flat = _shares(sram.tensor(name).view(np.int8 if dtype == "int8" else np.float16), weights)
    scales: Sequence[NDArray[np.float32] | None] = [None] * len(weights)
    if dtype == "int8":
        scales = list(_shares(sram.tensor(f"{name}.scale").view(np.float32), weights))
    for weight, to, scale in zip(weights, flat, scales, strict=True):
        _load_matrix(weight, to, scale, source)


def _load_matrix(
    weight: Weight, flat: NDArray[Any], scales: NDArray[np.float32] | None, source: WeightSource
) -> None:
    """Write a matrix into its tiles, block by block, so that no second copy of it exists."""
    tiles, column = -(-weight.k // VECTOR_BYTES), 0
    for rows in _blocks(weight, BLOCK_COLUMNS):
        width = sum(stop - start for _, start, stop in rows)
        size = tiles * width * VECTOR_BYTES
        block = flat[:size].reshape(tiles, width, VECTOR_BYTES)
        at, flat = 0, flat[size:]
        for tensor, start, stop in rows:
            n = stop - start
            if scales is not None:
                first = column + at
                scales[first : first + n] = source.fill_int8(tensor, start, stop, block, at)
            else:
                write_tiles(source.f16_rows(tensor, start, stop), block, at)
            at += n
        column += width


def _load_packed(load: TensorLoad, group: int, sram: Sram, source: WeightSource) -> None:
    """Write int4 matrices into their tiles, and their scales a row a group."""
    name, weights = load.tensor.name, load.weights
    flat = _shares(sram.tensor(name).view(np.int8), weights)
    scales = _shares(sram.tensor(f"{name}.scale").view(np.float32), weights)
    for weight, to, scale in zip(weights, flat, scales, strict=True):
        _pack_matrix(weight, group, to, scale.reshape(groups_of(weight.k, group), -1), source)


def _pack_matrix(
    weight: Weight, group: int, flat: NDArray[np.int8], scales: NDArray[np.float32],
    source: WeightSource,
) -> None:  # fmt: skip
    """Write one as `_load_matrix` does."""
    tiles, column = -(-weight.k // VECTOR_BYTES), 0
    for rows in _blocks(weight, BLOCK):
        width = sum(stop - start for _, start, stop in rows)
        vectors = packed_vectors(width)
        size = tiles * vectors * VECTOR_BYTES
        block = flat[:size].reshape(tiles, vectors, VECTOR_BYTES)
        at, flat = 0, flat[size:]
        for tensor, start, stop in rows:
            to = slice(column + at, column + at + stop - start)
            scales[:, to] = source.fill_int4(tensor, start, stop, group, block, at)
            at += stop - start
        column += width


def _blocks(weight: Weight, columns: int) -> Iterator[list[tuple[str, int, int]]]:
    """Yield the rows of the pieces for each block of so many columns; the last may be short."""
    rows: list[tuple[str, int, int]] = []
    room = columns
    for piece in weight.pieces:
        start = piece.start
        while start < piece.stop:
            stop = min(piece.stop, start + room)
            rows.append((piece.tensor, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield rows
                rows, room = [], columns
    if rows:
        yield rows


def build_chip(
    job: ChipJob, send: Departure, kernels: str | None = None, watch: Watch | None = None,
    carrier: Carrier | None = None,
) -> Chip:  # fmt: skip
    """Make the chip: memory, weights, programs. Errors of loading and checking pass through."""
    sram = Sram(job.spec.sram_bytes, job.image)
    reserve_tensors(job, sram)
    if job.image is not None:
        pass
    elif job.images is not None:
        job.images.read(job.index, [sram.memory(*region) for region in job.constant_regions])
    else:
        load_weights(job, sram, job.weights.open())
    links, computing = chip_links(job.links), load_kernels(kernels)
    parts = (job.index, job.spec, sram, links, computing, send, job.costs)
    if job.executor == "reference":
        from chip.run.reference import ReferenceChip
        from compiler.codegen.lower import lower

        ports = ports_of(job.links, job.index)
        slots = {link.id: link.slot_cycles for link in job.links}
        chip: Chip = ReferenceChip(
            *parts, lower=partial(lower, spec=job.spec, ports=ports, slots=slots), ports=ports,
            sequences=job.sequences,
        )  # fmt: skip
    else:
        chip = Chip(*parts, watch, sequences=job.sequences, carrier=carrier)
    for program in job.programs:
        chip.load_program(program)
    return chip
