"""How a queue's instructions go on from one to the next, so that most take one byte.

An instruction is a shape (its kind and every operand that is no number) and numbers: addresses,
slots, columns, streams. A way is a shape and what is added to the numbers that it had last in this
queue. The queue remembers the ways it took last, the newest first.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from chip.isa.assembly import coded_fields
from chip.isa.instructions import Alu, AluOp, Instruction
from chip.isa.operands import STREAMS, Stream

WAYS = 8


class _Is(Enum):
    """What stands in a shape for a number."""

    NUMBER = 0
    EAST = 1
    WEST = 2


Shape = tuple[Any, ...]
Numbers = tuple[int, ...]


def _apart(instruction: Instruction) -> tuple[Shape, Numbers]:
    kind = type(instruction)
    shape: list[Any] = [kind, instruction.name]
    numbers = []
    for name, _, _ in coded_fields(kind):
        value = getattr(instruction, name)
        if type(value) is int:
            shape.append(_Is.NUMBER)
            numbers.append(value)
        elif isinstance(value, Stream):
            shape.append(_Is.EAST if value.eastward else _Is.WEST)
            numbers.append(value.number)
        else:
            shape.append(value)
    return tuple(shape), tuple(numbers)


def _together(shape: Shape, numbers: Numbers) -> Instruction:
    kind, mnemonic, *parts = shape
    left = iter(numbers)
    values: dict[str, Any] = {}
    for (name, _, _), part in zip(coded_fields(kind), parts, strict=True):
        if part is _Is.NUMBER:
            values[name] = next(left)
        elif isinstance(part, _Is):
            values[name] = Stream(part is _Is.EAST, next(left) % STREAMS)
        else:
            values[name] = part
    if kind is Alu:
        values["op"] = AluOp(mnemonic)
    made: Instruction = kind(**values)
    return made


class Pattern:
    """One queue's ways, the same for whoever writes its bytes and whoever reads them."""

    def __init__(self) -> None:
        self._last: dict[Shape, Numbers] = {}
        self._ways: list[tuple[Shape, Numbers]] = []

    def note(self, instruction: Instruction) -> int | None:
        """Take the queue's next instruction; return the way to it if it is one of the latest."""
        shape, numbers = _apart(instruction)
        last = self._last.get(shape)
        self._last[shape] = numbers
        if last is None:
            return None
        streams = [part is not _Is.NUMBER for part in shape if isinstance(part, _Is)]
        way = (
            shape,
            tuple(
                (new - old) % STREAMS if is_stream else new - old
                for new, old, is_stream in zip(numbers, last, streams, strict=True)
            ),
        )
        found = self._ways.index(way) if way in self._ways else None
        if found is not None:
            del self._ways[found]
        self._ways = [way, *self._ways[: WAYS - 1]]
        return found

    def taken(self, way: int) -> Instruction:
        """Return the instruction to which a way leads. Raises ValueError where there is none."""
        if way >= len(self._ways):
            raise ValueError(f"queue: wanted one of its last {len(self._ways)} ways on, got {way}")
        shape, added = self._ways[way]
        numbers = zip(self._last[shape], added, strict=True)
        return _together(shape, tuple(old + more for old, more in numbers))
