"""A program as the queues hold it: instructions, NOP and Repeat in order; and its issue cycles.

A queue issues one item a cycle. `NOP n` takes n cycles (a longer wait is several); `Repeat n, d`
issues the instruction before it n more times, d cycles apart, its address counters stepping. Every
queue starts parked on a Sync and is released by one Notify, so that all start in the same cycle,
`origin` of the program; in front of the Notify a Deskew waits for an epoch of the counter that all
chips share. A RUNTIME_DESKEW takes the cycles that it stops for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from chip.errors import IssueError
from chip.floorplan import Queue
from chip.isa.instructions import (
    ABC,
    ACC,
    LW,
    Alu,
    Config,
    Deskew,
    Ifetch,
    Instruction,
    Notify,
    Read,
    RuntimeDeskew,
    Sync,
    Write,
)  # fmt: skip
from chip.isa.issue import Issue, culprit, delays
from chip.isa.operands import At, Chosen, Lane, Position, Source
from chip.spec import ChipSpec

MOST_WAIT = (1 << 16) - 1  # cycles of one NOP; ISCA 2020, III.A.1: a count of 16 bits


@dataclass(frozen=True, slots=True)
class Nop:
    """Wait n cycles. Raises ValueError for a count that 16 bits do not hold."""

    n: int

    def __post_init__(self) -> None:
        if not 1 <= self.n <= MOST_WAIT:
            raise ValueError(f"NOP: wanted 1 to {MOST_WAIT} cycles, got {self.n}")


@dataclass(frozen=True, slots=True)
class Repeat:
    """Issue the instruction before n more times, d cycles apart."""

    n: int
    d: int


@dataclass(frozen=True, slots=True)
class Named:
    """An instruction with its provenance."""

    instruction: Instruction
    name: str = ""


Item = Nop | Repeat | Named
SHORTEST = 3  # issues that are worth a Repeat
_COUNTERS: Mapping[type[Instruction], str] = {  # the field that `step` moves
    Read: "address", Write: "address", LW: "column", ABC: "slot", ACC: "slot",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class QueueProgram:
    """What every queue issues; `origin` is the cycle after release, relative to the step's base."""

    origin: int
    queues: Mapping[Queue, tuple[Item, ...]]


def advanced(instruction: Instruction, count: int) -> Instruction:
    """Return the instruction as a Repeat issues it the `count`th time after the first."""
    if not count:
        return instruction
    if isinstance(instruction, (Read, Write)):
        address = instruction.address
        if isinstance(address, At):
            return replace(
                instruction, address=replace(address, row=address.row + count * address.step)
            )
        if isinstance(address, Chosen):
            return instruction
        return replace(instruction, address=address + count * instruction.step)
    if isinstance(instruction, LW):
        return replace(instruction, column=instruction.column + count * instruction.step)
    if isinstance(instruction, ACC) or (
        isinstance(instruction, ABC) and instruction.slot is not None
    ):
        assert instruction.slot is not None
        return replace(instruction, slot=instruction.slot + count * instruction.step)
    if isinstance(instruction, Alu):
        a, b, c = (_stepped(s, count) for s in (instruction.a, instruction.b, instruction.c))
        assert a is not None
        return replace(instruction, a=a, b=b, c=c)
    return instruction


def _stepped(source: Source | None, count: int) -> Source | None:
    if isinstance(source, Lane):
        return replace(source, offset=source.offset + count * source.step)
    if isinstance(source, Position):
        return replace(source, row=source.row + count * source.step)
    return source


