"""Place a step's transfers around its computations: C2C instructions and work-slice accesses.

Departures and arrivals are on the cycle that the schedule says. The vector's way between port and
work slice is free to move by a few turns of the slice's port (chip/ops/cost.py allows for them): it
waits at the port (`wait`) until slice, stream and queue are free. assumption: ports with even
numbers are west.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from chip.floorplan import Queue, Role, hops, mem, mxm, position, sxm
from chip.isa.instructions import Alu, Instruction, Lanes, Read, Receive, Send
from chip.isa.issue import Issue, delays
from chip.isa.operands import Group, Stream, Tap
from chip.ops import moves
from chip.ops.cost import TURNS, receive_cycles, send_lead_cycles
from chip.ops.program import Move, Program, Scheduled
from chip.spec import VECTOR_BYTES, ChipSpec
from chip.sram import near_place
from compiler.codegen.core.builder import C2C_TURN
from compiler.codegen.resources import C2C_QUEUES, C2C_STREAMS, TRANSFERS
from compiler.errors import LoweringError

WAITING = 2  # slots that a vector may be early: a port holds four
Line = tuple[bool, int, int]
"""Places in the stream registers that a value passes: eastward, number, diagonal."""


class Trip(NamedTuple):
    """A value's way along a line, in hops downstream: where it is put, and who takes it."""

    line: Line
    source: int
    sink: int

    def meets(self, other: Trip) -> bool:
        """Tell whether one of two values on a line would be put over the other on its way."""
        first, second = sorted((self, other), key=lambda trip: trip.source)
        return first.source == second.source or second.source < first.sink


@dataclass(slots=True)
class _Taken:
    """What is in use: (queue, cycle), and what travels on the C2C's streams."""

    spec: ChipSpec
    queues: set[tuple[Queue, int]] = field(default_factory=set)
    trips: dict[Line, list[Trip]] = field(default_factory=dict)
    # slice, word, hemisphere and departure of a vector that is sent -> its Send
    sent: dict[tuple[Queue, int, int, int], Send] = field(default_factory=dict)

    def trip(self, queue: Queue, stream: Stream, cycle: int, sink: Queue | None = None) -> Trip:
        """Return the way of a value that a unit puts on a stream at a cycle.

        Without a known `sink` it goes on to the edge.
        """
        at, edge = position(queue, self.spec), position(mxm(2, Role.LOAD), self.spec)
        end = edge if stream.eastward else 0
        end = end if sink is None else position(sink, self.spec)
        if stream.eastward:
            return Trip((True, stream.number, cycle - at), at, end)
        return Trip((False, stream.number, cycle + at), edge - at, edge - end)

    def take(self, trip: Trip) -> None:
        self.trips.setdefault(trip.line, []).append(trip)

    def is_free(self, trip: Trip) -> bool:
        return not any(trip.meets(other) for other in self.trips.get(trip.line, ()))

    def note(self, issues: Iterable[Issue]) -> None:
        """Note the computations' instructions."""
        table = delays(self.spec)
        for issue in issues:
            instruction = issue.instruction
            func = table[instruction.name].d_func
            for n in range(issue.n):
                cycle = issue.cycle + n * issue.d
                self.queues.add((issue.queue, cycle))
                for stream, beat in _results(instruction):
                    if stream.number >= TRANSFERS.streams:
                        self.take(self.trip(issue.queue, stream, cycle + func + beat))


def _results(instruction: object) -> Group:
    if isinstance(instruction, Read):
        return (Tap(instruction.stream),)
    if isinstance(instruction, Alu):
        return instruction.out
    if isinstance(instruction, Lanes):  # a beat late at most, and the C2C gives way to both
        return tuple(
            Tap(stream, beat + late) for stream, beat in instruction.dst for late in (0, 1)
        )
    return ()


def place_transfers(
    program: Program, spec: ChipSpec, issues: list[Issue], ports: Mapping[int, int],
    slots: Mapping[int, int],
) -> list[Issue]:  # fmt: skip
    """Return the instructions of a program's SENDs and RECEIVEs.

    Raises LoweringError where a vector finds no way in time.
    """
    taken = _Taken(spec)
    taken.note(issues)
    out: list[Issue] = []
    sends: list[tuple[Scheduled, Move]] = []
    receives: list[tuple[Scheduled, Move]] = []
    for operation in program.operations:
        if isinstance(operation.op, moves.Send):
            sends.append((operation, operation.op))
        elif isinstance(operation.op, moves.Receive):
            receives.append((operation, operation.op))
    # what is sent finds gaps among the loads' vectors; what is received has more to choose from
    for operation, op in [*sends, *receives]:
        slot, numbers, last = slots[op.link], range(op.vectors), -(1 << 30)
        early = _early_slots(operation, program, spec, slot)
        if isinstance(op, moves.Send):  # the last first: those before it may be earlier still
            numbers, last = numbers[::-1], 1 << 30
        for n in numbers:
            cycle = operation.start + n * slot
            way = _Way(operation.name, op, n, ports[op.link], spec)
            spare = 0 if early is None else min(n + early, WAITING)
            most = TURNS * C2C_TURN + spare * slot
            found = _share(way, cycle, taken, last) or _place(way, cycle, taken, last, most)
            last = found[0].cycle
            out += found
    return out


