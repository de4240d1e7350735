"""Programs as text: assemble and disassemble, each the other's inverse.

    .origin -12
    .queue MEM_W0
      SYNC
      NOP 20
      READ address=3 stream=E4 step=1 ; layers.0.attn.q_proj
      REPEAT 19, 1

A field at its default is left out; what follows the semicolon is the provenance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING
from typing import Any

from chip.floorplan import Queue, parse_queue
from chip.isa.fields import KINDS, fields_of
from chip.isa.instructions import Alu, AluOp, Instruction
from chip.isa.operand_text import TEXTS
from chip.isa.queues import Item, Named, Nop, QueueProgram, Repeat
from chip.spec import ChipSpec


def text_of(instruction: Instruction) -> str:
    """Write one instruction."""
    words = [instruction.name]
    for field in fields_of(type(instruction)):
        value = getattr(instruction, field.name)
        if field.default is MISSING or value != field.default:
            words.append(f"{field.name}={TEXTS[field.type].text(value)}")
    return " ".join(words)


def parse(text: str) -> Instruction:
    """Read one instruction. Raises ValueError for anything `text_of` would not write."""
    mnemonic, *words = text.split()
    if mnemonic not in KINDS:
        raise ValueError(f"instruction: wanted one of {', '.join(KINDS)}; got {mnemonic!r}")
    kind = KINDS[mnemonic]
    known = {field.name: TEXTS[field.type] for field in fields_of(kind)}
    values: dict[str, Any] = {"op": AluOp(mnemonic)} if kind is Alu else {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in known or name in values:
            raise ValueError(f"{mnemonic}: wanted each of {', '.join(known)} once, got {word!r}")
        values[name] = known[name].parse(value)
    needed = [field.name for field in fields_of(kind) if field.default is MISSING]
    missing = [name for name in needed if name not in values]
    if missing:
        raise ValueError(f"{mnemonic}: wanted {', '.join(missing)}")
    return kind(**values)


def disassemble(program: QueueProgram) -> str:
    """Write a program."""
    return "\n".join([f".origin {program.origin}", *_lines(program)]) + "\n"


def _lines(program: QueueProgram) -> Iterator[str]:
    for queue, items in program.queues.items():
        yield f".queue {queue}"
        for item in items:
            if isinstance(item, Nop):
                yield f"  NOP {item.n}"
            elif isinstance(item, Repeat):
                yield f"  REPEAT {item.n}, {item.d}"
            else:
                yield f"  {text_of(item.instruction)}" + (f" ; {item.name}" if item.name else "")


def assemble(text: str, spec: ChipSpec) -> QueueProgram:
    """Read a program. Raises ValueError, naming the line."""
    origin, queues = 0, dict[Queue, list[Item]]()
    items: list[Item] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        try:
            body, _, name = line.partition(";")
            words = body.split()
            if not words:
                continue
            if words[0] == ".origin":
                origin = int(words[1])
            elif words[0] == ".queue":
                items = queues.setdefault(parse_queue(words[1], spec), [])
            elif items is None:
                raise ValueError("wanted .queue before the first instruction")
            elif words[0] == "NOP":
                items.append(Nop(int(words[1])))
            elif words[0] == "REPEAT":
                items.append(Repeat(int(words[1].rstrip(",")), int(words[2])))
            else:
                items.append(Named(parse(body), name.strip()))
        except (ValueError, IndexError) as error:
            raise ValueError(f"line {number}: {line.strip()!r}: {error}") from None
    return QueueProgram(origin, {queue: tuple(own) for queue, own in queues.items()})
