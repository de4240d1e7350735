"""A slice's ports: one read and one write in a cycle, to different banks.

An access whose address comes with the step may be in either bank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from chip.errors import IssueError
from chip.machine.events import I64, IssueIndex, duplicate, keys, matches, order_of

EITHER = -1


class Accesses(NamedTuple):
    """Reads or writes, one element each."""

    slice_: I64
    cycle: I64
    bank: I64  # EITHER: known at run time only
    issue: IssueIndex

    def joined(self, other: Accesses) -> Accesses:
        """Return these and others."""
        slice_, cycle, bank = map(np.append, self[:3], other[:3])
        return Accesses(slice_, cycle, bank, self.issue.joined(other.issue))


def check_ports(
    reads: Accesses, writes: Accesses, culprit: Callable[[IssueIndex, int], str]
) -> None:  # fmt: skip
    """Raise IssueError for two that meet; `culprit` names the issue of an access."""
    ordered: dict[str, tuple[I64, I64]] = {}
    for what, accesses in (("reads of", reads), ("writes to", writes)):
        key = keys(accesses.slice_, accesses.cycle)
        order = order_of(key)
        ordered[what] = key[order], order
        if (twice := duplicate(key[order])) is not None:
            raise IssueError(
                f"two {what} one slice in one cycle", culprit(accesses.issue, order[twice]),
                culprit(accesses.issue, order[twice + 1]),
            )  # fmt: skip
    key, order = ordered["writes to"]
    at, meets = matches(key, keys(reads.slice_, reads.cycle))
    for event in np.flatnonzero(meets).tolist():
        write = int(order[at[event]])
        banks = {int(reads.bank[event]), int(writes.bank[write])}
        if len(banks) == 1 or EITHER in banks:
            raise IssueError(
                "a read and a write in one bank and cycle", culprit(reads.issue, event),
                culprit(writes.issue, write),
            )  # fmt: skip
