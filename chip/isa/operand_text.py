"""Operands of instructions as text: a pair of functions for each type that a field may have.

`TEXTS` is keyed by the annotation as chip/isa/instructions.py writes it, so a new type of operand
is refused until it has its pair.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from chip.isa.operands import (
    INTEGER_OPERANDS,
    ITEM_BYTES,
    Address,
    At,
    Chosen,
    Group,
    Immediate,
    In,
    LaneMap,
    Source,
    Stream,
    Tap,
    integers_of,
)


@dataclass(frozen=True, slots=True)
class OperandText:
    """How values of one type are written and read."""

    text: Callable[[Any], str]
    parse: Callable[[str], Any]


def parse_stream(text: str) -> Stream:
    """Read `E4`. Raises ValueError."""
    if not re.fullmatch(r"[EW](\d|[12]\d|3[01])", text):
        raise ValueError(f"stream: wanted E0 to E31 or W0 to W31, got {text!r}")
    return Stream(text[0] == "E", int(text[1:]))


def _group_text(taps: Group) -> str:
    return "+".join(map(str, taps)) or "-"


def _parse_group(text: str) -> Group:
    if text == "-":
        return ()
    taps = []
    for part in text.split("+"):
        stream, _, beat = part.partition("@")
        taps.append(Tap(parse_stream(stream), int(beat or 0)))
    return tuple(taps)


def _source_text(source: Source | At | Chosen) -> str:
    if isinstance(source, In):
        return f"{_group_text(source.taps)}:{source.dtype}"
    if isinstance(source, Immediate):
        return f"#{source.value!r}" if source.dtype == "f32" else f"#{int(source.value)}i"
    _, word, numbers = integers_of(source)
    return f"{word}({','.join(map(str, numbers))})"


def _parse_source(text: str) -> Source | At | Chosen:
    if text.startswith("#"):
        whole = text.endswith("i")
        return Immediate(int(text[1:-1]), "i32") if whole else Immediate(float(text[1:]))
    if match := re.fullmatch(r"([a-z]+)\((-?\d+(?:,-?\d+)*)\)", text):
        for kind, word, names in INTEGER_OPERANDS:
            numbers = match[2].split(",")
            if word == match[1] and len(numbers) == len(names):
                made: Source | At | Chosen = kind(*map(int, numbers))
                return made
    taps, colon, dtype = text.partition(":")
    if not colon or dtype not in ITEM_BYTES:
        raise ValueError(f"operand: wanted E4:f32, alu(3), held(3), #1.0, lane(..), got {text!r}")
    return In(_parse_group(taps), dtype)


def _map_text(lanes: LaneMap) -> str:
    """Write lanes with runs short: `0..15,-,-,3`."""
    out, i = [], 0
    while i < len(lanes):
        first, j = lanes[i], i + 1
        while first is not None and j < len(lanes) and lanes[j] == first + j - i:
            j += 1
        out.append(
            "-" if first is None else str(first) if j == i + 1 else f"{first}..{lanes[j - 1]}"
        )
        i = j
    return ",".join(out)


def _parse_map(text: str) -> LaneMap:
    out: list[int | None] = []
    for part in text.split(",") if text else ():
        first, dots, last = part.partition("..")
        if part == "-":
            out.append(None)
        else:
            out += range(int(first), int(last if dots else first) + 1)
    return tuple(out)


def _optional(operand: OperandText) -> OperandText:
    return OperandText(
        lambda value: "-" if value is None else operand.text(value),
        lambda text: None if text == "-" else operand.parse(text),
    )


def _address_text(value: Address) -> str:
    return str(value) if isinstance(value, int) else _source_text(value)


def _parse_address(text: str) -> Source | Address:
    return _parse_source(text) if text.startswith("at") else int(text)


_INT = OperandText(str, int)
_STREAM = OperandText(str, parse_stream)
_SOURCE = OperandText(_source_text, _parse_source)
TEXTS: Mapping[str, OperandText] = {
    "int": _INT,
    "bool": OperandText(lambda value: str(int(value)), lambda text: bool(int(text))),
    "int | None": _optional(_INT),
    "int | At": OperandText(_address_text, _parse_address),
    "Address": OperandText(_address_text, _parse_address),
    "Stream": _STREAM,
    "Stream | None": _optional(_STREAM),
    "Group": OperandText(_group_text, _parse_group),
    "Source": _SOURCE,
    "Source | None": _optional(_SOURCE),
    "tuple[int | None, ...]": OperandText(_map_text, _parse_map),
}
