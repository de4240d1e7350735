"""Text and bytes of instruction operands: one coder for each type that a field may have.

`CODERS` is keyed by the annotation as chip/isa/instructions.py writes it, so a new type of operand
is refused until it has a coder.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from chip.isa.operands import (
    At,
    Chain,
    Group,
    Held,
    Immediate,
    In,
    Lane,
    Position,
    Source,
    Stream,
    Tap,
)

Map = tuple[int | None, ...]


class Reader:
    """Takes values off the front of bytes. Raises ValueError at their end."""

    def __init__(self, data: bytes, maps: list[Map] | None = None) -> None:
        self.data, self.at, self.maps = data, 0, maps or []

    def byte(self) -> int:
        if self.at >= len(self.data):
            raise ValueError(f"program: wanted more than its {len(self.data)} bytes")
        self.at += 1
        return self.data[self.at - 1]

    def number(self) -> int:
        """Return a signed number of any size, seven bits a byte."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return (value >> 1) ^ -(value & 1)

    def take(self, count: int) -> bytes:
        return bytes(self.byte() for _ in range(count))


class Writer:
    """Collects bytes; maps are kept apart, each once."""

    def __init__(self, maps: dict[Map, int] | None = None) -> None:
        self.data, self.maps = bytearray(), {} if maps is None else maps

    def number(self, value: int) -> None:
        rest = value << 1 if value >= 0 else (-value << 1) - 1
        while rest > 127:
            self.data.append(rest & 127 | 128)
            rest >>= 7
        self.data.append(rest)


@dataclass(frozen=True, slots=True)
class Coder:
    """How values of one type are written and read."""

    text: Callable[[Any], str]
    parse: Callable[[str], Any]
    pack: Callable[[Writer, Any], None]
    unpack: Callable[[Reader], Any]


def parse_stream(text: str) -> Stream:
    """Read `E4`. Raises ValueError."""
    if not re.fullmatch(r"[EW](\d|[12]\d|3[01])", text):
        raise ValueError(f"stream: wanted E0 to E31 or W0 to W31, got {text!r}")
    return Stream(text[0] == "E", int(text[1:]))


def _stream_byte(stream: Stream) -> int:
    return stream.number + (0 if stream.eastward else 32)


def _unpack_stream(reader: Reader) -> Stream:
    byte = reader.byte()
    return Stream(byte < 32, byte % 32)


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


def _pack_group(writer: Writer, taps: Group) -> None:
    writer.data.append(len(taps))
    for stream, beat in taps:
        writer.data.append(_stream_byte(stream))
        writer.number(beat)


def _unpack_group(reader: Reader) -> Group:
    return tuple(Tap(_unpack_stream(reader), reader.number()) for _ in range(reader.byte()))


_DTYPES = ("i8", "f16", "i32", "f32")
_NUMBERS: tuple[tuple[type[Any], str, tuple[str, ...]], ...] = (  # operands made of integers
    (Chain, "alu", ("alu",)),
    (Held, "held", ("alu",)),
    (Lane, "lane", ("offset", "step")),
    (Position, "pos", ("row", "step", "offset", "modulus")),
    (At, "at", ("base", "num", "den", "row", "limit", "step")),
)


def _source_text(source: Source | At) -> str:
    if isinstance(source, In):
        return f"{_group_text(source.taps)}:{source.dtype}"
    if isinstance(source, Immediate):
        return f"#{source.value!r}" if source.dtype == "f32" else f"#{int(source.value)}i"
    for kind, word, names in _NUMBERS:
        if isinstance(source, kind):
            return f"{word}({','.join(str(getattr(source, name)) for name in names)})"
    raise AssertionError(source)


def _parse_source(text: str) -> Source | At:
    if text.startswith("#"):
        whole = text.endswith("i")
        return Immediate(int(text[1:-1]), "i32") if whole else Immediate(float(text[1:]))
    if match := re.fullmatch(r"([a-z]+)\((-?\d+(?:,-?\d+)*)\)", text):
        for kind, word, names in _NUMBERS:
            numbers = match[2].split(",")
            if word == match[1] and len(numbers) == len(names):
                made: Source | At = kind(*map(int, numbers))
                return made
    taps, colon, dtype = text.partition(":")
    if not colon or dtype not in _DTYPES:
        raise ValueError(f"operand: wanted E4:f32, alu(3), held(3), #1.0, lane(..), got {text!r}")
    return In(_parse_group(taps), dtype)


