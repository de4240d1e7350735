"""SRAM images that chips of this host have in common, in memory once.

Where weights repeat, chips of one rank hold the same constants at the same addresses. Each such
image is made once, in a file without a name. The SRAM of a chip is a private mapping of that file
(chip/sram.py): constants stay common, and what the chip writes (KV cache, buffers) is its own. The
file has a `/proc` path, so nothing is left behind, however the processes end.

Needs Linux; elsewhere each chip makes an image of its own, of the same bits.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from chip.sram import Sram
from compiler.model.weights import WeightsRef, first_of_kind
from compiler.pipeline import CompiledModel
from compiler.place.partition import Piece
from rack.run.job import ChipJob, TensorLoad, load_weights, loads_of, reserve_tensors

TRANSPORTS = ("local", "process")  # whose chips are all on the driver's host


def shares(weights: WeightsRef, transport: str, *, stored: bool) -> bool:
    """Say whether chips have images in common; those of a stored artifact have not."""
    return weights.repeat and transport in TRANSPORTS and not stored and sys.platform == "linux"


class SharedImages:
    """The images of one rack. Close it when all chips have mapped theirs, or will not."""

    def __init__(self, weights: WeightsRef) -> None:
        self._weights = weights
        self._files: dict[Hashable, int] = {}

    @cached_property
    def _first(self) -> dict[str, str]:
        return first_of_kind(self._weights.config)

    def of(self, job: ChipJob) -> ChipJob:
        """Return the job of a chip that begins with its image, which is made if it is the first."""
        key = _constants(job.loads, self._first)
        if key not in self._files:
            self._files[key] = os.memfd_create("lpu-image", os.MFD_CLOEXEC)
            self._fill(self._files[key], job)
        return replace(job, image=f"/proc/{os.getpid()}/fd/{self._files[key]}")

    def _fill(self, file: int, job: ChipJob) -> None:
        """Write a chip's constants to their addresses; all else is zeros, and takes no memory."""
        os.ftruncate(file, job.spec.sram_bytes)
        sram = Sram(job.spec.sram_bytes)
        reserve_tensors(job, sram)
        load_weights(job, sram, self._weights.open())
        for address, size in job.constant_regions:
            done = 0
            while done < size:
                done += os.pwrite(file, sram.memory(address, size)[done:], address + done)
        sram.close()

    def close(self) -> None:
        """Forget the images; chips keep what they have mapped."""
        while self._files:
            os.close(self._files.popitem()[1])


def sram_in_use(
    compiled: CompiledModel, weights: WeightsRef, transport: str, *, stored: bool
) -> int:
    """Return the bytes of SRAM that a run fills on this host, with common images counted once."""
    memories = compiled.memories
    if not shares(weights, transport, stored=stored):
        return sum(memory.sram_bytes - memory.free_bytes for memory in memories)
    first = first_of_kind(weights.config)
    images = {
        _constants(loads_of(compiled, chip), first): memory.constant_bytes
        for chip, memory in enumerate(memories)
    }
    return sum(images.values()) + sum(m.kv_bytes + m.buffer_bytes for m in memories)


def _constants(loads: Sequence[TensorLoad], first: Mapping[str, str]) -> Hashable:
    """Return what decides an image: equal for chips whose constants are equal byte for byte."""

    def same(pieces: Sequence[Piece]) -> Hashable:
        return tuple(replace(one, tensor=first.get(one.tensor, one.tensor)) for one in pieces)

    return tuple(
        (
            load.tensor.kind, load.tensor.address, load.tensor.size,
            tuple((weight.k, same(weight.pieces)) for weight in load.weights),
            tuple(map(same, load.vectors)),
        )
        for load in loads
    )  # fmt: skip
