"""A slice's ports: one read and one write in a cycle, to different banks.

An access whose address comes with the step may be in either bank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from chip.errors import IssueError
from chip.machine.events import I64, Origin, duplicate, keys, matches

EITHER = -1


class Accesses(NamedTuple):
    """Reads or writes, one element each."""

    slice_: I64
    cycle: I64
    bank: I64  # EITHER: known at run time only
    origin: Origin

    def joined(self, other: Accesses) -> Accesses:
        """Return these and others."""
        origin = Origin(
            np.append(self.origin.burst, other.origin.burst),
            np.append(self.origin.nth, other.origin.nth),
        )
        slice_, cycle, bank = (np.append(self[i], other[i]) for i in range(3))
        return Accesses(slice_, cycle, bank, origin)


def check_ports(reads: Accesses, writes: Accesses, name: Callable[[int, int], str]) -> None:
    """Raise IssueError for two that meet; `name` names issue n of a burst."""

    def culprit(accesses: Accesses, event: int) -> str:
        return name(int(accesses.origin.burst[event]), int(accesses.origin.nth[event]))

    ordered: dict[str, tuple[I64, I64]] = {}
    for what, accesses in (("reads of", reads), ("writes to", writes)):
        key = keys(accesses.slice_, accesses.cycle)
        order = np.argsort(key, kind="stable")
        ordered[what] = key[order], order
        if (twice := duplicate(key[order])) is not None:
            raise IssueError(
                f"two {what} one slice in one cycle", culprit(accesses, int(order[twice])),
                culprit(accesses, int(order[twice + 1])),
            )  # fmt: skip
    key, order = ordered["writes to"]
    at, meets = matches(key, keys(reads.slice_, reads.cycle))
    for event in np.flatnonzero(meets).tolist():
        write = int(order[at[event]])
        banks = {int(reads.bank[event]), int(writes.bank[write])}
        if len(banks) == 1 or EITHER in banks:
            raise IssueError(
                "a read and a write in one bank and cycle", culprit(reads, event),
                culprit(writes, write),
            )  # fmt: skip
