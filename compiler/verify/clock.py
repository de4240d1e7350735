"""Check that receive windows and stops are long enough for clocks that stray.

From the profile's numbers alone, in fractions of a cycle, it computes how far apart two programs
may be when a vector passes between them, and how far off a counter may be when a chip realigns it.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from chip.ops.cost import receive_cycles, send_lead_cycles
from chip.ops.moves import Receive, Send
from chip.ops.program import Program, Scheduled
from chip.spec import ChipSpec
from compiler.errors import ScheduleError
from compiler.ir import LinkUse, StepSchedule
from interconnect.clock import ClockSpec, SyncPath

_Busy = tuple[int, int, str]
"""First cycle, end, the operation's name."""
_Bounds = tuple[Fraction, Fraction]
"""Most cycles early, most cycles late."""


def check_clocks(
    steps: Sequence[tuple[StepSchedule, int]],
    spec: ChipSpec,
    links: Sequence[LinkUse],
    clock: ClockSpec,
    sync: Sequence[SyncPath],
) -> None:
    """Check every link's window and every chip's stops. Raises ScheduleError by name."""
    if not clock.drift_ppm and not clock.jitter_mcycles:
        _check_nothing_stops(steps)
        return
    paths = [*sync, ()]  # the host's port keeps the root's time
    counters = [_counter_bounds(clock, path) for path in paths]
    for link in links:
        _check_window(link, clock, counters[link.src], counters[link.dst])
    drift = Fraction(clock.drift_ppm, 10**6)
    for schedule, _ in steps:
        for chip, program in enumerate(schedule.programs[:-1]):
            off = sum(counters[chip]) + 2 * drift * clock.realign_cycles
            busy = sorted(_busy(operation, spec) for operation in program.operations)
            _check_stops(program, busy, schedule.cycles, clock.realign_cycles, off / (1 - drift))


def _check_nothing_stops(steps: Sequence[tuple[StepSchedule, int]]) -> None:
    for schedule, _ in steps:
        for program in schedule.programs:
            if program.realign:
                raise ScheduleError(
                    f"chip {program.chip}, step {schedule.name}: stops at {program.realign[0]} to "
                    "realign clocks that do not stray"
                )


def _counter_bounds(clock: ClockSpec, path: SyncPath) -> _Bounds:
    """Return how far a chip's HAC may be off the root's: the sum over the hops from the root."""
    drift, jitter = Fraction(clock.drift_ppm, 10**6), Fraction(clock.jitter_mcycles, 1000)
    early = late = Fraction(0)
    for hop in path:
        flown, counted = hop.latency_cycles * drift, clock.hac_exchange_cycles * 2 * drift
        early += flown + counted + jitter
        late += flown + counted + jitter + (1 + drift)  # waits for the next edge of its own clock
    return early, late


def _check_window(link: LinkUse, clock: ClockSpec, src: _Bounds, dst: _Bounds) -> None:
    drift = Fraction(clock.drift_ppm, 10**6)
    alone = 2 * drift * clock.realign_cycles  # both programs, on their own
    flight = drift * (link.slot_cycles + link.latency_cycles) + Fraction(clock.jitter_mcycles, 1000)
    after = link.rx_window_cycles // 2
    before = link.rx_window_cycles - after
    for what, wanted, got in (
        ("late", src[1] + dst[0] + alone + flight, after),
        ("early", src[0] + dst[1] + alone + flight, before),
    ):
        if got < wanted:
            raise ScheduleError(
                f"link {link.name}: a vector may come {float(wanted):.2f} cycles {what} with "
                f"clocks that drift by {clock.drift_ppm} ppm, its window allows {got}"
            )


def _busy(operation: Scheduled, spec: ChipSpec) -> _Busy:
    """Return when an operation keeps a chip busy, with a vector's way to or from a port.

    A RECEIVE ends when its last vector arrives, in a cycle of its own.
    """
    start, end = operation.start, operation.end
    if isinstance(operation.op, Send):
        start -= send_lead_cycles(spec)
    elif isinstance(operation.op, Receive):
        end += receive_cycles(spec) + 1
    return start, end, operation.name


def _check_stops(
    program: Program, busy: Sequence[_Busy], cycles: int, interval: int, off: Fraction
) -> None:
    """Check that a chip does nothing while it stops, and never counts alone for too long."""
    quiet = max((end for _, end, _ in busy), default=0)
    stops = [*program.realign, (quiet, cycles)]
    where, aligned, at = f"chip {program.chip}, step {program.step}", 0, 0
    for begin, end in stops:
        if begin < aligned or end - begin < off:
            raise ScheduleError(
                f"{where}: stops from {begin} to {end} to realign its counter, which takes "
                f"{float(off):.2f} cycles"
            )
        while at < len(busy) and busy[at][0] < end:
            start, done, name = busy[at]
            if done > begin or start < aligned:
                raise ScheduleError(
                    f"{where}, cycle {start}: {name} runs until {done} while the chip realigns its "
                    f"counter from {begin} to {end}"
                )
            if done - aligned > interval:
                raise ScheduleError(
                    f"{where}, cycle {start}: {name} ends at {done}, the counter was last "
                    f"realigned at {aligned} and may count alone for {interval} cycles"
                )
            at += 1
        aligned = end
