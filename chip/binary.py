"""Programs as bytes: what they take in SRAM. Provenance is not part of it.

Layout: "TSP1", origin, maps (each once), queues; numbers are signed, seven bits a byte. An item is
one byte (NOP, Repeat or a mnemonic's number), a bit for each field that is not at its default, and
those fields.
"""

from __future__ import annotations

from dataclasses import MISSING
from typing import Any

from chip.assembly import KINDS, coded_fields
from chip.fields import Reader, Writer, pack_map, unpack_map
from chip.floorplan import Queue
from chip.floorplan import queues as all_queues
from chip.isa import Alu, AluOp
from chip.queues import Item, Named, Nop, QueueProgram, Repeat
from chip.spec import ChipSpec

MAGIC = b"TSP1"
_CODES = ["NOP", "REPEAT", *KINDS]
_NUMBER = {name: number for number, name in enumerate(_CODES)}


def encode(program: QueueProgram, spec: ChipSpec) -> bytes:
    """Return a program's bytes."""
    numbers = {queue: number for number, queue in enumerate(all_queues(spec))}
    body, head = Writer(), Writer()
    body.number(len(program.queues))
    for queue, items in program.queues.items():
        body.number(numbers[queue])
        body.number(len(items))
        for item in items:
            _put(body, item)
    head.data += MAGIC
    head.number(program.origin)
    head.number(len(body.maps))
    for lanes in body.maps:
        pack_map(head, lanes)
    return bytes(head.data + body.data)


def _put(writer: Writer, item: Item) -> None:
    if isinstance(item, Named):
        instruction = item.instruction
        writer.data.append(_NUMBER[instruction.name])
        coded = coded_fields(type(instruction))
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
    reader = Reader(data[len(MAGIC) :])
    origin = reader.number()
    reader.maps = [unpack_map(reader) for _ in range(reader.number())]
    known = all_queues(spec)
    queues: dict[Queue, tuple[Item, ...]] = {}
    for _ in range(reader.number()):
        number = reader.number()
        if not 0 <= number < len(known):
            raise ValueError(f"queue: wanted 0 to {len(known) - 1}, got {number}")
        queues[known[number]] = tuple(_take(reader) for _ in range(reader.number()))
    return QueueProgram(origin, queues)


def _take(reader: Reader) -> Item:
    number = reader.byte()
    if number >= len(_CODES):
        raise ValueError(f"instruction: wanted 0 to {len(_CODES) - 1}, got {number}")
    name = _CODES[number]
    if name == "NOP":
        return Nop(reader.number())
    if name == "REPEAT":
        return Repeat(reader.number(), reader.number())
    kind = KINDS[name]
    values: dict[str, Any] = {"op": AluOp(name)} if kind is Alu else {}
    present = reader.number()
    for bit, (field, coder, _) in enumerate(coded_fields(kind)):
        if present >> bit & 1:
            values[field] = coder.unpack(reader)
    return Named(kind(**values))
