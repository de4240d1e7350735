"""The host's side of a rack: sends steps and embeddings, takes results, checks their cycles.

The host port is a chip without computations, or rather two: one sends embedding and RoPE rows, the
other receives results, through the same link models and checks as on any chip. So rows of a step
can leave while results of those before are still to come. The rack decides how messages move while
the driver waits, and what happens at a deadline.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from chip.kernels import load as load_kernels
from chip.kernels.vmath import (
    inv_frequencies,
    llama3_scaled_inv_freq,
    rope_tables,
    yarn_inv_freq,
)
from chip.ops.cost import CostModel
from chip.ops.moves import Receive, Send
from chip.ops.program import Program
from chip.ops.rows import row_bytes
from chip.run.chip import Chip, StepMessage
from chip.spec import VECTOR_BYTES
from chip.sram import Sram
from compiler.ir import StepSchedule
from compiler.model.config import ModelConfig
from compiler.model.layer import embedding_scale, embeddings
from compiler.model.rope import LinearRopeScaling, Llama3RopeScaling, YarnRopeScaling
from compiler.model.weights import WeightSource
from compiler.pipeline import CompiledModel
from compiler.schedule.movement import result_bytes
from interconnect.frame import Control
from interconnect.transport import Transport
from rack.run.control import ControlKind
from rack.run.flagged import Flags
from rack.run.job import chip_links, links_of, programs_of
from rack.run.node import ChipNode, LinkSlots, step_control
from rack.run.steps import F32, StepOrder, StepResult


def rope_frequencies(config: ModelConfig) -> NDArray[np.float64]:
    """Return the model's rotary frequencies, [head_dim / 2], or none."""
    if config.rope_theta is None:
        return np.empty(0)
    frequencies = inv_frequencies(config.rope_theta, config.head_dim)
    match config.rope_scaling:
        case Llama3RopeScaling() as llama3:
            return llama3_scaled_inv_freq(
                frequencies, llama3.factor, llama3.low_freq_factor, llama3.high_freq_factor,
                llama3.original_max_position_embeddings,
            )  # fmt: skip
        case YarnRopeScaling() as yarn:
            return yarn_inv_freq(
                frequencies, config.rope_theta, yarn.factor, yarn.beta_fast, yarn.beta_slow,
                yarn.original_max_position_embeddings, truncate=yarn.truncate,
            )  # fmt: skip
        case LinearRopeScaling() as linear:
            return frequencies / linear.factor
        case _:
            return frequencies


def rope_rows(
    config: ModelConfig, positions: Sequence[int], frequencies: NDArray[np.float64]
) -> F32:
    """Return the cosines, then the sines, of each position: [rows, head_dim]."""
    tables = rope_tables(positions, frequencies)
    if isinstance(config.rope_scaling, YarnRopeScaling):
        tables = tables * np.float32(config.rope_scaling.attention_factor)
    return tables.reshape(len(positions), config.head_dim)


def port(program: Program, kind: type[Send] | type[Receive]) -> Program:
    """Return the part of the host's program that sends, or that receives."""
    own = tuple(one for one in program.operations if isinstance(one.op, kind))
    return replace(program, operations=own)


