"""Programs as bytes: what they take in SRAM. Provenance is not part of it.

Layout: "TSP2", origin, lane maps (each once), queues; numbers are signed, seven bits a byte. A
queue is its number and its items up to END. An item is one byte (NOP, Repeat or a mnemonic's
number), a bit for each field that is not at its default, and those fields; or one byte from `DELTA`
on (bits 1iiigggg): a NOP of g cycles (none for 0), then the instruction that recent delta i makes
(`chip.encoding.deltas`). Most of a program are Reads of weights, a byte each. AGAIN, distance,
length fetches codes of the queue again (`chip.encoding.backrefs`).
assumption: no encoding is published; the queues' decoders undo this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING
from itertools import pairwise
from typing import Any

from chip.encoding.backrefs import BackReference, compressed
from chip.encoding.deltas import RECENT, RecentDeltas
from chip.encoding.fields import CODERS, ByteReader, ByteWriter, Coder, pack_map, unpack_map
from chip.floorplan import Queue
from chip.floorplan import queues as all_queues
from chip.isa.fields import KINDS, fields_of
from chip.isa.instructions import Alu, AluOp, Instruction
from chip.isa.operands import LaneMap
from chip.isa.queues import Item, Named, Nop, QueueProgram, Repeat
from chip.spec import ChipSpec

MAGIC = b"TSP2"
DELTA = 128
_GAPS = (256 - DELTA) // RECENT  # cycles of waiting that a delta's byte can hold, and none
_CODES = ("END", "AGAIN", "NOP", "REPEAT", *KINDS)
_NUMBER: Mapping[str, int] = {name: number for number, name in enumerate(_CODES)}
assert len(_CODES) <= DELTA
_CODED: Mapping[type[Instruction], tuple[tuple[str, Coder, Any], ...]] = {
    kind: tuple((field.name, CODERS[field.type], field.default) for field in fields_of(kind))
    for kind in KINDS.values()
}


def encode(program: QueueProgram, spec: ChipSpec) -> bytes:
    """Return a program's bytes."""
    numbers = {queue: number for number, queue in enumerate(all_queues(spec))}
    body, head = ByteWriter(), ByteWriter()
    body.number(len(program.queues))
    for queue, items in program.queues.items():
        body.number(numbers[queue])
        _put_all(body, items)
    head.data += MAGIC
    head.number(program.origin)
    head.number(len(body.maps))
    for lanes in body.maps:
        pack_map(head, lanes)
    return bytes(head.data + body.data)


def measured(program: QueueProgram) -> dict[str, int]:
    """Return what each queue takes, and all of a program's "maps" together."""
    body, head = ByteWriter(), ByteWriter()
    out = {}
    for queue, items in program.queues.items():
        before = len(body.data)
        _put_all(body, items)
        out[str(queue)] = len(body.data) - before
    for lanes in body.maps:
        pack_map(head, lanes)
    return {**out, "maps": len(head.data)}


def _put_all(writer: ByteWriter, items: Sequence[Item]) -> None:
    for code in compressed(list(_codes(items, writer.maps))):
        if isinstance(code, BackReference):
            writer.data.append(_NUMBER["AGAIN"])
            writer.number(code.distance)
            writer.number(code.length)
        else:
            writer.data += code
    writer.data.append(_NUMBER["END"])


def _codes(items: Sequence[Item], maps: dict[LaneMap, int]) -> Iterator[bytes]:
    """Yield one code for each item, or for a NOP and the instruction behind it."""
    deltas, waited = RecentDeltas(), 0
    for item, after in pairwise((*items, None)):
        assert item is not None
        if isinstance(item, Nop) and 0 < item.n < _GAPS and isinstance(after, Named):
            waited = item.n
            continue
        place = deltas.note(item.instruction) if isinstance(item, Named) else None
        if place is not None:
            yield bytes([DELTA + place * _GAPS + waited])
        else:
            if waited:
                yield _code(Nop(waited), maps)
            yield _code(item, maps)
        waited = 0


def _code(item: Item, maps: dict[LaneMap, int]) -> bytes:
    writer = ByteWriter(maps)
    _put(writer, item)
    return bytes(writer.data)


def _put(writer: ByteWriter, item: Item) -> None:
    if isinstance(item, Named):
        instruction = item.instruction
        writer.data.append(_NUMBER[instruction.name])
        coded = _CODED[type(instruction)]
        values = [getattr(instruction, name) for name, _, _ in coded]
        present = [d is MISSING or v != d for v, (_, _, d) in zip(values, coded, strict=True)]
        writer.number(sum(1 << bit for bit, there in enumerate(present) if there))
        for value, there, (_, coder, _) in zip(values, present, coded, strict=True):
            if there:
                coder.pack(writer, value)
    else:
        writer.data.append(_NUMBER["NOP" if isinstance(item, Nop) else "REPEAT"])
        writer.number(item.n)
        if isinstance(item, Repeat):
            writer.number(item.d)


def decode(data: bytes, spec: ChipSpec) -> QueueProgram:
    """Undo `encode`. Raises ValueError for bytes that it did not write."""
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError(f"program: wanted it to start with {MAGIC!r}, got {data[:4]!r}")
    reader = ByteReader(data[len(MAGIC) :])
    origin = reader.number()
    reader.maps = [unpack_map(reader) for _ in range(reader.number())]
    known = all_queues(spec)
    queues: dict[Queue, tuple[Item, ...]] = {}
    for _ in range(reader.number()):
        number = reader.number()
        if not 0 <= number < len(known):
            raise ValueError(f"queue: wanted 0 to {len(known) - 1}, got {number}")
        queues[known[number]] = tuple(_take_all(reader))
    return QueueProgram(origin, queues)


def _take_all(reader: ByteReader) -> Iterator[Item]:
    deltas, starts = RecentDeltas(), list[int]()  # where each of the queue's codes stands
    while True:
        start = reader.at
        number = reader.byte()
        if number == _NUMBER["END"]:
            return
        if number != _NUMBER["AGAIN"]:
            starts.append(start)
            yield from _item(reader, number, deltas)
            continue
        distance, length = reader.number(), reader.number()
        if not 0 < distance <= len(starts):
            raise ValueError(f"queue: wanted 1 to {len(starts)} codes back, got {distance}")
        behind = reader.at
        for _ in range(length):
            reader.at = starts[-distance]
            starts.append(reader.at)
            yield from _item(reader, reader.byte(), deltas)
        reader.at = behind


def _item(reader: ByteReader, number: int, deltas: RecentDeltas) -> Iterator[Item]:
    """Yield what one code stands for."""
    if number >= DELTA:
        place, gap = divmod(number - DELTA, _GAPS)
        if gap:
            yield Nop(gap)
        item: Item = Named(deltas.applied(place))
    else:
        item = _take(reader, number)
    if isinstance(item, Named):
        deltas.note(item.instruction)
    yield item


def _take(reader: ByteReader, number: int) -> Item:
    if number >= len(_CODES):
        raise ValueError(f"instruction: wanted 2 to {len(_CODES) - 1}, got {number}")
    name = _CODES[number]
    if name == "NOP":
        return Nop(reader.number())
    if name == "REPEAT":
        return Repeat(reader.number(), reader.number())
    kind = KINDS[name]
    values: dict[str, Any] = {"op": AluOp(name)} if kind is Alu else {}
    present = reader.number()
    for bit, (field, coder, _) in enumerate(_CODED[kind]):
        if present >> bit & 1:
            values[field] = coder.unpack(reader)
    return Named(kind(**values))