def _early_slots(
    operation: Scheduled, program: Program, spec: ChipSpec, slot: int
) -> int | None:  # fmt: skip
    """Return how many slots earlier than it must a SEND's first vector may be at the port.

    None where vectors leave as they are made. What is passed on has been in memory since it landed;
    of what was whole when the first left, each further vector may be a slot earlier.
    """
    op = operation.op
    if not isinstance(op, moves.Send):
        return None
    landed, lead = receive_cycles(spec), send_lead_cycles(spec)
    if op.forward is not None:
        return max(0, spec.forward_cycles - landed - lead) // slot
    ((_, (first, size)),) = op.reads()
    ready = operation.start - lead
    for other in program.operations:
        end = other.end + (landed if isinstance(other.op, moves.Receive) else 0)
        if isinstance(other.op, moves.Send) or end <= ready or other.start >= operation.start:
            continue
        if any(at < first + size and first < at + n for _, (at, n) in other.op.writes()):
            return None
    return 0


def _share(way: _Way, cycle: int, taken: _Taken, turn: int) -> tuple[Issue, ...]:
    """Return the Send of a vector that leaves by another port of this side in the same cycle.

    One read serves them all: the vector passes all ports of its side at once. Empty where none
    leaves so, or the port's queue is busy.
    """
    other = taken.sent.get((way.slice, way.word, way.hemisphere, cycle)) if way.send else None
    if other is None:
        return ()
    at = cycle - other.wait
    if (way.c2c, at) in taken.queues or at >= turn:
        return ()
    taken.queues.add((way.c2c, at))
    send = Send(port=way.port, stream=other.stream, wait=other.wait)
    return (Issue(way.c2c, at, send, name=way.name),)


def _place(way: _Way, cycle: int, taken: _Taken, turn: int, most: int) -> tuple[Issue, ...]:
    """Return the instructions for a vector that meets the link then.

    It waits at the port for up to `most` cycles; `turn` is the issue of the vector that was placed
    before it: of the next one sent, of the last one received.
    """
    place = way.sent if way.send else way.received
    for wait in range(most + 1):
        if found := place(cycle, wait, taken, turn):
            return found
    raise LoweringError(
        f"{way.name} ({'send' if way.send else 'receive'}), vector {way.n}, cycle {cycle}: no free "
        f"way between port {way.port} and its work slice within {most} cycles"
    )


class _Way:
    """One vector's way between a port and a work slice."""

    def __init__(self, name: str, op: Move, n: int, port: int, spec: ChipSpec) -> None:
        self.spec, self.port, self.name, self.n = spec, port, name, n
        self.send = isinstance(op, moves.Send)
        address = op.src if isinstance(op, moves.Send) else op.dst
        side, index, self.word = near_place(spec, address // VECTOR_BYTES + n)
        self.hemisphere = port % 2
        self.c2c = sxm(self.hemisphere, TRANSFERS.queues + port // 2 % C2C_QUEUES)
        self.slice = mem(side, index)
        self.eastward = (self.hemisphere == 1) == self.send
        self.hops = hops(self.slice, self.c2c, spec)

    def _named(self, queue: Queue, cycle: int, instruction: Instruction) -> Issue:
        return Issue(queue, cycle, instruction, name=self.name)

    def sent(self, cycle: int, wait: int, taken: _Taken, turn: int) -> tuple[Issue, ...]:
        """Take what a vector needs that waits so long at the port before it departs.

        Returns a Read and a Send; nothing where queue, slice or streams are another's.
        """
        at, read_cycles = cycle - wait, delays(self.spec)["READ"].d_func
        read = at - self.hops - read_cycles
        wanted = {(self.c2c, at), (self.slice, read)}
        if wanted & taken.queues or at >= turn:
            return ()
        for shift in range(C2C_STREAMS):  # the port's own first
            stream = Stream(self.eastward, TRANSFERS.streams + (self.port + shift) % C2C_STREAMS)
            trip = taken.trip(self.slice, stream, read + read_cycles, self.c2c)
            if taken.is_free(trip):
                taken.queues |= wanted
                taken.take(trip)
                send = Send(port=self.port, stream=stream, wait=wait)
                taken.sent[self.slice, self.word, self.hemisphere, cycle] = send
                access = self._named(self.slice, read, Read(address=self.word, stream=stream))
                return self._named(self.c2c, at, send), access
        return ()

    def received(self, cycle: int, wait: int, taken: _Taken, turn: int) -> tuple[Issue, ...]:
        """Take queue and port for a vector that waits so long at the port when it has arrived.

        Returns a Receive, which writes; nothing where queue or slice are another's.
        """
        at, table = cycle + wait, delays(self.spec)
        lands = at + table["RECEIVE"].d_func + self.hops + table["WRITE"].d_func
        wanted = {(self.c2c, at), (self.slice, lands)}  # a work slice has one port
        if wanted & taken.queues or at <= turn:
            return ()
        taken.queues |= wanted
        receive = Receive(
            port=self.port, side=self.slice.hemisphere, slice=self.slice.number,
            address=self.word, wait=wait,
        )  # fmt: skip
        return (self._named(self.c2c, at, receive),)
