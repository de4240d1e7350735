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
    if interval:
        _pass_on(nodes, late, interval)
    recent: dict[int, list[Node]] = {number: [] for number in range(spec.vxm_alus)}
    for node in nodes:
        if node.alu is not None:
            recent[node.alu].append(node)
    pool = [number for number in recent if number not in pinned]
    order = sorted(nodes, key=lambda n: (n.cycle, n.done))
    if interval:  # what is kept for long fits in few places
        order.sort(key=lambda n: n.op not in LARGE_OPS)
        order.sort(key=lambda n: n.last_use - n.done < LONG)
    for node in order:
        if node.alu is None:
            node.alu = _alu_for(node, recent, pool, interval)
            recent[node.alu].append(node)


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


def _alu_for(node: Node, recent: dict[int, list[Node]], pool: list[int], interval: int) -> int:
    large = [number for number in pool if number in LARGE_ALUS]
    small = [number for number in pool if number not in LARGE_ALUS]
    for number in large if node.op in LARGE_OPS else small + large:
        if not interval:
            recent[number] = [n for n in recent[number] if n.last_use >= node.cycle]
        if not any(_clash(node, other, interval) for other in recent[number]):
            return number
    raise OverflowError(f"no ALU is free for {node.op} at cycle {node.cycle}")


def _clash(a: Node, b: Node, interval: int) -> bool:
    """Two instructions cannot share an ALU: same issue, or a result lost before its last use."""
    if not interval:
        lost = a.done <= b.done <= a.last_use or b.done <= a.done <= b.last_use
        return a.cycle == b.cycle or lost
    kept = [{c % interval for c in range(n.done, n.last_use + 1)} for n in (a, b)]
    return a.cycle % interval == b.cycle % interval or bool(kept[0] & kept[1])
