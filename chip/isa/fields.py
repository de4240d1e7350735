"""The fields of every instruction, for its text and binary forms."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from chip.isa.instructions import (
    ABC,
    ACC,
    C2C,
    ICU,
    IW,
    LW,
    MEM,
    SXM,
    Alu,
    AluOp,
    Index,
    Instruction,
    mnemonic,
)  # fmt: skip

KINDS: Mapping[str, type[Instruction]] = (
    {mnemonic(kind): kind for kind in (*MEM, LW, IW, ABC, ACC, *SXM, *C2C, *ICU)}
    | dict.fromkeys((op.value for op in AluOp), Alu)
    | {mnemonic(Index): Index}
)
"""The class of each mnemonic. The binary form numbers mnemonics by their place here."""


class Field(NamedTuple):
    """One field of an instruction."""

    name: str
    type: str  # the annotation
    default: Any  # dataclasses.MISSING: none


_FIELDS: Mapping[type[Instruction], tuple[Field, ...]] = {
    kind: tuple(
        Field(field.name, str(field.type), field.default)
        for field in dataclasses.fields(kind)
        if field.name != "op"
    )
    for kind in KINDS.values()
}


def fields_of(kind: type[Instruction]) -> tuple[Field, ...]:
    """Return an instruction's fields; an ALU's op is not among them, it is the mnemonic."""
    return _FIELDS[kind]
