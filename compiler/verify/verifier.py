"""Check a schedule from the schedule alone; shares no code with the passes that made it.

It recomputes every duration from the chip's spec and every arrival from the link's numbers. For
every byte that is read it finds the operation that wrote it last (compiler/verify/memory.py). It
checks that receives leave room for clocks that stray (compiler/verify/clock.py).

It refuses by name: two operations on a unit at once, a link over capacity, a receive without a send
(or the reverse), vectors forwarded before they came, a read of bytes not yet written or written by
another operation (live tensors that overlap), a write under a read, an address outside the memory,
numbers of an operation that are not the model's (compiler/verify/features.py).
Steps may overlap in time: pass several (schedule, base).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence

from chip.ops.attention import Attend
from chip.ops.cost import CostModel
from chip.ops.moves import Receive, Send
from chip.ops.opcodes import Opcode
from chip.ops.program import MOVES, Scheduled
from chip.spec import ChipSpec
from compiler.errors import ScheduleError
from compiler.ir import LinkUse, Memory, ScheduledTransfer, StepSchedule
from compiler.model.config import ModelConfig
from compiler.verify.clock import check_clocks
from compiler.verify.features import check_features
from compiler.verify.memory import check_memory
from compiler.verify.rows import check_rows
from interconnect.clock import EXACT, ClockSpec, SyncPath


def verify(
    steps: Sequence[tuple[StepSchedule, int]],
    costs: CostModel,
    links: Sequence[LinkUse],
    memories: Sequence[Memory],
    clock: ClockSpec = EXACT,
    sync: Sequence[SyncPath] = (),
    config: ModelConfig | None = None,
    sequences: int = 1,
) -> None:
    """Check `steps`, each with its base cycle. Raises ScheduleError with the culprits' names.

    `sync` has each chip's way down the tree that aligns clocks; it is empty for exact clocks.
    `config`: the model that the steps are of, if it is known. `sequences`: slots of its KV cache.
    """
    for schedule, base in steps:
        _check_shape(schedule, base, len(memories))
        if config is not None:
            check_features(schedule, config)
        _check_transfers(schedule, links)
        transfers = {transfer.id: transfer for transfer in schedule.transfers}
        for node, program in enumerate(schedule.programs):
            for operation in program.operations:
                _check_duration(operation, _label(node, len(memories)), costs, links)
                _check_forward(operation, transfers, links, costs.spec)
                _check_horizon(operation, schedule, _label(node, len(memories)))
    _check_links(steps, links)
    for node in range(len(memories) + 1):
        _check_units(steps, node, _label(node, len(memories)))
    for schedule, _ in steps:
        check_rows(schedule, memories, costs.spec, sequences)
    check_memory(steps, costs, links, memories)
    check_clocks(steps, costs.spec, links, clock, sync)


def _label(node: int, chips: int) -> str:
    return f"chip {node}" if node < chips else "host"


def _check_shape(schedule: StepSchedule, base: int, chips: int) -> None:
    places = [program.chip for program in schedule.programs]
    if base < 0 or places != list(range(chips + 1)):
        raise ScheduleError(
            f"step {schedule.name}: wanted a base from 0 and programs of chips 0 to {chips - 1} "
            f"and the host, got base {base} and programs {places}"
        )
    last = max((o.end for program in schedule.programs for o in program.operations), default=0)
    if not 0 < last <= schedule.cycles:
        raise ScheduleError(f"step {schedule.name}: {schedule.cycles} cycles, last end {last}")


def _check_duration(
    operation: Scheduled, label: str, costs: CostModel, links: Sequence[LinkUse]
) -> None:
    got, op = operation.end - operation.start, operation.op
    if isinstance(op, Send | Receive):  # _check_transfers saw that its link exists
        slot, n = links[op.link].slot_cycles, op.vectors
        wanted = n * slot if isinstance(op, Send) else (n - 1) * slot
    else:
        wanted = costs.cycles(op)
    if got != wanted or operation.start < 0:
        raise ScheduleError(
            f"{label}, cycle {operation.start}, {operation.name}: {operation.opcode} takes "
            f"{wanted} cycles, scheduled for {got}"
        )


def _check_horizon(operation: Scheduled, schedule: StepSchedule, label: str) -> None:
    """In an encode step all rows see what row 0, the last token, does; else each its own past."""
    wanted = 0 if schedule.kind.encode else None
    if isinstance(operation.op, Attend) and operation.op.horizon != wanted:
        raise ScheduleError(
            f"{label}, {operation.name} (attend): wanted horizon {wanted} in {schedule.name}, got "
            f"{operation.op.horizon}"
        )


def _check_forward(
    operation: Scheduled,
    transfers: dict[int, ScheduledTransfer],
    links: Sequence[LinkUse],
    spec: ChipSpec,
) -> None:
    """Check that a forwarded vector leaves no sooner than `forward_cycles` after it came."""
    op = operation.op
    if not isinstance(op, Send) or op.forward is None:
        return
    arrived = op.forward
    came = transfers.get(arrived)
    link = links[op.link]
    if came is None or (came.dst, came.vectors) != (link.src, op.vectors):
        raise ScheduleError(
            f"link {link.name}, {operation.name}: transfer {op.transfer} forwards transfer "
            f"{arrived}, which does not come to {link.src} with {op.vectors} vectors"
        )
    tail = (came.vectors - 1) * link.slot_cycles
    wanted = max(came.first_arrive, came.arrive - tail) + spec.forward_cycles
    if operation.start < wanted:
        raise ScheduleError(
            f"link {link.name}, cycle {operation.start}: {operation.name} is forwarded before "
            f"transfer {arrived} can be passed on at {wanted}"
        )


def _ends_of(schedule: StepSchedule) -> dict[Opcode, dict[int, tuple[int, Scheduled]]]:
    """Return for SEND and for RECEIVE the map transfer -> (node, operation)."""
    ends: dict[Opcode, dict[int, tuple[int, Scheduled]]] = {opcode: {} for opcode in MOVES}
    for program in schedule.programs:
        for operation in program.operations:
            if isinstance(operation.op, Send | Receive):
                table, key = ends[operation.opcode], operation.op.transfer
                if key in table:
                    raise ScheduleError(
                        f"transfer {key} {operation.name}: {operation.opcode} twice, "
                        f"on {table[key][0]} and on {program.chip}"
                    )
                table[key] = (program.chip, operation)
    return ends


def _check_transfers(schedule: StepSchedule, links: Sequence[LinkUse]) -> None:
    """Check that every transfer has one SEND and one RECEIVE, at its ends and on its cycles."""
    ends = _ends_of(schedule)
    for transfer in schedule.transfers:
        if not 0 <= transfer.link < len(links) or transfer.vectors < 1:
            raise ScheduleError(
                f"transfer {transfer.id} {transfer.name}: {transfer.vectors} vectors on link "
                f"{transfer.link} of {len(links)}"
            )
        link = links[transfer.link]
        for opcode, other, node, start in (
            (Opcode.SEND, Opcode.RECEIVE, link.src, transfer.depart),
            (Opcode.RECEIVE, Opcode.SEND, link.dst, transfer.first_arrive),
        ):
            if transfer.id not in ends[opcode]:
                raise ScheduleError(
                    f"link {link.name}, {transfer.name}: {other} without a {opcode} "
                    f"(transfer {transfer.id})"
                )
            place, found = ends[opcode][transfer.id]
            _check_end(transfer, link, opcode, (place, found), (node, start))
    known = {transfer.id for transfer in schedule.transfers}
    for opcode, table in ends.items():
        for key in sorted(set(table) - known):
            node, found = table[key]
            raise ScheduleError(
                f"node {node}, {found.name}: {opcode} of transfer {key}, which does not exist"
            )


def _check_end(
    transfer: ScheduledTransfer, link: LinkUse, opcode: Opcode,
    end: tuple[int, Scheduled], wanted_at: tuple[int, int],
) -> None:  # fmt: skip
    node, operation = end
    op = operation.op
    assert isinstance(op, Send | Receive)
    got = (node, operation.start, op.link, op.vectors, operation.name)
    wanted = (*wanted_at, transfer.link, transfer.vectors, transfer.name)
    if got != wanted or (transfer.src, transfer.dst) != (link.src, link.dst):
        raise ScheduleError(
            f"link {link.name}, {transfer.name}: {opcode} at (node, cycle, link, vectors, name) "
            f"{got}, its transfer from {transfer.src} to {transfer.dst} says {wanted}"
        )


def _check_links(steps: Sequence[tuple[StepSchedule, int]], links: Sequence[LinkUse]) -> None:
    """Check that a link's packets do not overlap, and arrive a slot and a latency after leaving."""
    carried: dict[int, list[tuple[int, ScheduledTransfer]]] = defaultdict(list)
    for schedule, base in steps:
        for transfer in schedule.transfers:
            carried[transfer.link].append((base + transfer.depart, transfer))
    for number, transfers in carried.items():
        link = links[number]
        wire_free, before = 0, "nothing"
        for depart, transfer in sorted(transfers, key=lambda item: item[0]):
            if depart < wire_free:
                raise ScheduleError(
                    f"link {link.name} over capacity, cycle {depart}: {transfer.name} departs "
                    f"while {before} occupies it until {wire_free}"
                )
            wire_free = depart + link.slot_cycles * transfer.vectors
            before = transfer.name
            _check_arrivals(transfer, link)