def _apart(issues: list[Issue]) -> list[Issue]:
    """Return a queue's issues in order of cycle, cut where two Repeats interleave."""
    issues = sorted(issues, key=lambda issue: issue.cycle)
    out: list[Issue] = []
    while issues:
        issue = issues.pop(0)
        if issues and issue.n > 1 and issues[0].cycle <= issue.last_cycle:
            k = max(1, -(-(issues[0].cycle - issue.cycle) // issue.d))
            rest = replace(
                issue, cycle=issue.cycle + k * issue.d, n=issue.n - k,
                instruction=advanced(issue.instruction, k),
            )  # fmt: skip
            issue = replace(issue, n=k)
            place = next(
                (i for i, other in enumerate(issues) if other.cycle > rest.cycle), len(issues)
            )
            issues.insert(place, rest)
        out.append(issue)
    return out


def _folded(issues: list[Issue]) -> Iterator[Issue]:
    """Join runs of single issues that a Repeat can stand for; `issues` are a queue's, in order."""
    at = 0
    while at < len(issues):
        joined = issues[at]
        while at + joined.n < len(issues):
            longer = _joined(issues[at], issues[at + joined.n], joined)
            if longer is None:
                break
            joined = longer
        if issues[at].n == 1 and joined.n >= SHORTEST:
            yield joined
            at += joined.n
        else:
            yield issues[at]
            at += 1


def _joined(first: Issue, after: Issue, joined: Issue) -> Issue | None:
    """Return the run `joined` of issues from `first` one longer, None where no Repeat makes it."""
    if first.n > 1 or after.n > 1 or first.name != after.name:
        return None
    if joined.n == 1:
        step = _step(first.instruction, after.instruction)
        if step is None or after.cycle == first.cycle:
            return None
        made = replace(first.instruction, step=step) if step else first.instruction  # type: ignore[call-arg]
        joined = replace(first, instruction=made, d=after.cycle - first.cycle)
    if after.cycle != first.cycle + joined.n * joined.d:
        return None
    wanted = advanced(joined.instruction, joined.n)
    if getattr(wanted, "step", 0):
        wanted = replace(wanted, step=0)  # type: ignore[call-arg]
    return replace(joined, n=joined.n + 1) if wanted == after.instruction else None


def _step(old: Instruction, new: Instruction) -> int | None:
    """Return what the address counter adds from one instruction to the next; None: other things."""
    if old == new:
        return 0
    counter = _COUNTERS.get(type(old))
    if counter is None or type(old) is not type(new):
        return None
    name: str = counter
    a, b = getattr(old, name), getattr(new, name)
    if type(a) is not int or type(b) is not int or getattr(old, "step", 0) != 0:
        return None
    return b - a if replace(old, **{name: b}) == new else None


def to_queues(issues: Iterable[Issue]) -> QueueProgram:
    """Put issues into their queues with NOPs between; every queue starts together.

    Raises IssueError where two want one queue and cycle.
    """
    by_queue: defaultdict[Queue, list[Issue]] = defaultdict(list)
    for issue in issues:
        by_queue[issue.queue].append(issue)
    origin = min((issue.cycle for own in by_queue.values() for issue in own), default=0)
    queues = {
        queue: (Named(Sync()), *_items(by_queue[queue], origin)) for queue in sorted(by_queue)
    }
    for first in list(queues)[:1]:
        queues[first] = (Named(Deskew()), Named(Notify()), *queues[first])
    return QueueProgram(origin, queues)


def _items(issues: list[Issue], origin: int) -> Iterator[Item]:
    """Yield what one queue issues from its release on."""
    now, before = origin, None
    for issue in _folded(_apart(issues)):
        if issue.cycle < now:
            assert before is not None
            what = f"two instructions in {issue.queue} at {issue.cycle}"
            raise IssueError(what, culprit(before, before.n - 1), culprit(issue))
        yield from waits(issue.cycle - now)
        yield Named(issue.instruction, issue.name)
        if issue.n > 1:
            yield Repeat(issue.n - 1, issue.d)
        now, before = issue.last_cycle + _length(issue.instruction), issue


def waits(cycles: int) -> Iterator[Nop]:
    """Yield the NOPs that wait so long."""
    whole, rest = divmod(cycles, MOST_WAIT)
    yield from (Nop(MOST_WAIT) for _ in range(whole))
    if rest:
        yield Nop(rest)


def _length(instruction: Instruction) -> int:
    """Cycles for which an instruction keeps its queue from the next."""
    return instruction.cycles if isinstance(instruction, RuntimeDeskew) else 1


def to_issues(program: QueueProgram, spec: ChipSpec) -> list[Issue]:
    """Return the issues of a program, on the cycles at which its queues come to them.

    Raises IssueError for a queue that is not released, for one that does before what belongs
    behind its release or the other way round, and for a Repeat that follows nothing.
    """
    _check_release(program.queues, delays(spec)["NOTIFY"].d_func)
    out: list[Issue] = []
    for queue, items in program.queues.items():
        parked = next(i for i, item in enumerate(items) if item == Named(Sync()))
        now, last = program.origin, -1
        for item in items[parked + 1 :]:
            if isinstance(item, Nop):
                now, last = now + item.n, -1
            elif isinstance(item, Repeat):
                if last < 0:
                    raise IssueError("a Repeat that follows no instruction", f"{queue} at {now}")
                out[last] = replace(out[last], n=item.n + 1, d=item.d)
                now, last = out[last].last_cycle + 1, -1
            else:
                last = len(out)
                out.append(Issue(queue, now, item.instruction, name=item.name))
                now += _length(item.instruction)
    return out


def _check_release(queues: Mapping[Queue, Sequence[Item]], delay: int) -> None:
    """All queues must be parked when the one Notify releases them. Cycles count from power-up."""
    notified, parked = list[tuple[Queue, int]](), dict[Queue, int]()
    for queue, items in queues.items():
        now = 0
        for item in items:
            if isinstance(item, Nop):
                now += item.n
                continue
            instruction = item.instruction if isinstance(item, Named) else None
            if isinstance(instruction, Sync):
                parked[queue] = now
                break
            if not isinstance(instruction, (Deskew, Notify, Ifetch, Config)):
                what = "an instruction before its queue is released"
                name = instruction.name if instruction else "REPEAT"
                raise IssueError(what, f"{name} on {queue} at {now}")
            if isinstance(instruction, Notify):
                notified.append((queue, now))
            now += 1
        else:
            raise IssueError("a queue without a Sync", str(queue))
    if queues and len(notified) != 1:
        who = [f"NOTIFY on {queue} at {now}" for queue, now in notified]
        raise IssueError(f"Notify: wanted one before the first Sync, got {len(who)}", *who)
    for queue, at in parked.items():
        if at >= notified[0][1] + delay:
            what = "a Sync that no Notify releases"
            raise IssueError(
                what, f"SYNC on {queue} at {at}", "NOTIFY on {} at {}".format(*notified[0])
            )
