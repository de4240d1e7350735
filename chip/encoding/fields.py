"""Operands of instructions as bytes: a pair of functions for each type that a field may have.

`CODERS` is keyed by the annotation as chip/isa/instructions.py writes it, so a new type of operand
is refused until it has its pair.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
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


class ByteReader:
    """Takes values off the front of bytes. Raises ValueError at their end."""

    def __init__(self, data: bytes, maps: list[LaneMap] | None = None) -> None:
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


class ByteWriter:
    """Collects bytes; maps are kept apart, each once."""

    def __init__(self, maps: dict[LaneMap, int] | None = None) -> None:
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

    pack: Callable[[ByteWriter, Any], None]
    unpack: Callable[[ByteReader], Any]


def _pack_stream(writer: ByteWriter, stream: Stream) -> None:
    writer.data.append(stream.code)


def _unpack_stream(reader: ByteReader) -> Stream:
    return Stream.of_code(reader.byte())


def _pack_group(writer: ByteWriter, taps: Group) -> None:
    writer.data.append(len(taps))
    for stream, beat in taps:
        writer.data.append(stream.code)
        writer.number(beat)


def _unpack_group(reader: ByteReader) -> Group:
    return tuple(Tap(_unpack_stream(reader), reader.number()) for _ in range(reader.byte()))


# a source's first byte: the type of a stream operand, an immediate, or one of INTEGER_OPERANDS
_DTYPES = tuple(ITEM_BYTES)
_IMMEDIATE_F32, _IMMEDIATE_I32 = 8, 9
_INTEGERS = 16


def _pack_source(writer: ByteWriter, source: Source | At | Chosen) -> None:
    if isinstance(source, In):
        writer.data.append(_DTYPES.index(source.dtype))
        _pack_group(writer, source.taps)
    elif isinstance(source, Immediate):
        whole = source.dtype == "i32"
        writer.data.append(_IMMEDIATE_I32 if whole else _IMMEDIATE_F32)
        writer.data += struct.pack("<i" if whole else "<f", source.value)
    else:
        tag, _, numbers = integers_of(source)
        writer.data.append(_INTEGERS + tag)
        for number in numbers:
            writer.number(number)


def _unpack_source(reader: ByteReader) -> Source | At | Chosen:
    tag = reader.byte()
    if tag < len(_DTYPES):
        return In(_unpack_group(reader), _DTYPES[tag])
    if tag in (_IMMEDIATE_F32, _IMMEDIATE_I32):
        whole = tag == _IMMEDIATE_I32
        (value,) = struct.unpack("<i" if whole else "<f", reader.take(4))
        return Immediate(value, "i32" if whole else "f32")
    if not _INTEGERS <= tag < _INTEGERS + len(INTEGER_OPERANDS):
        raise ValueError(f"operand: no kind {tag}")
    kind, _, names = INTEGER_OPERANDS[tag - _INTEGERS]
    made: Source | At | Chosen = kind(*(reader.number() for _ in names))
    return made


def _runs(lanes: LaneMap) -> Iterator[tuple[int, int, int]]:
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


def pack_map(writer: ByteWriter, lanes: LaneMap) -> None:
    """Write a map as runs of evenly spaced lanes."""
    runs = list(_runs(lanes))
    writer.number(len(runs))
    for run in runs:
        for number in run:
            writer.number(number)


def unpack_map(reader: ByteReader) -> LaneMap:
    """Undo `pack_map`."""
    out: list[int | None] = []
    for _ in range(reader.number()):
        length, first, step = (reader.number() for _ in range(3))
        out += [None if first < 0 else first + step * i for i in range(length)]
    return tuple(out)


def _pack_map_number(writer: ByteWriter, lanes: LaneMap) -> None:
    writer.number(writer.maps.setdefault(lanes, len(writer.maps)))


def _unpack_map_number(reader: ByteReader) -> LaneMap:
    number = reader.number()
    if not 0 <= number < len(reader.maps):
        raise ValueError(f"map: wanted 0 to {len(reader.maps) - 1}, got {number}")
    return reader.maps[number]


def _optional(coder: Coder) -> Coder:
    def pack(writer: ByteWriter, value: Any) -> None:
        writer.data.append(value is not None)
        if value is not None:
            coder.pack(writer, value)

    return Coder(pack, lambda reader: coder.unpack(reader) if reader.byte() else None)


_INT = Coder(ByteWriter.number, ByteReader.number)
_STREAM = Coder(_pack_stream, _unpack_stream)
_SOURCE = Coder(_pack_source, _unpack_source)
_OPTIONAL_INT = _optional(_INT)


def _pack_address(writer: ByteWriter, value: Address) -> None:
    _OPTIONAL_INT.pack(writer, value if isinstance(value, int) else None)
    if isinstance(value, (At, Chosen)):
        _pack_source(writer, value)


def _unpack_address(reader: ByteReader) -> Source | Address:
    return reader.number() if reader.byte() else _unpack_source(reader)


CODERS: Mapping[str, Coder] = {
    "int": _INT,
    "bool": Coder(lambda w, value: w.data.append(value), lambda reader: bool(reader.byte())),
    "int | None": _OPTIONAL_INT,
    "int | At": Coder(_pack_address, _unpack_address),
    "Address": Coder(_pack_address, _unpack_address),
    "Stream": _STREAM,
    "Stream | None": _optional(_STREAM),
    "Group": Coder(_pack_group, _unpack_group),
    "Source": _SOURCE,
    "Source | None": _optional(_SOURCE),
    "tuple[int | None, ...]": Coder(_pack_map_number, _unpack_map_number),
}
