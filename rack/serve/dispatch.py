"""Several racks behind one server: each request goes to the one with the shortest queue.

A rack runs as many sequences at a time as it has slots; more racks answer more at once. Racks that
are starting again after a failure, or were given up, are passed over; so are racks that recover, or
a chip of which is silent, unless there are no others. A tie goes to the rack that
has been free for longest by the time that is emulated, then to that of the lowest number.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from rack.serve.errors import RETRY_STARTING_SECONDS, BusyError, starting
from rack.serve.runner import QueuedRequest, Runner

READY = "ready"


class Dispatcher:
    """Equal racks, each with a thread and a queue of its own."""

    def __init__(self, runners: Sequence[Runner]) -> None:
        assert runners
        self.runners = tuple(runners)

    def start(self) -> None:
        """Start opening the racks, all at the same time."""
        for runner in self.runners:
            runner.start()

    @property
    def ready(self) -> list[Runner]:
        """The racks that take requests now."""
        return [runner for runner in self.runners if runner.stage is None]

    @property
    def states(self) -> list[str]:
        """What each rack is at: "ready", the stage of its start, or what keeps it from running."""
        return [runner.condition() or READY for runner in self.runners]

    @property
    def given_up(self) -> bool:
        """Whether no rack is left, and none will start again."""
        return all(runner.given_up for runner in self.runners)

    def check_ready(self) -> None:
        """Raise BusyError while no rack can take a request, naming every rack's stage."""
        if len(self.runners) == 1:
            self.runners[0].check_ready()
        elif not self.ready:
            raise _not_ready(self.states)

    def check_running(self) -> list[str]:
        """Return the state of each rack. Raise BusyError, naming all, while no rack is ready.

        A rack that recovers, or a chip of which is silent, takes requests and is not ready.
        """
        self.check_ready()
        states = self.states
        if READY not in states:
            raise _not_ready(states)
        return states

    def submit(self, job: QueuedRequest) -> Runner:
        """Queue a request; return the rack that took it.

        Raises BusyError when no rack is ready, or all queues are full.
        """
        self.check_ready()
        taking = self.ready or self.runners
        well = [runner for runner in taking if runner.condition() is None]
        runner = min(well or taking, key=lambda one: (one.load, one.pacer.due_seconds))
        runner.submit(job)
        return runner

    @property
    def running(self) -> int:
        """How many requests run."""
        return sum(len(runner.running) for runner in self.runners)

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return max(0, sum(runner.load for runner in self.runners) - self.running)

    def request_stop(self) -> None:
        """Fail what runs and waits; does not wait for the racks to close."""
        for runner in self.runners:
            runner.request_stop()

    def stop(self, timeout_seconds: float) -> bool:
        """Stop all racks and wait for them to close; False if one did not in time."""
        self.request_stop()
        deadline = time.monotonic() + timeout_seconds
        ended = [runner.stop(max(0.0, deadline - time.monotonic())) for runner in self.runners]
        return all(ended)


def _not_ready(states: Sequence[str]) -> BusyError:
    """Return why no rack runs requests."""
    if len(states) == 1:
        return starting(states[0])
    named = "; ".join(f"rack {number}: {state}" for number, state in enumerate(states))
    return BusyError(what=f"no rack is ready ({named})", retry_seconds=RETRY_STARTING_SECONDS)
