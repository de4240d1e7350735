"""The plain data that the passes share: links, memories, steps, schedules.

This module has types only. So the verifier reads a schedule without importing the passes that made
it (docs/design.md, section 4), and the rack carries it without importing them either.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.ops.program import Program

NEVER = int(np.iinfo(np.int64).max)  # the begin of a step for a chip that has no part in it
INSTRUCTION_BYTES = 0  # reported, not reserved: docs/decisions/0006-where-instructions-live.md


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkUse:
    """A directed link that the schedule uses, between logical nodes; the host is node n_chips.

    A vector is received in the last cycle of its window. Without drift and jitter it comes in the
    middle of the window.
    """

    id: int
    name: str
    src: int
    dst: int
    slot_cycles: int
    latency_cycles: int
    rx_window_cycles: int
    is_host: bool

    @property
    def slack_cycles(self) -> int:
        """Most cycles by which a vector may come before or after its nominal time."""
        return self.rx_window_cycles // 2

    def to_list(self) -> list[Any]:
        """Return the plain form that is hashed and stored."""
        return [getattr(self, name) for name in self.__slots__]

    @classmethod
    def from_list(cls, item: list[Any]) -> LinkUse:
        return cls(**dict(zip(cls.__slots__, item, strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A named region of one chip's SRAM. `kind`: weight, scale, bias, norm, kv."""

    name: str
    kind: str
    address: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The contents of a chip's memory. `buffers` maps a step's row count to buffer addresses.

    Weights, keys and values lie from address 0 on, everything else from `work_start` on
    (`chip.sram.work_start`).
    """

    chip: int
    tensors: tuple[Tensor, ...]
    buffers: dict[int, dict[str, int]]
    constant_bytes: int
    kv_bytes: int
    buffer_bytes: int
    sram_bytes: int
    work_start: int

    @property
    def free_bytes(self) -> int:
        used = self.constant_bytes + self.kv_bytes + self.buffer_bytes + INSTRUCTION_BYTES
        return self.sram_bytes - used

    @property
    def constant_regions(self) -> tuple[tuple[int, int], ...]:
        """(first byte, bytes) of the two regions of constants: the SRAM image."""
        ends = [0, self.work_start]
        for tensor in self.tensors:
            if tensor.kind != "kv":
                side = int(tensor.address >= self.work_start)
                ends[side] = max(ends[side], tensor.address + tensor.size)
        return (0, ends[0]), (self.work_start, ends[1] - self.work_start)

    def address(self, name: str) -> int:
        """Address of a constant or of a KV cache."""
        return self.addresses()[name]

    def addresses(self) -> dict[str, int]:
        return _addresses(self.tensors)


@lru_cache(maxsize=4096)
def _addresses(tensors: tuple[Tensor, ...]) -> dict[str, int]:
    return {tensor.name: tensor.address for tensor in tensors}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepKind:
    """Rows per step, context bucket, and whether it ends in logits (decode), in hidden states
    (encode), or in neither (prefill)."""

    rows: int
    bucket: int
    decode: bool
    encode: bool = False

    @property
    def name(self) -> str:
        if self.encode:
            return f"encode{self.rows}/{self.bucket}"
        if self.decode:
            return f"decode{self.rows if self.rows > 1 else ''}/{self.bucket}"
        return f"prefill{self.rows}/{self.bucket}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """The host's side of the host port for one step: byte offsets in the driver's buffer."""

    embedding: int
    rope: int
    results: dict[int, int]  # head chip -> offset; of a decode step that of its first row's result
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledTransfer:
    """One hop of a transfer: its vectors on one link, with the cycles of both ends."""

    id: int
    name: str
    link: int
    src: int
    dst: int
    vectors: int
    depart: int  # first vector leaves
    first_arrive: int
    arrive: int  # last vector is there

    def to_list(self) -> list[Any]:
        """Return the plain form that is hashed and stored."""
        return [getattr(self, name) for name in self.__slots__]

    @classmethod
    def from_list(cls, item: list[Any]) -> ScheduledTransfer:
        return cls(**dict(zip(cls.__slots__, item, strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSchedule:
    """Every operation and transfer of one step. Program n_chips is the host's.

    `begins` is when each program's first operation starts (NEVER without one), `ends` when its
    last one has ended (0 without one). Both are computed once, here.
    """

    kind: StepKind
    programs: tuple[Program, ...]
    transfers: tuple[ScheduledTransfer, ...]
    host: HostMemory
    cycles: int  # from the step message to the last result at the host, turnaround included
    begins: NDArray[np.int64] = field(init=False, repr=False, compare=False)  # [programs]
    ends: NDArray[np.int64] = field(init=False, repr=False, compare=False)  # [programs]

    def __post_init__(self) -> None:
        begins = [min((o.start for o in p.operations), default=NEVER) for p in self.programs]
        ends = [max((o.end for o in p.operations), default=0) for p in self.programs]
        object.__setattr__(self, "begins", np.array(begins, np.int64))
        object.__setattr__(self, "ends", np.array(ends, np.int64))

    @property
    def name(self) -> str:
        return self.kind.name

    def __str__(self) -> str:
        head = f"step {self.name}: {self.cycles} cycles, {len(self.transfers)} transfers"
        return "\n".join([head, *(str(program) for program in self.programs)])
