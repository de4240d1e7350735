"""Lowered programs with one thing wrong, and what a chip makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st
from plain_ops import args
from schedules import machine

from chip.isa.instructions import Send
from chip.isa.issue import Issue
from chip.isa.operands import Held, In, Stream, Tap
from chip.machine.machine import DataAction, Machine
from chip.run.reference import ReferenceChip
from chip.spec import VECTOR_BYTES
from chip.sram import work_start
from compiler.model.presets import PRESETS
from compiler.model.weights import WeightsRef
from compiler.pipeline import Options, compile_model
from compiler.place.layout import parse_layout
from interconnect.frame import Frame
from interconnect.transport import Message
from rack.run.local import LocalRack
from rack.run.node import ChipNode

CONFIG = replace(PRESETS["tiny"], num_layers=1)
WEIGHTS = WeightsRef.synthetic(CONFIG, 7)
TOKENS = (5, 93)  # of the two inputs


@dataclass(frozen=True)
class Outcome:
    """What a step leaves: transfer -> (first departure, vectors), all departures, the cache."""

    sent: dict[int, tuple[int, bytes]]
    departures: list[tuple[int, int]]
    cache: bytes

    def is_as(self, fast: Outcome) -> bool:
        """Whether these are the fast executor's results.

        Behind a share's last value a vector is padding: zeros here, anything in its buffers.
        """
        values = {t: (at, data.rstrip(b"\0")) for t, (at, data) in self.sent.items()}
        theirs = {t: (at, data[: len(values[t][1])]) for t, (at, data) in fast.sent.items()}
        return (values, self.cache) == (theirs, fast.cache)


class Bench:
    """Chip 0 of a layout in its second decode step, on two inputs."""

    def __init__(self, layout: str) -> None:
        options = Options(max_model_len=8, prefill_chunk=1, buckets=(8,))
        hardware = machine("lesson")
        self.model = compile_model(CONFIG, hardware, parse_layout(layout), options, kinds="decode")
        ((self.step, schedule),) = self.model.steps.items()
        self.program = schedule.programs[0]
        self._rack = self._started("reference")
        chip = self._rack.nodes[0].chip
        assert isinstance(chip, ReferenceChip)
        self.chip, self.issues = chip, list(chip._lower(self.program, (0,)))
        self._work = chip.sram.bytes[work_start(self.model.chip) :]
        self._before = self._work.copy(), self._cache(self._rack)
        self._given: list[dict[int, bytes]] = []  # transfer -> what arrives, of each input
        self.fast = [self._fast(token) for token in TOKENS]
        self.good = self.outcomes(self.issues)

    def close(self) -> None:
        self._rack.close()

    def _started(self, executor: str) -> LocalRack:
        rack = LocalRack(self.model, WEIGHTS, executor=executor)
        rack.reset()
        rack.run_step(self.step, [0], [7])
        return rack

    def _fast(self, token: int) -> Outcome:
        """Run the fast executor; keep what comes to chip 0 and what leaves it."""
        rack, frames = self._started("fast"), list[Frame]()

        def noted(send: Callable[[int, Message], None], to: int, frame: Message) -> None:
            if isinstance(frame, Frame):
                frames.append(replace(frame, payload=memoryview(bytes(frame.payload))))
            send(to, frame)

        nodes: list[ChipNode] = [*rack.nodes, rack.driver.node]
        for node in nodes:
            node.transport.send = partial(noted, node.transport.send)  # type: ignore[assignment, method-assign]
        rack.run_step(self.step, [1], [token])
        message = rack.nodes[0].chip._message
        assert message is not None
        links = self.model.network.links
        arrives = {f.transfer: bytes(f.payload) for f in frames if links[f.link].dst == 0}
        self._given.append(arrives)
        sent = {
            f.transfer: (f.depart_cycle - message.base_cycle, bytes(f.payload))
            for f in frames if links[f.link].src == 0
        }  # fmt: skip
        cache = self._cache(rack)
        rack.close()
        return Outcome(sent, departures(self.issues), cache)

    def _tensors(self, rack: LocalRack) -> list[Any]:
        sram = rack.nodes[0].chip.sram
        return [sram.tensor(t.name) for t in self.model.memories[0].tensors if t.kind == "kv"]

    def _cache(self, rack: LocalRack) -> bytes:
        return b"".join(bytes(tensor) for tensor in self._tensors(rack))

    def outcomes(self, issues: list[Issue]) -> list[Outcome]:
        """Run the step on both inputs. Raises IssueError."""
        self.chip._lower = lambda _, __: issues
        made, moves = self.chip.machine(self.program)
        transfers = [args(operation)["transfer"] for operation in moves]
        return [self._run(made, transfers, given, issues) for given in self._given]

    def _run(
        self, made: Machine, transfers: list[int], given: dict[int, bytes], issues: list[Issue]
    ) -> Outcome:
        work, cache = self._before
        self._work[:] = work
        for tensor in self._tensors(self._rack):
            tensor[:] = np.frombuffer(cache[: len(tensor)], np.uint8)
            cache = cache[len(tensor) :]
        made.begin([1])
        sent = {}
        for action in made.actions:
            if isinstance(action, DataAction):
                with np.errstate(all="ignore"):
                    action.run()
                continue
            transfer = transfers[action.number]
            if action.crossing.outward:
                sent[transfer] = action.crossing.cycles[0], made.pool[action.rows].tobytes()
            else:
                vectors = np.frombuffer(given[transfer], np.uint8).reshape(-1, VECTOR_BYTES)
                made.pool[action.rows] = vectors
        made.end()
        return Outcome(sent, departures(issues), self._cache(self._rack))


def departures(issues: list[Issue]) -> list[tuple[int, int]]:
    """Return (port, cycle) of every vector that instructions let depart."""
    return sorted(
        (issue.instruction.port, issue.cycle + i * issue.d + issue.instruction.wait)
        for issue in issues if isinstance(issue.instruction, Send) for i in range(issue.n)
    )  # fmt: skip


# -- one thing wrong

HOW = ("shift", "swap", "shuffle", "misdirect", "misdirect")


def spoiled(data: st.DataObject, issues: list[Issue], kinds: tuple[type, ...]) -> list[Issue]:
    """Return the issues with one of these kinds shifted, swapped, shuffled or misdirected.

    Instructions alike that change places are no change, and not drawn.
    """
    own = [i for i, issue in enumerate(issues) if isinstance(issue.instruction, kinds)]
    i = own[data.draw(st.integers(0, len(own) - 1))]
    queue = [j for j, other in enumerate(issues) if other.queue == issues[i].queue]
    queue.sort(key=lambda j: issues[j].cycle)
    how = data.draw(st.sampled_from(HOW))
    out = list(issues)
    if how == "misdirect" and (wrong := list(_misdirected(issues[i]))):
        out[i] = wrong[data.draw(st.integers(0, len(wrong) - 1))]
    elif how == "shift" or len(queue) < 3:
        out[i] = issues[i].moved(data.draw(st.sampled_from([-1, 1])))
    elif how == "swap":
        at = queue.index(i)
        _reorder(out, queue[max(0, at - 1) :][:2], [1, 0])
    else:
        at = data.draw(st.integers(0, len(queue) - 3))
        some = queue[at : at + 5]
        _reorder(out, some, data.draw(st.permutations(range(len(some)))))
    assume(Counter(map(_what, out)) != Counter(map(_what, issues)))
    return out


def _what(issue: Issue) -> tuple[object, ...]:
    return issue.queue, issue.cycle, issue.instruction, issue.n, issue.d


def _reorder(out: list[Issue], places: list[int], order: list[int]) -> None:
    """Let these issues of a queue take each other's cycles."""
    before = [out[place] for place in places]
    for place, other in zip(places, order, strict=True):
        out[place] = replace(out[place], cycle=before[other].cycle)


def _misdirected(issue: Issue) -> list[Issue]:
    """Return the issue with each of its streams, registers, ports or waits another."""
    out = []
    for field in fields(issue.instruction):
        for other in _others(field.name, getattr(issue.instruction, field.name)):
            wrong = replace(issue.instruction, **{field.name: other})
            out.append(replace(issue, instruction=wrong))
    return out


def _others(name: str, value: Any) -> list[Any]:
    if isinstance(value, Stream):
        turned = Stream(not value.eastward, value.number)
        return [Stream(value.eastward, (value.number + 1) % 32), turned]
    if isinstance(value, In):
        return [replace(value, taps=taps) for taps in _others(name, value.taps)]
    if isinstance(value, Held):
        return [Held((value.alu + 1) % 16)]
    if isinstance(value, tuple) and value and isinstance(value[0], Tap):
        return [(Tap(stream, value[0].beat), *value[1:]) for stream in _others("", value[0].stream)]
    return [value + 1] if name in ("port", "wait") else []
