"""The compiler's errors.

    CompilerError            root: catch this to catch everything the compiler refuses
      ModelError             a model's files or configuration cannot be used
      LayoutError            a layout cannot be parsed or cabled, or does not suit the model
      CapacityError          the model does not fit; names the bytes missing and what would fit
      ScheduleError          the verifier refuses a schedule
      LoweringError          an operation has no instructions
      ArtifactError          an artifact is missing, corrupt or stale

Every error keeps its fields and survives pickle, because compilation may run in another process.
"""

from __future__ import annotations

from typing import Any

_LONGEST = 600  # characters of one part of an error


def one_line(text: str) -> str:
    """Return any text as one printable line; a long one loses its middle."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 100]} … {text[-80:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class CompilerError(Exception):
    """Root of every error the compiler raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own would call __init__ with the message instead of the fields.
        return type(self).__new__, (type(self), *self.args), self.__dict__


class ModelError(CompilerError):
    """A model's files or configuration cannot be used: `what`, `wanted` and `got` say why."""

    def __init__(self, what: str, wanted: str, got: str) -> None:
        super().__init__(what, wanted, got)
        self.what = what
        self.wanted = wanted
        self.got = got

    def __str__(self) -> str:
        return one_line(self.what) + f": wanted {one_line(self.wanted)}, got {one_line(self.got)}"


class LayoutError(CompilerError):
    """A layout that cannot be parsed or cabled, or that does not suit the model."""


class LoweringError(CompilerError):
    """An operation that can be scheduled but not lowered to instructions."""


class CapacityError(CompilerError):
    """A model does not fit: the chip, the bytes missing and the smallest layout that fits."""

    def __init__(
        self,
        *,
        chip: int,
        needed: int,
        available: int,
        layout: str,
        context: int,
        smallest: str | None = None,
    ) -> None:
        super().__init__(chip, needed, available, layout, context, smallest)
        self.chip, self.needed, self.available = chip, needed, available
        self.layout, self.context, self.smallest = layout, context, smallest

    def advise(self, smallest: str | None) -> CapacityError:
        """Return the same error with the smallest layout that would fit."""
        return CapacityError(**{**self.__dict__, "smallest": smallest})

    @property
    def missing(self) -> int:
        """Bytes by which the chip's memory is too small."""
        return self.needed - self.available

    def __str__(self) -> str:
        advice = f"; the smallest layout that fits is {self.smallest}" if self.smallest else ""
        return (
            f"layout {self.layout}, context {self.context}: chip {self.chip} wants "
            f"{self.needed:,} bytes of SRAM and has {self.available:,}: "
            f"{self.missing:,} bytes missing{advice}"
        )


class ScheduleError(CompilerError):
    """The verifier refuses a schedule; the text names the operations, chip, unit and cycles."""


class ArtifactError(CompilerError):
    """An artifact is missing, corrupt, stale or of another version; the text names the file."""
