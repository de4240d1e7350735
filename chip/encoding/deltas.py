"""Delta coding: most of a queue's instructions differ from an earlier one by numbers alone.

An instruction is a form (its kind and every operand that is no number) and numbers: addresses,
slots, columns, streams. A delta is a form and what is added to the numbers that it had last in this
queue. A queue keeps its recent deltas, the newest first; an instruction that follows one of them
takes one byte.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

from chip.isa.fields import fields_of
from chip.isa.instructions import Alu, AluOp, Instruction
from chip.isa.operands import STREAMS, Stream

RECENT = 8


class _Is(Enum):
    """What stands in a form for a number."""

    NUMBER = 0
    EAST = 1
    WEST = 2


Form = tuple[Any, ...]
Numbers = tuple[int, ...]


class Delta(NamedTuple):
    """What is added to the numbers that a form had last; streams count modulo `STREAMS`."""

    form: Form
    added: Numbers


def _split(instruction: Instruction) -> tuple[Form, Numbers]:
    kind = type(instruction)
    form: list[Any] = [kind, instruction.name]
    numbers = []
    for field in fields_of(kind):
        value = getattr(instruction, field.name)
        if type(value) is int:
            form.append(_Is.NUMBER)
            numbers.append(value)
        elif isinstance(value, Stream):
            form.append(_Is.EAST if value.eastward else _Is.WEST)
            numbers.append(value.number)
        else:
            form.append(value)
    return tuple(form), tuple(numbers)


def _joined(form: Form, numbers: Numbers) -> Instruction:
    kind, mnemonic, *parts = form
    left = iter(numbers)
    values: dict[str, Any] = {}
    for field, part in zip(fields_of(kind), parts, strict=True):
        if part is _Is.NUMBER:
            values[field.name] = next(left)
        elif isinstance(part, _Is):
            values[field.name] = Stream(part is _Is.EAST, next(left) % STREAMS)
        else:
            values[field.name] = part
    if kind is Alu:
        values["op"] = AluOp(mnemonic)
    made: Instruction = kind(**values)
    return made


class RecentDeltas:
    """One queue's recent deltas, the same for whoever writes its bytes and whoever reads them."""

    def __init__(self) -> None:
        self._last: dict[Form, Numbers] = {}
        self._recent: list[Delta] = []

    def note(self, instruction: Instruction) -> int | None:
        """Take the queue's next instruction; return the place of its delta if it is recent."""
        form, numbers = _split(instruction)
        last = self._last.get(form)
        self._last[form] = numbers
        if last is None:
            return None
        streams = [part is not _Is.NUMBER for part in form if isinstance(part, _Is)]
        delta = Delta(
            form,
            tuple(
                (new - old) % STREAMS if is_stream else new - old
                for new, old, is_stream in zip(numbers, last, streams, strict=True)
            ),
        )
        found = self._recent.index(delta) if delta in self._recent else None
        if found is not None:
            del self._recent[found]
        self._recent = [delta, *self._recent[: RECENT - 1]]
        return found

    def applied(self, place: int) -> Instruction:
        """Return the instruction that a recent delta makes. Raises ValueError for none."""
        if place >= len(self._recent):
            raise ValueError(
                f"queue: wanted one of its last {len(self._recent)} deltas, got {place}"
            )
        form, added = self._recent[place]
        numbers = zip(self._last[form], added, strict=True)
        return _joined(form, tuple(old + more for old, more in numbers))
