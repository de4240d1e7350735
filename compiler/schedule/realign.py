"""Schedule the stops at which a chip realigns its counter (RUNTIME_DESKEW).

A chip counts on its own for at most `realign_cycles`. If it is idle for long enough in the second
half of that time, it stops there; else the schedule makes an idle place. During a stop no unit
works, no packet leaves and no vector is received. Each chip stops by itself. Chips need not agree
on that, because they all realign to one common counter.
"""

from __future__ import annotations

from compiler.errors import CompilerError
from compiler.place.network import Network


class Counter:
    """One node's SAC. The scheduler fills the node's time roughly from front to back.

    `spans` has the stops so far, each (from, to). Later work may still go into the idle time
    before the last stop, which is then shorter, but no further back. A vector is read up to `lead`
    cycles before it leaves, and written up to `landed` cycles after it has come.
    """

    __slots__ = ("_chip", "_interval", "_quiet", "_stall", "landed", "lead", "spans", "strays")

    def __init__(self, network: Network, chip: int, lead: int = 0, landed: int = 0) -> None:
        is_host = chip == len(network.binding)
        self._chip = chip
        self.lead, self.landed = (0, 0) if is_host else (lead, landed)
        self.strays = bool(network.sync) and not is_host
        self._interval, self._stall = network.clock.realign_cycles, network.stall_cycles
        self._quiet = 0  # the end of everything placed so far
        self.spans: list[tuple[int, int]] = []

    @property
    def _aligned(self) -> int:
        return self.spans[-1][1] if self.spans else 0

    @property
    def settled(self) -> int:
        """The first cycle at which the next step may begin: the chip realigns there."""
        return self._quiet + self._stall if self.strays else 0

    def room(self, start: int, length: int) -> int:
        """Return the first cycle, from `start` on, with room for `length`. Raises CompilerError."""
        if not self.strays:
            return start
        if self._fits(start, length):
            return start
        start = max(start, self._aligned)
        if self._stops(start, length):
            start = max(start, self._quiet + self._stall)
        if length > self._interval:
            raise CompilerError(
                f"clock.realign_cycles: chip {self._chip} has something that takes {length} cycles "
                f"and may not count on its own for more than {self._interval}"
            )
        return start

    def _fits(self, start: int, length: int) -> bool:
        """Say whether something can still be placed before the last stop."""
        if not self.spans:
            return False
        aligned = self.spans[-2][1] if len(self.spans) > 1 else 0
        end = start + length
        in_time = end + self._stall <= self._aligned and end - aligned <= self._interval
        return start >= aligned and in_time

    def _stops(self, start: int, length: int) -> bool:
        """Say whether the counter must be realigned before something placed here."""
        since = max(start, self._quiet) - self._aligned
        free = start - self._quiet >= self._stall and 2 * since >= self._interval
        return free or start + length - self._aligned > self._interval

    def take(self, start: int, end: int) -> None:
        """Take the room from `start` to `end`."""
        if not self.strays:
            return
        if self._fits(start, end - start):
            begin, to = self.spans[-1]
            self.spans[-1] = (max(begin, end), to)
            return
        if self._stops(start, end - start):
            self.spans.append((self._quiet, start))
        self._quiet = max(self._quiet, end)


def meet(
    sender: Counter, receiver: Counter, start: int, stream: int, flight: int, slot: int
) -> int:
    """Take room for a transfer at both its ends, and return when it starts.

    It occupies the sender for `stream` cycles. Its vectors are received from `flight` cycles after
    its start, one a `slot`, in a cycle each. The ways between port and memory come on top.
    """
    if not (sender.strays or receiver.strays):
        return start
    sending, receiving = sender.lead + stream, stream - slot + 1 + receiver.landed
    while True:
        start = sender.room(start - sender.lead, sending) + sender.lead
        first = receiver.room(start + flight, receiving)
        if first == start + flight:
            break
        start = first - flight
    sender.take(start - sender.lead, start + stream)
    receiver.take(first, first + receiving)
    return start
