"""What can go wrong around the chips: machines, layouts, runs, requests.

    RackError
    ├── ProfileError      a machine description is wrong (also a ValueError)
    ├── MachineError      a machine asked for something it cannot be (also a ValueError)
    ├── PromptError       text or a chat that this model cannot be given (rack/text)
    ├── RequestError      a completion asked for with a parameter that cannot be (also a ValueError)
    ├── TraceError        a line of a serving trace is not what its format says (also a ValueError)
    ├── ConfigError       a flag, variable or key is unknown or out of range (also a ValueError)
    ├── FaultError        a step was lost, and can be run again on a rack that recovers
    │   ├── ChipFailedError   a chip died, stalled or never started
    │   └── LinkFlaggedError  vectors came with errors that their link's code cannot correct
    ├── NoSpareError      a chip was lost whose place no spare can take
    ├── OtherCodeError    a chip runs other code than the driver
    ├── ControlError      a control message that may not come in this state of a run
    └── RackClosedError   a rack used after it was closed or had failed

All keep their fields and survive pickle, because they cross process boundaries.
"""

from __future__ import annotations

from typing import Any

import chip.errors
import compiler.errors
import interconnect.errors
from compiler.errors import one_line
from compiler.files import printable


class RackError(Exception):
    """Root of the package's errors."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own would call __init__ with the message instead of the fields.
        return type(self).__new__, (type(self), *self.args), self.__dict__


class ProfileError(RackError, ValueError):
    """A machine description names no file, or a key of it is missing, unknown or wrong."""

    def __init__(self, *, file: str, key: str, wanted: str, got: str) -> None:
        self.file, self.key, self.wanted, self.got = one_line(printable(file)), key, wanted, got
        super().__init__(f"{self.file}: {key}: wanted {wanted}, got {got}")


class MachineError(RackError, ValueError):
    """A machine was asked for something it cannot be: too many chips, ports it does not have."""

    def __init__(self, *, machine: str, what: str, wanted: str, got: object) -> None:
        self.machine, self.what, self.wanted, self.got = machine, what, wanted, got
        super().__init__(f"{machine}: {what}: wanted {wanted}, got {got}")


class RequestError(RackError, ValueError):
    """A completion was asked for with a parameter that cannot be; `param` names it."""

    def __init__(self, *, param: str, wanted: str, got: str) -> None:
        self.param, self.wanted, self.got = param, wanted, got
        super().__init__(f"{param}: wanted {wanted}, got {got}")


class TraceError(RackError, ValueError):
    """A line of a serving trace is not what its format says: which line, and which key of it."""

    def __init__(self, *, file: str, line: int, key: str, wanted: str, got: str) -> None:
        self.file, self.line, self.key = one_line(printable(file)), line, key
        self.wanted, self.got = wanted, got
        what = f"{key}: " if key else ""
        super().__init__(f"{self.file}: line {line}: {what}wanted {wanted}, got {got}")


class ConfigError(RackError, ValueError):
    """A flag, environment variable or configuration key is unknown or out of range."""


class FaultError(RackError):
    """Something broke in a step, of which nothing is to blame in the program (`Rack.recover`)."""

    def __init__(self, *, chip: int | str, step: str, what: str, waiting_for: str) -> None:
        self.chip, self.step, self.what, self.waiting_for = chip, step, what, waiting_for
        super().__init__(f"chip {chip}, {step}: {what}; waiting for {waiting_for}")


class ChipFailedError(FaultError):
    """A chip died, stalled or never started: which, in which step, waiting for what.

    `lost`: all chips whose processes are no longer of use; none where a start failed.
    """

    def __init__(
        self, *, chip: int | str, step: str, what: str, waiting_for: str,
        lost: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        self.lost = lost
        super().__init__(chip=chip, step=step, what=what, waiting_for=waiting_for)


class NoSpareError(RackError):
    """A chip was lost, and no spare can take its place: none is left, or none has its cables."""

    def __init__(self, *, chip: int | str, why: str, cause: str) -> None:
        self.chip, self.why, self.cause = chip, why, cause
        super().__init__(f"{cause}; {why}")


class LinkFlaggedError(FaultError):
    """Vectors came with errors that their code detects and cannot correct; `step` cannot end.

    The frame is transfer `transfer` of step number `sequence`. The rack runs again after a reset.
    """

    def __init__(self, *, chip: int, link: str, step: str, sequence: int, transfer: int) -> None:
        self.link, self.sequence, self.transfer = link, sequence, transfer
        super().__init__(
            chip=chip, step=step, waiting_for="its replay",
            what=f"transfer {transfer} of step number {sequence} came over {link} with errors that "
            "cannot be corrected",
        )  # fmt: skip


class OtherCodeError(RackError):
    """A chip runs other code than the driver: the same results cannot be counted on."""

    def __init__(self, *, chip: int, where: str, what: str, wanted: str, got: str) -> None:
        self.chip, self.where, self.what, self.wanted, self.got = chip, where, what, wanted, got
        super().__init__(
            f"chip {chip} ({where}) runs other code than the driver: {what}: "
            f"wanted {wanted}, got {got}; if it was changed since, start the driver again"
        )


class ControlError(RackError):
    """A control message came that the state of the run has no place for (rack/run/control.py)."""

    def __init__(self, *, chip: int, state: str, sender: str, wanted: str, got: str) -> None:
        self.chip, self.state, self.sender = chip, state, sender
        self.wanted, self.got = wanted, one_line(got)
        super().__init__(f"chip {chip}, {state}: wanted {wanted} from {sender}, got {self.got}")


class RackClosedError(RackError):
    """A rack was used after it was closed or had failed."""


KNOWN_ERRORS = (
    chip.errors.ChipError,
    compiler.errors.CompilerError,
    interconnect.errors.InterconnectError,
    RackError,
)
"""What a command reports in one line and exit code 1; anything else is a bug with a traceback."""
