"""Layouts such as `8x4+4`: pipeline stages, chips per stage, chips of the head group."""

from __future__ import annotations

import re
from dataclasses import dataclass

from compiler.errors import LayoutError
from compiler.files import shown

MOST_GROUP, MOST_HEAD, MOST_CHIPS = 128, 1024, 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """`stages` groups of `group` chips, then `head` chips; head 0 shares the last stage's chips."""

    stages: int
    group: int
    head: int = 0

    @property
    def chips(self) -> int:
        """Chips in all."""
        return self.stages * self.group + self.head

    @property
    def head_chips(self) -> tuple[int, ...]:
        """Logical chips that hold the final norm and the LM head."""
        if self.head:
            return tuple(range(self.stages * self.group, self.chips))
        return self.stage_chips(self.stages - 1)

    def stage_chips(self, stage: int) -> tuple[int, ...]:
        """Logical chips of one pipeline stage."""
        return tuple(range(stage * self.group, (stage + 1) * self.group))

    def __str__(self) -> str:
        return f"{self.stages}x{self.group}" + (f"+{self.head}" if self.head else "")


def parse_layout(text: str) -> Layout:
    """Parse `PxT` or `PxT+H`. Raises LayoutError for anything else.

    Counts are bounded, so that any layout is laid out in reasonable time: every chip of a stage
    talks to every other.
    """
    match = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})(?:\+([0-9]{1,9}))?", text.strip())
    if match is None:
        raise LayoutError(f"layout {shown(text)}: wanted PxT or PxT+H, such as 8x4+4")
    stages, group, head = (int(part) if part else 0 for part in match.groups())
    if stages < 1 or group < 1:
        raise LayoutError(f"layout {text!r}: wanted at least one stage of one chip")
    for count, most, what in (
        (group, MOST_GROUP, "chips a stage"), (head, MOST_HEAD, "chips of the head group"),
        (stages * group + head, MOST_CHIPS, "chips"),
    ):  # fmt: skip
        if count > most:
            raise LayoutError(f"layout {text!r}: wanted at most {most} {what}, got {count}")
    return Layout(stages=stages, group=group, head=head)
