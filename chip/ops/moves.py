"""Send and Receive: vectors leave for a link, or come off one. The link decides how long."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from chip.ops.opcodes import BOUND, Opcode, Use
from chip.spec import VECTOR_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Send the vectors at src; `forward`: the transfer that brought them, if they pass on.

    `row`: of which they are the result, in a step of several rows.
    """

    opcode: ClassVar[Opcode] = Opcode.SEND
    part: ClassVar[str] = "exchange"
    link: int
    transfer: int
    vectors: int
    forward: int | None = None
    row: int | None = None
    src: int = field(metadata=BOUND)

    @property
    def units(self) -> tuple[str, ...]:
        """The link's end."""
        return (f"C2C:{self.link}",)

    def reads(self) -> list[Use]:
        return [("src", (self.src, self.vectors * VECTOR_BYTES))]

    def writes(self) -> list[Use]:
        return []


@dataclass(frozen=True, slots=True, kw_only=True)
class Receive:
    """Put the vectors of a transfer at dst. `row`: as its Send has it."""

    opcode: ClassVar[Opcode] = Opcode.RECEIVE
    part: ClassVar[str] = "exchange"
    units: ClassVar[tuple[str, ...]] = ()
    link: int
    transfer: int
    vectors: int
    row: int | None = None
    dst: int = field(metadata=BOUND)

    def reads(self) -> list[Use]:
        return []

    def writes(self) -> list[Use]:
        return [("dst", (self.dst, self.vectors * VECTOR_BYTES))]
