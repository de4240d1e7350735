"""Errors of the chip.

    ChipError
    ├── SramError           an address or a tensor does not fit the memory
    ├── ProgramError        a program the chip cannot execute
    ├── TemplateError       an operation's instructions would not be lawful on this chip
    ├── IssueError          instructions that the hardware cannot run
    └── ScheduleViolation   the run and the schedule disagree; names chip, link, cycle, operation

Each keeps its fields and survives pickle, because errors cross processes. The root sees to it, here
and in the other packages: no two of them share a file that all may import.
"""

from __future__ import annotations

from typing import Any


class ChipError(Exception):
    """Base of every error a chip raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own would call __init__ with the message instead of the fields.
        return type(self).__new__, (type(self), *self.args), self.__dict__


class SramError(ChipError):
    """A tensor or an address outside the SRAM, or overlapping another tensor."""


class ProgramError(ChipError):
    """A program names an operation, an operand or a link that this chip does not have."""


class TemplateError(ChipError):
    """An operation's instruction template asks for what the chip's units cannot do."""


class ScheduleViolation(ChipError):
    """The run departed from the schedule: what was wanted, what was got, where and when.

    `chip` is the logical chip (or "host"), `link` the link's name or None, `cycle` the scheduled
    cycle relative to the step's base, `operation` the provenance of the operation.
    """

    def __init__(
        self,
        what: str,
        *,
        chip: int | str,
        cycle: int,
        operation: str,
        wanted: Any,
        got: Any,
        link: str | None = None,
        step: str = "",
    ) -> None:
        super().__init__(what)
        self.what, self.chip, self.link, self.step = what, chip, link, step
        self.cycle, self.operation, self.wanted, self.got = cycle, operation, wanted, got

    def __str__(self) -> str:
        who = self.chip if isinstance(self.chip, str) else f"chip {self.chip}"
        where = f", link {self.link}" if self.link else ""
        when = f"step {self.step}, cycle {self.cycle}" if self.step else f"cycle {self.cycle}"
        return (
            f"{who}{where}, {when}, {self.operation}: {self.what}: "
            f"wanted {self.wanted}, got {self.got}"
        )

    def fields(self) -> dict[str, Any]:
        """Return the keyword fields, to send the error to another process and rebuild it there."""
        names = ("chip", "link", "step", "cycle", "operation", "wanted", "got")
        return {name: getattr(self, name) for name in names}


class IssueError(ChipError):
    """The hardware cannot run these instructions: what is wrong, and which, where and when."""

    def __init__(self, what: str, *culprits: str) -> None:
        super().__init__(what, *culprits)
        self.what, self.culprits = what, culprits

    def __str__(self) -> str:
        return f"{self.what}: {' and '.join(self.culprits)}"
