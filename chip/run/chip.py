"""A chip: memory, programs, and the loop that runs a program as its vectors come.

Sans-I/O: step messages and arrivals go in, departures come out through a callback. The chip waits
only for data, and checks each arrival against its own program (law 3). It computes departure cycles
itself: at load it replays its unit clocks against its spec, and they must equal the schedule. The
host port is a chip whose program has no computations.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from chip.errors import ProgramError, ScheduleViolation
from chip.kernels import Kernels
from chip.ops.attention import Attend
from chip.ops.cost import CostModel
from chip.ops.moves import Receive, Send
from chip.ops.opcodes import Opcode
from chip.ops.program import Operation, Program, Scheduled, working_order
from chip.run.clocks import UnitClocks, unit_spans
from chip.run.executor import Binder, Bound, StepState
from chip.spec import VECTOR_BYTES, ChipSpec
from chip.sram import Sram


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMessage:
    """Run program `step` as number `sequence`, from `base_cycle`.

    Its rows stand at `positions`, each of the sequence in its of `slots`.
    """

    sequence: int
    step: str
    base_cycle: int
    positions: tuple[int, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """Vectors that came over a link, with the cycles of their delivery."""

    link: int
    sequence: int
    transfer: int
    first_cycle: int
    last_cycle: int
    payload: bytes | bytearray | memoryview
    check: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipLink:
    """A chip's view of a link at one of its ports."""

    name: str
    slot_cycles: int
    rx_window_cycles: int


class Departure(Protocol):
    """Hands vectors to a link: (link, transfer, sequence, depart cycle, hash share, payload)."""

    def __call__(
        self, link: int, transfer: int, sequence: int, cycle: int, check: int, payload: memoryview
    ) -> None: ...


Carry = Callable[[int, int, int, int, list[int]], int]
"""Does bound moves from one place to another, as (place, stop, step number, base cycle, hash shares
of the rows), in order. Returns the first that it has left undone, or `stop`."""


class Carrier(Protocol):
    """Does a run of moves at once, and leaves alone whatever is not as the program has it.

    A move that it does not do has not happened: the chip does it by itself, with `Departure` and
    `Chip.receive`, or refuses it.
    """

    def carries(self, link: int) -> bool:
        """Say whether this link's moves may be bound."""

    def bind(self, sram: Sram, moves: Sequence[tuple[Scheduled, int]]) -> Carry:
        """Bind moves that follow one another; each with the rx_window_cycles of its link."""

    def last_taken(self, link: int) -> tuple[int, int]:
        """Return step number and transfer of the last receive that it has done; (-1, -1) before."""


Watch = Callable[[Opcode, Callable[[], bool]], Callable[[], bool]]
"""Wraps the action of each operation, to measure it; chosen at load."""


@dataclass(slots=True)
class Loaded:
    """A program, and its actions in working order."""

    program: Program
    actions: list[Callable[[], bool]]  # False: waiting for vectors
    operations: Sequence[tuple[Scheduled, ...]]  # of each action
    spans: dict[str, tuple[int, int]]  # unit -> when the program holds it
    one_slot: bool  # rows attend to a cache together, so all must be of its slot

    @classmethod
    def of(
        cls, program: Program, actions: list[Callable[[], bool]],
        operations: Sequence[tuple[Scheduled, ...]],
    ) -> Loaded:  # fmt: skip
        """Return a program with its actions."""
        ops = (operation.op for operation in program.operations)
        together = any(isinstance(op, Attend) and op.rows > 1 for op in ops)
        return cls(program, actions, operations, unit_spans(program), together)


