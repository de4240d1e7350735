"""Check memory: for every byte that is read, the right operation wrote it last.

It refuses by name stale bytes of another layer or step, two live tensors at one address, and
segments in the wrong place of a gather buffer. compiler/verify/sources.py says what each operand
may read. A write must not touch constants, another layer's cache, or bytes that are still being
read.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from chip.ops.cost import CostModel
from chip.ops.moves import Receive, Send
from chip.ops.opcodes import Region
from chip.ops.program import Scheduled
from chip.spec import VECTOR_BYTES
from compiler.errors import ScheduleError
from compiler.ir import LinkUse, Memory, StepSchedule, Tensor
from compiler.verify.accesses import Access, Node, collect, shares_of
from compiler.verify.sources import (
    CACHES,
    CONSTANTS,
    is_known,
    made_as,
    may_read,
    norm_before,
    place_of,
)

IN_PLACE = (("x", "x"), ("r", "r"), ("kvs", "kvs"))  # operands that an operation changes as it goes


def check_memory(
    steps: Sequence[tuple[StepSchedule, int]],
    costs: CostModel,
    links: Sequence[LinkUse],
    memories: Sequence[Memory],
) -> None:
    """Check every access of every node. Raises ScheduleError naming the operations."""
    nodes = [Node(f"chip {m.chip}", m.sram_bytes, m) for m in memories]
    nodes.append(Node("host", max((s.host.size for s, _ in steps), default=0), None))
    for number, (schedule, base) in enumerate(steps):
        for node, program in zip(nodes, schedule.programs, strict=True):
            for operation in program.operations:
                collect(operation, node, number, base, costs)
        _check_host(schedule, links, len(memories))
    for node in nodes:
        _check_node(node, nodes, links)


def _check_host(schedule: StepSchedule, links: Sequence[LinkUse], host: int) -> None:
    """Check that the host sends from where the driver writes and receives where it reads."""
    memory = schedule.host
    sources = {"rope": memory.rope, "residual": memory.embedding}
    for operation in schedule.programs[host].operations:
        op, place = operation.op, place_of(operation.name)[1]
        wanted, got = None, None
        if isinstance(op, Send):
            wanted, got = sources.get(place), op.src
        elif isinstance(op, Receive):
            first, got = memory.results.get(links[op.link].src), op.dst
            wanted = None if first is None else first + (op.row or 0) * op.vectors * VECTOR_BYTES
        if wanted != got:
            raise ScheduleError(
                f"host, {operation.name} ({operation.opcode}): at {got} of its memory, the "
                f"driver has it at {wanted}"
            )


def _overlap(a: Region, b: Region) -> bool:
    return a[0] < b[0] + b[1] and b[0] < a[0] + a[1]


def _check_node(node: Node, nodes: Sequence[Node], links: Sequence[LinkUse]) -> None:
    tensors = {tensor.name: tensor for tensor in (node.memory.tensors if node.memory else ())}
    _check_tensors(node, list(tensors.values()))
    for accesses in node.writes.values():
        accesses.sort(key=lambda access: (access.end, access.start))
    near = _near(node)
    _check_writers(node, near, tensors)
    for region, access in node.reads:
        if access.operand in CONSTANTS or access.operand in CACHES:
            _check_own(node, region, access, tensors)
        if access.operand in CONSTANTS or node.memory is None or not region[1]:
            continue  # the host's memory is the driver's to write
        op = access.operation.op
        if isinstance(op, Send) and op.forward is not None:
            _check_passed_on(node, (region, access), op.forward, near[region])
        else:
            found = _written(node, region, access, near[region])
            _check_sources(node, region, access, found)
            if any(isinstance(write.operation.op, Receive) for _, write in found):
                _check_places(node, region, access, found, nodes, links)


def _near(node: Node) -> dict[Region, list[Region]]:
    """Return, for every region that is used (constants apart), the written regions it overlaps."""
    written = sorted(node.writes)
    starts = [address for address, _ in written]
    longest = max((size for _, size in written), default=0)
    read = {region for region, access in node.reads if access.operand not in CONSTANTS}
    near = {}
    for address, size in {*written, *read}:
        first = bisect_right(starts, address - longest)
        last = bisect_left(starts, address + size)
        near[address, size] = [r for r in written[first:last] if r[0] + r[1] > address]
    return near


def _check_tensors(node: Node, tensors: list[Tensor]) -> None:
    """Check that tensors lie apart. Caches that have slots lie in turns: rows.py looks at them."""
    tensors.sort(key=lambda tensor: tensor.address)
    reads = (access.operation.op for _, access in node.reads if access.operand in CACHES)
    in_turns = any(getattr(op, "slots", None) is not None for op in reads)
    end, before, kind = 0, "the start of SRAM", ""
    for tensor in tensors:
        free = end if not (in_turns and tensor.kind == kind == "kv") else 0
        if tensor.address < free or tensor.address + tensor.size > node.limit:
            raise ScheduleError(
                f"{node.label}: {tensor.name} at {tensor.address}, {tensor.size} bytes, overlaps "
                f"{before} or ends beyond {node.limit} bytes of SRAM"
            )
        if (last := tensor.address + tensor.size) >= end:
            end, before = last, tensor.name
        kind = tensor.kind


def _check_own(node: Node, region: Region, access: Access, tensors: dict[str, Tensor]) -> None:
    """Check that a constant or a cache operand is the operation's own tensor."""
    base = norm_before(access.operation) if access.operand == "gamma" else access.operation.name
    name = base + CONSTANTS.get(access.operand, "")
    if access.operand in CACHES:
        name = f"layers.{place_of(access.operation.name)[0]}{CACHES[access.operand]}"
    own = tensors.get(name)
    if own is None or (own.address, own.size) != region:
        raise ScheduleError(
            f"{node.label}, {access.operation.name}: operand {access.operand} at {region} is not "
            f"its tensor {name} at {(own.address, own.size) if own else 'no address'}"
        )


