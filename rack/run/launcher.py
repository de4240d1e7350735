"""What starts, watches and ends the processes of a rack's chips: the contract of both ways.

A process has a number that it keeps: chips begin in those of their own numbers; those of spares
come after the host's and the heartbeat's. So a process that took a chip's place is another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rack.run.job import ChipJob
from rack.run.worker import Seat


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """A process to start: as a chip, or, without a job, as a spare; and the memory it may need."""

    job: ChipJob | None
    seat: Seat
    memory_bytes: int


class Launcher(Protocol):
    """Starts, watches and ends processes."""

    name: str

    def bind(self, node: int, folder: str) -> str:
        """Return the address that a node binds; the host is the first to ask."""

    def start(self, posts: Sequence[Post]) -> None:
        """Start the processes; return at once."""

    def dead(self) -> dict[int, str]:
        """Return the processes that have ended by themselves, with the reason.

        Raises RackError if the system that runs them is gone as a whole.
        """

    def end(self, process: int) -> None:
        """End a process by force; it is not watched any more."""

    def stop(self) -> None:
        """End every process, by force if necessary."""