def _pack_source(writer: Writer, source: Source | At) -> None:
    if isinstance(source, In):
        writer.data.append(_DTYPES.index(source.dtype))
        _pack_group(writer, source.taps)
    elif isinstance(source, Immediate):
        whole = source.dtype == "i32"
        writer.data.append(8 + whole)
        writer.data += struct.pack("<i" if whole else "<f", source.value)
    else:
        for tag, (kind, _, names) in enumerate(_NUMBERS):
            if isinstance(source, kind):
                writer.data.append(16 + tag)
                for name in names:
                    writer.number(getattr(source, name))


def _unpack_source(reader: Reader) -> Source | At:
    tag = reader.byte()
    if tag < 4:
        return In(_unpack_group(reader), _DTYPES[tag])
    if tag in (8, 9):
        (value,) = struct.unpack("<i" if tag == 9 else "<f", reader.take(4))
        return Immediate(value, "i32" if tag == 9 else "f32")
    if not 16 <= tag < 16 + len(_NUMBERS):
        raise ValueError(f"operand: no kind {tag}")
    kind, _, names = _NUMBERS[tag - 16]
    made: Source | At = kind(*(reader.number() for _ in names))
    return made


def _map_text(lanes: Map) -> str:
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


def _parse_map(text: str) -> Map:
    out: list[int | None] = []
    for part in text.split(",") if text else ():
        first, dots, last = part.partition("..")
        if part == "-":
            out.append(None)
        else:
            out += range(int(first), int(last if dots else first) + 1)
    return tuple(out)


def _runs(lanes: Map) -> Iterator[tuple[int, int, int]]:
    """Yield (length, first, step) of runs of lanes; first is -1 for zeros."""
    plain = [-1 if lane is None else lane for lane in lanes]
    at = 0
    while at < len(plain):
        first, end = plain[at], at + 1
        step = plain[end] - first if end < len(plain) and min(first, plain[end]) >= 0 else 0
        while end < len(plain) and plain[end] == first + step * (end - at):
            end += 1
        yield end - at, first, step
        at = end


def pack_map(writer: Writer, lanes: Map) -> None:
    """Write a map as runs of evenly spaced lanes."""
    runs = list(_runs(lanes))
    writer.number(len(runs))
    for run in runs:
        for number in run:
            writer.number(number)


def unpack_map(reader: Reader) -> Map:
    """Undo `pack_map`."""
    out: list[int | None] = []
    for _ in range(reader.number()):
        length, first, step = (reader.number() for _ in range(3))
        out += [None if first < 0 else first + step * i for i in range(length)]
    return tuple(out)


def _pack_map_number(writer: Writer, lanes: Map) -> None:
    writer.number(writer.maps.setdefault(lanes, len(writer.maps)))


def _unpack_map_number(reader: Reader) -> Map:
    number = reader.number()
    if not 0 <= number < len(reader.maps):
        raise ValueError(f"map: wanted 0 to {len(reader.maps) - 1}, got {number}")
    return reader.maps[number]


def _optional(coder: Coder) -> Coder:
    def pack(writer: Writer, value: Any) -> None:
        writer.data.append(value is not None)
        if value is not None:
            coder.pack(writer, value)

    return Coder(
        lambda value: "-" if value is None else coder.text(value),
        lambda text: None if text == "-" else coder.parse(text),
        pack,
        lambda reader: coder.unpack(reader) if reader.byte() else None,
    )


_INT = Coder(str, int, Writer.number, Reader.number)
_STREAM = Coder(
    str, parse_stream, lambda w, stream: w.data.append(_stream_byte(stream)), _unpack_stream
)
_SOURCE = Coder(_source_text, _parse_source, _pack_source, _unpack_source)
_OPTIONAL_INT = _optional(_INT)


def _pack_address(writer: Writer, value: int | At) -> None:
    _OPTIONAL_INT.pack(writer, value if isinstance(value, int) else None)
    if isinstance(value, At):
        _pack_source(writer, value)


_ADDRESS = Coder(
    lambda value: str(value) if isinstance(value, int) else _source_text(value),
    lambda text: _parse_source(text) if text.startswith("at") else int(text),
    _pack_address,
    lambda reader: reader.number() if reader.byte() else _unpack_source(reader),
)
CODERS = {
    "int": _INT,
    "bool": Coder(
        lambda value: str(int(value)), lambda text: bool(int(text)),
        lambda w, value: w.data.append(value), lambda reader: bool(reader.byte()),
    ),
    "int | None": _OPTIONAL_INT,
    "int | At": _ADDRESS,
    "Stream": _STREAM,
    "Stream | None": _optional(_STREAM),
    "Group": Coder(_group_text, _parse_group, _pack_group, _unpack_group),
    "Source": _SOURCE,
    "Source | None": _optional(_SOURCE),
    "tuple[int | None, ...]": Coder(_map_text, _parse_map, _pack_map_number, _unpack_map_number),
}  # fmt: skip
