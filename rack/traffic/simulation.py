"""Serve a trace in virtual time: the server's dispatcher on the compiled schedule, and no tokens.

What begins when is decided by `rack.run.dispatch.Dispatcher`, step by step, as a server's rack
decides it. Where nothing comes, ends or changes its step for a while, the steps of all sequences
repeat: a state in which every sequence is as far from its next step as it was a round ago leads to
the same round again, so many equal rounds are passed over at once (`_Rack._leap`). The result is
that of single steps, to the cycle.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from compiler.pipeline import CompiledModel
from rack.run.dispatch import Begin, Dispatcher, Times, Wanted, later
from rack.traffic.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a request got, in cycles from the trace's beginning; None where it was refused.

    `gaps`: cycles between one token and the next -> how often.
    """

    request: Request
    replica: int
    arrival: int
    admitted: int | None = None  # with its slot
    first: int | None = None  # token
    end: int | None = None
    gaps: dict[int, int] = field(default_factory=dict)
    refused: str | None = None


@dataclass(slots=True)
class _Sequence:
    """A request in its slot, or one that waits for it."""

    request: Request
    arrival: int
    tokens: int  # that it gets: as many as asked for, or as fit
    admitted: int = 0
    filled: int = 0  # prompt tokens whose step has begun
    made: int = 0  # tokens
    first: int = 0
    last: int = 0  # cycle of the newest token
    gaps: dict[int, int] = field(default_factory=dict)
    recent: list[int] = field(default_factory=list)  # gaps of this round

    @property
    def context(self) -> int:
        """Tokens that its next decode step sees."""
        return self.request.prompt_tokens + self.made

    def took(self, cycle: int) -> None:
        """Take a token."""
        if self.made:
            gap = cycle - self.last
            self.gaps[gap] = self.gaps.get(gap, 0) + 1
            self.recent.append(gap)
        else:
            self.first = cycle
        self.made, self.last = self.made + 1, cycle