class Driver:
    """Runs steps on a rack of chips that listen on a transport."""

    def __init__(
        self, compiled: CompiledModel, source: WeightSource, transport: Transport,
        slots: LinkSlots | None = None,
    ) -> None:  # fmt: skip
        self.compiled, self.source = compiled, source
        self.sequence = 0
        self._under_way: deque[StepMessage] = deque()
        self._frequencies = rope_frequencies(compiled.config)
        self._tables = tuple(embeddings(compiled.config))
        self._scale = np.float32(embedding_scale(compiled.config))
        host = compiled.layout.chips
        links = links_of(compiled, host)
        self.node = ChipNode(links, host, transport, slots or {})
        size = max(step.host.size for step in compiled.steps.values())
        size = -(-size // VECTOR_BYTES) * VECTOR_BYTES
        self.memory, self.received = Sram(size), Sram(size)

        def make(memory: Sram) -> Chip:
            costs = CostModel(spec=compiled.chip)
            own = chip_links(links)
            return Chip(
                "host", compiled.chip, memory, own, load_kernels(), self.node.send, costs,
                sequences=compiled.sequences,
            )  # fmt: skip

        self._sender = make(self.memory)
        self.node.attach(lambda node: make(self.received))
        for program in programs_of(compiled, host):
            self._sender.load_program(port(program, Send))
            self.node.chip.load_program(port(program, Receive))

    def reset(self) -> None:
        """Begin an epoch on every node: nothing is on the links, no step is under way."""
        control = Control(ControlKind.EPOCH, {"epoch": self.node.epoch + 1})
        for chip in range(self.compiled.layout.chips):
            self.node.transport.send(chip, control)
        self.node.handle(control)
        self._sender.reset()
        self._under_way.clear()

    def start(self, order: StepOrder) -> None:
        """Send step messages to all chips, then the rows' embeddings to the first group.

        Raises KeyError for an unknown step.
        """
        config, rows = self.compiled.config, len(order.positions)
        at = self.compiled.steps[order.name].host
        embedding = self.memory.rows(
            at.embedding, np.float32, rows, config.hidden_size, row_bytes(config.hidden_size, 4)
        )
        for row, numbers in enumerate(self._looked_up(order)):
            first, *others = (
                self.source.f32_rows(name, number, number + 1)[0]
                for name, number in zip(self._tables, numbers, strict=True)
            )
            embedding[row] = sum(others, first)
            if self._scale != 1:
                embedding[row] *= self._scale
        if len(self._frequencies):
            rope = self.memory.rows(
                at.rope, np.float32, rows, config.head_dim, row_bytes(config.head_dim, 4)
            )
            rope[:] = rope_rows(config, order.positions, self._frequencies)
        self.sequence += 1
        message = StepMessage(
            sequence=self.sequence, step=order.name, base_cycle=order.base,
            positions=order.positions, slots=order.slots,
        )  # fmt: skip
        control = step_control(message)
        for chip in range(self.compiled.layout.chips):
            self.node.transport.send(chip, control)
        self._sender.begin(message)
        self._sender.advance()
        self._under_way.append(message)

    def _looked_up(self, order: StepOrder) -> Iterable[tuple[int, ...]]:
        """Return, for each row, the numbers of its rows in the embedding tables."""
        if self.compiled.config.encoder is None:
            return ((token,) for token in order.tokens)
        return zip(order.tokens, order.types, order.positions, strict=True)

    def finish(self, wait: Callable[[], None]) -> list[StepResult]:
        """Return what the oldest step under way gave.

        `wait` moves messages, and returns when the host's program may go on.
        """
        message, chip = self._under_way[0], self.node.chip
        schedule = self.compiled.steps[message.step]
        chip.begin(message)
        while not chip.advance():
            wait()
        self._under_way.popleft()
        kind, cycles, rows = schedule.kind, schedule.cycles, len(message.positions)
        if kind.encode:
            hidden = self._hidden(schedule, rows)
            return [StepResult(cycles=cycles, hidden=hidden)]
        if not kind.decode:
            return [StepResult(cycles=cycles)]
        return [self._row_result(schedule, row) for row in range(rows)]

    @property
    def oldest(self) -> str:
        """The name of the step that `finish` ends, or "none"."""
        return self._under_way[0].step if self._under_way else "none"

    def check_flags(self, flags: Flags) -> None:
        """Raise LinkFlaggedError if the step that `finish` waits for can never end."""
        oldest = self._under_way[0]
        flags.check(self.node.epoch, oldest.sequence, f"step {oldest.step}")

    def _row_result(self, schedule: StepSchedule, row: int) -> StepResult:
        """Return what a decode step gave for one of its rows."""
        cycles, share = schedule.cycles, self.node.chip.checks[row] % (1 << 64)
        if self.compiled.top_k:
            return StepResult(cycles=cycles, top=self._top(schedule, row), hash_share=share)
        return StepResult(cycles=cycles, logits=self._logits(schedule, row), hash_share=share)

    def _results(self, schedule: StepSchedule, row: int) -> list[tuple[int, tuple[int, int]]]:
        """Return (offset in the host's memory, vocabulary span) of every head chip's result."""
        partition, top_k, found = self.compiled.partition, self.compiled.top_k, []
        group = partition.groups[-1]
        for rank, (chip, span) in enumerate(zip(group.chips, group.vocab, strict=True)):
            if chip in schedule.host.results:
                offset = row * result_bytes(partition, rank, top_k)
                found.append((schedule.host.results[chip] + offset, span))
        return found

    def _hidden(self, schedule: StepSchedule, rows: int) -> F32:
        hidden = self.compiled.config.hidden_size
        first, stride = min(schedule.host.results.values()), row_bytes(hidden, 4)
        return self.received.rows(first, np.float32, rows, hidden, stride).copy()

    def _logits(self, schedule: StepSchedule, row: int) -> F32:
        logits = np.empty(self.compiled.config.vocab_size, np.float32)
        for offset, (first, last) in self._results(schedule, row):
            logits[first:last] = self.received.view(offset, np.float32, (last - first,), (4,))
        return logits

    def _top(self, schedule: StepSchedule, row: int) -> tuple[NDArray[np.int64], F32]:
        ids, values = [], []
        for offset, (first, last) in self._results(schedule, row):
            k = min(self.compiled.top_k, last - first)
            ids.append(self.received.view(offset, np.uint32, (k,), (4,)).astype(np.int64))
            values.append(self.received.view(offset + 4 * k, np.float32, (k,), (4,)).copy())
        return np.concatenate(ids), np.concatenate(values)

    def close(self) -> None:
        """Leave the transport and free the memory."""
        self.node.transport.close()
        self.free()

    def free(self) -> None:
        """Free the memory."""
        for memory in (self.memory, self.received):
            memory.close()
