"""Instructions of the ICUs and the C2C ports, and what all instructions have in common.

ICU instructions may stand in any queue; all but RUNTIME_DESKEW and IFETCH come before the queues'
common release (chip/isa/queues.py). The others are in chip/isa/instructions.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from chip.isa.operands import Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """Base of all; `name` is the mnemonic whose delays the profile gives."""

    @property
    def name(self) -> str:
        return mnemonic(type(self))


def mnemonic(kind: type[Instruction]) -> str:
    """Return a class's name as programs are written: RUNTIME_DESKEW."""
    return _mnemonic(kind.__name__)


@cache
def _mnemonic(name: str) -> str:
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", name).upper()


@dataclass(frozen=True, slots=True, kw_only=True)
class Send(Instruction):
    """C2C: give a vector to a port, where it departs `wait` cycles after the issue.

    assumption: a port holds up to 4 waiting vectors each way.
    """

    port: int
    stream: Stream
    wait: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Receive(Instruction):
    """C2C: put the vector that arrived at a port `wait` cycles ago into word `address` of a slice.

    `side`, `slice`: hemisphere and number of the slice. The write takes the slice's port, and no
    other queue has a part in it (ISCA 2020, Table I: emplaced in memory; ISCA 2022, 2.3).
    assumption: the vector has a way of its own, which takes as long as a stream's.
    """

    port: int
    side: int
    slice: int
    address: int
    wait: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deskew(Instruction):
    """ICU: hold the queue, before its program starts, until an epoch of the aligned counter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeDeskew(Instruction):
    """ICU: hold the queue for `cycles`, more or less, until the program's counter is right again.

    All of a chip's queues do so at once, and nothing is on its way meanwhile: how long the stop
    takes in fact depends on the chip's clock. assumption: each queue has the instruction.
    """

    cycles: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync(Instruction):
    """ICU: park the queue until a Notify."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notify(Instruction):
    """ICU: release every parked queue, d_func later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ifetch(Instruction):
    """ICU: take a pair of vectors of program text, 640 bytes, off a stream, one after the other.

    Reads in slices that hold text put them there (ISCA 2020, III.A.3).
    """

    stream: Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Instruction):
    """ICU: set a configuration register of the queue's unit."""

    register: int
    value: int
