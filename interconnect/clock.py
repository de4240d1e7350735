"""Clocks of chips that drift, and how they are kept together (ISCA 2022, 3).

Every chip has its own oscillator. A hardware aligned counter (HAC) is sent from the root down a
spanning tree once an exchange and corrected on arrival. It has 8 bits, four codes of which are
taken, so it starts again every 252 cycles, an epoch. The software aligned counter (SAC) counts a
program's cycles. A DESKEW starts it at an epoch of the HAC. Every RUNTIME_DESKEW sets it to the HAC
again, and the chip stalls for that. Training measures a link's latency; flights stray
about it.

Real time is counted in millionths of a nominal cycle, so a chip that is p ppm slow has a period of
exactly 1,000,000 + p, and nothing here is a float. Sans-I/O: cycles in, times out. All times are
int64 arrays, one element a case.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from interconnect.errors import SpecError

MICRO = 1_000_000  # units of real time in a nominal cycle
MAX_CYCLES = 1 << 42  # of a run: beyond, times would not fit 64 bits
_PARTS, _BITS = 5, 12  # of a random number: what a flight's jitter is the mean of
_TOP = (1 << _BITS) - 1

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockSpec:
    """How far clocks and links stray, and how often they are brought together.

    Raises SpecError for values out of range.
    """

    drift_ppm: int = 0  # a chip's period is off by at most this
    jitter_mcycles: int = 0  # a flight is off its trained latency by at most this, 1/1000 cycle
    latency_sigma_mcycles: int = 0  # spread of latencies between links, 1/1000 cycle
    hac_period_cycles: int = 252  # after which the counter starts again: an epoch
    hac_exchange_cycles: int = 256  # from one exchange of the counter to the next
    realign_cycles: int = 65_536  # a chip counts on its own for at most this long
    seed: int = 0  # of trained latencies, drifts, phases and jitter

    def __post_init__(self) -> None:
        for field in self.__slots__:
            value = getattr(self, field)
            least = int(field in ("hac_period_cycles", "hac_exchange_cycles", "realign_cycles"))
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise SpecError(field=field, wanted=f"an integer >= {least}", got=value)
        if self.drift_ppm >= 10_000:
            raise SpecError(field="drift_ppm", wanted="below 10,000", got=self.drift_ppm)

    @property
    def strays(self) -> bool:
        """Whether schedules need slack: clocks drift or flights jitter."""
        return bool(self.drift_ppm or self.jitter_mcycles)

    def drift_of(self, slot: int) -> int:
        """Return the drift of a chip's oscillator in ppm, drawn from the seed."""
        return _draw(self.seed, f"drift {slot}") % (2 * self.drift_ppm + 1) - self.drift_ppm

    def phase_of(self, slot: int) -> int:
        """Return where in a period a chip's clock edges happen to lie."""
        return _draw(self.seed, f"phase {slot}") % MICRO

    def trained_cycles(self, mean_cycles: int, cable: str) -> int:
        """Return the latency that training finds on a cable's direction; the same every time.

        Normal with `latency_sigma_mcycles` about the mean, as the sum of twelve uniform numbers.
        """
        unit = 1 << 32
        total = sum(_draw(self.seed, f"train {cable} {k}") % unit for k in range(12)) - 6 * unit
        off = (2 * self.latency_sigma_mcycles * total + 1000 * unit) // (2000 * unit)  # rounded
        return max(1, mean_cycles + off)


EXACT = ClockSpec()
"""No drift, no jitter, every link alike."""