def _check_writers(
    node: Node, near: dict[Region, list[Region]], tensors: dict[str, Tensor]
) -> None:
    """Check that no write touches constants, and no two writes touch a byte at the same time."""
    apart = sorted(tensors.values(), key=lambda tensor: tensor.address)
    ends = list(itertools.accumulate((t.address + t.size for t in apart), max))
    for region, accesses in node.writes.items():
        others = [access for access in accesses if access.operand not in CACHES]
        for access in accesses:
            if access.operand in CACHES:
                _check_own(node, region, access, tensors)
        if others and (place := bisect_right(ends, region[0])) < len(ends):
            tensor = apart[place]
            if tensor.address < region[0] + region[1]:
                raise ScheduleError(
                    f"{node.label}: write by {others[0].operation.name} "
                    f"({others[0].operation.opcode}) overlaps live SRAM of {tensor.name}"
                )
        for other in near[region]:
            if other >= region:
                both = [*accesses, *(node.writes[other] if other != region else ())]
                _check_apart(node, both)


def _check_apart(node: Node, accesses: list[Access]) -> None:
    accesses.sort(key=lambda access: (access.start, access.end))
    for one, two in itertools.pairwise(accesses):
        if two.start < one.end:
            raise ScheduleError(
                f"{node.label}, cycle {two.start}: write by {two.operation.name} collides with "
                f"write by {one.operation.name} until {one.end}"
            )


def _written(
    node: Node, region: Region, access: Access, near: list[Region]
) -> list[tuple[Region, Access]]:
    """Return the last writes of all bytes of the region, latest first; check their times."""
    reader = access.operation
    latest: list[tuple[Region, Access]] = []
    for other in near:
        writes = node.writes[other]
        done = bisect_right(writes, access.last, key=lambda write: write.last)
        if done and writes[done - 1].first > access.first:  # its first vectors come too late
            write = writes[done - 1]
            raise ScheduleError(
                f"{node.label}, cycle {access.start}: {reader.name} reads {access.operand} before "
                f"the first vector of its write by {write.operation.name} comes at {write.first}"
            )
        for write in writes[done:]:
            if write.start >= access.end:
                break
            if write.operation is reader and (access.operand, write.operand) not in IN_PLACE:
                raise ScheduleError(
                    f"{node.label}, cycle {access.start}: {reader.name} ({reader.opcode}) writes "
                    f"{write.operand} over live SRAM that it reads as {access.operand}"
                )
            if write.operation is not reader:
                raise ScheduleError(_disturbed(node, access, write))
        if done:
            latest.append((other, writes[done - 1]))
    latest.sort(key=lambda item: -item[1].end)
    missing, found = [region], []
    for other, write in latest:
        if any(_overlap(piece, other) for piece in missing):
            found.append((other, write))
            missing = [part for piece in missing for part in _subtract(piece, other)]
    if missing:
        raise ScheduleError(
            f"{node.label}, cycle {access.start}: {reader.name} ({reader.opcode}) reads "
            f"{access.operand} before its write: {sum(size for _, size in missing)} bytes at "
            f"{missing[0][0]} hold nothing"
        )
    return found