class Chip:
    """One chip, or the host's port when it has no kernels to run."""

    def __init__(
        self, index: int | str, spec: ChipSpec, sram: Sram, links: Mapping[int, ChipLink],
        kernels: Kernels, send: Departure, costs: CostModel, watch: Watch | None = None, *,
        sequences: int = 1, carrier: Carrier | None = None,
    ) -> None:  # fmt: skip
        costs.check_spec(spec)
        self.sequences = sequences  # slots of the KV cache
        self.index, self.spec, self.sram, self.links, self.costs = index, spec, sram, links, costs
        self.state = StepState()
        self.checks: list[int] = []  # of each row, the sum of hash shares received in this step
        self.kernels, self._binder = kernels, Binder(sram, kernels)
        self._bound: dict[Operation, Bound] = {}
        self._send = send
        self._watch = watch
        self._carrier = carrier
        self._moved = 0  # of the run of moves at `_next`
        self._programs: dict[str, Loaded] = {}
        self._inbox: dict[int, deque[Arrival]] = {link: deque() for link in links}
        self._held = 0  # arrivals in it
        self._consumed: dict[int, tuple[int, int]] = {}  # link -> last (sequence, transfer)
        self._queue: deque[StepMessage] = deque()
        self._message: StepMessage | None = None
        self._actions: Sequence[Callable[[], bool]] = ()
        self._next = 0
        self._free: dict[str, int] = {}  # unit -> when the steps begun so far leave it

    # -- load

    def load_program(self, program: Program) -> None:
        """Check the program's cycles against this chip's own clocks, and bind it.

        Raises ScheduleViolation if they differ, ProgramError for an unknown link.
        """
        slots = {number: link.slot_cycles for number, link in self.links.items()}
        UnitClocks(program, self.costs, slots).check()
        self._programs[program.step] = self._bind(program)

    def _bind(self, program: Program) -> Loaded:
        """Return the program as actions on this chip's memory."""
        actions: list[Callable[[], bool]] = []
        operations: list[tuple[Scheduled, ...]] = []
        for together, run in groupby(working_order(program.operations), self._carried):
            for own in [tuple(run)] if together else zip(run):
                action = self._run_of_moves(own) if together else self._action(own[0])
                if self._watch is not None:
                    action = self._watch(own[0].opcode, action)
                actions.append(action)
                operations.append(own)
        return Loaded.of(program, actions, operations)

    def _carried(self, operation: Scheduled) -> bool:
        """Say whether an operation is a move that the carrier may do."""
        op = operation.op
        return (
            self._carrier is not None and isinstance(op, Send | Receive)
            and self._carrier.carries(op.link)
        )  # fmt: skip

    def _run_of_moves(self, operations: tuple[Scheduled, ...]) -> Callable[[], bool]:
        """Return moves as one action: the carrier's, and this chip's where that stops."""
        moves = [one.op for one in operations if isinstance(one.op, Send | Receive)]
        windows = [self.links[op.link].rx_window_cycles for op in moves]
        assert self._carrier is not None
        carry = self._carrier.bind(self.sram, list(zip(operations, windows, strict=True)))
        alone = [self._action(operation) for operation in operations]
        taken = [(at, op.link) for at, op in enumerate(moves) if isinstance(op, Receive)]
        count, state, inbox = len(moves), self.state, self._inbox

        def next_here(place: int) -> int:
            """Return the next receive whose link has an arrival here already: it goes first."""
            return next((at for at, link in taken if at >= place and inbox[link]), count)

        def action() -> bool:
            message, place = self._message, self._moved
            assert message is not None
            while place < count:
                stop = next_here(place) if self._held else count
                if stop > place:
                    place = carry(
                        place, stop, message.sequence, message.base_cycle, state.hash_shares
                    )
                    if place == count:
                        break
                self._moved = place
                if not alone[place]():
                    return False
                place += 1
            self._moved = 0
            return True

        return action

    def _action(self, operation: Scheduled) -> Callable[[], bool]:
        op = operation.op
        if isinstance(op, Send):
            return self._bind_send(op, operation.start)
        if isinstance(op, Receive):
            return self._bind_receive(operation, op)
        if op not in self._bound:  # steps share what they do alike
            self._bound[op] = self._binder.bind(op)
        run, state = self._bound[op], self.state

        def action() -> bool:
            run(state)
            return True

        return action

    def _bind_send(self, op: Send, start: int) -> Callable[[], bool]:
        payload = self.sram.memory(op.src, op.vectors * VECTOR_BYTES)
        link, transfer, state, send = op.link, op.transfer, self.state, self._send
        row = op.row or 0

        def action() -> bool:
            message = self._message
            assert message is not None
            cycle = message.base_cycle + start
            share = state.hash_shares[row] if row < state.rows else 0
            send(link, transfer, message.sequence, cycle, share, payload)
            return True

        return action

    def _bind_receive(self, operation: Scheduled, op: Receive) -> Callable[[], bool]:
        target = self.sram.memory(op.dst, op.vectors * VECTOR_BYTES)

        def action() -> bool:
            if (arrival := self._take(operation, op)) is not None:
                target[:] = arrival.payload
            return arrival is not None

        return action

    def _take(self, operation: Scheduled, op: Receive) -> Arrival | None:
        """Return the arrival that a RECEIVE waits for; None if it has not come yet."""
        inbox = self._inbox[op.link]
        if not inbox:
            return None
        arrival = inbox.popleft()
        self._held -= 1
        self._check_arrival(operation, op, arrival)
        self.checks[op.row or 0] += arrival.check
        self._consumed[arrival.link] = (arrival.sequence, arrival.transfer)
        return arrival

    # -- run

    def begin(self, message: StepMessage) -> None:
        """Queue a step. Raises ProgramError if it is not loaded or cannot have these rows."""
        loaded = self._programs.get(message.step)
        if loaded is None:
            raise ProgramError(
                f"chip {self.index}: no program {message.step}; loaded: {sorted(self._programs)}"
            )
        if not 1 <= len(message.positions) <= loaded.program.rows:
            raise ProgramError(
                f"chip {self.index}, step {message.step}: wanted 1 to {loaded.program.rows} rows, "
                f"got {len(message.positions)}"
            )
        self._check_rows(message, loaded)
        self._queue.append(message)

    def _check_rows(self, message: StepMessage, loaded: Loaded) -> None:
        """Refuse slots that this chip does not have, and two rows that write one token."""
        where, slots = f"chip {self.index}, step {message.step}", message.slots
        if len(slots) != len(message.positions):
            raise ProgramError(
                f"{where}: wanted a slot for each of {len(message.positions)} rows, got "
                f"{len(slots)}"
            )
        for slot in slots:
            if not 0 <= slot < self.sequences:
                raise ProgramError(f"{where}: wanted slots 0 to {self.sequences - 1}, got {slot}")
        if loaded.one_slot and len(set(slots)) > 1:
            raise ProgramError(f"{where}: wanted rows of one slot, got {sorted(set(slots))}")
        tokens = Counter(zip(slots, message.positions, strict=True))
        if len(tokens) < len(slots):
            (slot, position), count = tokens.most_common(1)[0]
            raise ProgramError(
                f"{where}: wanted rows of different tokens, got {count} of slot {slot}, position "
                f"{position}"
            )

    def receive(self, arrival: Arrival) -> None:
        """Take vectors from a link. Raises ScheduleViolation if the frame came before."""
        before = self._consumed.get(arrival.link, (-1, -1))
        if self._carrier is not None:
            before = max(before, self._carrier.last_taken(arrival.link))
        if (arrival.sequence, arrival.transfer) <= before:
            link = self.links[arrival.link]
            raise ScheduleViolation(
                "a frame came again", chip=self.index, link=link.name, cycle=arrival.last_cycle,
                operation=f"transfer {arrival.transfer} of step number {arrival.sequence}",
                wanted=f"one after {before}", got=(arrival.sequence, arrival.transfer),
            )  # fmt: skip
        self._inbox[arrival.link].append(arrival)
        self._held += 1

    def holds(self, link: int) -> bool:
        """Say whether vectors have come over a link that no receive has taken yet."""
        return bool(self._inbox[link])

    def advance(self) -> bool:
        """Run until vectors are missing or no step is queued; return True if idle."""
        while True:
            actions, place = self._actions, self._next
            while place < len(actions):
                if not actions[place]():
                    self._next = place
                    return False
                place += 1
            if actions:
                self._check_taken()
            self._actions, self._next = (), 0
            if not self._queue:
                return True
            self._start(self._queue.popleft())

    def _check_taken(self) -> None:
        """Check that at the end of a program no arrival of its step is left over."""
        message = self._message
        assert message is not None
        for number, inbox in self._inbox.items():
            if inbox and inbox[0].sequence <= message.sequence:
                left = inbox[0]
                raise ScheduleViolation(
                    "a frame that nothing takes", chip=self.index, link=self.links[number].name,
                    cycle=left.last_cycle, operation=f"transfer {left.transfer}",
                    step=message.step, wanted="none", got=(left.sequence, left.transfer),
                )  # fmt: skip

    def _start(self, message: StepMessage) -> None:
        self._hold_units(message)
        self._message = message
        self.state.begin(message.positions, message.slots)
        self.checks = [0] * self._programs[message.step].program.rows
        self._actions = self._programs[message.step].actions

    def _hold_units(self, message: StepMessage) -> None:
        """Take a step's units. Raises ScheduleViolation if steps overlap in time on a unit."""
        base = message.base_cycle
        for unit, (first, last) in self._programs[message.step].spans.items():
            free = self._free.get(unit, 0)
            if base + first < free:
                raise ScheduleViolation(
                    f"{unit} is still held by the step before", chip=self.index, cycle=first,
                    link=None, operation="the first on it", step=message.step,
                    wanted=f"cycle {free} or later", got=base + first,
                )  # fmt: skip
            self._free[unit] = base + last

    def waiting_for(self) -> Scheduled | None:
        """Return the RECEIVE whose vectors are missing, or None when the chip is idle."""
        waiting = self._waiting()
        return None if waiting is None else waiting[0]

    def _waiting(self) -> tuple[Scheduled, Receive] | None:
        if self._message is None or not self._actions:
            return None
        operations = self._programs[self._message.step].operations[self._next]
        if not operations:
            return None
        operation = operations[self._moved]
        return (operation, operation.op) if isinstance(operation.op, Receive) else None

    def wait_order(self) -> tuple[int, int] | None:
        """Return (step number, transfer) that this chip waits for, or None when it is idle.

        Programs keep the schedule's order of transfers. So of all waiting chips the one with the
        least order saw the fault first: its sender has already sent the vectors that it lacks.
        """
        waiting = self._waiting()
        if waiting is None or self._message is None:
            return None
        return self._message.sequence, waiting[1].transfer

    def missing(self) -> ScheduleViolation | None:
        """Return the violation for a missed deadline: the vectors that this chip still lacks."""
        waiting = self._waiting()
        if waiting is None or self._message is None:
            return None
        operation, op = waiting
        link = self.links[op.link]
        return ScheduleViolation(
            "vectors did not come", chip=self.index, link=link.name, cycle=operation.start,
            operation=operation.name, step=self._message.step,
            wanted=f"{op.vectors} vectors of transfer {op.transfer}",
            got="nothing",
        )  # fmt: skip

    def reset(self) -> None:
        """Forget queued steps and arrivals; memory and programs stay."""
        for inbox in self._inbox.values():
            inbox.clear()
        self._queue.clear()
        self._free.clear()
        self._held = self._moved = 0
        self._actions, self._next, self._message = (), 0, None

    def _check_arrival(self, operation: Scheduled, op: Receive, arrival: Arrival) -> None:
        message = self._message
        assert message is not None
        link = self.links[arrival.link]
        identity, got = (message.sequence, op.transfer), (arrival.sequence, arrival.transfer)
        size, window = op.vectors * VECTOR_BYTES, link.rx_window_cycles
        first = arrival.first_cycle - message.base_cycle
        last = arrival.last_cycle - message.base_cycle
        in_time = 0 <= operation.start - first <= window and 0 <= operation.end - last <= window
        if got == identity and len(arrival.payload) == size and in_time:
            return

        def violation(what: str, wanted: object, got: object) -> ScheduleViolation:
            return ScheduleViolation(
                what, chip=self.index, link=link.name, cycle=operation.start,
                operation=operation.name, wanted=wanted, got=got, step=message.step,
            )  # fmt: skip

        if got != identity:
            raise violation("wrong (step number, transfer)", identity, got)
        if len(arrival.payload) != size:
            raise violation("payload size in bytes", size, len(arrival.payload))
        for what, wanted, came in (
            ("first vector's arrival", operation.start, first),
            ("last vector's arrival", operation.end, last),
        ):
            if not wanted - window <= came <= wanted:
                raise violation(what, wanted if not window else (wanted - window, wanted), came)
