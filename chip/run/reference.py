"""A chip that runs its programs as TSP instructions: the reference executor.

It has the messages, arrivals and departures of `chip.run.chip.Chip`. But every scheduled operation
is lowered to instructions, which the machine of chip/machine runs. The program's Send instructions
decide the departures and their cycles, which must equal the schedule's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from chip.isa.issue import Issue
from chip.machine.crossings import Crossing
from chip.machine.data import BoundCall
from chip.machine.machine import CrossingAction, DataAction, Machine
from chip.machine.memory import MemoryMap
from chip.machine.resolve import resolve
from chip.ops.moves import Receive, Send
from chip.ops.product import Capped, Matmul, Plain
from chip.ops.program import Move, Program, Scheduled
from chip.run.chip import Chip, Loaded, StepMessage
from chip.spec import VECTOR_BYTES, vectors
from chip.sram import places

MOST_LOWERED = 64  # programs that a chip keeps lowered; rows of other slots are others
Lower = Callable[[Program, Sequence[int]], Sequence[Issue]]
"""Lowers a program whose rows are of these sequence slots."""
Actions = tuple[list[Callable[[], bool]], list[tuple[Scheduled, ...]]]
"""Actions in order, and the operation of each, if it is one's."""


class ReferenceChip(Chip):
    """One chip whose programs are lowered by `lower`; `ports` are its links' ports.

    A program is lowered and resolved when it first runs with rows of these sequence slots. Then
    IssueError is raised for instructions that the hardware cannot run. The hardware has one program
    for all slots, and adds each row's slot to its addresses (chip/ops/attention.py).
    """

    def __init__(self, *args: Any, lower: Lower, ports: Mapping[int, int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lower, self._ports = lower, ports
        self.machines: dict[str, Machine] = {}
        self._lowered: dict[tuple[str, tuple[int, ...]], Actions] = {}

    def _bind(self, program: Program) -> Loaded:
        return Loaded.of(program, [], [])

    def _start(self, message: StepMessage) -> None:
        loaded, slots = self._programs[message.step], message.slots
        rest = loaded.program.rows - len(slots)
        slots += (slots[-1],) * rest  # rows that are not there read a cache, too
        lowered = self._lowered.pop((message.step, slots), None)
        if lowered is None:
            lowered = self._actions_of(loaded.program, slots)
        if len(self._lowered) >= MOST_LOWERED:  # the one that has not run for the longest
            del self._lowered[next(iter(self._lowered))]
        self._lowered[message.step, slots] = lowered
        loaded.actions, loaded.operations = lowered
        super()._start(message)

    def machine(
        self, program: Program, slots: Sequence[int] = ()
    ) -> tuple[Machine, list[Scheduled]]:  # fmt: skip
        """Lower and resolve a program; return also the operation of each of its crossings."""
        moves, crossings = [], []
        for operation in program.operations:
            if isinstance(operation.op, Send | Receive):
                moves.append(operation)
                crossings.append(self._crossing(operation, operation.op))
        slice_of, word_of = places(self.spec)
        valid = np.zeros(len(slice_of), np.bool_)
        for address, size in self.sram.reserved():
            valid[address // VECTOR_BYTES : -(-(address + size) // VECTOR_BYTES)] = True
        memory = MemoryMap(slice_of=slice_of, word_of=word_of, valid=valid)
        resolved = resolve(self._lower(program, slots), self.spec, memory)
        words = self.sram.bytes.reshape(-1, VECTOR_BYTES)
        return Machine(resolved, memory, words, crossings), moves

    def _crossing(self, operation: Scheduled, op: Move) -> Crossing:
        slot = self.links[op.link].slot_cycles
        cycles = tuple(operation.start + i * slot for i in range(op.vectors))
        return Crossing(self._ports[op.link], isinstance(op, Send), cycles, operation.name)

    def _actions_of(self, program: Program, slots: Sequence[int]) -> Actions:
        machine, moves = self.machine(program, slots)
        self.machines[program.step] = machine
        hashed = self._hashed(program, machine)

        def begin() -> bool:
            machine.begin(self.state.positions.tolist())
            return True

        def end() -> bool:
            machine.end()
            self.state.saturated += machine.units.counter.saturated
            machine.units.counter.saturated = 0
            return True

        actions, operations = [begin], list[tuple[Scheduled, ...]]([()])
        for kind, group in groupby(machine.actions, type):
            if kind is DataAction:
                runs = [action.run for action in group if isinstance(action, DataAction)]
                actions.append(_at_once(runs))
                operations.append(())
                continue
            for action in group:
                assert isinstance(action, CrossingAction)
                operation = moves[action.number]
                actions.append(self._cross(machine, action, operation, hashed))
                operations.append((operation,))
        return [*actions, end], [*operations, ()]

    def _cross(
        self, machine: Machine, action: CrossingAction, operation: Scheduled,
        hashed: Callable[[Scheduled], None],
    ) -> Callable[[], bool]:  # fmt: skip
        rows, pool, op = action.rows, machine.pool, operation.op
        if isinstance(op, Receive):

            def take() -> bool:
                arrival = self._take(operation, op)
                if arrival is not None:
                    data = np.frombuffer(arrival.payload, np.uint8)
                    pool[rows] = data.reshape(-1, VECTOR_BYTES)
                return arrival is not None

            return take
        assert isinstance(op, Send)
        link, transfer, row = op.link, op.transfer, op.row or 0
        first = action.crossing.cycles[0]

        def depart() -> bool:
            message = self._message
            assert message is not None
            hashed(operation)
            payload = memoryview(pool[rows].tobytes())
            cycle = message.base_cycle + first
            share = self.state.hash_shares[row] if row < self.state.rows else 0
            self._send(link, transfer, message.sequence, cycle, share, payload)
            return True

        return depart

    def _hashed(self, program: Program, machine: Machine) -> Callable[[Scheduled], None]:
        """Return the update of the state's hash shares, to be called before an operation departs.

        A share belongs to the emulator, not to the chip: it is computed from the logits that the
        program leaves in memory.
        """
        heads = [
            (place, op, op.result.y, op.first_column)
            for place, op in enumerate(operation.op for operation in program.operations)
            if isinstance(op, Matmul) and isinstance(op.result, Plain | Capped)
            and op.first_column is not None
        ]  # fmt: skip
        if not heads:
            return lambda _: None
        ((place, product, y, first_column),) = heads
        after = program.operations[place:]
        vector, n, each = y // VECTOR_BYTES, product.n, vectors(product.n * 4)
        row_of = dict(zip(*(array.tolist() for array in machine.commits), strict=True))
        stored = np.array([row_of[vector + i] for i in range(product.rows * each)])

        def update(operation: Scheduled) -> None:
            if operation in after:
                logits = machine.pool[stored].reshape(product.rows, -1).view(np.float32)[:, :n]
                self.state.hash_shares = [
                    self.kernels.logit_hash(row, first_column) for row in logits[: self.state.rows]
                ]

        return update


def _at_once(runs: Sequence[BoundCall]) -> Callable[[], bool]:
    """Return one action that moves data for all, one after another."""

    def move() -> bool:
        with np.errstate(all="ignore"):
            for run in runs:
                run()
        return True

    return move