def _draw(seed: int, what: str) -> int:
    """A number below 2^64 that depends on its two arguments alone."""
    digest = hashlib.blake2b(f"{seed} {what}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@dataclass(frozen=True, slots=True)
class SyncHop:
    """One edge of the spanning tree: into `slot`, over a link of this trained latency."""

    slot: int
    latency_cycles: int


SyncPath = tuple[SyncHop, ...]
"""From the root (left out) to a chip; empty for the root itself."""


def sync_error(clock: ClockSpec, path: SyncPath) -> tuple[int, int]:
    """How early and how late, in MICRO, a chip's HAC may read a value, against the root's.

    At each hop a value waits for the receiver's next clock edge, and is then counted on with the
    receiver's period for up to one exchange.
    """
    drift, jitter = clock.drift_ppm, clock.jitter_mcycles * (MICRO // 1000)
    early = sum(
        hop.latency_cycles * drift + jitter + 2 * clock.hac_exchange_cycles * drift for hop in path
    )
    return early, early + len(path) * (MICRO + drift)


def slack_cycles(
    clock: ClockSpec, src: SyncPath, dst: SyncPath, slot_cycles: int, latency_cycles: int
) -> int:
    """Cycles by which a vector may come before or after its nominal time at the receiver.

    Both programs count alone for up to `realign_cycles`, and their periods differ by up to twice
    the drift. The counters that they start from have errors of their own.
    """
    if not clock.strays:
        return 0
    apart = 2 * clock.drift_ppm * clock.realign_cycles
    flight = (slot_cycles + latency_cycles) * clock.drift_ppm
    (src_early, src_late), (dst_early, dst_late) = sync_error(clock, src), sync_error(clock, dst)
    worst = max(src_late + dst_early, src_early + dst_late)
    return -(-(worst + apart + flight + clock.jitter_mcycles * (MICRO // 1000)) // MICRO)


def stall_cycles(clock: ClockSpec, paths: Sequence[SyncPath]) -> int:
    """Idle cycles that a realignment needs on any chip: the most that a SAC strays from the HAC.

    It is the t of RUNTIME_DESKEW t, which stalls t cycles, more or fewer by the SAC's error.
    Raises SpecError where a HAC may be off by half its period: its sign is then unknown.
    """
    if not clock.strays:
        return 0
    errors = [sync_error(clock, path) for path in paths]
    if 2 * (off := max(map(max, errors))) >= clock.hac_period_cycles * MICRO:
        wanted = f"more than {2 * off // MICRO}, twice what a chip's counter may be off"
        raise SpecError(field="hac_period_cycles", wanted=wanted, got=clock.hac_period_cycles)
    worst = max(map(sum, errors))
    return -(-(worst + 2 * clock.drift_ppm * clock.realign_cycles) // (MICRO - clock.drift_ppm))


def start_cycles(clock: ClockSpec, paths: Sequence[SyncPath]) -> int:
    """Cycles from the root's start of a program to the last chip's (ISCA 2022, 3.2).

    A chip tells its children in the cycle of its start; they start at the next epoch of their own
    counters after that has come: floor(latency / epoch) + 1 epochs a level of the tree.
    """
    if not clock.strays:
        return 0
    epoch = clock.hac_period_cycles
    ways = (sum(hop.latency_cycles // epoch + 1 for hop in path) for path in paths)
    return max(ways, default=0) * epoch


class ChipClock:
    """One chip's oscillator and its HAC, fed by its parent's; the root has no parent."""

    def __init__(
        self, clock: ClockSpec, slot: int, drift_ppm: int, parent: ChipClock | None = None,
        latency_cycles: int = 0,
    ) -> None:  # fmt: skip
        if abs(drift_ppm) > clock.drift_ppm:
            wanted = f"within +-{clock.drift_ppm}"
            raise SpecError(field=f"drift of chip {slot}", wanted=wanted, got=drift_ppm)
        self.slot, self.parent, self.latency_cycles = slot, parent, latency_cycles
        self.period = MICRO + drift_ppm
        self._clock = clock
        self._phase = clock.phase_of(slot) if parent is not None else 0
        source = "" if parent is None else f"{parent.slot}->{slot}"
        self._jitter = Jitter(clock, f"sync {source}")

    def reads(self, value: I64) -> I64:
        """Real times at which the HAC reads these values, by the newest exchange before them."""
        if self.parent is None:
            return value * self.period
        period, latency = self._clock.hac_exchange_cycles, self.latency_cycles
        exchange = (value - latency) // period
        sent = self.parent.reads(exchange * period)
        arrived = sent + latency * MICRO + self._jitter.of(exchange)
        edge = -(-(arrived - self._phase) // self.period) * self.period + self._phase
        counted: I64 = edge + (value - exchange * period - latency) * self.period
        return counted


class Jitter:
    """Deviation of each flight from its link's latency, in MICRO, by the flight's number.

    The mean of five uniform numbers: at most `jitter_mcycles`, with a standard deviation of 0.258
    of that, as ISCA 2022, Table 2, has it (2.63 to 2.93 cycles, within 11 of the mean).
    """

    def __init__(self, clock: ClockSpec, link: str) -> None:
        self._most = clock.jitter_mcycles * (MICRO // 1000)
        self._key = np.uint64(_draw(clock.seed, f"jitter {link}"))

    def of(self, number: I64) -> I64:
        """Return the jitter of these flights (splitmix64 of key and number)."""
        if not self._most:
            return np.zeros_like(number)
        with np.errstate(over="ignore"):
            z = self._key + number.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
        parts = [(z >> np.uint64(_BITS * part)) & np.uint64(_TOP) for part in range(_PARTS)]
        total = np.sum(np.stack(parts), axis=0).astype(np.int64)
        off: I64 = (2 * total - _PARTS * _TOP) * self._most // (_PARTS * _TOP)
        return off


def build_clocks(
    clock: ClockSpec, root: int, paths: Sequence[SyncPath], drifts: dict[int, int] | None = None
) -> list[ChipClock]:
    """Make the clocks of chips, one for each path from the root; chips on the way are shared.

    `drifts` gives slots a drift of your choice; the others have the one that the seed draws.
    """
    chosen = drifts or {}

    def drift(slot: int) -> int:
        return chosen.get(slot, clock.drift_of(slot))

    known = {root: ChipClock(clock, root, drift(root))}
    out = []
    for path in paths:
        at = known[root]
        for hop in path:
            if hop.slot not in known:
                known[hop.slot] = ChipClock(
                    clock, hop.slot, drift(hop.slot), at, hop.latency_cycles
                )
            at = known[hop.slot]
        out.append(at)
    return out
