"""Register allocation: each instruction gets an ALU, whose register keeps its result.

A result's live range is from the cycle in which it lands to its last use; the live ranges of one
ALU's register do not overlap, modulo the initiation interval where a block has one.
"""

from __future__ import annotations

from chip.isa.instructions import LARGE_ALUS, LARGE_OPS, AluOp
from chip.isa.issue import delays
from chip.spec import ChipSpec
from compiler.codegen.core.parts import Node

LONG = 8  # cycles from which a result is given an ALU before others are
KEPT = 4  # cycles from which a result is worth a copy


def assign(nodes: list[Node], spec: ChipSpec, pinned: frozenset[int], interval: int) -> None:
    """Choose ALUs, in issue order; long-lived results are copied first. Adds to `nodes`.

    `interval`: the block's initiation interval; 0: it does not overlap itself. Raises OverflowError
    where the ALUs outside `pinned` do not suffice.
    """
    late = delays(spec)["COPY"].d_func
    _free_large(nodes, late)
    order = sorted(nodes, key=lambda n: (n.cycle, n.done))
    if not interval:
        _assign_once(order, spec, pinned)
        return
    _pass_on(nodes, late, interval)
    # what is kept for long fits in few places
    order = sorted(nodes, key=lambda n: (n.last_use - n.done < LONG, n.op not in LARGE_OPS,
                                         n.cycle, n.done))  # fmt: skip
    _assign_over(order, spec, pinned, interval)


def _assign_once(order: list[Node], spec: ChipSpec, pinned: frozenset[int]) -> None:
    """Choose ALUs in a block that does not overlap itself."""
    recent: dict[int, list[Node]] = {number: [] for number in range(spec.vxm_alus)}
    for node in order:
        if node.alu is not None:
            recent[node.alu].append(node)
    for node in order:
        if node.alu is not None:
            continue
        for number in _choices(node, spec, pinned):
            recent[number] = [n for n in recent[number] if n.last_use >= node.cycle]
            if not any(_clash(node, other) for other in recent[number]):
                node.alu = number
                recent[number].append(node)
                break
        else:
            raise _none_free(node)


def _assign_over(
    order: list[Node], spec: ChipSpec, pinned: frozenset[int], interval: int
) -> None:  # fmt: skip
    """Choose ALUs in a block that overlaps itself: bits are cycles of the interval."""
    issued, kept = [0] * spec.vxm_alus, [0] * spec.vxm_alus
    whole = (1 << interval) - 1

    def bits(node: Node) -> tuple[int, int]:
        first, lasts = node.done % interval, node.last_use - node.done + 1
        span = (1 << min(lasts, interval)) - 1 << first
        return 1 << node.cycle % interval, (span | span >> interval) & whole

    for node in order:
        if node.alu is not None:
            at, live = bits(node)
            issued[node.alu] |= at
            kept[node.alu] |= live
    for node in order:
        if node.alu is not None:
            continue
        at, live = bits(node)
        for number in _choices(node, spec, pinned):
            if not issued[number] & at and not kept[number] & live:
                node.alu = number
                issued[number] |= at
                kept[number] |= live
                break
        else:
            raise _none_free(node)


def _copy(node: Node, cycle: int, late: int) -> Node:
    return Node(cycle, AluOp.COPY, (node,), node.lanes, cycle + late, None, None, node.last_use)


def _pass_on(nodes: list[Node], late: int, interval: int) -> None:
    """Copy what lives for longer than a interval: each register is written once in it.

    Copies on ALUs of their own take the place of modulo variable expansion.
    """
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if node.last_use - node.done <= interval - 3 or node.alu is not None:
            continue
        copy = _copy(node, node.done + interval - 3, late)
        node.last_use = copy.cycle
        for user in nodes:
            if user.cycle >= copy.done:
                user.sources = tuple(copy if s is node else s for s in user.sources)
        nodes.append(copy)
        todo.append(copy)


def _free_large(nodes: list[Node], late: int) -> None:
    """Copy results of large ALUs that are kept for long to small ones: few can do maxima."""
    users: dict[int, list[Node]] = {}
    for node in nodes:
        for source in node.sources:
            if isinstance(source, Node):
                users.setdefault(id(source), []).append(node)
    for node in list(nodes):
        if node.op not in LARGE_OPS or node.alu is not None or node.last_use - node.done < KEPT:
            continue
        copy = _copy(node, node.done, late)
        nodes.append(copy)
        node.last_use = node.done
        for user in users.get(id(node), ()):
            if user.cycle >= copy.done:
                user.sources = tuple(copy if s is node else s for s in user.sources)
            else:
                node.last_use = max(node.last_use, user.cycle)


def _choices(node: Node, spec: ChipSpec, pinned: frozenset[int]) -> list[int]:
    """Return the ALUs that can do an instruction; large ones last if small ones can too."""
    pool = [number for number in range(spec.vxm_alus) if number not in pinned]
    large = [number for number in pool if number in LARGE_ALUS]
    if node.op in LARGE_OPS:
        return large
    return [number for number in pool if number not in LARGE_ALUS] + large


def _none_free(node: Node) -> OverflowError:
    return OverflowError(f"no ALU is free for {node.op} at cycle {node.cycle}")


def _clash(a: Node, b: Node) -> bool:
    """Two instructions cannot share an ALU: same issue, or a result lost before its last use."""
    lost = a.done <= b.done <= a.last_use or b.done <= a.done <= b.last_use
    return a.cycle == b.cycle or lost