def _disturbed(node: Node, access: Access, write: Access) -> str:
    reader = access.operation.name
    if write.start <= access.start:
        return (
            f"{node.label}, cycle {access.start}: {reader} reads {access.operand} before its write "
            f"by {write.operation.name} ends at {write.end}"
        )
    return (
        f"{node.label}, cycle {write.start}: {write.operation.name} overwrites live SRAM that "
        f"{reader} reads until {access.end}"
    )


def _subtract(a: Region, b: Region) -> list[Region]:
    """Return the parts of `a` outside `b`."""
    left = (a[0], min(a[1], b[0] - a[0]))
    right_start = max(a[0], b[0] + b[1])
    right = (right_start, a[0] + a[1] - right_start)
    return [part for part in (left, right) if part[1] > 0]


def _check_sources(
    node: Node, region: Region, access: Access, found: list[tuple[Region, Access]]
) -> None:
    """Check that an operation from which this operand is computed wrote it."""
    reader = access.operation
    if not is_known(reader, access.operand):
        raise ScheduleError(f"{node.label}: {reader.name} ({reader.opcode}) is of no known model")
    for _, write in found:
        writer = write.operation
        mine = write.step == access.step
        if not mine or not may_read(reader, access.operand, writer, write.operand):
            raise ScheduleError(
                f"{node.label}, cycle {access.start}: {reader.name} ({reader.opcode}) reads "
                f"{access.operand} at {region}, but overlapping live SRAM was last written by "
                f"{writer.name} ({writer.opcode})"
            )


def _check_places(
    node: Node, region: Region, access: Access, found: list[tuple[Region, Access]],
    nodes: Sequence[Node], links: Sequence[LinkUse],
) -> None:  # fmt: skip
    """Check that vectors from links lie in their place of the operand.

    It is their place in the value on the chip that made it. In a gather buffer it is behind the
    segments of chips with lower numbers, because columns are dealt to chips in that order.
    """
    reader = access.operation
    parts = []
    for place, write in found:
        source, sent = -1 if node.memory is None else node.memory.chip, place[0]
        if isinstance(write.operation.op, Receive):
            source, sent = _origin(write.operation.op, access.step, nodes, links)
        parts.append((source, sent, place, write.operation))
    gathers = shares_of(reader) is not None and access.operand == "src"
    for source, sent, place, writer in parts:
        if not isinstance(writer.op, Receive):
            continue
        wanted = sent - _made_at(writer, access.step, sent, nodes[source])
        if gathers:
            wanted += sum(size for other, _, (_, size), _ in parts if other < source)
        if place[0] - region[0] != wanted:
            raise ScheduleError(
                f"{node.label}, {reader.name} ({reader.opcode}): the part of {writer.name} from "
                f"{nodes[source].label} lies at {place[0] - region[0]} of {access.operand}, "
                f"wanted {wanted}"
            )


def _made_at(receive: Scheduled, step: int, sent: int, source: Node) -> int:
    """Return the address of the whole value, of which a part was sent, on the chip that made it."""
    for (address, size), writes in source.writes.items():
        if address <= sent < address + size and any(
            write.step == step and made_as(write.operation) == place_of(receive.name)
            for write in writes
        ):
            return address
    return sent  # from the host: whole, and where the driver has it (_check_host)


def _origin(
    receive: Receive, step: int, nodes: Sequence[Node], links: Sequence[LinkUse]
) -> tuple[int, int]:
    """Return the node and the address from which vectors first left, past all forwarding."""
    source = links[receive.link].src
    send = nodes[source].sends[step, receive.transfer]
    while send.forward is not None:
        came = nodes[source].receives[step, send.forward][1].operation.op
        assert isinstance(came, Receive)
        source = links[came.link].src
        send = nodes[source].sends[step, came.transfer]
    return source, send.src


def _check_passed_on(
    node: Node, read: tuple[Region, Access], forward: int, near: list[Region]
) -> None:  # fmt: skip
    """Check that a SEND forwards the received vectors, and nothing changes them before."""
    region, access = read
    send = access.operation
    came, receive = node.receives[access.step, forward]
    if (came, receive.operation.name) != (region, send.name):
        raise ScheduleError(
            f"{node.label}, cycle {access.start}: {send.name} is forwarded from {region}, but "
            f"{receive.operation.name} came to {came}"
        )
    for other in near:
        writes = node.writes[other]
        for write in writes[bisect_right(writes, receive.start, key=lambda write: write.end) :]:
            if write.start >= access.end:
                break
            if write.operation is not receive.operation:
                raise ScheduleError(_disturbed(node, access, write))