class _Rack:
    """One rack: its slots, its queue and its dispatcher."""

    def __init__(
        self, number: int, compiled: CompiledModel, times: Times, max_queue: int | None
    ) -> None:  # fmt: skip
        self.number, self._compiled, self._times = number, compiled, times
        self._max_queue = max_queue
        self._dispatcher = Dispatcher(times)
        self._free = list(range(compiled.sequences))
        self._running: dict[int, _Sequence] = {}
        self._waiting: deque[_Sequence] = deque()
        self._ends: list[tuple[int, int, Begin]] = []  # of decode steps under way
        self._count = 0
        self._round: tuple[object, ...] | None = None
        self._round_began = self._changes = 0

    @property
    def load(self) -> int:
        """Requests running and waiting."""
        return len(self._running) + len(self._waiting)

    @property
    def clock(self) -> int:
        """The cycle up to which everything is decided."""
        return self._dispatcher.now

    @property
    def full(self) -> bool:
        return (
            self._max_queue is not None and not self._free
            and len(self._waiting) >= self._max_queue
        )  # fmt: skip

    def take(self, request: Request, cycle: int) -> None:
        """Take a request that arrives at a cycle."""
        room = self._compiled.max_model_len - request.prompt_tokens
        self._waiting.append(_Sequence(request, cycle, min(request.output_tokens, room)))
        self._admit(cycle)

    def upcoming(self) -> tuple[int, bool] | None:
        """Return the cycle of what happens next, and whether a step begins then or one ends.

        None if nothing is in flight.
        """
        base = self._dispatcher.peek()
        if base is not None:
            return base, True
        return (self._ends[0][0], False) if self._ends else None

    def step(self, until: int | None) -> list[Outcome]:
        """Let it happen, and rounds like it before a cycle; return the requests that it ends."""
        begin = self._dispatcher.begin()
        if begin is None:
            return self._ended(heapq.heappop(self._ends)[2])
        self._begun(begin, until)
        return []

    def _admit(self, cycle: int) -> None:
        """Give free slots to those that wait."""
        while self._waiting and self._free:
            one, slot = self._waiting.popleft(), heapq.heappop(self._free)
            one.admitted = cycle
            self._running[slot] = one
            self._changes += 1
            self._want(slot, max(cycle, self.clock) + self._compiled.network.start_cycles)

    def _want(self, slot: int, ready: int) -> None:
        one = self._running[slot]
        rest = one.request.prompt_tokens - 1 - one.filled
        rows = min(rest, self._compiled.prefill_chunk) if rest else 1
        context = one.filled + rows if rest else one.context
        starting = bool(rest) or (not one.filled and not one.made)
        self._dispatcher.want(
            Wanted(
                slot=slot, ready=ready, rows=rows, context=context, decode=not rest,
                starting=starting,
            )
        )  # fmt: skip

    def _begun(self, begin: Begin, until: int | None) -> None:
        (slot, *_) = begin.slots
        one = self._running[slot]
        if one.filled == one.request.prompt_tokens - 1:
            self._count += 1
            heapq.heappush(self._ends, (begin.end, self._count, begin))
            if min(self._running) in begin.slots:
                self._leap(until)
            return
        self._changes += 1
        one.filled += min(one.request.prompt_tokens - 1 - one.filled, self._compiled.prefill_chunk)
        ready, rest = begin.end, one.request.prompt_tokens - 1 - one.filled
        if rest:
            rows = min(rest, self._compiled.prefill_chunk)
            following = self._times.of(rows, one.filled + rows, decode=False)
            ready = begin.base + self._times.interval(begin.name, following.name)
        self._want(slot, ready)

    def _ended(self, begin: Begin) -> list[Outcome]:
        self._dispatcher.reach(begin.end)
        out = []
        for slot in begin.slots:
            one = self._running[slot]
            before = self._name(one) if one.made else None
            one.took(begin.end)
            if one.made < one.tokens:
                self._changes += self._name(one) != before
                self._want(slot, begin.end)
                continue
            del self._running[slot]
            heapq.heappush(self._free, slot)
            self._dispatcher.drop(slot)
            self._changes += 1
            out.append(
                Outcome(
                    request=one.request, replica=self.number, arrival=one.arrival,
                    admitted=one.admitted, first=one.first, end=begin.end, gaps=one.gaps,
                )
            )  # fmt: skip
        self._admit(begin.end)
        return out

    def _name(self, one: _Sequence) -> str:
        return self._times.of(1, one.context, decode=True).name

    def _leap(self, until: int | None) -> None:
        """Pass over rounds that are like the one that ends now.

        A round goes from one step of the first slot to its next. It repeats if nothing changed in
        it, and all that is wanted or under way is as far off as a round ago. It is repeated while
        every sequence has tokens for two more rounds before its end or its next bucket, and
        while it ends before a cycle.
        """
        now = self._dispatcher.now
        newest = tuple((slot, one.last - now) for slot, one in self._running.items())
        state = self._changes, self._dispatcher.state(), newest
        if state == self._round:
            period = now - self._round_began
            rounds = min(
                self._left(one) // max(1, len(one.recent)) - 2 for one in self._running.values()
            )
            if until is not None:
                rounds = min(rounds, (until - 1 - now) // period)
            if rounds > 0:
                self._pass(rounds, rounds * period)
                now = self._dispatcher.now
        self._round, self._round_began = state, now
        for one in self._running.values():
            one.recent.clear()

    def _left(self, one: _Sequence) -> int:
        """Return how many tokens a sequence has before its end or its next bucket."""
        bucket = next(size for size in self._compiled.buckets if size >= one.context)
        return min(one.tokens - one.made, bucket - one.context + 1)

    def _pass(self, rounds: int, far: int) -> None:
        """Let rounds like the last one pass, which take so many cycles together."""
        steps = {}
        for slot, one in self._running.items():
            steps[slot] = rounds * len(one.recent)
            for gap in one.recent:
                one.gaps[gap] += rounds
            one.made, one.last = one.made + steps[slot], one.last + far
        self._dispatcher.leap(far, steps)
        self._ends = [(end + far, count, later(begin, far)) for end, count, begin in self._ends]


class _Arrivals:
    """Requests in the order in which they arrive: those of a trace, and those that follow."""

    def __init__(self, requests: Iterable[Request], clock_hz: float) -> None:
        self._source, self._hz = iter(requests), clock_hz
        self._ready: list[tuple[int, int, Request]] = []
        self._over: dict[int, int] = {}  # number -> end, of a session's request
        self.followers: dict[int, list[Request]] = {}
        self._newest = 0
        self._pull()

    @property
    def next(self) -> int | None:
        """The cycle of the next arrival, as far as is known."""
        return self._ready[0][0] if self._ready else None

    def pop(self) -> Request:
        """Take the next request. Raises ValueError if the one behind it in the trace is earlier."""
        request = heapq.heappop(self._ready)[2]
        if request.after is None:
            self._pull()
        return request

    def ended(self, outcome: Outcome) -> None:
        """Let those arrive that follow a request."""
        request, end = outcome.request, outcome.end
        at = outcome.arrival if end is None else end
        for one in self.followers.pop(request.number, ()):
            self._arrives(one, at + round(one.delay_s * self._hz))
        if request.session is not None:
            self._over[request.number] = at

    def check_over(self) -> None:
        """Raise ValueError if one is left that follows a request which never ended."""
        for before, (first, *_) in self.followers.items():
            raise ValueError(
                f"request {first.number}: wanted one to follow, got number {before}, which is not "
                "in the trace, or ended before and has no session"
            )

    def _pull(self) -> None:
        """Take from the trace up to the next request that follows no other."""
        for request in self._source:
            if request.after is None:
                at = round(request.arrival_s * self._hz)
                if at < self._newest:
                    raise ValueError(
                        f"request {request.number}: wanted an arrival at cycle {self._newest} or "
                        f"later, got {at}"
                    )
                self._newest = at
                self._arrives(request, at)
                return
            if request.after in self._over:
                at = self._over.pop(request.after) + round(request.delay_s * self._hz)
                self._arrives(request, at)
            else:
                self.followers.setdefault(request.after, []).append(request)

    def _arrives(self, request: Request, cycle: int) -> None:
        heapq.heappush(self._ready, (cycle, request.number, request))


def simulate(
    compiled: CompiledModel, requests: Iterable[Request], *, replicas: int = 1,
    max_queue: int | None = None,
) -> Iterator[Outcome]:  # fmt: skip
    """Serve requests, which come in the order of their arrivals; give outcomes as they end.

    A request goes to the rack with the fewest running and waiting; of equal ones to the one that
    has been free for longest, then of the lowest number. It is refused if its prompt leaves no room
    in the context, or so many wait on every rack. One that follows another arrives `delay_s` after
    that has ended, or was refused. Memory is that of what is in flight, and of sessions. Raises
    ValueError for an arrival before the one in front of it, or one that follows nobody.
    """
    times, arrivals = Times(compiled), _Arrivals(requests, compiled.chip.clock_hz)
    racks = [_Rack(number, compiled, times, max_queue) for number in range(replicas)]
    while True:
        at = arrivals.next
        coming = [(event, rack.number) for rack in racks if (event := rack.upcoming()) is not None]
        if coming:
            ((cycle, begins), number) = min(coming)
            if at is None or cycle < at or (cycle == at and not begins):
                # Another rack's end may bring a request to this one.
                alone = len(racks) == 1 or not arrivals.followers
                for outcome in racks[number].step(at if alone else cycle):
                    arrivals.ended(outcome)
                    yield outcome
                continue
        if at is None:
            arrivals.check_over()
            return
        refused = _offer(compiled, racks, arrivals.pop(), at)
        if refused is not None:
            arrivals.ended(refused)
            yield refused


def _offer(
    compiled: CompiledModel, racks: list[_Rack], request: Request, cycle: int
) -> Outcome | None:
    """Give a request to a rack, or return why not."""
    rack = min(racks, key=lambda one: (one.load, one.clock, one.number))
    refused = None
    if request.prompt_tokens >= compiled.max_model_len:
        refused = f"{request.prompt_tokens} tokens in a context of {compiled.max_model_len}"
    elif rack.full:
        refused = "the queue is full"
    if refused is None:
        rack.take(request, cycle)
        return None
    return Outcome(request=request, replica=rack.number, arrival=cycle, refused=refused)
