"""When a chip stops for its counter to be set right again (RUNTIME_DESKEW).

A chip counts on its own for at most `realign_cycles`. It stops only where it does nothing anyway if
it finds such a place in the second half of that time, and makes one otherwise. While it stops, no
unit works, no packet leaves and no vector is received. Chips stop each on its own: they need not
agree, because the counter they are set to is common.
"""

from __future__ import annotations

from compiler.errors import CompilerError
from compiler.place.network import Network


class Counter:
    """One node's SAC, as the scheduler fills the node's time, more or less from front to back.

    `spans` has the stops so far, each (from, to). What is placed later may still go into the idle
    time in front of the last one, which is then shorter; nothing goes further back. A vector is
    read up to `lead` cycles before it leaves, and written up to `landed` cycles after it has come.
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
        """The first cycle at which the next step may begin: there the chip is set right again."""
        return self._quiet + self._stall if self.strays else 0

    def room(self, start: int, length: int) -> int:
        """Return when something may start that wants to at `start`. Raises CompilerError."""
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
        """Whether something can still be placed in front of the last stop."""
        if not self.spans:
            return False
        aligned = self.spans[-2][1] if len(self.spans) > 1 else 0
        end = start + length
        in_time = end + self._stall <= self._aligned and end - aligned <= self._interval
        return start >= aligned and in_time

    def _stops(self, start: int, length: int) -> bool:
        """Whether the counter is set right before something placed here."""
        since = max(start, self._quiet) - self._aligned
        free = start - self._quiet >= self._stall and 2 * since >= self._interval
        return free or start + length - self._aligned > self._interval

    def take(self, start: int, end: int) -> None:
        """Note something that was given room from `start` to `end`."""
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
    """Return when a transfer may start so that both ends have room, and take it there.

    It takes the sender `stream` cycles; its vectors are received from `flight` cycles after its
    start, one a `slot`, in a cycle each. Ways between port and memory come on top.
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