def _check_arrivals(transfer: ScheduledTransfer, link: LinkUse) -> None:
    flight = link.slot_cycles + link.latency_cycles + link.rx_window_cycles // 2
    last_packet = transfer.depart + link.slot_cycles * (transfer.vectors - 1)
    for what, wanted, got in (
        ("first vector", transfer.depart + flight, transfer.first_arrive),
        ("last vector", last_packet + flight, transfer.arrive),
    ):
        if wanted != got:
            raise ScheduleError(
                f"link {link.name}, {transfer.name}: {what} arrives at {wanted}, scheduled for "
                f"{got}"
            )


def _check_units(steps: Sequence[tuple[StepSchedule, int]], node: int, label: str) -> None:
    units: dict[str, list[tuple[int, int, Scheduled]]] = defaultdict(list)
    for schedule, base in steps:
        for operation in schedule.programs[node].operations:
            for unit in operation.op.units:
                units[unit].append((base + operation.start, base + operation.end, operation))
    for unit, held in units.items():
        held.sort(key=lambda item: item[0])
        for (_, end, one), (start, _, two) in itertools.pairwise(held):
            if start < end:
                raise ScheduleError(
                    f"{label}, {unit}, cycle {start}: {two.name} ({two.opcode}) starts while "
                    f"{one.name} ({one.opcode}) holds the unit until {end}"
                )
